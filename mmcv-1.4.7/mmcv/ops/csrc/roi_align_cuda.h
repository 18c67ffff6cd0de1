// The door between the binding (compiled by the C++ compiler, knows PyTorch) and the kernels (compiled by nvcc).
#pragma once

#include <cuda_runtime_api.h>

#include "roi_align.h"

namespace gpt4roi_mmcv {

enum class Kind { kFloat, kDouble, kHalf, kBFloat16 };

// Pointers are device memory: maps in `kind`, rois and grad_input in float (double for kDouble), argmax int32 or null.
cudaError_t launch_forward(Kind kind, const void* input, const void* rois, void* output, int32_t* argmax,
                           const Problem& problem, cudaStream_t stream);
cudaError_t launch_backward(Kind kind, const void* grad, const void* rois, const int32_t* argmax, void* grad_input,
                            const Problem& problem, cudaStream_t stream);

}  // namespace gpt4roi_mmcv

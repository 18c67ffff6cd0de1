// The CUDA side of the operator: checks, memory and streams. The kernels are in roi_align_kernels.cu.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "checks.h"
#include "roi_align_cuda.h"

namespace gpt4roi_mmcv {
namespace {

Kind kind_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Kind::kFloat;
    case at::kDouble:
      return Kind::kDouble;
    case at::kHalf:
      return Kind::kHalf;
    case at::kBFloat16:
      return Kind::kBFloat16;
    default:
      TORCH_CHECK_VALUE(false, "RoIAlign has no kernel for ", tensor.scalar_type());
  }
}

std::tuple<at::Tensor, at::Tensor> roi_align_cuda(const at::Tensor& input, const at::Tensor& rois, int64_t output_h,
                                                  int64_t output_w, double spatial_scale, int64_t sampling_ratio,
                                                  bool max_pool, bool aligned) {
  const Problem problem = make_problem(input.sizes(), rois, output_h, output_w, spatial_scale, sampling_ratio,
                                       max_pool, aligned);
  check_dtypes(input, rois);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor map = input.contiguous(), boxes = rois.contiguous();
  const std::vector<int64_t> shape{problem.num_rois, problem.channels, output_h, output_w};
  at::Tensor output = at::empty(shape, input.options(), at::MemoryFormat::Contiguous);
  at::Tensor argmax = empty_argmax(input, shape, max_pool);
  if (output.numel() > 0) {
    C10_CUDA_CHECK(launch_forward(kind_of(input), map.const_data_ptr(), boxes.const_data_ptr(),
                                  output.mutable_data_ptr(), argmax.mutable_data_ptr<int32_t>(), problem,
                                  c10::cuda::getCurrentCUDAStream()));
  }
  return {output, argmax};
}

at::Tensor roi_align_backward_cuda(const at::Tensor& grad, const at::Tensor& rois, const at::Tensor& argmax,
                                   int64_t batch, int64_t height, int64_t width, double spatial_scale,
                                   int64_t sampling_ratio, bool max_pool, bool aligned, bool channels_last) {
  const std::vector<int64_t> shape{batch, grad.size(1), height, width};
  const Problem problem =
      make_problem(shape, rois, grad.size(2), grad.size(3), spatial_scale, sampling_ratio, max_pool, aligned);
  check_dtypes(grad, rois);
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::Tensor source = grad.contiguous(), boxes = rois.contiguous(), winners = argmax.contiguous();
  at::Tensor grad_input = at::zeros(shape, grad.options().dtype(rois.scalar_type()));
  if (grad.numel() > 0) {
    at::globalContext().alertNotDeterministic("gpt4roi_mmcv::roi_align_backward on CUDA");
    C10_CUDA_CHECK(launch_backward(kind_of(grad), source.const_data_ptr(), boxes.const_data_ptr(),
                                   winners.const_data_ptr<int32_t>(), grad_input.mutable_data_ptr(), problem,
                                   c10::cuda::getCurrentCUDAStream()));
  }
  return grad_input.to(grad.scalar_type()).contiguous(format_of(channels_last));
}

}  // namespace
}  // namespace gpt4roi_mmcv

TORCH_LIBRARY_IMPL(gpt4roi_mmcv, CUDA, m) {
  m.impl("roi_align", &gpt4roi_mmcv::roi_align_cuda);
  m.impl("roi_align_backward", &gpt4roi_mmcv::roi_align_backward_cuda);
}

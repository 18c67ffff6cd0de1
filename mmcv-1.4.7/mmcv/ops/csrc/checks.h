// What the CPU and the CUDA binding share: checks before memory is touched, and what results look like.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "roi_align.h"

namespace gpt4roi_mmcv {

inline Problem make_problem(at::IntArrayRef map, const at::Tensor& rois, int64_t output_h, int64_t output_w,
                            double spatial_scale, int64_t sampling_ratio, bool max_pool, bool aligned) {
  TORCH_CHECK_VALUE(map.size() == 4 && map[2] > 0 && map[3] > 0, "expected maps [B, C, H, W] with H, W > 0, got ", map);
  TORCH_CHECK_VALUE(rois.dim() == 2 && rois.size(1) == 5, "expected rois [M, 5], got ", rois.sizes());
  TORCH_CHECK_VALUE(output_h > 0 && output_w > 0, "expected a positive output size, got ", output_h, " x ", output_w);
  return {map[0],   map[1],        map[2],         map[3],   rois.size(0), output_h,
          output_w, spatial_scale, sampling_ratio, max_pool, aligned};
}

inline void check_dtypes(const at::Tensor& values, const at::Tensor& rois) {
  TORCH_CHECK_VALUE(rois.scalar_type() == at::toOpMathType(values.scalar_type()), "expected rois in ",
                    at::toOpMathType(values.scalar_type()), " beside ", values.scalar_type(), ", got ",
                    rois.scalar_type());
  TORCH_CHECK_VALUE(rois.device() == values.device(), "expected rois on ", values.device(), ", got ", rois.device());
}

// The winning samples have the shape of the output; the average has none.
inline at::Tensor empty_argmax(const at::Tensor& input, at::IntArrayRef shape, bool max_pool) {
  return at::empty(max_pool ? shape : at::IntArrayRef{0}, input.options().dtype(at::kInt));
}

inline at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace gpt4roi_mmcv

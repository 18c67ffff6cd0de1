// Where the samples of a box fall on the map, for the CPU kernels.
//
// Bilinear interpolation is separable, so a bin of the average is a weighted sum over a few rows and a few columns of
// the map. They are worked out once per box here and shared by all its channels.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "roi_align.h"

namespace gpt4roi_mmcv {

template <typename T>
struct Tap {
  int64_t index;
  T weight;
};

// The taps of one axis of one box in groups: one group per bin (average) or one per sample (max).
template <typename T>
struct AxisTaps {
  std::vector<Tap<T>> taps;
  std::vector<int64_t> ends{0};
  int grid = 0;

  const Tap<T>* begin(int64_t group) const { return taps.data() + ends[group]; }
  const Tap<T>* end(int64_t group) const { return taps.data() + ends[group + 1]; }

  // Adds weight to a cell; samples go upwards, so a cell met before is one of the last two of its group.
  void add(int64_t index, T weight) {
    const int64_t count = static_cast<int64_t>(taps.size());
    for (int64_t k = count - 1; k >= std::max(ends.back(), count - 2); --k) {
      if (taps[k].index == index) {
        taps[k].weight += weight;
        return;
      }
    }
    taps.push_back({index, weight});
  }

  AxisTaps(const Axis<T>& axis, int64_t bins, int64_t size, bool max_pool) : grid(axis.grid) {
    const T share = max_pool ? T(1) : T(1) / static_cast<T>(std::max(grid, 1));
    for (int bin = 0; bin < bins; ++bin) {
      for (int sample = 0; sample < grid; ++sample) {
        const Neighbours<T> pair = neighbours(axis.position(bin, sample), size);
        if (pair.inside) {
          add(pair.low, pair.weight_low * share);
          if (pair.weight_high > T(0)) add(pair.high, pair.weight_high * share);
        }
        if (max_pool) ends.push_back(static_cast<int64_t>(taps.size()));
      }
      if (!max_pool) ends.push_back(static_cast<int64_t>(taps.size()));
    }
  }
};

template <typename T>
struct Box {
  int64_t image;
  AxisTaps<T> rows, columns;
};

// Raises ValueError for boxes that are not finite, inverted (when aligned) or in no image of the batch.
template <typename T>
std::vector<Box<T>> place_boxes(const at::Tensor& rois, const Problem& problem) {
  std::vector<Box<T>> boxes;
  boxes.reserve(problem.num_rois);
  const T* roi = rois.const_data_ptr<T>();
  for (int64_t m = 0; m < problem.num_rois; ++m, roi += 5) {
    for (int k = 0; k < 5; ++k) {
      TORCH_CHECK_VALUE(std::isfinite(roi[k]), "roi ", m, " has a coordinate that is not finite");
    }
    const int64_t image = static_cast<int64_t>(roi[0]);
    TORCH_CHECK_VALUE(roi[0] >= 0 && image < problem.batch, "roi ", m, " names image ", image, " of a batch of ",
                      problem.batch);
    TORCH_CHECK_VALUE(!problem.aligned || (roi[1] <= roi[3] && roi[2] <= roi[4]), "roi ", m,
                      " is inverted: expected x1 <= x2 and y1 <= y2");
    boxes.push_back({image,
                     {make_axis(roi[2], roi[4], problem.output_h, problem), problem.output_h, problem.height,
                      problem.max_pool},
                     {make_axis(roi[1], roi[3], problem.output_w, problem), problem.output_w, problem.width,
                      problem.max_pool}});
  }
  return boxes;
}

}  // namespace gpt4roi_mmcv

// RoIAlign from its definition (He et al., Mask R-CNN, 2017, section 3), shared by the CPU and the CUDA kernels.
// No PyTorch header here: the .cu file includes only this one, so nvcc needs seconds and no PyTorch it knows.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define ROI_INLINE __host__ __device__ __forceinline__
#else
#define ROI_INLINE inline
#endif

namespace gpt4roi_mmcv {

// What is pooled from where. `rois` are rows of (image, x1, y1, x2, y2) in pixels of the input picture.
struct Problem {
  int64_t batch, channels, height, width;
  int64_t num_rois, output_h, output_w;
  double spatial_scale;
  int64_t sampling_ratio;
  bool max_pool, aligned;
};

// One axis of one box on the map: bins of length `bin` from `start` on, each with `grid` samples, in cells.
template <typename T>
struct Axis {
  T start, bin;
  int grid;

  ROI_INLINE T position(int bin_index, int sample) const {
    return start + bin_index * bin + (sample + T(0.5)) * bin / grid;
  }
};

template <typename T>
ROI_INLINE Axis<T> make_axis(T low, T high, int64_t bins, const Problem& problem) {
  const T scale = static_cast<T>(problem.spatial_scale);
  const T offset = problem.aligned ? T(0.5) : T(0);
  Axis<T> axis;
  axis.start = low * scale - offset;
  T length = high * scale - offset - axis.start;
  if (!problem.aligned && !(length > T(1))) length = T(1);
  axis.bin = length / static_cast<T>(bins);
  // An inverted or endless box has no samples of its own; the comparison is false for NaN too.
  const bool countable = axis.bin > T(0) && axis.bin < T(1e9);
  const int cells = countable ? static_cast<int>(std::ceil(axis.bin)) : 0;
  axis.grid = problem.sampling_ratio > 0 ? static_cast<int>(problem.sampling_ratio) : cells;
  return axis;
}

// The two cells that a sample lies between and their weights. Up to one cell outside the map the border cell counts
// with all its weight; farther out nothing does.
template <typename T>
struct Neighbours {
  int low, high;
  T weight_low, weight_high;
  bool inside;
};

template <typename T>
ROI_INLINE Neighbours<T> neighbours(T position, int64_t size) {
  Neighbours<T> pair = {0, 0, T(0), T(0), position >= T(-1) && position <= static_cast<T>(size)};
  if (!pair.inside) return pair;
  const int last = static_cast<int>(size) - 1;
  const T clamped = position < T(0) ? T(0) : (position > static_cast<T>(last) ? static_cast<T>(last) : position);
  pair.low = static_cast<int>(clamped);
  pair.high = pair.low < last ? pair.low + 1 : last;
  pair.weight_high = clamped - static_cast<T>(pair.low);
  pair.weight_low = T(1) - pair.weight_high;
  return pair;
}

}  // namespace gpt4roi_mmcv

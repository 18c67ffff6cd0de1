// The operator: its schema, and its CPU kernels.
//
// The forward pass is parallel over boxes and blocks of channels, the backward pass over images and blocks of channels:
// each block of the gradient has one owner that adds the boxes in their order, so the sums come out the same with any
// number of threads. Maps are read as they lie: plane by plane, or channels-last, where the inner loops run along the
// channels. The maximum has only the first way.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"
#include "roi_align.h"
#include "taps.h"

namespace gpt4roi_mmcv {
namespace {

constexpr int64_t kChannelBlock = 64;  // a tile of 14 x 14 bins by 64 floats fits the second-level cache

// Sums one group of rows by one group of columns of a plane.
template <typename scalar_t, typename T>
T weighted_sum(const scalar_t* plane, const Box<T>& box, int64_t row_group, int64_t column_group, int64_t width) {
  const Tap<T>* first = box.columns.begin(column_group);
  const Tap<T>* last = box.columns.end(column_group);
  T sum = 0;
  for (const Tap<T>* row = box.rows.begin(row_group); row != box.rows.end(row_group); ++row) {
    const scalar_t* line = plane + row->index * width;
    T line_sum = 0;
    for (const Tap<T>* column = first; column != last; ++column) {
      line_sum += column->weight * static_cast<T>(line[column->index]);
    }
    sum += row->weight * line_sum;
  }
  return sum;
}

// Pools one box from one plane of an NCHW map.
template <typename scalar_t, typename T>
void average_plane(const scalar_t* plane, const Box<T>& box, const Problem& problem, scalar_t* output) {
  for (int64_t i = 0; i < problem.output_h; ++i) {
    for (int64_t j = 0; j < problem.output_w; ++j) {
      *output++ = static_cast<scalar_t>(weighted_sum(plane, box, i, j, problem.width));
    }
  }
}

// The same for the maximum; `argmax` gets the first winning sample of each bin, -1 where a bin has no samples.
template <typename scalar_t, typename T>
void maximum_plane(const scalar_t* plane, const Box<T>& box, const Problem& problem, scalar_t* output,
                   int32_t* argmax) {
  const int grid_h = box.rows.grid, grid_w = box.columns.grid;
  for (int64_t i = 0; i < problem.output_h; ++i) {
    for (int64_t j = 0; j < problem.output_w; ++j) {
      T best = 0;
      int32_t winner = -1;
      for (int sample = 0; sample < grid_h * grid_w; ++sample) {
        const T value =
            weighted_sum(plane, box, i * grid_h + sample / grid_w, j * grid_w + sample % grid_w, problem.width);
        if (winner < 0 || value > best) {
          best = value;
          winner = sample;
        }
      }
      *output++ = static_cast<scalar_t>(best);
      *argmax++ = winner;
    }
  }
}

// Pools a block of channels of one box from a channels-last map: the inner loop runs along the channels, which lie side
// by side, and the finished tile is turned into NCHW at the end.
template <typename scalar_t, typename T>
void average_block(const scalar_t* image, const Box<T>& box, const Problem& problem, int64_t first, int64_t count,
                   std::vector<T>& tile, scalar_t* output) {
  const int64_t bins = problem.output_h * problem.output_w;
  tile.assign(bins * kChannelBlock, T(0));
  T* sums = tile.data();
  for (int64_t i = 0; i < problem.output_h; ++i) {
    for (int64_t j = 0; j < problem.output_w; ++j, sums += kChannelBlock) {
      for (const Tap<T>* row = box.rows.begin(i); row != box.rows.end(i); ++row) {
        for (const Tap<T>* column = box.columns.begin(j); column != box.columns.end(j); ++column) {
          const T weight = row->weight * column->weight;
          const scalar_t* cell = image + (row->index * problem.width + column->index) * problem.channels + first;
          for (int64_t c = 0; c < count; ++c) sums[c] += weight * static_cast<T>(cell[c]);
        }
      }
    }
  }
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t bin = 0; bin < bins; ++bin) {
      *output++ = static_cast<scalar_t>(tile[bin * kChannelBlock + c]);
    }
  }
}

template <typename scalar_t>
void forward_cpu(const at::Tensor& input, const at::Tensor& rois, const Problem& problem, bool interleaved,
                 at::Tensor& output, at::Tensor& argmax) {
  using T = at::opmath_type<scalar_t>;
  const std::vector<Box<T>> boxes = place_boxes<T>(rois, problem);
  const scalar_t* source = input.const_data_ptr<scalar_t>();
  scalar_t* target = output.mutable_data_ptr<scalar_t>();
  int32_t* winners = argmax.mutable_data_ptr<int32_t>();
  const int64_t plane = problem.height * problem.width, bins = problem.output_h * problem.output_w;
  const int64_t blocks = (problem.channels + kChannelBlock - 1) / kChannelBlock;
  at::parallel_for(0, problem.num_rois * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> tile;
    for (int64_t item = begin; item < end; ++item) {
      const Box<T>& box = boxes[item / blocks];
      const int64_t first = item % blocks * kChannelBlock;
      const int64_t count = std::min(kChannelBlock, problem.channels - first);
      const scalar_t* image = source + box.image * problem.channels * plane;
      int64_t at = (item / blocks * problem.channels + first) * bins;
      if (interleaved) {
        average_block(image, box, problem, first, count, tile, target + at);
        continue;
      }
      for (int64_t c = first; c < first + count; ++c, at += bins) {
        if (problem.max_pool) {
          maximum_plane(image + c * plane, box, problem, target + at, winners + at);
        } else {
          average_plane(image + c * plane, box, problem, target + at);
        }
      }
    }
  });
}

// Adds the gradient of one group of rows by one group of columns to a plane.
template <typename T>
void spread(T grad, T* plane, const Box<T>& box, int64_t row_group, int64_t column_group, int64_t width) {
  const Tap<T>* first = box.columns.begin(column_group);
  const Tap<T>* last = box.columns.end(column_group);
  for (const Tap<T>* row = box.rows.begin(row_group); row != box.rows.end(row_group); ++row) {
    T* line = plane + row->index * width;
    const T share = grad * row->weight;
    for (const Tap<T>* column = first; column != last; ++column) line[column->index] += share * column->weight;
  }
}

// Adds the gradient of one box to one plane of an NCHW map; `winners` is null for the average.
template <typename scalar_t, typename T>
void spread_plane(const scalar_t* grad, const int32_t* winners, const Box<T>& box, const Problem& problem, T* plane) {
  for (int64_t i = 0; i < problem.output_h; ++i) {
    for (int64_t j = 0; j < problem.output_w; ++j, ++grad) {
      int64_t row_group = i, column_group = j;
      if (winners != nullptr) {
        const int32_t winner = *winners++;
        if (winner < 0) continue;
        row_group = i * box.rows.grid + winner / box.columns.grid;
        column_group = j * box.columns.grid + winner % box.columns.grid;
      }
      spread(static_cast<T>(*grad), plane, box, row_group, column_group, problem.width);
    }
  }
}

// Adds the average's gradient of one box to a block of channels of a channels-last map.
template <typename scalar_t, typename T>
void spread_block(const scalar_t* grad, const Box<T>& box, const Problem& problem, int64_t first, int64_t count,
                  std::vector<T>& tile, T* image) {
  const int64_t bins = problem.output_h * problem.output_w;
  tile.resize(bins * kChannelBlock);
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t bin = 0; bin < bins; ++bin) tile[bin * kChannelBlock + c] = static_cast<T>(*grad++);
  }
  const T* source = tile.data();
  for (int64_t i = 0; i < problem.output_h; ++i) {
    for (int64_t j = 0; j < problem.output_w; ++j, source += kChannelBlock) {
      for (const Tap<T>* row = box.rows.begin(i); row != box.rows.end(i); ++row) {
        for (const Tap<T>* column = box.columns.begin(j); column != box.columns.end(j); ++column) {
          const T weight = row->weight * column->weight;
          T* cell = image + (row->index * problem.width + column->index) * problem.channels + first;
          for (int64_t c = 0; c < count; ++c) cell[c] += weight * source[c];
        }
      }
    }
  }
}

template <typename scalar_t>
void backward_cpu(const at::Tensor& grad, const at::Tensor& rois, const at::Tensor& argmax, const Problem& problem,
                  bool interleaved, at::Tensor& grad_input) {
  using T = at::opmath_type<scalar_t>;
  const std::vector<Box<T>> boxes = place_boxes<T>(rois, problem);
  const scalar_t* source = grad.const_data_ptr<scalar_t>();
  const int32_t* winners = argmax.const_data_ptr<int32_t>();
  T* target = grad_input.mutable_data_ptr<T>();
  const int64_t plane = problem.height * problem.width, bins = problem.output_h * problem.output_w;
  const int64_t blocks = (problem.channels + kChannelBlock - 1) / kChannelBlock;
  at::parallel_for(0, problem.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> tile;
    for (int64_t item = begin; item < end; ++item) {
      T* image = target + item / blocks * problem.channels * plane;
      const int64_t first = item % blocks * kChannelBlock;
      const int64_t count = std::min(kChannelBlock, problem.channels - first);
      for (int64_t m = 0; m < problem.num_rois; ++m) {
        if (boxes[m].image != item / blocks) continue;
        int64_t at = (m * problem.channels + first) * bins;
        if (interleaved) {
          spread_block(source + at, boxes[m], problem, first, count, tile, image);
          continue;
        }
        for (int64_t c = first; c < first + count; ++c, at += bins) {
          spread_plane(source + at, problem.max_pool ? winners + at : nullptr, boxes[m], problem, image + c * plane);
        }
      }
    }
  });
}

std::tuple<at::Tensor, at::Tensor> roi_align_cpu(const at::Tensor& input, const at::Tensor& rois, int64_t output_h,
                                                 int64_t output_w, double spatial_scale, int64_t sampling_ratio,
                                                 bool max_pool, bool aligned) {
  const Problem problem = make_problem(input.sizes(), rois, output_h, output_w, spatial_scale, sampling_ratio,
                                       max_pool, aligned);
  check_dtypes(input, rois);
  const bool interleaved = !max_pool && !input.is_contiguous() && input.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor map = interleaved ? input : input.contiguous();
  const std::vector<int64_t> shape{problem.num_rois, problem.channels, output_h, output_w};
  at::Tensor output = at::empty(shape, input.options(), at::MemoryFormat::Contiguous);
  at::Tensor argmax = empty_argmax(input, shape, max_pool);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "roi_align", [&] {
    forward_cpu<scalar_t>(map, rois.contiguous(), problem, interleaved, output, argmax);
  });
  return {output, argmax};
}

at::Tensor roi_align_backward_cpu(const at::Tensor& grad, const at::Tensor& rois, const at::Tensor& argmax,
                                  int64_t batch, int64_t height, int64_t width, double spatial_scale,
                                  int64_t sampling_ratio, bool max_pool, bool aligned, bool channels_last) {
  const std::vector<int64_t> shape{batch, grad.size(1), height, width};
  const Problem problem =
      make_problem(shape, rois, grad.size(2), grad.size(3), spatial_scale, sampling_ratio, max_pool, aligned);
  check_dtypes(grad, rois);
  const bool interleaved = channels_last && !max_pool;
  // Sums are kept in float32 also for 16-bit gradients, in which small addends would be lost.
  at::Tensor grad_input = at::empty(shape, grad.options().dtype(rois.scalar_type()), format_of(interleaved)).zero_();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "roi_align_backward", [&] {
    backward_cpu<scalar_t>(grad.contiguous(), rois.contiguous(), argmax.contiguous(), problem, interleaved, grad_input);
  });
  return grad_input.to(grad.scalar_type()).contiguous(format_of(channels_last));
}

bool has_cuda() {
#ifdef MMCV_WITH_CUDA
  return true;
#else
  return false;
#endif
}

}  // namespace
}  // namespace gpt4roi_mmcv

TORCH_LIBRARY(gpt4roi_mmcv, m) {
  m.def(
      "roi_align(Tensor input, Tensor rois, int output_h, int output_w, float spatial_scale, int sampling_ratio, "
      "bool max_pool, bool aligned) -> (Tensor output, Tensor argmax)");
  m.def(
      "roi_align_backward(Tensor grad, Tensor rois, Tensor argmax, SymInt batch, SymInt height, SymInt width, "
      "float spatial_scale, int sampling_ratio, bool max_pool, bool aligned, bool channels_last) -> Tensor");
  m.def("has_cuda() -> bool", &gpt4roi_mmcv::has_cuda);
}

TORCH_LIBRARY_IMPL(gpt4roi_mmcv, CPU, m) {
  m.impl("roi_align", &gpt4roi_mmcv::roi_align_cpu);
  m.impl("roi_align_backward", &gpt4roi_mmcv::roi_align_backward_cpu);
}

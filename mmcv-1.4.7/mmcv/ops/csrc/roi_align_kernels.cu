// CUDA kernels: one thread per element of the output. The backward pass adds with atomics, so the order of its sums,
// and with it their last bits, can change from run to run; the CPU kernels have a fixed order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cassert>

#include "roi_align_cuda.h"

namespace gpt4roi_mmcv {
namespace {

constexpr int kThreads = 256;

// One element of the output, taken apart: its box on the map, its bin and the start of its plane of the map.
template <typename T>
struct Element {
  Axis<T> rows, columns;
  int i, j;
  int64_t plane;

  __device__ Element(int64_t index, const T* rois, const Problem& problem) {
    j = static_cast<int>(index % problem.output_w);
    index /= problem.output_w;
    i = static_cast<int>(index % problem.output_h);
    index /= problem.output_h;
    const int64_t channel = index % problem.channels;
    const T* roi = rois + index / problem.channels * 5;
    const int64_t image = static_cast<int64_t>(roi[0]);
    assert(roi[0] >= T(0) && image < problem.batch);
    rows = make_axis(roi[2], roi[4], problem.output_h, problem);
    columns = make_axis(roi[1], roi[3], problem.output_w, problem);
    plane = (image * problem.channels + channel) * problem.height * problem.width;
  }
};

template <typename scalar_t, typename T>
__device__ T bilinear(const scalar_t* plane, const Neighbours<T>& row, const Neighbours<T>& column, int64_t width) {
  if (!row.inside || !column.inside) return T(0);
  const scalar_t* upper = plane + row.low * width;
  const scalar_t* lower = plane + row.high * width;
  const T above = column.weight_low * static_cast<T>(upper[column.low]) +
                  column.weight_high * static_cast<T>(upper[column.high]);
  const T below = column.weight_low * static_cast<T>(lower[column.low]) +
                  column.weight_high * static_cast<T>(lower[column.high]);
  return row.weight_low * above + row.weight_high * below;
}

template <typename T>
__device__ void spread(T grad, T* plane, const Neighbours<T>& row, const Neighbours<T>& column, int64_t width) {
  if (!row.inside || !column.inside) return;
  T* upper = plane + row.low * width;
  T* lower = plane + row.high * width;
  atomicAdd(upper + column.low, grad * row.weight_low * column.weight_low);
  atomicAdd(upper + column.high, grad * row.weight_low * column.weight_high);
  atomicAdd(lower + column.low, grad * row.weight_high * column.weight_low);
  atomicAdd(lower + column.high, grad * row.weight_high * column.weight_high);
}

template <typename scalar_t, typename T>
__global__ void forward_kernel(const scalar_t* input, const T* rois, scalar_t* output, int32_t* argmax,
                               Problem problem, int64_t total) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < total; at += stride) {
    const Element<T> element(at, rois, problem);
    T sum = 0, best = 0;
    int32_t winner = -1;
    for (int a = 0; a < element.rows.grid; ++a) {
      const Neighbours<T> row = neighbours(element.rows.position(element.i, a), problem.height);
      for (int b = 0; b < element.columns.grid; ++b) {
        const Neighbours<T> column = neighbours(element.columns.position(element.j, b), problem.width);
        const T value = bilinear(input + element.plane, row, column, problem.width);
        sum += value;
        if (winner < 0 || value > best) {
          best = value;
          winner = a * element.columns.grid + b;
        }
      }
    }
    if (problem.max_pool) {
      output[at] = static_cast<scalar_t>(best);
      argmax[at] = winner;
    } else {
      const T count = static_cast<T>(element.rows.grid) * static_cast<T>(element.columns.grid);
      output[at] = static_cast<scalar_t>(winner < 0 ? T(0) : sum / count);
    }
  }
}

template <typename scalar_t, typename T>
__global__ void backward_kernel(const scalar_t* grad, const T* rois, const int32_t* argmax, T* grad_input,
                                Problem problem, int64_t total) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < total; at += stride) {
    const Element<T> element(at, rois, problem);
    const int grid_h = element.rows.grid, grid_w = element.columns.grid;
    int first_a = 0, last_a = grid_h, first_b = 0, last_b = grid_w;
    T share = static_cast<T>(grad[at]);
    if (problem.max_pool) {
      if (argmax[at] < 0) continue;
      first_a = argmax[at] / grid_w;
      first_b = argmax[at] % grid_w;
      last_a = first_a + 1;
      last_b = first_b + 1;
    } else {
      share /= static_cast<T>(grid_h) * static_cast<T>(grid_w);
    }
    for (int a = first_a; a < last_a; ++a) {
      const Neighbours<T> row = neighbours(element.rows.position(element.i, a), problem.height);
      for (int b = first_b; b < last_b; ++b) {
        const Neighbours<T> column = neighbours(element.columns.position(element.j, b), problem.width);
        spread(share, grad_input + element.plane, row, column, problem.width);
      }
    }
  }
}

int blocks_for(int64_t total) {
  return static_cast<int>(std::min<int64_t>((total + kThreads - 1) / kThreads, 1 << 20));
}

template <typename scalar_t, typename T>
cudaError_t forward(const void* input, const void* rois, void* output, int32_t* argmax, const Problem& problem,
                    cudaStream_t stream) {
  const int64_t total = problem.num_rois * problem.channels * problem.output_h * problem.output_w;
  forward_kernel<scalar_t, T><<<blocks_for(total), kThreads, 0, stream>>>(
      static_cast<const scalar_t*>(input), static_cast<const T*>(rois), static_cast<scalar_t*>(output), argmax, problem,
      total);
  return cudaGetLastError();
}

template <typename scalar_t, typename T>
cudaError_t backward(const void* grad, const void* rois, const int32_t* argmax, void* grad_input,
                     const Problem& problem, cudaStream_t stream) {
  const int64_t total = problem.num_rois * problem.channels * problem.output_h * problem.output_w;
  backward_kernel<scalar_t, T><<<blocks_for(total), kThreads, 0, stream>>>(
      static_cast<const scalar_t*>(grad), static_cast<const T*>(rois), argmax, static_cast<T*>(grad_input), problem,
      total);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_forward(Kind kind, const void* input, const void* rois, void* output, int32_t* argmax,
                           const Problem& problem, cudaStream_t stream) {
  switch (kind) {
    case Kind::kFloat:
      return forward<float, float>(input, rois, output, argmax, problem, stream);
    case Kind::kDouble:
      return forward<double, double>(input, rois, output, argmax, problem, stream);
    case Kind::kHalf:
      return forward<__half, float>(input, rois, output, argmax, problem, stream);
    case Kind::kBFloat16:
      return forward<__nv_bfloat16, float>(input, rois, output, argmax, problem, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_backward(Kind kind, const void* grad, const void* rois, const int32_t* argmax, void* grad_input,
                            const Problem& problem, cudaStream_t stream) {
  switch (kind) {
    case Kind::kFloat:
      return backward<float, float>(grad, rois, argmax, grad_input, problem, stream);
    case Kind::kDouble:
      return backward<double, double>(grad, rois, argmax, grad_input, problem, stream);
    case Kind::kHalf:
      return backward<__half, float>(grad, rois, argmax, grad_input, problem, stream);
    case Kind::kBFloat16:
      return backward<__nv_bfloat16, float>(grad, rois, argmax, grad_input, problem, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gpt4roi_mmcv

// What the tensor cores' policies fetch of the pointwise weights, and where their results go.
#pragma once

#include "device/async_copy.h"
#include "separable_pyramid/matrix_operand.h"
#include "separable_pyramid/terms.h"
#include "separable_pyramid/tile.h"

namespace jpu::separable_pyramid {

// Begins to fetch a chunk's channels of a block's outputs; 0 for outputs and channels that do not exist.
template <class T>
JPU_DEVICE void fetch_pointwise(const Params& p, const Branch& branch, int first_output, const Chunk& chunk,
                                MatrixOperand<T, kMatrixColumns>& operand) {
  constexpr int V = Vector<T>::kSize;
  const int first = p.level[chunk.level].first + chunk.channel;
  for (int i = thread_index(); i < kMatrixColumns * kUnits; i += kThreads) {
    const int output = i / kUnits, unit = i % kUnits, c = unit * V;
    T* target = operand.at(row_of_output<T>(output), unit);
    const bool exists = first_output + output < p.outputs && c < chunk.count;
    const T* source = static_cast<const T*>(branch.pointwise);
    if (exists) source += int64_t{first_output + output} * p.channels + first + c;
    if (p.weight_vectors) {
      copy_async<kVectorBytes>(target, source, exists ? kVectorBytes : 0);
    } else {
      JPU_UNROLL for (int v = 0; v < V; ++v) {
        store(target + v, exists && c + v < chunk.count ? load(source + v) : T{});
      }
    }
  }
}

// The affine map, ReLU, rounding, and the tile's results in their places.
template <class T>
JPU_DEVICE void write_outputs(const Params& p, int index, int image, int first_output, const Tile& tile,
                              const MatrixSums& sum) {
  constexpr int V = Vector<T>::kSize, kVectors = kWarpSide / (4 * V);
  const Branch& branch = p.branch[index];
  const int row = warp_row() + lane_index() / 4;
  const int first = first_output + warp_column() + lane_index() % 4 * V;
  JPU_UNROLL for (int v = 0; v < kVectors; ++v) {
    float scale[V], shift[V];
    const int column = first + v * 4 * V;
    if (column >= p.outputs) break;
    JPU_UNROLL for (int x = 0; x < V; ++x) {
      const bool exists = column + x < p.outputs;
      const int64_t term = int64_t{index} * p.outputs + column + x;
      scale[x] = exists ? affine_term<float>(p.outer.scale, term, 1) : 0;
      shift[x] = exists ? affine_term<float>(p.outer.shift, term, 0) : 0;
    }
    JPU_UNROLL for (int m = 0; m < kWarpSide / 8; ++m) {
      const Pixel pixel = pixel_of_slot(p, branch.dilation, branch.tiling.shape, tile, row + m * 8);
      if (!pixel.inside) continue;
      T* target = at<T>(p.output, p.output_stride, image, int64_t{index} * p.outputs + column, pixel.y, pixel.x);
      Vector<T> result;
      JPU_UNROLL for (int x = 0; x < V; ++x) {
        float value = multiply_add(scale[x], sum[m / 2][v * (V / 2) + x / 2][m % 2 * 2 + x % 2], shift[x]);
        if (p.relu && value < 0) value = 0;  // NaN passes
        result.at[x] = narrow<T>(value);
      }
      if (p.output_vectors) {
        store_vector(target, result);
      } else {
        JPU_UNROLL for (int x = 0; x < V; ++x) {
          if (column + x < p.outputs) store(target + x * p.output_stride.c, result.at[x]);
        }
      }
    }
  }
}

}  // namespace jpu::separable_pyramid

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
  constexpr int V = Vector<T>::kSize, kRows = kThreads / kUnits;
  static_assert(kRows == kWarpSide, "or rows would be placed otherwise");
  const int unit = thread_index() % kUnits, own = thread_index() / kUnits, c = unit * V;
  const int place = unit_place(row_of_output<T>(own), unit);
  const int64_t row = int64_t{first_output + own} * p.channels + p.level[chunk.level].first + chunk.channel + c;
  JPU_UNROLL for (int n = 0; n < kMatrixColumns / kRows; ++n) {
    T* target = operand.place(moved_place(place, n * kRows / 16, 0));
    const bool exists = first_output + own + n * kRows < p.outputs && c < chunk.count;
    // Of what does not exist no address is made either.
    const T* source = static_cast<const T*>(branch.pointwise) + (exists ? row + int64_t{n * kRows} * p.channels : 0);
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
  float scale[kVectors][V], shift[kVectors][V];
  JPU_UNROLL for (int i = 0; i < kVectors * V; ++i) {
    const int v = i / V, x = i % V, output = first + v * 4 * V + x;
    const int64_t term = int64_t{index} * p.outputs + output;
    scale[v][x] = output < p.outputs ? affine_term<float>(p.outer.scale, term, 1) : 0;
    shift[v][x] = output < p.outputs ? affine_term<float>(p.outer.shift, term, 0) : 0;
  }
  JPU_UNROLL for (int m = 0; m < kWarpSide / 8; ++m) {
    const Pixel pixel = pixel_of_slot(p, branch.dilation, branch.tiling.shape, tile, row + m * 8);
    if (!pixel.inside) continue;
    T* target = at<T>(p.output, p.output_stride, image, int64_t{index} * p.outputs + first, pixel.y, pixel.x);
    JPU_UNROLL for (int v = 0; v < kVectors; ++v) {
      Vector<T> result;
      JPU_UNROLL for (int x = 0; x < V; ++x) {
        float value = multiply_add(scale[v][x], sum[m / 2][v * (V / 2) + x / 2][m % 2 * 2 + x % 2], shift[v][x]);
        if (p.relu && value < 0) value = 0;  // NaN passes
        result.at[x] = narrow<T>(value);
      }
      const int column = v * 4 * V, exist = p.outputs - first - column;
      if (p.output_vectors) {
        if (exist > 0) store_vector(target + column, result);
      } else {
        JPU_UNROLL for (int x = 0; x < V; ++x) {
          if (x < exist) store(target + (column + x) * p.output_stride.c, result.at[x]);
        }
      }
    }
  }
}

}  // namespace jpu::separable_pyramid

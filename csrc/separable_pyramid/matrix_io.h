// What the tensor cores' policies fetch of the pointwise weights, and where their results go.
#pragma once

#include "device/async_copy.h"
#include "separable_pyramid/matrix_operand.h"
#include "separable_pyramid/product_moments.h"
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

// Of a warp's pixels each thread has every 8th.
constexpr int kOwnPixels = kWarpSide / 8;

// Four threads that have the same pixels put vectors of sums at the distance of a vector of results. So 16 bytes of
// padding keep those of half types apart, 64 of float32.
template <class T>
using MatrixGroups = GroupMoments<float, kPixels / kOwnPixels, kMatrixColumns, sizeof(T) == 2 ? 4 : 16>;

// A thread's results: pixel m of its own, element x of its vector v.
template <class T>
JPU_DEVICE float& result_of(MatrixSums& sum, int m, int v, int x) {
  return sum[m / 2][v * (Vector<T>::kSize / 2) + x / 2][m % 2 * 2 + x % 2];
}

// Rounding, and the tile's results in their places. With moments, sums become what was stored of them; without, the
// affine map and ReLU come before.
template <class T, bool kMoments>
JPU_DEVICE void write_outputs(const Params& p, int index, int image, int first_output, const Tile& tile,
                              MatrixSums& sum, bool (&inside)[kOwnPixels]) {
  constexpr int V = Vector<T>::kSize, kVectors = kWarpSide / (4 * V);
  const Branch& branch = p.branch[index];
  const int row = warp_row() + lane_index() / 4;
  const int first = first_output + warp_column() + lane_index() % 4 * V;
  float scale[kVectors][V], shift[kVectors][V];
  JPU_UNROLL for (int i = 0; i < kVectors * V && !kMoments; ++i) {
    const int v = i / V, x = i % V, output = first + v * 4 * V + x;
    const int64_t term = int64_t{index} * p.outputs + output;
    scale[v][x] = output < p.outputs ? affine_term<float>(p.outer.scale, term, 1) : 0;
    shift[v][x] = output < p.outputs ? affine_term<float>(p.outer.shift, term, 0) : 0;
  }
  JPU_UNROLL for (int m = 0; m < kOwnPixels; ++m) {
    const Pixel pixel = pixel_of_slot(p, branch.dilation, branch.tiling.shape, tile, row + m * 8);
    inside[m] = pixel.inside;
    if (!pixel.inside) continue;
    T* target = at<T>(p.output, p.output_stride, image, int64_t{index} * p.outputs + first, pixel.y, pixel.x);
    JPU_UNROLL for (int v = 0; v < kVectors; ++v) {
      Vector<T> result;
      JPU_UNROLL for (int x = 0; x < V; ++x) {
        float& value = result_of<T>(sum, m, v, x);
        if constexpr (!kMoments) {
          value = multiply_add(scale[v][x], value, shift[v][x]);
          if (p.relu && value < 0) value = 0;  // NaN passes
        }
        result.at[x] = narrow<T>(value);
        if constexpr (kMoments) value = widen(result.at[x]);
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

// The end of a block's work.
template <class T, bool kMoments, class M>
JPU_DEVICE void finish_tile(const Params& p, int index, int image, int first_output, const Tile& tile, MatrixSums& sum,
                            M& memory) {
  bool inside[kOwnPixels];
  write_outputs<T, kMoments>(p, index, image, first_output, tile, sum, inside);
  if constexpr (kMoments) {
    write_moments(p, index, image, first_output, tile, memory.groups, [&] {
      constexpr int V = Vector<T>::kSize;
      const int group = warp_row() / kOwnPixels + lane_index() / 4;
      JPU_UNROLL for (int i = 0; i < kWarpSide / 4; i += Vector<float>::kSize) {
        const int v = i / V, x = i % V, column = warp_column() + (v * 4 + lane_index() % 4) * V + x;
        put_moments(memory.groups, group, column, inside, [&](int m, int j) { return result_of<T>(sum, m, v, x + j); });
      }
    });
  }
}

}  // namespace jpu::separable_pyramid

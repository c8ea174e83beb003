// A block's matrix product by tensor cores: 128 pixels by 256 outputs, a chunk of channels at a time. Eight warps,
// each 64 by 64; operands lie in shared memory so that no access to them repeats for a bank conflict.
#pragma once

#include "device/matrix.h"
#include "device/memory.h"
#include "device/thread.h"
#include "separable_pyramid/matrix_config.h"

namespace jpu::separable_pyramid {

JPU_HOST_DEVICE constexpr int parity(int bits) {
  bits ^= bits >> 4;
  bits ^= bits >> 2;
  return (bits ^ bits >> 1) & 1;
}

// The swizzle: where a row's 16-byte unit lies, in units. Rows are 64 bytes, two to a pass over the banks. Units change
// places by the pair of rows, so that the eight rows that ldmatrix reads at once cover all banks. The two rows of a
// pair change places by all higher bits of the row, so that rows which differ in any one of these do not meet either:
// the two that a warp writes at once.
JPU_HOST_DEVICE constexpr int unit_place(int row, int unit) {
  const int first_half = (row & 1) ^ parity(row >> 2);
  return row / 2 * 8 + first_half * kUnits + (unit ^ (row / 2 & 3));
}

// The same of other rows and units, for less: of (row + 16·i, unit ^ 2·k), where row has none of i's bits,
JPU_HOST_DEVICE constexpr int moved_place(int place, int i, int k) {
  return (place ^ (parity(i) * kUnits | 2 * k)) + 64 * i;
}
// and of (row + x, unit), where row is a multiple of 4 and x less than that.
JPU_HOST_DEVICE constexpr int place_beside(int place, int x) { return (place ^ (x % 2 * kUnits | x / 2)) + x / 2 * 8; }

static_assert([] {
  for (int row = 0; row < kMatrixColumns; ++row) {
    for (int unit = 0; unit < kUnits; ++unit) {
      const int place = unit_place(row, unit);
      if (place_beside(unit_place(row / 4 * 4, unit), row % 4) != place) return false;
      for (int k = 0; k < 2; ++k) {
        if (moved_place(unit_place(row % 16, unit), row / 16, k) != unit_place(row, unit ^ 2 * k)) return false;
        if (moved_place(unit_place(row / 64 * 64 + row % 16, unit), row / 16 % 4, k) != unit_place(row, unit ^ 2 * k)) {
          return false;
        }
      }
    }
  }
  return true;
}());

template <class T, int Rows>
struct MatrixOperand {
  static constexpr int kRows = Rows;
  alignas(kVectorBytes) T value[Rows * kChunk<sizeof(T)>];

  JPU_DEVICE T* place(int place) { return &value[place * Vector<T>::kSize]; }
  JPU_DEVICE const T* place(int place) const { return &value[place * Vector<T>::kSize]; }
};

// The row of the right operand that holds an output of the block. A thread has columns 2t and 2t + 1 of each 8 columns
// of the product; placed so, they are whole vectors of consecutive outputs, and four threads' vectors whole sectors.
template <class T>
JPU_HOST_DEVICE constexpr int row_of_output(int output) {
  constexpr int V = Vector<T>::kSize;
  const int vector = output % kWarpSide / (4 * V), thread = output / V % 4, within = output % V;
  return output / kWarpSide * kWarpSide + (vector * (V / 2) + within / 2) * 8 + thread * 2 + within % 2;
}

// The tensor cores' results that a thread holds: [16 rows each][8 columns each][its four of these].
using MatrixSums = float[kWarpSide / 16][kWarpSide / 8][4];

JPU_DEVICE int warp_row() { return warp_index() % 2 * kWarpSide; }
JPU_DEVICE int warp_column() { return warp_index() / 2 * kWarpSide; }

// sum += left · rightᵀ.
template <class T>
JPU_DEVICE void multiply(const MatrixOperand<T, kPixels>& left, const MatrixOperand<T, kMatrixColumns>& right,
                         MatrixSums& sum) {
  converge_warp();
  const int lane = lane_index();
  const int left_place = unit_place(warp_row() + lane % 16, lane / 16);
  const int right_place = unit_place(warp_column() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  JPU_UNROLL for (int k = 0; k < 2; ++k) {
    uint32_t a[kWarpSide / 16][4];
    JPU_UNROLL for (int i = 0; i < kWarpSide / 16; ++i) load_matrices(a[i], left.place(moved_place(left_place, i, k)));
    JPU_UNROLL for (int j = 0; j < kWarpSide / 16; ++j) {
      uint32_t b[4];
      load_matrices(b, right.place(moved_place(right_place, j, k)));
      if constexpr (sizeof(T) == 4) {
        JPU_UNROLL for (int v = 0; v < 4; ++v) b[v] = round_tf32(b[v]);
      }
      JPU_UNROLL for (int i = 0; i < kWarpSide / 16; ++i) {
        multiply_matrices<T>(sum[i][2 * j], a[i], b[0], b[1]);
        multiply_matrices<T>(sum[i][2 * j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

}  // namespace jpu::separable_pyramid

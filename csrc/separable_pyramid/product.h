// The "fma" policy: a block's matrix product by plain multiply-adds.
//
// Sums have two levels: each chunk is summed on its own and then added, so that the rounding error grows with
// the chunk's length and the number of chunks, not with their product.
#pragma once

#include "device/memory.h"
#include "device/thread.h"
#include "separable_pyramid/config.h"

namespace jpu::separable_pyramid {

// Of type A, [k][size]. The padding keeps the threads of a warp that write different k in different banks.
template <class A, int Depth, int Size>
struct Operand {
  static constexpr int kPitch = Size + Vector<A>::kSize;
  alignas(kVectorBytes) A value[Depth * kPitch];

  JPU_DEVICE A* at(int k, int i) { return &value[k * kPitch + i]; }
  JPU_DEVICE const A* at(int k, int i) const { return &value[k * kPitch + i]; }
};

// A thread's share of kPixels × kOutputs: 4 pixels by 8 outputs, and a warp's 32 by 32. Eight outputs are a vector
// of the smallest dtype, so that results leave 16 bytes at a time.
template <class A>
struct Share {
  static constexpr int kRows = 4, kColumns = 8;
  static constexpr int kSize = Vector<A>::kSize;

  JPU_DEVICE static int row_group() { return thread_index() / 32 % 4 * 8 + thread_index() % 8; }
  JPU_DEVICE static int column_group() { return thread_index() / 128 * 4 + thread_index() % 32 / 8; }
  // Vectors of consecutive threads are consecutive, which spreads them over the banks.
  JPU_DEVICE static int row(int i) {
    return i / kSize * (kPixels / (kRows / kSize)) + row_group() * kSize + i % kSize;
  }
  JPU_DEVICE static int column(int j) { return column_group() * kColumns + j; }
};

// total += leftᵀ · right over the first `depth` k.
template <class A, int Depth>
JPU_DEVICE void multiply(const Operand<A, Depth, kPixels>& left, const Operand<A, Depth, kOutputs>& right,
                         A (&total)[4][8]) {
  using S = Share<A>;
  A sum[S::kRows][S::kColumns] = {};
  // Unrolled further, more operands are loaded ahead than there are registers for.
  JPU_UNROLL_BY(4) for (int k = 0; k < Depth; ++k) {
    Vector<A> a[S::kRows / S::kSize], b[S::kColumns / S::kSize];
    JPU_UNROLL for (int i = 0; i < S::kRows / S::kSize; ++i) a[i] = read_vector(left.at(k, S::row(i * S::kSize)));
    JPU_UNROLL for (int j = 0; j < S::kColumns / S::kSize; ++j) b[j] = read_vector(right.at(k, S::column(j * S::kSize)));
    JPU_UNROLL for (int i = 0; i < S::kRows; ++i) {
      JPU_UNROLL for (int j = 0; j < S::kColumns; ++j) {
        sum[i][j] = multiply_add(a[i / S::kSize].at[i % S::kSize], b[j / S::kSize].at[j % S::kSize], sum[i][j]);
      }
    }
  }
  JPU_UNROLL for (int i = 0; i < S::kRows; ++i) {
    JPU_UNROLL for (int j = 0; j < S::kColumns; ++j) total[i][j] += sum[i][j];
  }
}

}  // namespace jpu::separable_pyramid

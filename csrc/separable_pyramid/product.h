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

// A thread's share of Rows × Columns: ThreadRows by ThreadColumns of them, a warp's 8 by 4 such. Columns are
// consecutive, so that results leave 16 bytes at a time.
template <class A, int Rows, int Columns, int ThreadRows, int ThreadColumns>
struct Share {
  static constexpr int kRows = ThreadRows, kColumns = ThreadColumns;
  static constexpr int kSize = Vector<A>::kSize;
  static constexpr int kWarpRows = Rows / (8 * ThreadRows);  // warps side by side
  static_assert(kWarpRows * (Columns / (4 * ThreadColumns)) * 32 == kThreads, "each result has one thread");
  static_assert(ThreadRows % kSize == 0 && ThreadColumns % kSize == 0, "operands are read in vectors");

  JPU_DEVICE static int row_group() { return thread_index() / 32 % kWarpRows * 8 + thread_index() % 8; }
  JPU_DEVICE static int column_group() { return thread_index() / (32 * kWarpRows) * 4 + thread_index() % 32 / 8; }
  // Vectors of consecutive threads are consecutive, which spreads them over the banks.
  JPU_DEVICE static int row(int i) {
    return i / kSize * (Rows / (ThreadRows / kSize)) + row_group() * kSize + i % kSize;
  }
  JPU_DEVICE static int column(int j) { return column_group() * ThreadColumns + j; }
};

// Of pixels by channels. Eight are a vector of the smallest dtype.
template <class A>
using PixelShare = Share<A, kPixels, kColumns, 4, 8>;

// total += leftᵀ · right.
template <class A, int Depth, int Rows, int Columns, int ThreadRows, int ThreadColumns>
JPU_DEVICE void multiply(const Operand<A, Depth, Rows>& left, const Operand<A, Depth, Columns>& right,
                         A (&total)[ThreadRows][ThreadColumns]) {
  using S = Share<A, Rows, Columns, ThreadRows, ThreadColumns>;
  A sum[ThreadRows][ThreadColumns] = {};
  // Unrolled further, more operands are loaded ahead than there are registers for.
  JPU_UNROLL_BY(4) for (int k = 0; k < Depth; ++k) {
    Vector<A> a[ThreadRows / S::kSize], b[ThreadColumns / S::kSize];
    JPU_UNROLL for (int i = 0; i < ThreadRows / S::kSize; ++i) a[i] = read_vector(left.at(k, S::row(i * S::kSize)));
    JPU_UNROLL for (int j = 0; j < ThreadColumns / S::kSize; ++j) {
      b[j] = read_vector(right.at(k, S::column(j * S::kSize)));
    }
    JPU_UNROLL for (int i = 0; i < ThreadRows; ++i) {
      JPU_UNROLL for (int j = 0; j < ThreadColumns; ++j) {
        sum[i][j] = multiply_add(a[i / S::kSize].at[i % S::kSize], b[j / S::kSize].at[j % S::kSize], sum[i][j]);
      }
    }
  }
  JPU_UNROLL for (int i = 0; i < ThreadRows; ++i) {
    JPU_UNROLL for (int j = 0; j < ThreadColumns; ++j) total[i][j] += sum[i][j];
  }
}

}  // namespace jpu::separable_pyramid

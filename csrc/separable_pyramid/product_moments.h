// The end of a block's work in training: moments of its results over its tile's pixels. Each thread has some pixels of
// some outputs; threads that have the same pixels are a group. The groups' moments meet in shared memory, in the place
// of the operands, and are merged in the order of the groups.
#pragma once

#include "common/moments.h"
#include "device/memory.h"
#include "device/thread.h"
#include "separable_pyramid/tile.h"

namespace jpu::separable_pyramid {

// Of the pixels of each group that are inside of the image. `Padding`: elements between groups, for the banks' sake.
template <class A, int Groups, int Columns, int Padding>
struct GroupMoments {
  using Sum = A;
  static constexpr int kGroups = Groups, kColumns = Columns, kPitch = Columns + Padding;
  static_assert(Columns <= kThreads && kPitch % Vector<A>::kSize == 0, "an output a thread; vectors that are aligned");

  alignas(kVectorBytes) A mean[Groups * kPitch];
  alignas(kVectorBytes) A squares[Groups * kPitch];
  A count[Groups];
};

// The shared memory of a kernel: what its main loop needs and, once that is over, moments.
template <class Operands, class Groups, bool kMoments>
union Memory {
  static_assert(sizeof(Groups) <= sizeof(Operands), "or it would take more than inference does");
  Operands operands;
  Groups groups;
};
template <class Operands, class Groups>
union Memory<Operands, Groups, false> {
  Operands operands;
};

// Of the results value(pixel, i), whose outputs are as many consecutive ones as a vector of sums has, from `column` of
// the block on. All of them together, since each is a chain of operations that wait for each other.
template <class G, int Pixels, class F>
JPU_DEVICE void put_moments(G& groups, int group, int column, const bool (&inside)[Pixels], F&& value) {
  using A = typename G::Sum;
  constexpr int V = Vector<A>::kSize;
  A count = 0, sum[V] = {};
  JPU_UNROLL for (int m = 0; m < Pixels; ++m) {
    if (!inside[m]) continue;
    count += 1;
    JPU_UNROLL for (int i = 0; i < V; ++i) sum[i] += value(m, i);
  }
  const A share = 1 / (count > 0 ? count : A(1));
  Vector<A> mean, squares{};
  JPU_UNROLL for (int i = 0; i < V; ++i) mean.at[i] = sum[i] * share;
  JPU_UNROLL for (int m = 0; m < Pixels; ++m) {
    if (!inside[m]) continue;
    JPU_UNROLL for (int i = 0; i < V; ++i) {
      const A distance = value(m, i) - mean.at[i];
      squares.at[i] = multiply_add(distance, distance, squares.at[i]);
    }
  }
  store_vector(&groups.mean[group * G::kPitch + column], mean);
  store_vector(&groups.squares[group * G::kPitch + column], squares);
  if (column == 0) store(&groups.count[group], count);
}

// A group without pixels adds nothing. Means are summed as distances from the first one, whose rounding is that of the
// spread. No pair of groups is merged, as common/moments.h does it, since each would take a division.
template <class G>
JPU_DEVICE Moments<typename G::Sum> merge_groups(const G& groups, int column) {
  using A = typename G::Sum;
  const A first = groups.mean[column];
  A count = 0, sum = 0, squares = 0;
  JPU_UNROLL_BY(16) for (int g = 0; g < G::kGroups; ++g) {
    count += groups.count[g];
    sum = multiply_add(groups.count[g], groups.mean[g * G::kPitch + column] - first, sum);
  }
  const A mean = multiply_add(sum, 1 / (count > 0 ? count : A(1)), first);
  JPU_UNROLL_BY(16) for (int g = 0; g < G::kGroups; ++g) {
    const A distance = groups.mean[g * G::kPitch + column] - mean;
    squares += multiply_add(groups.count[g] * distance, distance, groups.squares[g * G::kPitch + column]);
  }
  return {count, mean, squares};
}

// A thread has an output. The first image's counts are all images'; a tile's block also says of which parts there are
// none, those that follow by whole numbers of tiles.
template <class G>
JPU_DEVICE void store_moments(const Params& p, int index, int image, int first_output, int32_t tile, const G& groups) {
  using A = typename G::Sum;
  const int column = thread_index(), output = first_output + column;
  if (column >= G::kColumns || output >= p.outputs) return;
  const Moments<A> all = merge_groups(groups, column);
  const TileMoments& t = p.tile_moments;
  const int64_t part = (image * t.parts + tile) * p.branches + index;
  A* target = static_cast<A*>(t.moments) + part * 2 * p.outputs + output;
  store(target, all.mean);
  store(target + p.outputs, all.squares);
  if (image != 0 || output != 0) return;
  const int64_t tiles = p.branch[index].tiling.tiles();
  for (int64_t s = tile; s < t.parts; s += tiles) {
    store(t.counts + s * p.branches + index, s == tile ? static_cast<int32_t>(all.count) : 0);
  }
}

// Calls `put`, which puts a thread's moments into the groups.
template <class G, class F>
JPU_DEVICE void write_moments(const Params& p, int index, int image, int first_output, const Tile& tile, G& groups,
                              F&& put) {
  const int32_t part = index_of(p.branch[index].tiling, tile);
  block_barrier();  // nothing reads the operands any more, nor the tile
  put();
  block_barrier();  // all groups are there
  store_moments(p, index, image, first_output, part, groups);
}

}  // namespace jpu::separable_pyramid

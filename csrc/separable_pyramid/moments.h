// Mean and squared differences of z, the depthwise sums, which are never rounded nor stored: a tile's of a thread by
// two passes over them, then merged with those of the tiles before, and in the end with those of other threads. All of
// it on differences from the first z that a thread sees, since a mean that is large beside the deviation would be
// rounded with each merge; a part's is rounded once.
#pragma once

#include "common/moments.h"
#include "separable_pyramid/strips.h"

namespace jpu::separable_pyramid {

template <class T>
struct MomentsShared {
  enum { kCounts, kMeans, kSquares, kShifts, kArrays };
  WalkShared<T, kArrays> walk;
  int32_t pixels[Runs<T>::kStep];  // that threads of one channel have seen
};

// Of what no block has: parts that a branch lacks, and branches that are not wanted.
JPU_DEVICE void write_no_counts(const TrainingParams& t) {
  for (int i = thread_index(); i < t.most_parts * t.all_branches; i += kThreads) {
    const int number = i % t.all_branches;
    int parts = 0;
    for (int b = 0; b < t.forward.branches; ++b) {
      if (t.number[b] == number) parts = t.parts[b];
    }
    if (i / t.all_branches >= parts) store(static_cast<int32_t*>(t.counts) + i, 0);
  }
}

template <class T>
JPU_KERNEL(kThreads, sizeof(Accumulate<T>) == 8 ? 2 : 4)
training_moments(JPU_PARAMS TrainingParams t) {
  using A = Accumulate<T>;
  using S = Strips<T>;
  using Shared = MomentsShared<T>;
  constexpr int kChannels = Runs<T>::kChannels, kGroups = Runs<T>::kStep;
  Shared& shared = shared_memory<Shared>();
  const Params& p = t.forward;
  const Part work = part_of_block<T>(t);
  const Branch& branch = p.branch[work.branch];
  const Level& level = p.level[work.chunk.level];
  const int own = Runs<T>::channel();
  const bool exists = own < work.chunk.count;
  if (block_index() == 0) write_no_counts(t);

  A taps[kTaps] = {};
  if (exists) load_taps<T>(branch, level.first + work.chunk.channel + own, taps);
  Moments<A> total = {0, 0, 0};  // of z − shift
  A shift = 0;
  int32_t pixels = 0;
  auto& free = walk(p, work, shared.walk, [&](const Patch<T, kPixels>& patch, const S& strips) {
    constexpr int kStrip = S::kRows * kRun;
    A value[S::kEach * kStrip] = {};
    bool counts[S::kEach * kStrip];
    JPU_UNROLL for (int e = 0; e < S::kEach; ++e) {
      const int strip = S::number(e), rows = strips.rows[strip], columns = strips.columns[strip];
      A z[S::kRows][kRun] = {};
      if (exists) convolve_strip(patch, branch.tiling.shape, strips.window[strip], level.vectors, taps, z);
      JPU_UNROLL for (int i = 0; i < kStrip; ++i) {
        value[e * kStrip + i] = z[i / kRun][i % kRun];
        counts[e * kStrip + i] = i / kRun < rows && i % kRun < columns;
      }
      pixels += rows * columns;
    }
    JPU_UNROLL for (int e = S::kEach - 1; e >= 0; --e) {
      if (total.count == 0 && counts[e * kStrip]) shift = value[e * kStrip];
    }
    JPU_UNROLL for (int i = 0; i < S::kEach * kStrip; ++i) value[i] -= shift;
    total = merge(total, moments_of(value, counts));
  });

  free.part[Shared::kCounts][thread_index()] = total.count;
  free.part[Shared::kMeans][thread_index()] = total.mean;
  free.part[Shared::kSquares][thread_index()] = total.squares;
  free.part[Shared::kShifts][thread_index()] = shift;
  if (own == 0) shared.pixels[Runs<T>::first()] = pixels;
  block_barrier();
  const int number = t.number[work.branch];
  if (work.image == 0 && block_index() % t.chunks == 0 && thread_index() == kThreads - 1) {
    int32_t sum = 0;
    for (int group = 0; group < kGroups; ++group) sum += shared.pixels[group];
    store(static_cast<int32_t*>(t.counts) + int64_t{work.part} * t.all_branches + number, sum);
  }
  if (thread_index() >= work.chunk.count) return;  // one thread a channel goes on
  total = {0, 0, 0};
  for (int group = 0; group < kGroups; ++group) {
    const int thread = group * kChannels + own;
    const A count = free.part[Shared::kCounts][thread], other = free.part[Shared::kShifts][thread];
    if (count > 0 && total.count == 0) shift = other;
    total = merge(total, {count, other - shift + free.part[Shared::kMeans][thread],
                          free.part[Shared::kSquares][thread]});
  }
  A* target = static_cast<A*>(t.moments) + level.first + work.chunk.channel + own +
              ((int64_t{work.image} * t.most_parts + work.part) * t.all_branches + number) * 2 * p.channels;
  store(target, shift + total.mean);
  store(target + p.channels, total.squares);
}

}  // namespace jpu::separable_pyramid

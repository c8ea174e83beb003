// Merges the moments of parts into those of sets, and makes affine maps of them.
#pragma once

#include "common/moments.h"
#include "common/norm.h"
#include "device/memory.h"
#include "device/thread.h"
#include "norm_statistics/norm_statistics.h"

namespace jpu::norm_statistics {

template <class A>
struct MomentsShared {
  A count[kThreads], mean[kThreads], squares[kThreads];
};

// Of all of them, neighbours first: a mean is rounded once for each doubling, not once for each part.
template <class A, int N>
JPU_DEVICE Moments<A> merge_all(Moments<A> (&part)[N]) {
  JPU_UNROLL for (int step = 1; step < N; step *= 2) {
    JPU_UNROLL for (int i = 0; i + step < N; i += 2 * step) part[i] = merge(part[i], part[i + step]);
  }
  return part[0];
}

// Of N of the block's threads, so far apart.
template <int N, int Step, class A>
JPU_DEVICE Moments<A> merge_threads(const MomentsShared<A>& shared, int first) {
  Moments<A> part[N];
  JPU_UNROLL for (int i = 0; i < N; ++i) {
    const int t = first + i * Step;
    part[i] = {shared.count[t], shared.mean[t], shared.squares[t]};
  }
  return merge_all(part);
}

template <class A>
JPU_DEVICE void leave(MomentsShared<A>& shared, const Moments<A>& moments) {
  shared.count[thread_index()] = moments.count;
  shared.mean[thread_index()] = moments.mean;
  shared.squares[thread_index()] = moments.squares;
}

// Of parts `begin` to `end` - 1 of a channel, counted on through images. What a part without pixels holds is undefined.
template <class A>
JPU_DEVICE Moments<A> merge_parts(const StatisticsParams& p, int index, int channel, int begin, int end) {
  const int64_t step = int64_t{p.branches} * 2 * p.channels;
  const A* moments = static_cast<const A*>(p.moments) + begin * step + int64_t{index} * 2 * p.channels + channel;
  Moments<A> own{0, 0, 0};
  int of_image = begin % p.parts;
  for (; begin < end; begin += kWalk) {
    int32_t count[kWalk];
    JPU_UNROLL for (int i = 0; i < kWalk; ++i) {
      count[i] = begin + i < end ? load(p.counts + int64_t{of_image} * p.branches + index) : 0;
      if (++of_image == p.parts) of_image = 0;
    }
    // No arithmetic in between, or some values would be asked for after others have come.
    A mean[kWalk], squares[kWalk];
    JPU_UNROLL for (int i = 0; i < kWalk; ++i) {
      mean[i] = count[i] > 0 ? load(moments + i * step) : A(0);
      squares[i] = count[i] > 0 ? load(moments + i * step + p.channels) : A(0);
    }
    moments += kWalk * step;
    Moments<A> part[kWalk];
    JPU_UNROLL for (int i = 0; i < kWalk; ++i) part[i] = {static_cast<A>(count[i]), mean[i], squares[i]};
    own = merge(own, merge_all(part));
  }
  return own;
}

template <class T>
JPU_DEVICE void store_statistics(const StatisticsParams& p, int set, int index, int channel, Accumulate<T> mean,
                                 Accumulate<T> variance) {
  using A = Accumulate<T>;
  const Norm& norm = p.norm[index];
  const A weight = norm.weight == nullptr ? A(1) : load_norm<T>(norm.weight, false, channel);
  const A bias = norm.bias == nullptr ? A(0) : load_norm<T>(norm.bias, false, channel);
  const A deviation = square_root(variance + static_cast<A>(norm.eps));
  const A scale = weight / deviation;  // not weight times the rounded inverse: as fixed norms have it elsewhere
  const int64_t row = int64_t{p.branches} * p.channels;
  A* result = static_cast<A*>(p.statistics) + set * (kStatistics * row) + int64_t{index} * p.channels + channel;
  store(result + kMean * row, mean);
  store(result + kVariance * row, variance);
  store(result + kInverseDeviation * row, 1 / deviation);
  store(result + kScale * row, scale);
  store(result + kShift * row, multiply_add(-mean, scale, bias));
}

// A block: kLanes channels of a branch, or a group of channels of an image.
template <class T>
JPU_KERNEL(kThreads, sizeof(Accumulate<T>) == 8 ? 1 : 2)
norm_merge(JPU_PARAMS StatisticsParams p) {
  using A = Accumulate<T>;
  MomentsShared<A>& shared = shared_memory<MomentsShared<A>>();
  const int lane = thread_index() % kLanes, row = thread_index() / kLanes;
  const int tile = static_cast<int>(block_index() % p.tiles);
  const uint32_t rest = block_index() / p.tiles;
  const int index = static_cast<int>(rest % p.branches);
  const int set = static_cast<int>(rest / p.branches);
  const bool groups = p.groups > 0;
  const int size = groups ? p.channels / p.groups : kLanes;
  const int first = tile * size, end = smaller(first + size, p.channels);
  const Norm& norm = p.norm[index];

  if (norm.mean != nullptr) {
    const int c = first + thread_index();
    if (c >= end) return;
    const A mean = load_norm<T>(norm.mean, false, c), variance = load_norm<T>(norm.var, false, c);
    return store_statistics<T>(p, set, index, c, mean, variance);
  }

  // 1. Each thread's own part of the list of parts. Rows take runs of it: what they find empty comes last.
  const int parts = groups ? p.parts : p.images * p.parts;
  const int share = ceil_divide(parts, kRows);
  const int begin = smaller(row * share, parts), stop = smaller(begin + share, parts);
  const int base = set * p.parts;
  Moments<A> own{0, 0, 0};
  for (int c = first + lane; c < end; c += kLanes) {
    own = merge(own, merge_parts<A>(p, index, c, base + begin, base + stop));
  }
  leave(shared, own);
  block_barrier();

  // 2. The rows of each lane.
  if (row == 0) own = merge_threads<kRows, kLanes>(shared, lane);
  if (!groups) {
    const int c = first + lane;
    if (row == 0 && c < end) store_statistics<T>(p, set, index, c, own.mean, own.squares / own.count);
    return;
  }

  // 3. The lanes of the group, whose channels all have the same.
  if (row == 0) leave(shared, own);  // in the place of its own, which no other thread has read
  block_barrier();
  own = merge_threads<kLanes, 1>(shared, 0);
  for (int c = first + thread_index(); c < end; c += kThreads) {
    store_statistics<T>(p, set, index, c, own.mean, own.squares / own.count);
  }
}

}  // namespace jpu::norm_statistics

// Coefficients of a norm's gradient, and what its parameters get, from sums over the pixels of images.
#pragma once

#include "common/norm.h"
#include "device/memory.h"
#include "device/thread.h"
#include "norm_statistics/norm_statistics.h"

namespace jpu::norm_statistics {

template <class A>
struct FoldShared {
  A part[kThreads];
};

// A block: kFoldLanes values of an image.
template <class T>
JPU_KERNEL(kThreads, 4)
norm_fold(JPU_PARAMS FoldParams p) {
  using A = Accumulate<T>;
  FoldShared<A>& shared = shared_memory<FoldShared<A>>();
  const int lane = thread_index() % kFoldLanes, row = thread_index() / kFoldLanes;
  const int64_t image = block_index() / p.tiles, value = int64_t{block_index() % p.tiles} * kFoldLanes + lane;
  const bool exists = value < p.values;
  const A* in = static_cast<const A*>(p.in) + image * p.image_stride + value;
  A sum = 0;
  if (exists) {
    JPU_UNROLL_BY(8) for (int64_t i = row; i < p.parts; i += kFoldRows) sum += load(in + i * p.part_stride);
  }
  shared.part[thread_index()] = sum;
  block_barrier();
  if (row != 0 || !exists) return;
  JPU_UNROLL for (int r = 1; r < kFoldRows; ++r) sum += shared.part[r * kFoldLanes + lane];
  store(static_cast<A*>(p.out) + image * p.values + value, sum);
}

template <class A>
struct SumsShared {
  A part[2][kThreads];
};

template <class A>
struct Coefficients {
  A k, a, b;
};

// Of channel c of a branch: where its sums, statistics and results lie.
template <class T>
struct Channel {
  using A = Accumulate<T>;
  const CoefficientsParams& p;
  int index, channel;

  JPU_DEVICE int64_t row() const { return int64_t{p.branches} * p.channels; }
  JPU_DEVICE int64_t place() const { return int64_t{index} * p.channels + channel; }
  JPU_DEVICE A sum(int64_t image, int which) const {
    return load(static_cast<const A*>(p.sums) + (image * kSums + which) * row() + place());
  }
  JPU_DEVICE A weight() const {
    return p.weight[index] == nullptr ? A(1) : load_norm<T>(p.weight[index], false, channel);
  }
  JPU_DEVICE A inverse(int64_t set) const {
    return load(static_cast<const A*>(p.statistics) + (set * kStatistics + kInverseDeviation) * row() + place());
  }
  JPU_DEVICE void store_coefficients(int64_t set, const Coefficients<A>& of) const {
    A* result = static_cast<A*>(p.coefficients) + set * kCoefficients * row() + place();
    store(result, of.k);
    store(result + row(), of.a);
    store(result + 2 * row(), of.b);
  }
  // Σ dx of an image. Fixed statistics leave x̂ out, even where it is not finite.
  JPU_DEVICE void store_total(int64_t image, const Coefficients<A>& of, bool batch) const {
    A total = of.k * sum(image, 0);
    if (batch) total = multiply_add(-of.b, sum(image, 2), multiply_add(-static_cast<A>(p.pixels), of.a, total));
    store(static_cast<A*>(p.totals) + image * row() + place(), total);
  }
};

// A block: kLanes channels of a branch, of all images.
template <class T>
JPU_DEVICE void serve_channels(const CoefficientsParams& p, uint32_t block, SumsShared<Accumulate<T>>& shared) {
  using A = Accumulate<T>;
  const int lane = thread_index() % kLanes, row = thread_index() / kLanes;
  const int index = static_cast<int>(block / p.channel_tiles);
  const Channel<T> own{p, index, static_cast<int>(block % p.channel_tiles) * kLanes + lane};
  const bool exists = own.channel < p.channels;
  A sum[2] = {};
  for (int image = row; exists && image < p.images; image += kRows) {
    JPU_UNROLL for (int j = 0; j < 2; ++j) sum[j] += own.sum(image, j);
  }
  // Asked for here, so that it comes while other rows are waited for. Groups have it of each image.
  const A k = exists && p.groups == 0 ? own.weight() * own.inverse(0) : A(0);
  JPU_UNROLL for (int j = 0; j < 2; ++j) shared.part[j][thread_index()] = sum[j];
  block_barrier();
  if (!exists) return;
  JPU_UNROLL for (int j = 0; j < 2; ++j) {
    sum[j] = 0;
    JPU_UNROLL for (int r = 0; r < kRows; ++r) sum[j] += shared.part[j][r * kLanes + lane];
  }
  if (row == 0) {
    A* gradients = static_cast<A*>(p.gradients) + own.place();
    store(gradients, sum[1]);
    store(gradients + own.row(), sum[0]);
  }
  if (p.groups > 0) return;

  const bool batch = p.batch[index];
  Coefficients<A> of{k, 0, 0};
  if (batch) {
    const A count = static_cast<A>(p.images * p.pixels);
    of.a = of.k * sum[0] / count;
    of.b = of.k * sum[1] / count;
  }
  if (row == 0) own.store_coefficients(0, of);
  for (int image = row; image < p.images; image += kRows) own.store_total(image, of, batch);
}

// A block: a group of channels of an image.
template <class T>
JPU_DEVICE void serve_group(const CoefficientsParams& p, uint32_t block, SumsShared<Accumulate<T>>& shared) {
  using A = Accumulate<T>;
  const int size = p.channels / p.groups, first = static_cast<int>(block % p.groups) * size;
  const uint32_t rest = block / p.groups;
  const int index = static_cast<int>(rest % p.branches);
  const int64_t image = rest / p.branches;
  A sum[2] = {};
  for (int i = thread_index(); i < size; i += kThreads) {
    const Channel<T> own{p, index, first + i};
    const A weight = own.weight();
    JPU_UNROLL for (int j = 0; j < 2; ++j) sum[j] = multiply_add(weight, own.sum(image, j), sum[j]);
  }
  JPU_UNROLL for (int j = 0; j < 2; ++j) shared.part[j][thread_index()] = sum[j];
  block_barrier();

  // Groups are small as a rule, so threads that have no channel are left out.
  const int threads = smaller(size, kThreads), lanes = smaller(size, kWarpSize);
  if (thread_index() < lanes) {
    JPU_UNROLL for (int j = 0; j < 2; ++j) {
      for (int t = thread_index() + kWarpSize; t < threads; t += kWarpSize) sum[j] += shared.part[j][t];
      shared.part[j][thread_index()] = sum[j];
    }
  }
  block_barrier();
  JPU_UNROLL for (int j = 0; j < 2; ++j) {
    sum[j] = 0;
    for (int t = 0; t < lanes; ++t) sum[j] += shared.part[j][t];
  }

  const A count = static_cast<A>(p.pixels * size);
  for (int i = thread_index(); i < size; i += kThreads) {
    const Channel<T> own{p, index, first + i};
    const A inverse = own.inverse(image);
    const Coefficients<A> of{own.weight() * inverse, inverse * (sum[0] / count), inverse * (sum[1] / count)};
    own.store_coefficients(image, of);
    own.store_total(image, of, true);
  }
}

template <class T>
JPU_KERNEL(kThreads, 3)
norm_coefficients(JPU_PARAMS CoefficientsParams p) {
  SumsShared<Accumulate<T>>& shared = shared_memory<SumsShared<Accumulate<T>>>();
  const uint32_t channel_blocks = static_cast<uint32_t>(p.branches) * p.channel_tiles;
  if (block_index() < channel_blocks) return serve_channels<T>(p, block_index(), shared);
  serve_group<T>(p, block_index() - channel_blocks, shared);
}

}  // namespace jpu::norm_statistics

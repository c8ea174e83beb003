// ẑ = (z − mean) / √(var + eps) as rows, made anew from the levels.
#pragma once

#include "separable_pyramid/strips.h"

namespace jpu::separable_pyramid {

// Element of rows [branches, N·HW, C] where an image's pixels begin.
JPU_DEVICE int64_t first_row(const Params& p, int branch, int image) {
  return (int64_t{branch} * p.batch + image) * p.height * p.width * p.channels;
}

template <class T>
JPU_KERNEL(kThreads, sizeof(Accumulate<T>) == 8 ? 2 : 3)
training_normalised(JPU_PARAMS TrainingParams t) {
  using A = Accumulate<T>;
  using S = Strips<T>;
  WalkShared<T, 0>& shared = shared_memory<WalkShared<T, 0>>();
  const Params& p = t.forward;
  const Part work = part_of_block<T>(t);
  const Branch& branch = p.branch[work.branch];
  const Level& level = p.level[work.chunk.level];
  const int own = Runs<T>::channel();
  const bool exists = own < work.chunk.count;
  const int64_t channel = level.first + work.chunk.channel + own;

  A taps[kTaps] = {}, mean = 0, inverse_deviation = 0;
  if (exists) {
    load_taps<T>(branch, channel, taps);
    const A* statistic = static_cast<const A*>(t.statistics) + work.image * t.statistics_image +
                         int64_t{t.number[work.branch]} * p.channels + channel;
    const int64_t step = int64_t{t.all_branches} * p.channels;
    mean = load(statistic + kMean * step);
    inverse_deviation = load(statistic + kInverseDeviation * step);
  }
  T* target = static_cast<T*>(t.normalised) + first_row(p, work.branch, work.image) + channel;
  walk(p, work, shared, [&](const Patch<T, kPixels>& patch, const S& strips) {
    if (!exists) return;
    JPU_UNROLL for (int e = 0; e < S::kEach; ++e) {
      const int strip = S::number(e), rows = strips.rows[strip], columns = strips.columns[strip];
      const int pixel = strips.pixel[strip];
      A z[S::kRows][kRun];
      convolve_strip(patch, branch.tiling.shape, strips.window[strip], level.vectors, taps, z);
      JPU_UNROLL for (int y = 0; y < S::kRows; ++y) {
        if (y >= rows) break;
        JPU_UNROLL for (int x = 0; x < kRun; ++x) {
          if (x >= columns) break;
          // The mean first: its product with the inverse deviation may be far larger than what is left.
          const int at = pixel + (y * p.width + x) * branch.dilation;
          store(target + int64_t{at} * p.channels, narrow<T>((z[y][x] - mean) * inverse_deviation));
        }
      }
    }
  });
}

}  // namespace jpu::separable_pyramid

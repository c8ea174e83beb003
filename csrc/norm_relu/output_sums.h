// What a norm's gradient is made of, summed up over parts of an image.
#pragma once

#include "norm_relu/row_terms.h"

namespace jpu::norm_relu {

// A thread's sums between its runs, which registers have no room for beside those of a run.
template <class T, int V>
struct SumSlots {
  using A = Accumulate<T>;
  // From the threads' sums of one channel to those of the next: those of a warp's lanes, which are combined channel by
  // channel, lie in different banks.
  static constexpr int kPitch = kThreads + 128 / static_cast<int>(sizeof(A)) / V;
  A at[kSums * V * kPitch];
};

// Of the rows of a tile, in their order, by runs as threads do it.
template <class A>
JPU_DEVICE A sum_of_rows(const A* first, int rows, int lanes) {
  A total = 0;
  for (int begin = 0; begin < rows; begin += kRun) {
    const int end = smaller(begin + kRun, rows);
    A run = first[begin * lanes];
    for (int row = begin + 1; row < end; ++row) run += first[row * lanes];
    total += run;
  }
  return total;
}

template <class T, int V>
JPU_KERNEL(kThreads, 2)
rows_output_sums(JPU_PARAMS RowParams p) {
  using A = Accumulate<T>;
  using Slots = SumSlots<T, V>;
  Slots& slots = shared_memory<Slots>();
  const RowPlace place = place_in_rows<V>(p);
  const int64_t part = place.rest % static_cast<uint32_t>(p.parts), image = place.rest / static_cast<uint32_t>(p.parts);

  // 1. Each thread's own pixels.
  if (place.takes_part) {
    const Part pixels = part_of(p.pixels, p.parts, static_cast<int>(part));
    const int own = own_pixels(pixels.count - place.row, p.rows, pixels.count);
    const int64_t begin = (image * p.pixels + pixels.first + place.row) * p.pitch + place.channel;
    const int64_t step = int64_t{p.rows} * p.pitch;
    const T* gradient = static_cast<const T*>(p.gradient) + begin;
    const T* q = static_cast<const T*>(p.q) + begin;

    A mean[V], rstd[V], scale[V], shift[V];
    const int64_t set = p.sets == 1 ? 0 : image;
    const A* terms = static_cast<const A*>(p.statistics) + set * kStatistics * p.pitch + place.channel;
    load_terms<V>(terms + int64_t{kMean} * p.pitch, mean);
    load_terms<V>(terms + int64_t{kInverseDeviation} * p.pitch, rstd);
    load_terms<V>(terms + int64_t{kScale} * p.pitch, scale);
    load_terms<V>(terms + int64_t{kShift} * p.pitch, shift);

    int i = 0;
    JPU_UNROLL_BY(1) do {  // once at least, so that a thread without pixels leaves zeros
      A sum[kSums][V] = {};
      const int run_end = smaller(own, i + kRun);
      JPU_UNROLL_BY(1) for (int j = i; j < run_end; j += kGradientPixels) {
        Pack<T, V> g[kGradientPixels] = {}, x[kGradientPixels] = {};
        JPU_UNROLL for (int k = 0; k < kGradientPixels; ++k) {
          if (j + k < run_end) {
            g[k] = load_pack<T, V>(gradient + k * step);
            x[k] = load_pack<T, V>(q + k * step);
          }
        }
        JPU_UNROLL for (int k = 0; k < kGradientPixels; ++k) {
          if (j + k >= run_end) break;
          A g_of[V], q_of[V];
          unpack(g[k], g_of);
          unpack(x[k], q_of);
          JPU_UNROLL for (int v = 0; v < V; ++v) {
            const A passed = behind_relu<T>(g_of[v], q_of[v], scale[v], shift[v]);
            const A normalised = (q_of[v] - mean[v]) * rstd[v];
            sum[0][v] += passed;
            sum[1][v] = multiply_add(passed, normalised, sum[1][v]);
            sum[2][v] += normalised;
          }
        }
        gradient += kGradientPixels * step;
        q += kGradientPixels * step;
      }
      JPU_UNROLL for (int s = 0; s < kSums; ++s) {
        JPU_UNROLL for (int v = 0; v < V; ++v) {
          A& slot = slots.at[(s * V + v) * Slots::kPitch + thread_index()];
          slot = i == 0 ? sum[s][v] : slot + sum[s][v];
        }
      }
      i += kRun;
    } while (i < own);
  }
  block_barrier();

  // 2. Those of the threads that share a channel.
  const int width = p.lanes * V;
  const int64_t first_channel = int64_t{block_index() % static_cast<uint32_t>(p.channel_tiles)} * width;
  A* out = static_cast<A*>(p.out) + (image * p.parts + part) * kSums * p.pitch + first_channel;
  for (int i = thread_index(); i < kSums * width; i += kThreads) {
    const int s = i / width, c = i % width;
    if (first_channel + c >= p.channels) continue;
    const A* slot = slots.at + (s * V + c % V) * Slots::kPitch + c / V;
    store(out + int64_t{s} * p.pitch + c, sum_of_rows(slot, p.rows, p.lanes));
  }
}

}  // namespace jpu::norm_relu

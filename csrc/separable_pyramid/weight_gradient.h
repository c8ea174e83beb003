// B = Σ g · hᵀ over pixels, and Σ g: what the gradients of pointwise weights and output terms are made of. A block
// makes a square of one branch from every so-manieth tile of pixels; reduce.h adds the blocks of a square up.
#pragma once

#include "separable_pyramid/gradient.h"

namespace jpu::separable_pyramid {

template <class T>
struct WeightShared {
  static constexpr int kSide = kWeightSide<sizeof(Accumulate<T>)>;
  Patch<T, kWeightPixels> patch;
  Operand<Accumulate<T>, kWeightPixels, kSide> gradient;    // g, [pixel][output]
  Operand<Accumulate<T>, kWeightPixels, kSide> normalised;  // h, [pixel][channel]
};

// g of a tile.
template <class T>
JPU_DEVICE void gather_gradient(const GradientParams& g, int index, int image, int first_output, const Tile& tile,
                                WeightShared<T>& shared) {
  constexpr int V = Vector<T>::kSize;
  const Branch& branch = g.forward.branch[index];
  for (int i = thread_index(); i < kWeightPixels * (WeightShared<T>::kSide / V); i += kThreads) {
    const int m = i / (WeightShared<T>::kSide / V), o = i % (WeightShared<T>::kSide / V) * V;
    const Pixel pixel = pixel_of_slot(g.forward, branch.dilation, branch.weight_tiling.shape, tile, m);
    Accumulate<T> value[V];
    load_gradient<T>(g, index, image, pixel, first_output + o, value);
    store_row(shared.gradient.at(m, o), value);
  }
}

// h of a tile, for the chunk that fills columns `column` and on.
template <class T>
JPU_DEVICE void gather_normalised(const Params& p, int index, int image, const Chunk& chunk, int column,
                                  WeightShared<T>& shared) {
  using A = Accumulate<T>;
  const Branch& branch = p.branch[index];
  const Shape& shape = branch.weight_tiling.shape;
  const int own = Runs<T>::channel();
  A scale = 1, shift = 0, taps[9] = {};
  if (own < chunk.count) {
    const int64_t channel = p.level[chunk.level].first + chunk.channel + own;
    load_inner(p, index, image, channel, scale, shift);
    load_taps<T>(branch, channel, taps);
  }
  for (int r = Runs<T>::first(); r < kWeightPixels / kRun; r += Runs<T>::kStep) {
    const Run run = run_at(shape, r);
    A h[kRun] = {};
    if (own < chunk.count) {
      normalise_run(shared.patch, shape, run.window, p.level[chunk.level].vectors, taps, scale, shift, h);
    }
    // Slots without a pixel have g = 0, but h need not be finite there.
    JPU_UNROLL for (int x = 0; x < kRun; ++x) {
      const bool inside = pixel_of_slot(p, branch.dilation, shape, shared.patch.tile, run.slot + x).inside;
      store(shared.normalised.at(run.slot + x, column + own), inside ? h[x] : A(0));
    }
  }
}

template <class T>
JPU_KERNEL(kThreads, sizeof(Accumulate<T>) == 8 ? 1 : 2)
pyramid_weight_gradient(JPU_PARAMS GradientParams g) {
  using A = Accumulate<T>;
  constexpr int kSide = WeightShared<T>::kSide, kSize = kChunk<sizeof(T)>, kThreadSide = kSide / 16;
  static_assert(kSide % kSize == 0, "whole chunks side by side");
  using S = Share<A, kSide, kSide, kThreadSide, kThreadSide>;
  WeightShared<T>& shared = shared_memory<WeightShared<T>>();
  const Params& p = g.forward;

  uint32_t rest = block_index();
  const int channel_tile = static_cast<int>(rest % g.weight_channel_tiles);
  rest /= g.weight_channel_tiles;
  const int output_tile = static_cast<int>(rest % g.weight_output_tiles);
  rest /= g.weight_output_tiles;
  const int split = static_cast<int>(rest % g.splits), index = static_cast<int>(rest / g.splits);
  const Branch& branch = p.branch[index];
  const Shape& shape = branch.weight_tiling.shape;
  const int64_t tiles = branch.weight_tiling.tiles();

  A total[kThreadSide][kThreadSide] = {}, gradient_total = 0;
  for (int64_t t = split; t < tiles * p.batch; t += g.splits) {
    const int image = static_cast<int>(t / tiles);
    const Tile tile = tile_at(branch.weight_tiling, static_cast<int32_t>(t % tiles));
    block_barrier();  // the tile before is multiplied
    place_patch(p, branch.dilation, shape, tile, shared.patch);
    gather_gradient(g, index, image, output_tile * kSide, tile, shared);
    for (int j = 0; j < kSide / kSize; ++j) {
      const Chunk chunk = nth_chunk<kSize>(p, channel_tile * (kSide / kSize) + j);
      block_barrier();  // the patch is placed, or the chunk before is read
      if (chunk.count > 0) fetch_patch(p, branch.dilation, shape, chunk, image, shared.patch);
      wait_copies<0>();
      block_barrier();
      gather_normalised(p, index, image, chunk, j * kSize, shared);
    }
    block_barrier();
    multiply<A, kWeightPixels, kSide, kSide>(shared.gradient, shared.normalised, total);
    if (channel_tile == 0 && thread_index() < kSide) {
      A sum = 0;
      for (int m = 0; m < kWeightPixels; ++m) sum += *shared.gradient.at(m, thread_index());
      gradient_total += sum;
    }
  }

  const int64_t square = int64_t{split} * p.branches + index;  // of [S, D, O, C]
  A* products = static_cast<A*>(g.products) + square * p.outputs * p.channels;
  JPU_UNROLL for (int j = 0; j < kThreadSide; ++j) {
    const int column = S::column(j);
    const Chunk chunk = nth_chunk<kSize>(p, channel_tile * (kSide / kSize) + column / kSize);
    if (column % kSize >= chunk.count) continue;
    const int channel = p.level[chunk.level].first + chunk.channel + column % kSize;
    JPU_UNROLL for (int i = 0; i < kThreadSide; ++i) {
      const int output = output_tile * kSide + S::row(i);
      if (output < p.outputs) store(products + int64_t{output} * p.channels + channel, total[i][j]);
    }
  }
  const int output = output_tile * kSide + thread_index();
  if (channel_tile == 0 && thread_index() < kSide && output < p.outputs) {
    store(static_cast<A*>(g.sums) + square * p.outputs + output, gradient_total);
  }
}

}  // namespace jpu::separable_pyramid

// Adds up, in a fixed order, what blocks left behind: the gradients of weights and affine terms.
#pragma once

#include "separable_pyramid/input_gradient.h"

namespace jpu::separable_pyramid {

// The terms of so many channels are added up by this many rows of threads, each every so-manieth tile.
constexpr int kReduceChannels = 32;
constexpr int kReduceRows = kThreads / kReduceChannels;

template <class A>
struct ReduceShared {
  A part[kTerms][kThreads];
};

// A block: one output of one branch.
template <class T>
JPU_DEVICE void reduce_output(const GradientParams& g, int index, int output, ReduceShared<Accumulate<T>>& shared) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const int64_t row = int64_t{index} * p.outputs + output;
  const A scale = affine_term(p.outer.scale, row, A(1));
  const int64_t split = int64_t{p.branches} * p.outputs;
  A scale_sum = 0;
  for (int c = thread_index(); c < p.channels; c += kThreads) {
    A sum = 0;
    for (int s = 0; s < g.splits; ++s) {
      sum += load(static_cast<const A*>(g.products) + (s * split + row) * p.channels + c);
    }
    if (g.pointwise != nullptr) store(static_cast<T*>(g.pointwise) + row * p.channels + c, narrow<T>(scale * sum));
    const T weight = load(static_cast<const T*>(p.branch[index].pointwise) + int64_t{output} * p.channels + c);
    scale_sum = multiply_add(A(widen(weight)), sum, scale_sum);
  }
  shared.part[0][thread_index()] = scale_sum;
  block_barrier();
  if (thread_index() != 0) return;
  if (g.outer_scale != nullptr) {
    A sum = 0;
    for (int t = 0; t < kThreads; ++t) sum += shared.part[0][t];
    store(static_cast<A*>(g.outer_scale) + row, sum);
  }
  if (g.outer_shift != nullptr) {
    A sum = 0;
    for (int s = 0; s < g.splits; ++s) sum += load(static_cast<const A*>(g.sums) + s * split + row);
    store(static_cast<A*>(g.outer_shift) + row, sum);
  }
}

// A block: kReduceChannels channels of one branch.
template <class T>
JPU_DEVICE void reduce_channels(const GradientParams& g, int index, int first, ReduceShared<Accumulate<T>>& shared) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const Branch& branch = p.branch[index];
  const int own = thread_index() % kReduceChannels, row = thread_index() / kReduceChannels;
  const int channel = first + own;
  const bool exists = channel < p.channels;
  // One group a set of affine terms: the images, or all of them together.
  const bool by_image = p.inner.scale_image != 0 || p.inner.shift_image != 0;
  const int64_t tiles = branch.tiling.tiles() * (by_image ? 1 : p.batch);
  const int groups = by_image ? p.batch : 1;
  const int64_t term = int64_t{index} * p.channels + channel;
  A taps[9] = {}, weight[9] = {}, scale_sum = 0, shift_sum = 0;
  if (exists) load_taps<T>(branch, channel, weight);
  for (int group = 0; group < groups; ++group) {
    A sum[kTerms] = {};
    for (int64_t t = row; exists && t < tiles; t += kReduceRows) {
      const A* terms = static_cast<const A*>(g.terms) + (branch.first_tile + group * tiles + t) * kTerms * p.channels;
      JPU_UNROLL for (int i = 0; i < kTerms; ++i) sum[i] += load(terms + int64_t{i} * p.channels + channel);
    }
    block_barrier();  // the group before is added up
    JPU_UNROLL for (int i = 0; i < kTerms; ++i) shared.part[i][thread_index()] = sum[i];
    block_barrier();
    if (row != 0 || !exists) continue;
    JPU_UNROLL for (int i = 0; i < kTerms; ++i) {
      sum[i] = 0;
      for (int r = 0; r < kReduceRows; ++r) sum[i] += shared.part[i][r * kReduceChannels + own];
    }
    A scale, shift, scale_gradient = 0;
    load_inner(p, index, group, channel, scale, shift);
    JPU_UNROLL for (int i = 0; i < 9; ++i) {
      taps[i] = multiply_add(scale, sum[i], taps[i]);
      scale_gradient = multiply_add(weight[i], sum[i], scale_gradient);
    }
    scale_sum += scale_gradient;
    shift_sum += sum[9];
    if (g.inner_scale != nullptr && p.inner.scale_image != 0) {
      store(static_cast<A*>(g.inner_scale) + group * p.inner.scale_image + term, scale_gradient);
    }
    if (g.inner_shift != nullptr && p.inner.shift_image != 0) {
      store(static_cast<A*>(g.inner_shift) + group * p.inner.shift_image + term, sum[9]);
    }
  }
  if (row != 0 || !exists) return;
  if (g.depthwise != nullptr) {
    JPU_UNROLL for (int i = 0; i < 9; ++i) store(static_cast<T*>(g.depthwise) + 9 * term + i, narrow<T>(taps[i]));
  }
  if (g.inner_scale != nullptr && p.inner.scale_image == 0) store(static_cast<A*>(g.inner_scale) + term, scale_sum);
  if (g.inner_shift != nullptr && p.inner.shift_image == 0) store(static_cast<A*>(g.inner_shift) + term, shift_sum);
}

template <class T>
JPU_KERNEL(kThreads, 1)
pyramid_reduce(JPU_PARAMS GradientParams g) {
  ReduceShared<Accumulate<T>>& shared = shared_memory<ReduceShared<Accumulate<T>>>();
  const Params& p = g.forward;
  const uint32_t rows = static_cast<uint32_t>(g.reduce_rows);
  if (block_index() < rows) {
    reduce_output<T>(g, static_cast<int>(block_index() / p.outputs), static_cast<int>(block_index() % p.outputs), shared);
    return;
  }
  const uint32_t rest = block_index() - rows;
  const uint32_t groups = static_cast<uint32_t>(ceil_divide(p.channels, kReduceChannels));
  reduce_channels<T>(g, static_cast<int>(rest / groups), static_cast<int>(rest % groups) * kReduceChannels, shared);
}

}  // namespace jpu::separable_pyramid

// The whole pyramid: a block makes kColumns channels of one branch for one tile of pixels. Chunk by chunk of
// input channels: patch → depthwise, affine, rounded → product; the next patch is fetched meanwhile.
#pragma once

#include "separable_pyramid/patch.h"
#include "separable_pyramid/product.h"
#include "separable_pyramid/product_moments.h"
#include "separable_pyramid/terms.h"

namespace jpu::separable_pyramid {

template <class T>
struct ForwardShared {
  Patch<T, kPixels> patch;
  Operand<Accumulate<T>, kChunk<sizeof(T)>, kPixels> normalised;  // h
  Operand<Accumulate<T>, kChunk<sizeof(T)>, kColumns> pointwise;
};

// Of the 8 by 4 threads of a warp those of a row of them have the same pixels.
template <class A>
using ForwardGroups = GroupMoments<A, kPixels / PixelShare<A>::kRows, kColumns, Vector<A>::kSize>;
template <class T, bool kMoments>
using ForwardMemory = Memory<ForwardShared<T>, ForwardGroups<Accumulate<T>>, kMoments>;

// What a thread needs of a chunk beside the patch, held in registers while the chunk before is multiplied.
template <class T>
struct Weights {
  T depthwise[9];
  Vector<T> pointwise;  // of output thread / 4, a quarter of the chunk's channels
};

template <class T>
JPU_DEVICE Weights<T> load_weights(const Params& p, const Branch& branch, int first_output, const Chunk& chunk) {
  constexpr int V = Vector<T>::kSize;
  static_assert(kChunk<sizeof(T)> == 4 * V && kThreads == 4 * kColumns, "a vector a thread");
  Weights<T> w{};
  const int first = p.level[chunk.level].first + chunk.channel;
  const int own = Runs<T>::channel();
  if (own < chunk.count) {
    const T* taps = static_cast<const T*>(branch.depthwise) + 9 * int64_t{first + own};
    JPU_UNROLL for (int i = 0; i < 9; ++i) w.depthwise[i] = load(taps + i);
  }
  const int output = first_output + thread_index() / 4, c = thread_index() % 4 * V;
  if (output < p.outputs && c < chunk.count) {
    const T* row = static_cast<const T*>(branch.pointwise) + int64_t{output} * p.channels + first + c;
    if (p.pointwise_vectors) {
      w.pointwise = load_vector(row);
    } else {
      JPU_UNROLL for (int v = 0; v < V; ++v) {
        if (c + v < chunk.count) w.pointwise.at[v] = load(row + v);
      }
    }
  }
  return w;
}

// h of the chunk; 0 for channels that it lacks.
template <class T>
JPU_DEVICE void normalise(const Params& p, int index, int image, const Chunk& chunk, const Shape& shape,
                          const Patch<T, kPixels>& patch, const Weights<T>& w,
                          Operand<Accumulate<T>, kChunk<sizeof(T)>, kPixels>& result) {
  using A = Accumulate<T>;
  const Level& level = p.level[chunk.level];
  const int own = Runs<T>::channel();
  A scale = 1, shift = 0, taps[9];
  if (own < chunk.count) load_inner(p, index, image, level.first + chunk.channel + own, scale, shift);
  JPU_UNROLL for (int i = 0; i < 9; ++i) taps[i] = widen(w.depthwise[i]);
  for (int r = Runs<T>::first(); r < kPixels / kRun; r += Runs<T>::kStep) {
    const Run run = run_at(shape, r);
    A h[kRun] = {};
    if (own < chunk.count) normalise_run(patch, shape, run.window, level.vectors, taps, scale, shift, h);
    JPU_UNROLL for (int x = 0; x < kRun; x += Vector<A>::kSize) {
      Vector<A> part;
      JPU_UNROLL for (int v = 0; v < Vector<A>::kSize; ++v) part.at[v] = h[x + v];
      store_vector(result.at(own, run.slot + x), part);
    }
  }
}

// With moments, sums become what was stored of them; without, the affine map and ReLU come before.
template <class T, bool kMoments>
JPU_DEVICE void write_outputs(const Params& p, int index, int image, int first_output, const Tile& tile,
                              Accumulate<T> (&total)[4][8], bool (&inside)[4]) {
  using A = Accumulate<T>;
  using S = PixelShare<A>;
  constexpr int V = Vector<T>::kSize;
  const int first = first_output + S::column(0);
  A scale[S::kColumns], shift[S::kColumns];
  JPU_UNROLL for (int j = 0; j < S::kColumns && !kMoments; ++j) {
    const bool exists = first + j < p.outputs;
    const int64_t term = int64_t{index} * p.outputs + first + j;
    scale[j] = exists ? affine_term<A>(p.outer.scale, term, A(1)) : A(0);
    shift[j] = exists ? affine_term<A>(p.outer.shift, term, A(0)) : A(0);
  }
  JPU_UNROLL for (int i = 0; i < S::kRows; ++i) {
    const Pixel pixel = pixel_of_slot(p, p.branch[index].dilation, p.branch[index].tiling.shape, tile, S::row(i));
    inside[i] = pixel.inside;
    if (!pixel.inside) continue;
    T* target = at<T>(p.output, p.output_stride, image, int64_t{index} * p.outputs + first, pixel.y, pixel.x);
    Vector<T> result[S::kColumns / V];
    JPU_UNROLL for (int j = 0; j < S::kColumns; ++j) {
      A value = total[i][j];
      if constexpr (!kMoments) {
        value = multiply_add(scale[j], value, shift[j]);
        if (p.relu && value < 0) value = 0;  // NaN passes
      }
      result[j / V].at[j % V] = narrow<T>(value);
      if constexpr (kMoments) total[i][j] = widen(result[j / V].at[j % V]);
    }
    JPU_UNROLL for (int j = 0; j < S::kColumns; ++j) {
      if (first + j >= p.outputs) break;
      if (!p.output_vectors) {
        store(target + j * p.output_stride.c, result[j / V].at[j % V]);
      } else if (j % V == 0) {
        store_vector(target + j, result[j / V]);
      }
    }
  }
}

template <class T, bool kMoments>
// Two blocks a multiprocessor hide each other's barriers; float64's registers allow one.
JPU_KERNEL(kThreads, sizeof(Accumulate<T>) == 8 ? 1 : 2)
pyramid_forward(JPU_PARAMS Params p) {
  using A = Accumulate<T>;
  constexpr int kSize = kChunk<sizeof(T)>;
  auto& memory = shared_memory<ForwardMemory<T, kMoments>>();
  ForwardShared<T>& shared = memory.operands;

  const Work work = work_of_block(p, &Branch::first_block, p.output_tiles);
  const int index = work.branch, image = work.image, first_output = work.share * kColumns;
  const Branch& branch = p.branch[index];
  const Shape& shape = branch.tiling.shape;
  place_patch(p, branch.dilation, shape, tile_at(branch.tiling, work.tile), shared.patch);
  block_barrier();
  A total[4][8] = {};
  Chunk chunk = chunk_at<kSize>(p, 0, 0);
  Weights<T> weights{};
  if (chunk.count > 0) {
    fetch_patch(p, branch.dilation, shape, chunk, image, shared.patch);
    weights = load_weights<T>(p, branch, first_output, chunk);
  }
  while (chunk.count > 0) {
    wait_copies<0>();
    block_barrier();  // the patch is there, and the product before is done
    normalise(p, index, image, chunk, shape, shared.patch, weights, shared.normalised);
    JPU_UNROLL for (int v = 0; v < Vector<T>::kSize; ++v) {
      store(shared.pointwise.at(thread_index() % 4 * Vector<T>::kSize + v, thread_index() / 4),
            A(widen(weights.pointwise.at[v])));
    }
    block_barrier();  // both operands are there, and the patch is free
    chunk = next_chunk<kSize>(p, chunk);
    if (chunk.count > 0) {
      fetch_patch(p, branch.dilation, shape, chunk, image, shared.patch);
      weights = load_weights<T>(p, branch, first_output, chunk);
    }
    multiply(shared.normalised, shared.pointwise, total);
  }
  bool inside[4];
  write_outputs<T, kMoments>(p, index, image, first_output, shared.patch.tile, total, inside);
  if constexpr (kMoments) {
    using S = PixelShare<A>;
    write_moments(p, index, image, first_output, shared.patch.tile, memory.groups, [&] {
      JPU_UNROLL for (int j = 0; j < S::kColumns; j += S::kSize) {
        put_moments(memory.groups, S::row_group(), S::column(j), inside, [&](int i, int v) { return total[i][j + v]; });
      }
    });
  }
}

}  // namespace jpu::separable_pyramid

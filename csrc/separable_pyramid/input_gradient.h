// dz = scale · Pᵀ · dq, and the tile's share of E and Σ dh: a block makes kColumns channels of one branch for one
// tile of pixels. The product first, then chunk by chunk of its channels what follows from it.
#pragma once

#include "separable_pyramid/gradient.h"

namespace jpu::separable_pyramid {

// E of nine taps, and Σ dh.
constexpr int kTerms = 10;
// Terms that are added up over the block at a time: shared memory holds no more.
constexpr int kTermsAtOnce = 5;
// Outputs that are multiplied at a time.
template <class T>
constexpr int kDepth = 64 / sizeof(Accumulate<T>);

template <class T>
struct InputShared {
  struct Operands {
    Operand<Accumulate<T>, kDepth<T>, kPixels> gradient;  // dq, [output][pixel]
    Operand<Accumulate<T>, kDepth<T>, kColumns> weight;   // P, [output][channel]
  };
  union {
    Operands operands;
    Patch<T, kPixels> patch;  // once the product is there
  };
  Operand<Accumulate<T>, kChunk<sizeof(T)>, kPixels> operand;  // dh, the derivative of the forward product's, [channel][pixel]
  Accumulate<T> part[kTermsAtOnce][kThreads];
};

template <class T>
JPU_DEVICE void gather_operands(const GradientParams& g, int index, int image, int first_output, int first_chunk,
                                const Tile& tile, typename InputShared<T>::Operands& operands) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize, kSize = kChunk<sizeof(T)>;
  const Params& p = g.forward;
  const Branch& branch = p.branch[index];
  static_assert(kDepth<T> % V == 0);
  for (int i = thread_index(); i < kPixels * (kDepth<T> / V); i += kThreads) {
    const int m = i % kPixels, o = i / kPixels * V;
    const Pixel pixel = pixel_of_slot(p, branch.dilation, branch.tiling.shape, tile, m);
    A value[V];
    load_gradient<T>(g, index, image, pixel, first_output + o, value);
    JPU_UNROLL for (int v = 0; v < V; ++v) {
      const int output = first_output + o + v;
      const A scale =
          output < p.outputs ? affine_term(p.outer.scale, int64_t{index} * p.outputs + output, A(1)) : A(0);
      store(operands.gradient.at(o + v, m), scale * value[v]);
    }
  }
  for (int i = thread_index(); i < kDepth<T> * (kColumns / V); i += kThreads) {
    const int o = i / (kColumns / V), column = i % (kColumns / V) * V;
    const Chunk chunk = nth_chunk<kSize>(p, first_chunk + column / kSize);
    const int output = first_output + o, c = column % kSize;
    Vector<T> weight{};
    if (output < p.outputs && c < chunk.count) {
      const T* row = static_cast<const T*>(branch.pointwise) + int64_t{output} * p.channels +
                     p.level[chunk.level].first + chunk.channel + c;
      if (p.pointwise_vectors) {
        weight = load_vector(row);
      } else {
        JPU_UNROLL for (int v = 0; v < V; ++v) {
          if (c + v < chunk.count) weight.at[v] = load(row + v);
        }
      }
    }
    A value[V];
    JPU_UNROLL for (int v = 0; v < V; ++v) value[v] = widen(weight.at[v]);
    store_row(operands.weight.at(o, column), value);
  }
}

// Of a chunk: writes dz, and this tile's terms.
template <class T>
JPU_DEVICE void finish_chunk(const GradientParams& g, int index, int image, const Chunk& chunk, int64_t tile_index,
                             InputShared<T>& shared) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const Branch& branch = p.branch[index];
  const Shape& shape = branch.tiling.shape;
  const Level& level = p.level[chunk.level];
  const int own = Runs<T>::channel();
  const int64_t channel = level.first + chunk.channel + own;
  const bool exists = own < chunk.count;
  A scale = 1, shift = 0, term[kTerms] = {};
  if (exists) load_inner(p, index, image, channel, scale, shift);
  for (int r = Runs<T>::first(); exists && r < kPixels / kRun; r += Runs<T>::kStep) {
    const Run run = run_at(shape, r);
    A rows[3][kRun + 2] = {};
    if (g.terms != nullptr) read_windows(shared.patch, shape, run.window, level.vectors, rows);
    Vector<A> gradients[kRun / Vector<A>::kSize];
    JPU_UNROLL for (int x = 0; x < kRun; x += Vector<A>::kSize) {
      gradients[x / Vector<A>::kSize] = read_vector(shared.operand.at(own, run.slot + x));
    }
    JPU_UNROLL for (int x = 0; x < kRun; ++x) {
      const A dh = gradients[x / Vector<A>::kSize].at[x % Vector<A>::kSize];
      const Pixel pixel = pixel_of_slot(p, branch.dilation, shape, shared.patch.tile, run.slot + x);
      if (!pixel.inside) continue;
      JPU_UNROLL for (int i = 0; i < 9; ++i) term[i] = multiply_add(dh, rows[i / 3][x + i % 3], term[i]);
      term[9] += dh;
      if (g.inputs != nullptr) {
        store(at<T>(g.inputs, g.inputs_stride, image - g.first_image, index * int64_t{p.channels} + channel, pixel.y,
                    pixel.x),
              narrow<T>(scale * dh));
      }
    }
  }
  for (int first = 0; g.terms != nullptr && first < kTerms; first += kTermsAtOnce) {
    block_barrier();  // the terms before are added
    JPU_UNROLL for (int i = 0; i < kTermsAtOnce; ++i) {
      shared.part[i][thread_index()] = first == 0 ? term[i] : term[kTermsAtOnce + i];
    }
    block_barrier();
    for (int i = thread_index(); i < kTermsAtOnce * chunk.count; i += kThreads) {
      const int c = i % chunk.count, which = i / chunk.count;
      A sum = 0;
      for (int group = 0; group < Runs<T>::kStep; ++group) sum += shared.part[which][group * Runs<T>::kChannels + c];
      store(static_cast<A*>(g.terms) + (tile_index * kTerms + first + which) * p.channels + level.first +
                chunk.channel + c,
            sum);
    }
  }
}

template <class T>
JPU_KERNEL(kThreads, sizeof(Accumulate<T>) == 8 ? 1 : 2)
pyramid_input_gradient(JPU_PARAMS GradientParams g) {
  using A = Accumulate<T>;
  using S = PixelShare<A>;
  constexpr int kSize = kChunk<sizeof(T)>, kChunks = kColumns / kSize;
  InputShared<T>& shared = shared_memory<InputShared<T>>();
  const Params& p = g.forward;

  const Work work = work_of_block(p, &Branch::first_input_block, g.input_channel_tiles);
  const int index = work.branch, image = g.first_image + work.image, first_chunk = work.share * kChunks;
  const Branch& branch = p.branch[index];
  const Tile tile = tile_at(branch.tiling, work.tile);

  A total[4][8] = {};
  for (int first_output = 0; first_output < p.outputs; first_output += kDepth<T>) {
    block_barrier();  // the product before is done
    gather_operands<T>(g, index, image, first_output, first_chunk, tile, shared.operands);
    block_barrier();
    multiply<A, kDepth<T>, kPixels, kColumns>(shared.operands.gradient, shared.operands.weight, total);
  }
  // Clear of the operands, which others may still multiply; values are fetched after a barrier.
  static_assert(sizeof(typename InputShared<T>::Operands) <= sizeof(shared.patch.value));
  place_patch(p, branch.dilation, branch.tiling.shape, tile, shared.patch);
  for (int j = 0; j < kChunks; ++j) {
    const Chunk chunk = nth_chunk<kSize>(p, first_chunk + j);
    if (chunk.count == 0) return;  // so does every thread
    block_barrier();  // the patch is placed, or the chunk before is finished
    if (g.terms != nullptr) fetch_patch(p, branch.dilation, branch.tiling.shape, chunk, image, shared.patch);
    JPU_UNROLL for (int column = 0; column < S::kColumns; ++column) {
      if (S::column(column) / kSize != j) continue;
      JPU_UNROLL for (int i = 0; i < S::kRows; i += S::kSize) {
        Vector<A> part;
        JPU_UNROLL for (int v = 0; v < S::kSize; ++v) part.at[v] = total[i + v][column];
        store_vector(shared.operand.at(S::column(column) % kSize, S::row(i)), part);
      }
    }
    wait_copies<0>();
    block_barrier();
    // Terms lie tile by tile: [D][N · tiles][kTerms][C].
    finish_chunk(g, index, image, chunk, branch.first_tile + int64_t{image} * branch.tiling.tiles() + work.tile, shared);
  }
}

}  // namespace jpu::separable_pyramid

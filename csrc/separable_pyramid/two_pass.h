// The "two-pass" policy: one launch makes h of so many tiles as the L2 cache holds, a second multiplies it; and so on
// for the next tiles. h is [tiles][kPixels][chunks][64 bytes], its missing channels 0.
#pragma once

#include "separable_pyramid/matrix_io.h"
#include "separable_pyramid/word_patch.h"

namespace jpu::separable_pyramid {

struct TwoPassParams {
  Params forward;  // its blocks are numbered as if each tile had one
  void* normalised;
  uint32_t first_tile;
  int32_t chunks;  // of all channels
  int32_t splits;  // blocks of the first launch that share a tile's chunks
};

template <class T>
JPU_DEVICE T* normalised_at(const TwoPassParams& t, uint32_t tile, int slot, int chunk) {
  return static_cast<T*>(t.normalised) + ((int64_t{tile} * kPixels + slot) * t.chunks + chunk) * kChunk<sizeof(T)>;
}

template <class T>
struct NormaliseShared {
  Inputs<T> inputs[2];
  Places places;
};

template <class T>
JPU_KERNEL(kNormalisers, 4)
pyramid_normalise(JPU_PARAMS TwoPassParams t) {
  constexpr int kSize = kChunk<sizeof(T)>;
  NormaliseShared<T>& shared = shared_memory<NormaliseShared<T>>();
  const Params& p = t.forward;
  const uint32_t tile = block_index() / t.splits;
  const int begin = static_cast<int>(block_index() % t.splits) * kSplitChunks;
  const int end = smaller(begin + kSplitChunks, t.chunks);

  const Work work = work_of(t.first_tile + tile, p, &Branch::first_block, 1);
  const Branch& branch = p.branch[work.branch];
  const Shape& shape = branch.tiling.shape;
  find_places<kNormalisers>(p, branch.dilation, shape, tile_at(branch.tiling, work.tile), shared.places);
  block_barrier();
  const Square square = square_of(shape, thread_index());
  const int64_t pitch = int64_t{t.chunks} * kSize;  // from slot to slot
  Chunk chunk = nth_chunk<kSize>(p, begin);
  fetch_inputs<kNormalisers>(p, work.branch, chunk, work.image, shared.places, shared.inputs[begin & 1]);
  commit_copies();
  for (int k = begin; k < end; ++k) {
    wait_copies<0>();
    block_barrier();  // chunk k is there, and what chunk k - 1 was made of is free
    const Chunk next = next_chunk<kSize>(p, chunk);
    if (k + 1 < end) {
      fetch_inputs<kNormalisers>(p, work.branch, next, work.image, shared.places, shared.inputs[(k + 1) & 1]);
      commit_copies();
    }
    T* target = normalised_at<T>(t, tile, square.slot, k) + square.word * kWordSize<T>;
    normalise(p, shape, shared.inputs[k & 1], chunk.count, square, [&](int y, int x, uint32_t h) {
      store_word(target + (y * shape.width + x) * pitch, h);
    });
    chunk = next;
  }
}

template <class T>
struct ProductShared {
  MatrixOperand<T, kPixels> normalised[kProductStages];
  MatrixOperand<T, kMatrixColumns> pointwise[kProductStages];
};

static_assert(sizeof(ProductShared<float>) <= kTwoPassSharedBytes);
static_assert(sizeof(ProductShared<float16>) <= kTwoPassSharedBytes);

template <class T, bool kMoments>
using ProductMemory = Memory<ProductShared<T>, MatrixGroups<T>, kMoments>;

// One group of copies a call, which is empty past the last chunk.
template <class T>
JPU_DEVICE void fetch_operands(const TwoPassParams& t, const Branch& branch, uint32_t tile, int first_output, int k,
                               const Chunk& chunk, ProductShared<T>& shared) {
  constexpr int V = Vector<T>::kSize;
  if (chunk.count > 0) {
    MatrixOperand<T, kPixels>& operand = shared.normalised[k % kProductStages];
    for (int i = thread_index(); i < kPixels * kUnits; i += kThreads) {
      const int slot = i / kUnits, unit = i % kUnits;
      copy_async<kVectorBytes>(operand.place(unit_place(slot, unit)), normalised_at<T>(t, tile, slot, k) + unit * V);
    }
    fetch_pointwise(t.forward, branch, first_output, chunk, shared.pointwise[k % kProductStages]);
  }
  commit_copies();
}

template <class T, bool kMoments>
JPU_KERNEL(kThreads, 1)
pyramid_product(JPU_PARAMS TwoPassParams t) {
  constexpr int kSize = kChunk<sizeof(T)>;
  auto& memory = shared_memory<ProductMemory<T, kMoments>>();
  ProductShared<T>& shared = memory.operands;
  const Params& p = t.forward;
  const uint32_t tile = block_index() / p.output_tiles;
  const int first_output = static_cast<int>(block_index() % p.output_tiles) * kMatrixColumns;
  const Work work = work_of(t.first_tile + tile, p, &Branch::first_block, 1);
  const Branch& branch = p.branch[work.branch];

  Chunk next = chunk_at<kSize>(p, 0, 0);
  for (int k = 0; k < kProductStages - 1; ++k) {
    fetch_operands(t, branch, tile, first_output, k, next, shared);
    next = next_chunk<kSize>(p, next);
  }
  MatrixSums sum = {};
  for (int k = 0; k < t.chunks; ++k) {
    wait_copies<kProductStages - 2>();
    block_barrier();  // chunk k is there, and that of chunk k - 1 is free
    fetch_operands(t, branch, tile, first_output, k + kProductStages - 1, next, shared);
    next = next_chunk<kSize>(p, next);
    multiply(shared.normalised[k % kProductStages], shared.pointwise[k % kProductStages], sum);
  }
  finish_tile<T, kMoments>(p, work.branch, work.image, first_output, tile_at(branch.tiling, work.tile), sum, memory);
}

}  // namespace jpu::separable_pyramid

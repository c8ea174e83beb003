// The "mma" policy: the whole pyramid in a launch, its products by tensor cores. A block makes kMatrixColumns channels
// of one branch for one tile of pixels. Chunk by chunk of input channels, the h of the next is made and the inputs of
// the one after it are fetched, while one is multiplied.
#pragma once

#include "separable_pyramid/matrix_io.h"
#include "separable_pyramid/word_patch.h"

namespace jpu::separable_pyramid {

template <class T>
struct MmaShared {
  Inputs<T> inputs[2];
  MatrixOperand<T, kPixels> normalised[2];
  MatrixOperand<T, kMatrixColumns> pointwise[2];
  Places places;
};
static_assert(sizeof(MmaShared<float>) <= kMmaSharedBytes && sizeof(MmaShared<float16>) <= kMmaSharedBytes);

template <class T, bool kMoments>
using MmaMemory = Memory<MmaShared<T>, MatrixGroups<T>, kMoments>;

template <class T, bool kMoments>
JPU_KERNEL(kThreads, 1)
pyramid_mma(JPU_PARAMS Params p) {
  constexpr int kSize = kChunk<sizeof(T)>;
  auto& memory = shared_memory<MmaMemory<T, kMoments>>();
  MmaShared<T>& shared = memory.operands;

  const Work work = work_of_block(p, &Branch::first_block, p.output_tiles);
  const int index = work.branch, image = work.image, first_output = work.share * kMatrixColumns;
  const Branch& branch = p.branch[index];
  const Shape& shape = branch.tiling.shape;
  find_places<kThreads>(p, branch.dilation, shape, tile_at(branch.tiling, work.tile), shared.places);
  block_barrier();
  Chunk ready = chunk_at<kSize>(p, 0, 0);
  fetch_inputs<kThreads>(p, index, ready, image, shared.places, shared.inputs[0]);
  commit_copies();
  Chunk next = next_chunk<kSize>(p, ready);
  const Square square = square_of(shape, thread_index() % kNormalisers);
  MatrixSums sum = {};
  // Step k multiplies chunk k, makes h of chunk k + 1 (`ready`), and fetches the inputs of chunk k + 2 (`next`).
  for (int k = -1;; ++k) {
    wait_copies<0>();
    block_barrier();  // what step k - 1 fetched and made is there, and what it read is free
    if (next.count > 0) fetch_inputs<kThreads>(p, index, next, image, shared.places, shared.inputs[k & 1]);
    if (ready.count > 0) fetch_pointwise(p, branch, first_output, ready, shared.pointwise[(k + 1) & 1]);
    commit_copies();
    // Half of the warps make h while the others keep the tensor cores busy; each scheduler has one of either half.
    const int turn = (k + 1) & 1;
    if (ready.count > 0 && thread_index() / kNormalisers == turn) {
      MatrixOperand<T, kPixels>& operand = shared.normalised[turn];
      normalise(p, shape, shared.inputs[turn], ready.count, square, [&](int y, int x, uint32_t h) {
        const int place = unit_place(square.slot + y * shape.width, square.word / 4);
        store_word(operand.place(place_beside(place, x)) + square.word % 4 * kWordSize<T>, h);
      });
    }
    if (k >= 0) multiply(shared.normalised[k & 1], shared.pointwise[k & 1], sum);
    if (ready.count == 0) break;
    ready = next;
    next = next_chunk<kSize>(p, next);
  }
  finish_tile<T, kMoments>(p, index, image, first_output, shared.places.tile, sum, memory);
}

}  // namespace jpu::separable_pyramid

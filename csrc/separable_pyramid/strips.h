// How training's kernels walk over the tiles of a part: two patches take turns, so that one is fetched while the other
// is convolved. A thread has one channel and a strip of a tile's pixels, several rows of kRun each, so that a row of the
// patch is read once for all rows of windows that it is part of.
#pragma once

#include "separable_pyramid/patch.h"
#include "separable_pyramid/terms.h"
#include "separable_pyramid/training.h"

namespace jpu::separable_pyramid {

template <class T>
struct Strips {
  // A warp has one strip of the half types, several of others; these lie a row apart, in other banks.
  static constexpr int kRows = sizeof(T) == 2 ? 4 : 1;
  static constexpr int kCount = kPixels / (kRows * kRun);   // of a tile
  static constexpr int kEach = kCount / Runs<T>::kStep;     // of a thread
  static_assert(kEach * Runs<T>::kStep == kCount, "every thread has as many");

  int32_t window[kCount];                // pixel of the patch at the top left of its first pixel's window
  int32_t pixel[kCount];                 // its first pixel's number in the image
  int32_t rows[kCount], columns[kCount];  // that the image has of it

  JPU_DEVICE static int number(int i) { return Runs<T>::first() + i * Runs<T>::kStep; }
};

// A barrier must follow.
template <class T>
JPU_DEVICE void place_strips(const Params& p, int dilation, const Shape& shape, const Tile& tile, Strips<T>& strips) {
  constexpr int kRows = Strips<T>::kRows;
  const int r = thread_index() - (kThreads - Strips<T>::kCount);  // threads that have less of the patch to place
  if (r < 0) return;
  const int lines = shape.height / kRows;
  const int line = r % (shape.classes * lines), j = r / (shape.classes * lines) * kRun;
  const int which = line / lines, i = line % lines * kRows;
  const Pixel first = pixel_at(p, dilation, tile, which, i, j);
  strips.window[r] = (which * (shape.height + 2) + i) * shape.patch_pitch() + j;
  strips.pixel[r] = first.y * p.width + first.x;
  strips.rows[r] = first.inside ? smaller(kRows, ceil_divide(p.height - first.y, dilation)) : 0;
  strips.columns[r] = first.inside ? smaller(kRun, ceil_divide(p.width - first.x, dilation)) : 0;
}

// What a block works on.
struct Part {
  int branch, image, part;
  Chunk chunk;
  int32_t begin, end;  // tiles
};

// Chunks are neighbours, whose pixels are; then parts, branches, which read the same levels, and images.
template <class T>
JPU_DEVICE Part part_of_block(const TrainingParams& t) {
  const Params& p = t.forward;
  const uint32_t chunks = static_cast<uint32_t>(t.chunks);
  const uint32_t parts = p.branch[p.branches - 1].first_block + static_cast<uint32_t>(t.parts[p.branches - 1]);
  const uint32_t rest = block_index() / chunks, within = rest % parts;
  const int branch = entry_of(within, p.branch, p.branches, &Branch::first_block);
  const int part = static_cast<int>(within - p.branch[branch].first_block);
  const int64_t tiles = p.branch[branch].tiling.tiles();
  return {branch,
          static_cast<int>(rest / parts),
          part,
          nth_chunk<kChunk<sizeof(T)>>(p, static_cast<int>(block_index() % chunks)),
          static_cast<int32_t>(tiles * part / t.parts[branch]),
          static_cast<int32_t>(tiles * (part + 1) / t.parts[branch])};
}

// Parts: what threads leave for others at the end, in the memory of a patch that is free then.
template <class T, int Parts>
struct WalkShared {
  union Slot {
    Patch<T, kPixels> patch;
    Accumulate<T> part[Parts > 0 ? Parts : 1][kThreads];
  };
  Slot slot[2];
  Strips<T> strips[2];
};

// Calls `use` with the patch and the strips of each tile. Afterwards nobody uses the slot that is returned.
template <class T, int Parts, class Use>
JPU_DEVICE typename WalkShared<T, Parts>::Slot& walk(const Params& p, const Part& work, WalkShared<T, Parts>& shared,
                                                     Use&& use) {
  const Branch& branch = p.branch[work.branch];
  const Shape& shape = branch.tiling.shape;
  const int dilation = branch.dilation;
  const auto place = [&](int32_t tile, int slot) {
    place_patch(p, dilation, shape, tile_at(branch.tiling, tile), shared.slot[slot].patch);
  };
  const auto fetch = [&](int slot) {
    fetch_patch(p, dilation, shape, work.chunk, work.image, shared.slot[slot].patch);
  };
  place(work.begin, 0);
  place_strips(p, dilation, shape, tile_at(branch.tiling, work.begin), shared.strips[0]);
  if (work.begin + 1 < work.end) place(work.begin + 1, 1);
  block_barrier();
  fetch(0);
  int slot = 0;
  JPU_UNROLL_BY(1) for (int32_t tile = work.begin; tile < work.end; ++tile) {
    wait_copies<0>();
    block_barrier();  // the tile's patch is there; that of the tile before is free, and the next one's is placed
    if (tile + 1 < work.end) {
      fetch(slot ^ 1);
      place_strips(p, dilation, shape, tile_at(branch.tiling, tile + 1), shared.strips[slot ^ 1]);
    }
    if (tile + 2 < work.end) place(tile + 2, slot);  // whose places nobody needs any more, but its values
    use(shared.slot[slot].patch, shared.strips[slot]);
    slot ^= 1;
  }
  return shared.slot[slot];
}

// z of a strip, taps in row-major order, as everywhere.
template <class T>
JPU_DEVICE void convolve_strip(const Patch<T, kPixels>& patch, const Shape& shape, int window, bool vectors,
                               const Accumulate<T> (&taps)[kTaps], Accumulate<T> (&z)[Strips<T>::kRows][kRun]) {
  constexpr int kRows = Strips<T>::kRows;
  JPU_UNROLL for (int y = 0; y < kRows; ++y) {
    JPU_UNROLL for (int x = 0; x < kRun; ++x) z[y][x] = 0;
  }
  JPU_UNROLL for (int r = 0; r < kRows + 2; ++r) {
    Accumulate<T> row[kRun + 2];
    read_row(patch, window + r * shape.patch_pitch(), vectors, row);
    JPU_UNROLL for (int i = 0; i < 3; ++i) {
      const int y = r - i;
      if (y < 0 || y >= kRows) continue;
      JPU_UNROLL for (int x = 0; x < kRun; ++x) {
        JPU_UNROLL for (int j = 0; j < 3; ++j) z[y][x] = multiply_add(taps[3 * i + j], row[x + j], z[y][x]);
      }
    }
  }
}

}  // namespace jpu::separable_pyramid

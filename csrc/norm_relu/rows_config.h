// How rows are cut. Pure functions, tested as such.
#pragma once

#include <cstdint>

#include "norm_relu/config.h"

namespace jpu::norm_relu {

// Pixels that a thread loads before it uses the first: eight vectors, of q or of q and its gradient.
constexpr int kOutputPixels = 8, kGradientPixels = 4;

// What a launch aims at: several blocks for each place of a large GPU, so that none of its multiprocessors waits long
// for the last ones.
constexpr int64_t kEnoughBlocks = 2048;

// A thread keeps its channels, whose terms it loads once, for up to so many rounds of pixels. There, terms of
// output_gradient in bfloat16, which are 14 vectors, come to a quarter of what its 64 vectors of pixels are; and
// threads below each other load the same.
constexpr int kMostRounds = 8;

// Output and output_gradient: how many rounds, where one would take so many blocks.
JPU_HOST_DEVICE constexpr int rounds_of(int64_t blocks) {
  const int64_t rounds = blocks / kEnoughBlocks;
  return rounds < 1 ? 1 : rounds > kMostRounds ? kMostRounds : static_cast<int>(rounds);
}

// Output_sums: a thread adds up so many pixels one after the other, then such runs. Its error grows with both lengths'
// sum rather than with all of its pixels.
constexpr int kRun = 16;
static_assert(kRun % kGradientPixels == 0, "a run has whole rounds");

// A part leaves as many sums behind whatever it is of. Where threads have this many pixels, and eight are one below the
// other, those sums are 5 % of what was read in bfloat16.
constexpr int kLeastPixels = 8;

// Output_sums: parts of an image, enough to fill a GPU, each of at least one pixel.
//
// Args:
//   tiles: of channels.
//   rows: of a tile.
JPU_HOST_DEVICE constexpr int parts_of(int64_t images, int pixels, int tiles, int rows) {
  const int64_t others = images * tiles;
  const int64_t wanted = others < 1 ? 1 : kEnoughBlocks / others + (kEnoughBlocks % others != 0);
  const int most = pixels / (kLeastPixels * rows);
  return most < 1 ? 1 : wanted < most ? static_cast<int>(wanted) : most;
}

struct Part {
  int first, count;
};

// Pixels of one of the parts of an image, which differ by one at most.
JPU_HOST_DEVICE constexpr Part part_of(int pixels, int parts, int index) {
  const int count = pixels / parts, more = pixels % parts;
  return {index * count + smaller(index, more), count + (index < more)};
}

}  // namespace jpu::norm_relu

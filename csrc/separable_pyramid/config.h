// How the work is cut: by residue class of the dilation, so that a tile's halo is that of a dense convolution.
// Pure functions, tested as such.
//
// Pixels (y, x) with the same y mod d and x mod d form a class; a d-dilated convolution is a dense one within
// each class (FastFCN, section 3.2). A tile takes the same rectangle from one class or several.
#pragma once

#include <cstdint>

#include "common/integers.h"

namespace jpu::separable_pyramid {

constexpr int kThreads = 256;

// A block's share of a matrix product. The forward pass and the input's gradient: pixels by channels.
constexpr int kPixels = 128;
constexpr int kColumns = 64;
// The weights' gradient: outputs by channels, 256 bytes of sums each, over so many pixels at a time.
constexpr int kWeightPixels = 64;
template <int SumBytes>
constexpr int kWeightSide = 256 / SumBytes;

// 64 bytes of channels a pixel: two whole sectors, and no more than leaves room for the largest patch below.
template <int ElementBytes>
constexpr int kChunk = 64 / ElementBytes;

// Pixels that a thread convolves at a time: a run within a row of a tile.
constexpr int kRun = 4;

constexpr int kMaxDilation = 16;

// Rows or columns of the image from a patch's corner to its last pixel, in its last class: of the widest shape below.
constexpr int kMaxReach = (32 + 2 + 1) * kMaxDilation;

// All three are powers of two, the width a multiple of kRun.
struct Shape {
  int classes, height, width;

  JPU_HOST_DEVICE constexpr int pixels() const { return classes * height * width; }
  // With a halo of one pixel a side. A column more makes the pitch odd, which keeps two rows that a warp reads
  // at once in different banks.
  JPU_HOST_DEVICE constexpr int patch_pitch() const { return width + 3; }
  JPU_HOST_DEVICE constexpr int patch_pixels() const { return classes * (height + 2) * patch_pitch(); }
};

// Of so many pixels, in the order of preference: the smaller the halo, the earlier. One class fills a tile where
// classes are large; several are packed where dilations are large against the image.
template <int Pixels>
struct Shapes;
template <>
struct Shapes<128> {
  static constexpr Shape kList[] = {{1, 8, 16}, {1, 16, 8}, {1, 4, 32}, {2, 8, 8},
                                    {2, 16, 4}, {4, 4, 8},  {4, 8, 4},  {8, 4, 4}};
};
template <>
struct Shapes<64> {
  static constexpr Shape kList[] = {{1, 8, 8}, {1, 4, 16}, {2, 4, 8}, {2, 8, 4}, {4, 4, 4}};
};

template <int Pixels>
constexpr int kMaxPatchPixels = [] {
  int most = 0;
  for (const Shape& shape : Shapes<Pixels>::kList) {
    if (shape.pixels() != Pixels || shape.width % kRun != 0) return -1;  // no array has this length
    most = shape.patch_pixels() > most ? shape.patch_pixels() : most;
  }
  return most;
}();

// The tiles of one image for one dilation.
struct Tiling {
  Shape shape;
  int32_t groups;         // of `classes` classes each; the last one may have fewer
  int32_t rows, columns;  // tiles of a class, by the largest class

  JPU_HOST_DEVICE constexpr int64_t tiles() const { return int64_t{groups} * rows * columns; }
  JPU_HOST_DEVICE constexpr int64_t slots() const { return tiles() * shape.pixels(); }
};

constexpr Tiling tiling(Shape shape, int dilation, int height, int width) {
  return {shape, ceil_divide(dilation * dilation, shape.classes),
          ceil_divide(ceil_divide(height, dilation), shape.height),
          ceil_divide(ceil_divide(width, dilation), shape.width)};
}

// Pixels of the image that all tiles of a class fetch, halos included, are no more than 3 / 2 of the class's own.
constexpr bool fetches_little(const Tiling& t, int dilation, int height, int width) {
  const int64_t h = ceil_divide(height, dilation), w = ceil_divide(width, dilation);
  return 2 * (h + 2 * (t.rows - 1)) * (w + 2 * (t.columns - 1)) <= 3 * h * w;
}

// The one that wastes the fewest slots on pixels that the image does not have; or one that fetches little, if it wastes
// no more than an eighth beyond that, since slots are what the products are made of.
template <int Pixels>
constexpr Tiling choose_tiling(int dilation, int height, int width) {
  Tiling fewest = tiling(Shapes<Pixels>::kList[0], dilation, height, width), little{};
  for (const Shape& shape : Shapes<Pixels>::kList) {
    const Tiling other = tiling(shape, dilation, height, width);
    if (other.slots() < fewest.slots()) fewest = other;
    if (!fetches_little(other, dilation, height, width)) continue;
    if (little.slots() == 0 || other.slots() < little.slots()) little = other;
  }
  return little.slots() != 0 && 8 * little.slots() <= 9 * fewest.slots() ? little : fewest;
}

}  // namespace jpu::separable_pyramid

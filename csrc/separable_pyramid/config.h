// How the work is cut: by residue class of the dilation, so that a tile's halo is that of a dense convolution.
// Pure functions, tested as such.
//
// Pixels (y, x) with the same y mod d and x mod d form a class; a d-dilated convolution is a dense one within
// each class (FastFCN, section 3.2). A tile takes the same rectangle from one class or several.
#pragma once

#include <cstdint>

#include "device/target.h"

namespace jpu::separable_pyramid {

constexpr int kThreads = 256;

// A block's share of the matrix product.
constexpr int kPixels = 128;   // of the forward pass and of the levels' gradient
constexpr int kOutputs = 64;

// 64 bytes of channels a pixel: two sectors, and shared memory for the largest patch below.
template <int ElementBytes>
constexpr int kChunk = 64 / ElementBytes;

// Pixels that a thread convolves at a time: a run within a row of a tile.
constexpr int kRun = 4;

constexpr int kMaxDilation = 16;

// All three are powers of two, the width a multiple of kRun.
struct Shape {
  int classes, height, width;

  JPU_HOST_DEVICE constexpr int pixels() const { return classes * height * width; }
  // With a halo of one pixel a side. A column more makes the pitch odd, which keeps two rows that a warp reads
  // at once in different banks.
  JPU_HOST_DEVICE constexpr int patch_pitch() const { return width + 3; }
  JPU_HOST_DEVICE constexpr int patch_pixels() const { return classes * (height + 2) * patch_pitch(); }
};

// In the order of preference: the smaller the halo, the earlier. One class fills a tile where classes are large;
// several are packed where dilations are large against the image.
constexpr Shape kShapes[] = {{1, 8, 16}, {1, 16, 8}, {1, 4, 32}, {2, 8, 8}, {2, 16, 4}, {4, 4, 8}, {4, 8, 4}, {8, 4, 4}};
constexpr int kShapeCount = sizeof(kShapes) / sizeof(kShapes[0]);

constexpr int kMaxPatchPixels = [] {
  int most = 0;
  for (const Shape& shape : kShapes) most = shape.patch_pixels() > most ? shape.patch_pixels() : most;
  return most;
}();
static_assert([] {
  for (const Shape& shape : kShapes) {
    if (shape.pixels() != kPixels || shape.width % kRun != 0) return false;
  }
  return true;
}());

// The tiles of one image for one dilation.
struct Tiling {
  Shape shape;
  int32_t groups;         // of `classes` classes each; the last one may have fewer
  int32_t rows, columns;  // tiles of a class, by the largest class

  JPU_HOST_DEVICE constexpr int64_t tiles() const { return int64_t{groups} * rows * columns; }
  JPU_HOST_DEVICE constexpr int64_t slots() const { return tiles() * shape.pixels(); }
};

constexpr Tiling tiling(Shape shape, int dilation, int height, int width) {
  const auto ceil = [](int a, int b) { return a / b + (a % b != 0); };
  return {shape, ceil(dilation * dilation, shape.classes), ceil(ceil(height, dilation), shape.height),
          ceil(ceil(width, dilation), shape.width)};
}

// The one that wastes the fewest slots on pixels that the image does not have.
constexpr Tiling choose_tiling(int dilation, int height, int width) {
  Tiling best = tiling(kShapes[0], dilation, height, width);
  for (const Shape& shape : kShapes) {
    const Tiling other = tiling(shape, dilation, height, width);
    if (other.slots() < best.slots()) best = other;
  }
  return best;
}

}  // namespace jpu::separable_pyramid

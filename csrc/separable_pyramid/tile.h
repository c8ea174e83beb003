// A block's pixels: which class, row and column each slot of a tile stands for.
#pragma once

#include "common/blocks.h"
#include "common/integers.h"
#include "separable_pyramid/separable_pyramid.h"

namespace jpu::separable_pyramid {

struct Pixel {
  int y, x;
  bool inside;  // of the image
};

// Its place among the tiles of one image and branch; the kernels keep it in shared memory, where it costs no
// registers while they multiply.
struct Tile {
  int first_class;
  int row, column;  // of its first pixel, in its class
};

JPU_DEVICE Tile tile_at(const Tiling& t, int32_t index) {
  Tile tile;
  tile.column = index % t.columns * t.shape.width;
  index /= t.columns;
  tile.row = index % t.rows * t.shape.height;
  tile.first_class = index / t.rows * t.shape.classes;
  return tile;
}

// Which tile of its image and branch it is.
JPU_DEVICE int32_t index_of(const Tiling& t, const Tile& tile) {
  const Shape& s = t.shape;
  return (tile.first_class / s.classes * t.rows + tile.row / s.height) * t.columns + tile.column / s.width;
}

// Of class `which` of a tile, row i and column j; -1 is the halo's first.
JPU_DEVICE Pixel pixel_at(const Params& p, int dilation, const Tile& tile, int which, int i, int j) {
  const int index = tile.first_class + which;
  const int y = index / dilation + dilation * (tile.row + i), x = index % dilation + dilation * (tile.column + j);
  return {y, x, index < dilation * dilation && y >= 0 && y < p.height && x >= 0 && x < p.width};
}

// Slots go class by class, each row by row.
JPU_DEVICE Pixel pixel_of_slot(const Params& p, int dilation, const Shape& shape, const Tile& tile, int m) {
  const int j = m % shape.width, line = m / shape.width;
  return pixel_at(p, dilation, tile, line / shape.height, line % shape.height, j);
}

// Pixels of the patch likewise; the last column of each row is padding.
JPU_DEVICE Pixel pixel_of_patch(const Params& p, int dilation, const Shape& shape, const Tile& tile, int q) {
  const int j = q % shape.patch_pitch(), line = q / shape.patch_pitch();
  const int rows = shape.height + 2;
  Pixel result = pixel_at(p, dilation, tile, line / rows, line % rows - 1, j - 1);
  result.inside &= j < shape.width + 2;
  return result;
}

// What a block of the passes over pixels works on.
struct Work {
  int branch, image;
  int share;     // of so many that split a tile's channels or outputs
  int32_t tile;  // of the image
};

// Images one after the other, so that the blocks of all branches find an image's levels in the L2 cache; then branches,
// whose first blocks within an image are given; then tiles. Blocks that split a tile are neighbours, since they read
// the same pixels.
JPU_DEVICE Work work_of(uint32_t block, const Params& p, uint32_t Branch::*first, int shares) {
  const Branch& last = p.branch[p.branches - 1];
  const uint32_t image_blocks = last.*first + static_cast<uint32_t>(last.tiling.tiles()) * shares;
  const uint32_t within = block % image_blocks;
  const int branch = entry_of(within, p.branch, p.branches, first);
  const uint32_t rest = within - p.branch[branch].*first;
  return {branch, static_cast<int>(block / image_blocks), static_cast<int>(rest % shares),
          static_cast<int32_t>(rest / shares)};
}

// Of this block.
JPU_DEVICE Work work_of_block(const Params& p, uint32_t Branch::*first, int shares) {
  return work_of(block_index(), p, first, shares);
}

// A run of channels that lie in one level.
struct Chunk {
  int level, channel;  // its first channel, within the level
  int count;           // of channels; 0 past the last chunk
};

template <int Size>
JPU_DEVICE Chunk chunk_at(const Params& p, int level, int channel) {
  if (level < p.levels && channel >= p.level[level].channels) {
    ++level;
    channel = 0;
  }
  if (level >= p.levels) return {level, 0, 0};
  return {level, channel, smaller(Size, p.level[level].channels - channel)};
}

// The so-manieth of all chunks.
template <int Size>
JPU_DEVICE Chunk nth_chunk(const Params& p, int n) {
  int level = 0;
  for (; level < p.levels; ++level) {
    const int chunks = ceil_divide(p.level[level].channels, Size);
    if (n < chunks) break;
    n -= chunks;
  }
  return chunk_at<Size>(p, level, level < p.levels ? n * Size : 0);
}

template <int Size>
JPU_DEVICE Chunk next_chunk(const Params& p, const Chunk& chunk) {
  return chunk_at<Size>(p, chunk.level, chunk.channel + Size);
}

}  // namespace jpu::separable_pyramid

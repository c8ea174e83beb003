// Which level and tile a block works on.
#pragma once

#include "common/blocks.h"
#include "common/integers.h"
#include "upsample_concat/upsample_concat.h"

namespace jpu::upsample_concat {

struct Place {
  int level;
  int n, c, h, w;  // first of the tile
};

template <class TileOf>
JPU_DEVICE Place locate(const Params& p, TileOf tile_of) {
  const int level = entry_of_block(p.level, p.levels, &Level::first_block);
  const Level& l = p.level[level];
  const Tile tile = tile_of(l.path);
  uint32_t rest = block_index() - l.first_block;
  Place place;
  place.level = level;
  place.w = static_cast<int>(rest % l.tiles_w) * tile.width;
  rest /= l.tiles_w;
  place.h = static_cast<int>(rest % l.tiles_h) * tile.height;
  rest /= l.tiles_h;
  place.c = static_cast<int>(rest % l.tiles_c) * tile.channels;
  place.n = static_cast<int>(rest / l.tiles_c);
  return place;
}

}  // namespace jpu::upsample_concat

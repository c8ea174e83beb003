// Plans and starts the kernel; included by the instantiations only.
#pragma once

#include "device/launch.h"
#include "norm_relu/forward.h"

namespace jpu::norm_relu {

// Joins axes whose elements lie in a line, in both tensors, so that a pixel's place takes no division: rows of an
// image, then images where a channel's pixels go on from one to the next. Where an axis has one entry, its stride says
// nothing.
inline void join_axes(Level& level) {
  Strides* both[] = {&level.in_stride, &level.out_stride};
  const auto lie_in_a_line = [&](int64_t Strides::*outer, int64_t length) {
    return both[0]->*outer == length * both[0]->w && both[1]->*outer == length * both[1]->w;
  };
  for (Strides* stride : both) {
    if (level.batch == 1) stride->n = 0;
    if (level.channels == 1) stride->c = 0;
    if (level.height == 1) stride->h = 0;
    if (level.width == 1) stride->w = level.height > 1 ? stride->h : stride->n;
  }
  if (level.height > 1 && lie_in_a_line(&Strides::h, level.width)) {
    level.width *= level.height;
    level.height = 1;
    for (Strides* stride : both) stride->h = 0;
  }
  const int64_t pixels = static_cast<int64_t>(level.batch) * level.width;
  if (level.batch > 1 && level.height == 1 && pixels <= INT32_MAX && lie_in_a_line(&Strides::n, level.width)) {
    level.width = static_cast<int32_t>(pixels);
    level.batch = 1;
    for (Strides* stride : both) stride->n = 0;
  }
}

// Whether 16 bytes can be accessed along channels, or else along the pixels of an image.
template <class T>
bool aligned(const void* base, const Strides& stride, bool channels) {
  constexpr int V = Vector<T>::kSize;
  return reinterpret_cast<uintptr_t>(base) % kVectorBytes == 0 && stride.n % V == 0 &&
         (channels ? stride.c == 1 && stride.h % V == 0 && stride.w % V == 0 : stride.w == 1 && stride.c % V == 0);
}

template <class T>
Path choose_path(const Level& level) {
  constexpr int V = Vector<T>::kSize;
  const auto both = [&](bool channels) {
    return aligned<T>(level.in, level.in_stride, channels) && aligned<T>(level.out, level.out_stride, channels);
  };
  if (level.channels % V == 0 && both(true)) return Path::kChannels;
  if (level.height == 1 && level.width % V == 0 && both(false)) return Path::kPixels;
  return level.channels > 1 && level.out_stride.c < level.out_stride.w ? Path::kChannelElements : Path::kPixelElements;
}

// Sets each level's path and tiles, and where its blocks start; returns the number of blocks.
template <class T>
int64_t plan(Params& p) {
  int64_t blocks = 0;
  for (int i = 0; i < p.levels; ++i) {
    Level& level = p.level[i];
    join_axes(level);
    level.path = choose_path<T>(level);
    const int pixels = level.height * level.width, step = by_vectors(level.path) ? Vector<T>::kSize : 1;
    const int inner = (channels_inside(level.path) ? level.channels : pixels) / step;
    const Tile tile = tile_of(level.path, inner);
    level.lanes = tile.lanes;
    level.rows = tile.rows;
    level.inner_tiles = ceil_divide(inner, tile.lanes);
    level.outer_tiles = ceil_divide(channels_inside(level.path) ? pixels : level.channels, tile.rows * kWalk);
    level.first_block = static_cast<uint32_t>(blocks);
    blocks += static_cast<int64_t>(level.batch) * level.inner_tiles * level.outer_tiles;
    if (blocks > INT32_MAX) return blocks;  // launch() refuses them
  }
  return blocks;
}

template <class T>
void forward(Params p, void* stream) {
  const int64_t blocks = plan<T>(p);
  launch("norm_relu forward", &norm_relu_forward<T>, {blocks, kThreads}, p, stream, [&](auto declare) {
    const int64_t norm_bytes = p.norms_in_sums ? sizeof(Accumulate<T>) : sizeof(T);
    for (int i = 0; i < p.levels; ++i) {
      const Level& l = p.level[i];
      const auto image = [&](const char* name, const void* data, const Strides& stride, Access access) {
        declare(Buffer{name, data, sizeof(T), {l.batch, l.channels, l.height, l.width},
                       {stride.n, stride.c, stride.h, stride.w}, access});
      };
      const auto values = [&](const char* name, const void* data) {
        if (data != nullptr) {
          declare(Buffer{name, data, norm_bytes, {1, 1, 1, l.channels}, {0, 0, 0, 1}, Access::kRead});
        }
      };
      image("level", l.in, l.in_stride, Access::kRead);
      image("output", l.out, l.out_stride, Access::kWrite);
      values("weight", l.weight);
      values("bias", l.bias);
      values("mean", l.mean);
      values("var", l.var);
    }
  });
}

}  // namespace jpu::norm_relu

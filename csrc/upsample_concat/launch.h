// Plans and starts the kernels; included by the instantiations only.
#pragma once

#include <string>

#include "device/launch.h"
#include "upsample_concat/backward.h"
#include "upsample_concat/forward.h"

namespace jpu::upsample_concat {

enum class Direction { kForward, kBackward };

// Whether 16 bytes can be accessed along channels, or else along width.
template <class T>
bool aligned(const void* base, const Strides& stride, bool channels) {
  constexpr int V = Vector<T>::kSize;
  return reinterpret_cast<uintptr_t>(base) % kVectorBytes == 0 && stride.n % V == 0 && stride.h % V == 0 &&
         (channels ? stride.c == 1 && stride.w % V == 0 : stride.w == 1 && stride.c % V == 0);
}

template <class T>
Path choose_path(const Params& p, const Level& level, Direction direction) {
  constexpr int V = Vector<T>::kSize;
  if (level.channels % V == 0 && aligned<T>(level.low, level.low_stride, true) &&
      aligned<T>(level.high, level.high_stride, true)) {
    return Path::kChannels;
  }
  // The small image may be accessed by elements here, so only the large one need be aligned.
  if (p.width % V == 0 && aligned<T>(level.high, level.high_stride, false)) {
    const bool same = level.width == p.width && aligned<T>(level.low, level.low_stride, false);
    return same && direction == Direction::kForward ? Path::kSameWidth : Path::kWidth;
  }
  return Path::kElements;
}

template <class T>
Staging choose_staging(const Params& p, const Level& level) {
  if (level.path != Path::kWidth || level.height > p.height || level.width > p.width) return Staging::kNone;
  return aligned<T>(level.low, level.low_stride, false) ? Staging::kVectors : Staging::kElements;
}

inline Inverse inverse_of(const Axis& axis) {
  return {1.0 / static_cast<double>(axis.denominator), axis.step == 0 ? 0.0 : 1.0 / static_cast<double>(axis.step)};
}

// Sets each level's path and tiles, and where blocks of levels and norms start; returns the number of blocks.
template <class T>
int64_t plan(Params& p, Direction direction) {
  constexpr int V = Vector<T>::kSize;
  int64_t blocks = 0;
  for (int i = 0; i < p.levels; ++i) {
    Level& level = p.level[i];
    level.rows = inverse_of(Axis(level.height, p.height, p.align_corners));
    level.columns = inverse_of(Axis(level.width, p.width, p.align_corners));
    level.path = choose_path<T>(p, level, direction);
    level.staging = choose_staging<T>(p, level);
    const bool forward = direction == Direction::kForward;
    const Tile tile = forward ? forward_tile<V>(level.path) : backward_tile<V>(level.path);
    level.tiles_c = ceil_divide(level.channels, tile.channels);
    level.tiles_h = ceil_divide(forward ? p.height : level.height, tile.height);
    level.tiles_w = ceil_divide(forward ? p.width : level.width, tile.width);
    level.first_block = static_cast<uint32_t>(blocks);
    blocks += static_cast<int64_t>(p.batch) * level.tiles_c * level.tiles_h * level.tiles_w;
    if (blocks > INT32_MAX) return blocks;  // launch() refuses them
  }
  for (int i = 0; i < p.norms; ++i) {
    p.norm[i].first_block = static_cast<uint32_t>(blocks);
    blocks += ceil_divide(p.norm[i].channels, kThreads);
  }
  return blocks;
}

template <class T, class Declare>
void declare_levels(const Params& p, Direction direction, Declare& declare) {
  const bool forward = direction == Direction::kForward;
  for (int i = 0; i < p.levels; ++i) {
    const Level& l = p.level[i];
    const Strides &low = l.low_stride, &high = l.high_stride;
    declare(Buffer{forward ? "level" : "gradient of the level", l.low, sizeof(T),
                   {p.batch, l.channels, l.height, l.width},
                   {low.n, low.c, low.h, low.w},
                   forward ? Access::kRead : Access::kWrite});
    declare(Buffer{forward ? "output" : "gradient of the output", l.high, sizeof(T),
                   {p.batch, l.channels, p.height, p.width},
                   {high.n, high.c, high.h, high.w},
                   forward ? Access::kWrite : Access::kRead});
  }
}

template <class T, class Declare>
void declare_norms(const Params& p, Direction direction, Declare& declare) {
  const bool forward = direction == Direction::kForward;
  const int64_t sum_bytes = sizeof(Accumulate<T>), norm_bytes = p.norms_in_sums ? sum_bytes : int64_t{sizeof(T)};
  const Access norms = forward ? Access::kRead : Access::kWrite, terms = forward ? Access::kWrite : Access::kRead;
  for (int i = 0; i < p.norms; ++i) {
    const Norm& norm = p.norm[i];
    const auto values = [&](const char* name, const void* data, int64_t element_bytes, Access access) {
      if (data != nullptr) declare(Buffer{name, data, element_bytes, {1, 1, 1, norm.channels}, {0, 0, 0, 1}, access});
    };
    values("mean", norm.mean, norm_bytes, Access::kRead);
    values("var", norm.var, norm_bytes, Access::kRead);
    values(forward ? "weight" : "gradient of the weight", norm.weight, norm_bytes, norms);
    values(forward ? "bias" : "gradient of the bias", norm.bias, norm_bytes, norms);
    values(forward ? "scale" : "gradient of the scale", norm.scale, sum_bytes, terms);
    values(forward ? "shift" : "gradient of the shift", norm.shift, sum_bytes, terms);
  }
}

template <class T>
void forward(Params p, void* stream) {
  const int64_t blocks = plan<T>(p, Direction::kForward);
  launch("upsample_concat forward", &upsample_forward<T>, {blocks, kThreads}, p, stream,
         [&](auto declare) {
           declare_levels<T>(p, Direction::kForward, declare);
           declare_norms<T>(p, Direction::kForward, declare);
         });
}

template <class T>
void backward(Params p, void* stream) {
  const int64_t blocks = plan<T>(p, Direction::kBackward);
  launch("upsample_concat backward", &upsample_backward<T>, {blocks, kThreads}, p, stream,
         [&](auto declare) {
           declare_levels<T>(p, Direction::kBackward, declare);
           declare_norms<T>(p, Direction::kBackward, declare);
         });
}

}  // namespace jpu::upsample_concat

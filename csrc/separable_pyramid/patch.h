// A tile's input with its halo, a chunk of channels at a time, in shared memory.
#pragma once

#include "device/async_copy.h"
#include "device/memory.h"
#include "separable_pyramid/tile.h"

namespace jpu::separable_pyramid {

template <class T, int Pixels>
struct Patch {
  static constexpr int kChannels = kChunk<sizeof(T)>;
  // Vectors fill a pixel's 64 bytes; single elements go to pixels one element further apart, since a warp then
  // writes the same channel of consecutive pixels.
  static constexpr int kElementPitch = kChannels + 1;

  alignas(kVectorBytes) T value[kMaxPatchPixels<Pixels> * kElementPitch];
  Tile tile;
  // Of each pixel: row and column in the image relative to the tile's origin, or kOutside.
  int32_t place[kMaxPatchPixels<Pixels>];
};

constexpr int32_t kOutside = INT32_MIN;

// The place of the halo's first pixel, were it of class 0.
JPU_DEVICE int origin(int dilation, int first) { return dilation * (first - 1); }

// Called once a tile; a barrier must follow.
template <class T, int Pixels>
JPU_DEVICE void place_patch(const Params& p, int dilation, const Shape& shape, const Tile& tile,
                            Patch<T, Pixels>& patch) {
  const int top = origin(dilation, tile.row), left = origin(dilation, tile.column);
  for (int q = thread_index(); q < shape.patch_pixels(); q += kThreads) {
    const Pixel pixel = pixel_of_patch(p, dilation, shape, tile, q);
    patch.place[q] = pixel.inside ? (pixel.y - top) << 16 | (pixel.x - left) : kOutside;
  }
  if (thread_index() == 0) patch.tile = tile;
}
static_assert(kMaxReach < 1 << 15);

JPU_DEVICE int64_t offset_of(int32_t place, const Strides& stride) {
  return (place >> 16) * stride.h + (place & 0xffff) * stride.w;
}

// Begins to fetch a chunk; wait_copies and a barrier end it. Pixels outside of the image become 0; channels past the
// chunk's count are not defined.
template <class T, int Pixels>
JPU_DEVICE void fetch_patch(const Params& p, int dilation, const Shape& shape, const Chunk& chunk, int image,
                            Patch<T, Pixels>& patch) {
  using P = Patch<T, Pixels>;
  constexpr int V = Vector<T>::kSize;
  const Level& level = p.level[chunk.level];
  const Strides& stride = level.stride;
  // May lie before the level's first element.
  const T* base = at<T>(level.data, stride, image, chunk.channel, origin(dilation, patch.tile.row),
                        origin(dilation, patch.tile.column));
  const int pixels = shape.patch_pixels();
  if (level.vectors) {
    const int vectors = chunk.count / V;
    for (int i = thread_index(); i < pixels * (P::kChannels / V); i += kThreads) {
      const int q = i / (P::kChannels / V), v = i % (P::kChannels / V);
      if (v >= vectors) continue;
      const int32_t place = patch.place[q];
      T* target = &patch.value[q * P::kChannels + v * V];
      if (place != kOutside) {
        copy_async<kVectorBytes>(target, base + offset_of(place, stride) + v * V);
      } else {
        copy_async<kVectorBytes>(target, level.data, 0);
      }
    }
    commit_copies();
    return;
  }
  // Consecutive threads take what lies together: channels or columns.
  const bool channels_inside = stride.c < stride.w;
  for (int i = thread_index(); i < pixels * chunk.count; i += kThreads) {
    const int q = channels_inside ? i / chunk.count : i % pixels;
    const int c = channels_inside ? i % chunk.count : i / pixels;
    const int32_t place = patch.place[q];
    T value{};
    if (place != kOutside) value = load(base + offset_of(place, stride) + c * stride.c);
    store(&patch.value[q * P::kElementPitch + c], value);
  }
}

// A thread's share of the convolution: one channel of the chunk, and every so-manieth run of pixels.
template <class T>
struct Runs {
  static constexpr int kChannels = kChunk<sizeof(T)>;
  static constexpr int kStep = kThreads / kChannels;

  JPU_DEVICE static int channel() { return thread_index() % kChannels; }
  JPU_DEVICE static int first() { return thread_index() / kChannels; }
};

struct Run {
  int slot;    // its first pixel's
  int window;  // pixel of the patch at the top left of that pixel's window
};

// Rows vary fastest, so that the runs that a warp works on at once lie in different rows.
JPU_DEVICE Run run_at(const Shape& shape, int r) {
  const int rows = shape.classes * shape.height;
  const int line = r % rows, j = r / rows * kRun;
  const int which = line / shape.height, i = line % shape.height;
  return {line * shape.width + j, (which * (shape.height + 2) + i) * shape.patch_pitch() + j};
}

// A row of a run's windows, of the thread's channel.
template <class T, int Pixels>
JPU_DEVICE void read_row(const Patch<T, Pixels>& patch, int first, bool vectors, Accumulate<T> (&row)[kRun + 2]) {
  const int pitch = vectors ? Patch<T, Pixels>::kChannels : Patch<T, Pixels>::kElementPitch;
  const T* values = &patch.value[first * pitch + Runs<T>::channel()];
  JPU_UNROLL for (int j = 0; j < kRun + 2; ++j) row[j] = widen(values[j * pitch]);
}

// All three of them.
template <class T, int Pixels>
JPU_DEVICE void read_windows(const Patch<T, Pixels>& patch, const Shape& shape, int window, bool vectors,
                             Accumulate<T> (&rows)[3][kRun + 2]) {
  JPU_UNROLL for (int i = 0; i < 3; ++i) read_row(patch, window + i * shape.patch_pitch(), vectors, rows[i]);
}

// h of a run: the depthwise sums, taps in row-major order, their affine map, rounded.
template <class T, int Pixels>
JPU_DEVICE void normalise_run(const Patch<T, Pixels>& patch, const Shape& shape, int window, bool vectors,
                              const Accumulate<T> (&weight)[9], Accumulate<T> scale, Accumulate<T> shift,
                              Accumulate<T> (&h)[kRun]) {
  Accumulate<T> rows[3][kRun + 2];
  read_windows(patch, shape, window, vectors, rows);
  JPU_UNROLL for (int x = 0; x < kRun; ++x) {
    Accumulate<T> sum = 0;
    JPU_UNROLL for (int i = 0; i < 9; ++i) sum = multiply_add(weight[i], rows[i / 3][x + i % 3], sum);
    h[x] = widen(narrow<T>(multiply_add(scale, sum, shift)));
  }
}

}  // namespace jpu::separable_pyramid

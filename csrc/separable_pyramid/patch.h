// A tile's input with its halo, a chunk of channels at a time, in shared memory.
#pragma once

#include "device/async_copy.h"
#include "device/memory.h"
#include "separable_pyramid/tile.h"

namespace jpu::separable_pyramid {

template <class T>
struct Patch {
  static constexpr int kChannels = kChunk<sizeof(T)>;
  // Vectors fill a pixel's 64 bytes; single elements go to pixels one element further apart, since a warp then
  // writes the same channel of consecutive pixels.
  static constexpr int kElementPitch = kChannels + 1;

  alignas(kVectorBytes) T value[kMaxPatchPixels * kElementPitch];
  Tile tile;
  // Of each pixel: row and column in the image relative to the tile's origin, or kOutside.
  int32_t place[kMaxPatchPixels];
};

constexpr int32_t kOutside = INT32_MIN;

// The place of the halo's first pixel, were it of class 0.
JPU_DEVICE int origin(int dilation, int first) { return dilation * (first - 1); }

// Called once a tile; a barrier must follow.
template <class T>
JPU_DEVICE void place_patch(const Params& p, const Branch& branch, const Tile& tile, Patch<T>& patch) {
  const int top = origin(branch.dilation, tile.row), left = origin(branch.dilation, tile.column);
  for (int q = thread_index(); q < branch.tiling.shape.patch_pixels(); q += kThreads) {
    const Pixel pixel = pixel_of_patch(p, branch, tile, q);
    patch.place[q] = pixel.inside ? (pixel.y - top) << 16 | (pixel.x - left) : kOutside;
  }
  if (thread_index() == 0) patch.tile = tile;
}
// The largest relative place: a patch's last pixel, in its last class.
static_assert((34 + 1) * kMaxDilation < 1 << 15);

JPU_DEVICE int64_t offset_of(int32_t place, const Strides& stride) {
  return (place >> 16) * stride.h + (place & 0xffff) * stride.w;
}

// Begins to fetch a chunk; wait_copies and a barrier end it. Pixels outside of the image become 0; channels past the
// chunk's count are not defined.
template <class T>
JPU_DEVICE void fetch_patch(const Params& p, const Branch& branch, const Chunk& chunk, int image, Patch<T>& patch) {
  constexpr int V = Vector<T>::kSize;
  const Level& level = p.level[chunk.level];
  const Strides& stride = level.stride;
  // May lie before the level's first element.
  const T* base = at<T>(level.data, stride, image, chunk.channel, origin(branch.dilation, patch.tile.row),
                        origin(branch.dilation, patch.tile.column));
  const int pixels = branch.tiling.shape.patch_pixels();
  if (level.vectors) {
    const int vectors = chunk.count / V;
    for (int i = thread_index(); i < pixels * (Patch<T>::kChannels / V); i += kThreads) {
      const int q = i / (Patch<T>::kChannels / V), v = i % (Patch<T>::kChannels / V);
      if (v >= vectors) continue;
      const int32_t place = patch.place[q];
      T* target = &patch.value[q * Patch<T>::kChannels + v * V];
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
    store(&patch.value[q * Patch<T>::kElementPitch + c], value);
  }
}

// A thread's share of the convolution: one channel of the chunk, and every so-manieth run of pixels.
template <class T>
struct Runs {
  static constexpr int kChannels = Patch<T>::kChannels;
  static constexpr int kStep = kThreads / kChannels;
  static constexpr int kCount = kPixels / kRun;
  static_assert(kCount % kStep == 0, "every thread has as many runs");

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

// A row of the windows of a run.
template <class T>
JPU_DEVICE void load_window_row(const T* patch, int pitch, Accumulate<T> (&row)[kRun + 2]) {
  JPU_UNROLL for (int j = 0; j < kRun + 2; ++j) row[j] = widen(patch[j * pitch]);
}

// The depthwise sums of a run, taps in row-major order.
template <class T>
JPU_DEVICE void convolve(const Patch<T>& patch, const Shape& shape, int window, int pitch,
                         const Accumulate<T> (&weight)[9], Accumulate<T> (&sum)[kRun]) {
  JPU_UNROLL for (int x = 0; x < kRun; ++x) sum[x] = 0;
  JPU_UNROLL for (int i = 0; i < 3; ++i) {
    Accumulate<T> row[kRun + 2];
    load_window_row(&patch.value[(window + i * shape.patch_pitch()) * pitch + Runs<T>::channel()], pitch, row);
    JPU_UNROLL for (int x = 0; x < kRun; ++x) {
      JPU_UNROLL for (int j = 0; j < 3; ++j) sum[x] = multiply_add(weight[3 * i + j], row[x + j], sum[x]);
    }
  }
}

}  // namespace jpu::separable_pyramid

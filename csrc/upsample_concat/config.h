// How the work is cut: which axis is vectorised, and the tile of a block. Pure functions, tested as such.
#pragma once

#include <cstdint>

#include "device/target.h"

namespace jpu::upsample_concat {

constexpr int kThreads = 256;

// The axis along which a thread owns 16 bytes.
enum class Path : int32_t {
  kChannels,  // channels_last: loads and stores of 16 bytes
  kWidth,     // NCHW: 16 bytes a thread of the large image; the small one by Staging
  kSameWidth, // kWidth where both images are equally wide: 16 bytes on both sides
  kElements,  // any strides, one element at a time
};

// How forward's kWidth brings the small image into shared memory, from where tiles read a pixel several times.
enum class Staging : int32_t {
  kNone,      // not at all: it is larger than the large one on some axis, or the path is another
  kElements,  // any strides, one element at a time
  kVectors,   // 16 bytes at a time
};

struct Tile {
  int height, width, channels;
};

// Tile of the large image, in which forward works.
//
// kChannels: 128 bytes of channels a pixel, so that a warp reads whole lines; 8 rows and 16 columns keep the
// halo of the small image, one pixel a side, small beside what is written.
// kWidth: a warp writes runs of 128 bytes; 8 channels share one table of taps. 32 rows keep the halo of the
// small image small (18 rows for 16 at a factor of 2, where 16 rows would need 10 for 8) and give each thread one
// walk.
template <int Vector>
JPU_HOST_DEVICE constexpr Tile forward_tile(Path path) {
  switch (path) {
    case Path::kChannels:
      return {8, 16, 8 * Vector};
    case Path::kWidth:
      return {32, 8 * Vector, 8};
    case Path::kSameWidth:
      return {16, 8 * Vector, 8};
    default:
      return {8, 32, 8};
  }
}

// Rows that a thread of forward's kWidth resizes one after the other. It interpolates each row of the small image
// between columns once and keeps two of them: at a factor of 2, 6 rows for 8 of the result; walks of 4 would take 4.
constexpr int kWalk = 8;

// Shared memory for the part of the small image that a tile of forward's kWidth needs. With the tables of taps it
// leaves room for three blocks in the 100 KB of the smaller GPUs. 8 channels fit from a factor of 1.2 on; a tile
// that does not fit reads the small image from global memory.
constexpr int kStagedBytes = 30 * 1024;

// Tile of the small image, in which backward works. It reads the large one with a halo of one small pixel a
// side, (1 + 1/height)·(1 + 1/width) of its own share: 8×16 makes 1.20, where 8×8 would make 1.27.
//
// kWidth: 32 columns, since a thread there owns one pixel and a warp should write a run; one channel.
template <int Vector>
JPU_HOST_DEVICE constexpr Tile backward_tile(Path path) {
  switch (path) {
    case Path::kChannels:
      return {8, 16, 4 * Vector};
    case Path::kWidth:
    case Path::kSameWidth:
      return {8, 32, 1};
    default:
      return {8, 16, 8};
  }
}

// Columns of the large image that backward's kWidth sums at a time.
constexpr int kChunk = 160;

}  // namespace jpu::upsample_concat

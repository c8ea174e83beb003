// How the work is cut: which axis is vectorised, and the tile of a block. Pure functions, tested as such.
#pragma once

#include <cstdint>

#include "common/integers.h"

namespace jpu::norm_relu {

constexpr int kThreads = 256;

// What neighbouring threads own: 16 bytes each, or one element.
enum class Path : int32_t {
  kChannels,         // channels_last: 16 bytes of channels
  kPixels,           // NCHW: 16 bytes of a channel's pixels
  kChannelElements,  // any strides, channels closer together than pixels
  kPixelElements,    // any other strides
};

JPU_HOST_DEVICE constexpr bool channels_inside(Path path) {
  return path == Path::kChannels || path == Path::kChannelElements;
}

JPU_HOST_DEVICE constexpr bool by_vectors(Path path) { return path == Path::kChannels || path == Path::kPixels; }

// What a thread loads before it stores anything, along the other axis. 8 vectors of each of 256 threads are 32 KiB on
// their way; one block a multiprocessor covers the latency of an H100's memory. It also is what the terms of a tile's
// channels, which every block works out for itself, are paid off over: in bfloat16, 256 of them serve 16384 elements.
constexpr int kWalk = 8;

// Threads side by side, at most: runs of 512 bytes by vectors; by elements a run begins anywhere, so it should be long
// beside the sectors that it shares with its neighbours.
constexpr int kVectorLanes = 32, kElementLanes = 128;

// Channels that share a block's table of terms, at most; no GPU lacks 4 KiB of shared memory for it.
constexpr int kMostChannels = 256;

// Rows of lanes, the rows of one thread as far apart as there are rows.
struct Tile {
  int lanes, rows;
};

// Args:
//   inner: vectors or elements of the axis that neighbouring threads share.
JPU_HOST_DEVICE constexpr Tile tile_of(Path path, int inner) {
  const int most = by_vectors(path) ? kVectorLanes : kElementLanes;
  // As even as they come: 33 vectors make two tiles of 17, not one of 32 and one of which 31 threads in 32 are idle.
  const int lanes = ceil_divide(inner, ceil_divide(inner, most));
  const int rows = kThreads / lanes;
  return {lanes, channels_inside(path) ? rows : smaller(rows, kMostChannels / kWalk)};
}

}  // namespace jpu::norm_relu

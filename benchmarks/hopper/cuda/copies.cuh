// Tiles of every d-th pixel into a ring of stages in shared memory, by the copy engine and by threads. Nobody reads
// them: what is timed is how fast they come.
#pragma once

#include "device.cuh"
#include "expected.h"

namespace hopper {

constexpr int kTileStages = 8;
constexpr int kStageBytes = (kBoxBytes + 1023) / 1024 * 1024;  // the swizzle counts from multiples of 1024
constexpr int kTilesDataBytes = kTileStages * kStageBytes;
constexpr int kTilesSharedBytes = 1024 + kTilesDataBytes + 8 * kTileStages;
static_assert(kTilesSharedBytes <= 227 * 1024);
constexpr int kBulkThreads = 128, kGatherThreads = 256;
constexpr uint32_t kTileFull = 7;  // a wait, as a Failure names it

struct TilesParams {
  CUtensorMap map;         // [images, height, width, channels], boxes of 1 × 10 d × 18 d × 64 that step by d; swizzled
  const uint16_t* tensor;  // the same
  uint8_t* data;           // [blocks, kTilesDataBytes], the stages at the end; may be null
  int64_t* clocks;         // [blocks], cycles of the loop
  Watch watch;
  Extent extent;
  Walk walk;
  int steps;
};

// Bytes that no tile has.
constexpr uint32_t kUntouched = 0xa5a5a5a5u;

HOPPER_DEVICE uint8_t* aligned(uint8_t* memory) { return memory + ((0u - shared_address(memory)) & 1023u); }

HOPPER_DEVICE void clear_stages(uint8_t* data) {
  const uint4 value = make_uint4(kUntouched, kUntouched, kUntouched, kUntouched);
  for (int i = threadIdx.x; i < kTilesDataBytes / 16; i += blockDim.x) reinterpret_cast<uint4*>(data)[i] = value;
}

HOPPER_DEVICE void keep_stages(const TilesParams& params, const uint8_t* data) {
  if (params.data == nullptr) return;
  uint4* to = reinterpret_cast<uint4*>(params.data + int64_t{blockIdx.x} * kTilesDataBytes);
  const uint4* from = reinterpret_cast<const uint4*>(data);
  for (int i = threadIdx.x; i < kTilesDataBytes / 16; i += blockDim.x) to[i] = from[i];
}

// Where a block is in its walk; divides only when it goes on to another position.
struct Walker {
  const Walk& walk;
  int step = 0, block = 0;
  Start start;
  HOPPER_DEVICE explicit Walker(const Walk& w)
      : walk(w), start(start_of(w, position_of(w, blockIdx.x, gridDim.x, 0))) {}
  HOPPER_DEVICE void advance() {
    ++step;
    if (++block == walk.blocks) {
      block = 0;
      start = start_of(walk, position_of(walk, blockIdx.x, gridDim.x, step));
    }
  }
};

__global__ void __launch_bounds__(kBulkThreads, 1) tiles_bulk(const __grid_constant__ TilesParams params) {
  uint8_t* data = aligned(dynamic_memory());
  const uint32_t address = shared_address(data), full = address + kTilesDataBytes;
  clear_stages(data);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kTileStages; ++stage) init_barrier(full + 8 * stage, 1);
    publish_barriers();
  }
  fence_async();
  __syncthreads();
  const int64_t start = clock64();
  if (threadIdx.x == 0) {
    Walker next(params.walk);
    const auto bring = [&](uint32_t stage) {
      arrive_expecting(full + 8 * stage, kBoxBytes);
      copy_tile_4d(address + stage * kStageBytes, &params.map, next.block * kChannels, next.start.x, next.start.y,
                   next.start.n, full + 8 * stage);
      next.advance();
    };
    for (int stage = 0; stage < kTileStages && stage < params.steps; ++stage) bring(stage);
    Ring<kTileStages> ring;
    for (int step = 0; step < params.steps; ++step, ring.advance()) {
      wait<false>(full + 8 * ring.stage, ring.phase, params.watch, kTileFull, step);
      if (step + kTileStages < params.steps) bring(ring.stage);
    }
  }
  __syncwarp();
  __syncthreads();
  if (threadIdx.x == 0) params.clocks[blockIdx.x] = clock64() - start;
  keep_stages(params, data);
}

__global__ void __launch_bounds__(kGatherThreads, 1) tiles_gather(const __grid_constant__ TilesParams params) {
  constexpr int kUnits = kBoxBytes / 16, kRounds = (kUnits + kGatherThreads - 1) / kGatherThreads;
  uint8_t* data = aligned(dynamic_memory());
  const uint32_t address = shared_address(data);
  clear_stages(data);
  __syncthreads();
  const int64_t start = clock64();

  // The thread's units of a tile, as far as they are the same for every tile.
  const int stride = params.walk.stride;
  int dx[kRounds], dy[kRounds], from[kRounds];
  uint32_t to[kRounds];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int unit = threadIdx.x + round * kGatherThreads, pixel = unit / 8;
    dx[round] = stride * (pixel % kBoxWidth);
    dy[round] = stride * (pixel / kBoxWidth);
    from[round] = (dy[round] * params.extent.width + dx[round]) * params.extent.channels + unit % 8 * 8;
    to[round] = swizzled(16 * unit);
  }
  Walker next(params.walk);
  Ring<kTileStages> ring;
#pragma unroll 1
  for (int step = 0; step < params.steps; ++step, ring.advance()) {
    const Start at = next.start;
    const int64_t pixel = (int64_t{at.n} * params.extent.height + at.y) * params.extent.width + at.x;
    const int64_t base = pixel * params.extent.channels + next.block * kChannels;
    const uint32_t stage = address + ring.stage * kStageBytes;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      if (threadIdx.x + round * kGatherThreads >= kUnits) break;  // of the last round only
      const bool inside = static_cast<uint32_t>(at.y + dy[round]) < static_cast<uint32_t>(params.extent.height) &&
                          static_cast<uint32_t>(at.x + dx[round]) < static_cast<uint32_t>(params.extent.width);
      copy_unit(stage + to[round], params.tensor + (inside ? base + from[round] : 0), inside);
    }
    commit_units();
    wait_units<kTileStages - 1>();
    next.advance();
  }
  wait_units<0>();
  __syncthreads();
  if (threadIdx.x == 0) params.clocks[blockIdx.x] = clock64() - start;
  keep_stages(params, data);
}

// Gives every element of a tensor its mark.
__global__ void mark(uint16_t* tensor, Extent extent) {
  const int64_t units = int64_t{extent.images} * extent.height * extent.width * extent.channels / 8;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < units; i += int64_t{gridDim.x} * blockDim.x) {
    const int c = static_cast<int>(i % (extent.channels / 8)) * 8;
    const int64_t pixel = i / (extent.channels / 8);
    const int x = static_cast<int>(pixel % extent.width), y = static_cast<int>(pixel / extent.width % extent.height);
    const int n = static_cast<int>(pixel / extent.width / extent.height);
    for (int j = 0; j < 8; ++j) tensor[8 * i + j] = marked(n, y, x, c + j);
  }
}

}  // namespace hopper

// The three things that a fused kernel does at once in a multiprocessor, which can be switched on one by one:
//   products    two warpgroups multiply 128 pixels by 256 outputs, 64 channels a step
//   copies      the copy engine brings weights (32 KB), pixels with their halo (22.5 KB) and taps (2.5 KB) from L2
//   depthwise   one or two warpgroups make the left operand of products from pixels and taps
// The loop, its barriers and its stages are those that the kernel would have; what is off leaves its data as they were.
#pragma once

#include "device.cuh"
#include "pipes_shape.h"

namespace hopper {

struct PipesParams {
  CUtensorMap weights;       // [outputs, channels], boxes of 256 × 64, or 128 × 64 in kMulticast; swizzled
  CUtensorMap pixels;        // [1, height, width, channels], boxes of 1 × 10 × 18 × 64; not swizzled
  const uint16_t* weight;    // [outputs, channels]
  const uint16_t* pixel;     // [height, width, channels]
  const float* taps;         // [channels / 64, 10, 64]; the last of ten is the summand
  const uint16_t* operands;  // [4, 128, 64], what products take without depthwise
  float* sums;               // [blocks, 128, 256]; may be null
  uint8_t* data;             // [blocks, kDataBytes], the shared memory at the end; may be null
  int64_t* clocks;           // [blocks], cycles of the loop
  Watch watch;
  uint32_t active;
  int steps, channels, height, width;
  int tiles_across, tiles, outputs;  // of pixels; and weights' rows, over which blocks are spread
  bool reader_fence;                 // a second fence, where operands are read
};

// Barriers of a ring: whether a stage is full, and whether it is empty again.
template <int kStages>
struct Barriers {
  uint32_t base;
  HOPPER_DEVICE uint32_t full(uint32_t stage) const { return base + 16 * stage; }
  HOPPER_DEVICE uint32_t empty(uint32_t stage) const { return base + 16 * stage + 8; }
  HOPPER_DEVICE void init(uint32_t fill, uint32_t release) const {
    for (uint32_t stage = 0; stage < kStages; ++stage) {
      init_barrier(full(stage), fill);
      init_barrier(empty(stage), release);
    }
  }
};

// What this block works on.
struct Work {
  uint32_t rank, peer;  // in the cluster
  int x, y;             // of the box's first pixel, which may lie outside
  int output;           // the first of 256
  int first, every;     // steps whose operand it makes
};

template <class S>
struct Shared {
  uint8_t* data;
  uint32_t address;  // of data
  Barriers<S::kOperands> operands;
  Barriers<S::kWeights> weights;
  Barriers<S::kInputs> inputs;

  HOPPER_DEVICE explicit Shared(uint8_t* memory) {
    const uint32_t start = shared_address(memory);
    address = (start + 1023) & ~1023u;
    data = memory + (address - start);
    operands.base = address + S::kDataBytes;
    weights.base = operands.base + 16 * S::kOperands;
    inputs.base = weights.base + 16 * S::kWeights;
  }
  HOPPER_DEVICE uint32_t operand(uint32_t stage) const { return address + stage * S::kOperandBytes; }
  HOPPER_DEVICE uint32_t weight(uint32_t stage) const { return address + S::kWeightsAt + stage * S::kWeightBytes; }
  HOPPER_DEVICE uint32_t input(uint32_t stage) const { return address + S::kInputsAt + stage * S::kInputBytes; }
};

// Every stage as copies and depthwise would leave it, made by plain stores: stage s of weights and inputs has the s-th
// 64 channels.
template <class S>
HOPPER_DEVICE void fill(const PipesParams& params, const Work& work, uint8_t* data) {
  const auto put = [data](int at, uint4 value) { *reinterpret_cast<uint4*>(data + at) = value; };
  const auto get = [](const void* from) { return *static_cast<const uint4*>(from); };
  for (int i = threadIdx.x; i < S::kOperands * kPixels * 8; i += S::kThreads) {
    put(swizzled(16 * i), get(params.operands + 8 * i));
  }
  for (int i = threadIdx.x; i < S::kWeights * kOutputs * 8; i += S::kThreads) {
    const int row = i / 8 % kOutputs, channel = i / (8 * kOutputs) * kChannels + i % 8 * 8;
    const int64_t from = int64_t{work.output + row} * params.channels + channel;
    put(S::kWeightsAt + swizzled(16 * i), get(params.weight + from));
  }
  constexpr int kBoxUnits = kBoxBytes / 16;
  for (int i = threadIdx.x; i < S::kInputs * kBoxUnits; i += S::kThreads) {
    const int stage = i / kBoxUnits, pixel = i % kBoxUnits / 8, channel = stage * kChannels + i % 8 * 8;
    const int y = work.y + pixel / kBoxWidth, x = work.x + pixel % kBoxWidth;
    const bool inside = y >= 0 && y < params.height && x >= 0 && x < params.width;
    const int64_t from = (int64_t{y} * params.width + x) * params.channels + channel;
    put(S::kInputsAt + stage * S::kInputBytes + i % kBoxUnits * 16,
        inside ? get(params.pixel + from) : make_uint4(0, 0, 0, 0));
  }
  constexpr int kTapUnits = S::kTapBytes / 16;
  for (int i = threadIdx.x; i < S::kInputs * kTapUnits; i += S::kThreads) {
    const int stage = i / kTapUnits;
    put(S::kInputsAt + stage * S::kInputBytes + kBoxBytes + i % kTapUnits * 16, get(params.taps + 4 * i));
  }
}

// --- roles ---------------------------------------------------------------------------------------------------------

template <class S>
HOPPER_DEVICE void consume(const PipesParams& params, const Work& work, const Shared<S>& shared) {
  const bool products = params.active & kProducts, copies = params.active & kCopies;
  const bool depthwise = params.active & kDepthwise;
  const bool signals = threadIdx.x % 32 == 0;  // each warp for itself: the others' products may take longer
  const uint32_t rows = threadIdx.x / 128 * 64 * kRowBytes;
  float sum[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) sum[i] = 0.0f;
  pin(sum);

  const auto release = [&](uint32_t weight, uint32_t operand) {
    __syncwarp();
    if (!signals) return;
    if (copies) {
      arrive(shared.weights.empty(weight));
      if (S::kMulticast) arrive_at(shared.weights.empty(weight), work.peer);
    }
    if (products && depthwise) {
      if (S::kShared) {
        arrive_at(shared.operands.empty(operand), operand % 2);  // of the block that made it
      } else {
        arrive(shared.operands.empty(operand));
      }
    }
  };

  // One thread also brings the weights: into a stage when all have released it, while products of the next one run.
  int channel = 0;
  const auto bring = [&](uint32_t stage) {
    const uint32_t full = shared.weights.full(stage), to = shared.weight(stage);
    arrive_expecting(full, S::kWeightBytes);
    if constexpr (S::kMulticast) {
      const int half = work.rank * kOutputs / 2;
      copy_tile_2d_to(3, to + half * kRowBytes, &params.weights, channel, work.output + half, full);
    } else {
      copy_tile_2d(to, &params.weights, channel, work.output, full);
    }
    channel = channel + kChannels == params.channels ? 0 : channel + kChannels;
  };
  const auto refill = [&](const Ring<S::kWeights>& weight, int step) {
    if (copies && threadIdx.x == 0 && step + S::kWeights < params.steps) {
      wait<S::kCluster>(shared.weights.empty(weight.stage), weight.phase, params.watch, kWeightsEmpty, step);
      bring(weight.stage);
    }
    __syncwarp();
  };
  if (copies && threadIdx.x == 0) {
    for (int step = 0; step < S::kWeights && step < params.steps; ++step) bring(step);
  }
  __syncwarp();

  Ring<S::kWeights> weight;
  Ring<S::kOperands> operand;
  if (!products) {
    for (int step = 0; copies && step < params.steps; ++step, weight.advance()) {
      wait<S::kCluster>(shared.weights.full(weight.stage), weight.phase, params.watch, kWeightsFull, step);
      release(weight.stage, 0);
      refill(weight, step);
    }
    return;
  }
  Ring<S::kWeights> weight_before;
  uint32_t operand_before = 0;
#pragma unroll 1
  for (int step = 0; step < params.steps; ++step) {
    if (copies) {
      wait<S::kCluster>(shared.weights.full(weight.stage), weight.phase, params.watch, kWeightsFull, step);
    }
    if (depthwise) {
      wait<S::kCluster>(shared.operands.full(operand.stage), operand.phase, params.watch, kOperandFull, step);
      if (params.reader_fence) fence_async();
    }
    __syncwarp();
    const uint64_t a = describe_operand(shared.operand(operand.stage) + rows);
    const uint64_t b = describe_operand(shared.weight(weight.stage));
    begin_products();
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // 16 channels are 32 bytes, in units of 16
      if constexpr (S::kWide) {
        multiply(sum, a + 2 * part, b + 2 * part);
      } else {
        multiply_half<0>(sum, a + 2 * part, b + 2 * part);
        multiply_half<64>(sum, a + 2 * part, b + 2 * part + kOutputs / 2 * kRowBytes / 16);
      }
    }
    commit_products();
    wait_products<1>();  // those of the step before, while these run
    if (step > 0) {
      release(weight_before.stage, operand_before);
      refill(weight_before, step - 1);
    }
    weight_before = weight;
    operand_before = operand.stage;
    weight.advance();
    operand.advance();
  }
  wait_products<0>();
  pin(sum);
  if (params.sums == nullptr) return;
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  float* to = params.sums + (int64_t{blockIdx.x} * kPixels + row) * kOutputs + column;
#pragma unroll
  for (int i = 0; i < 128; ++i) to[i / 2 % 2 * 8 * kOutputs + i / 4 * 8 + i % 2] = sum[i];
}

// A warp makes 4 × 4 pixels of all 64 channels at a time, a thread two channels of them.
HOPPER_DEVICE void sum_taps(float2 (&sum)[4][4], const uint8_t* pixels, const float2* taps) {
  const float2 summand = taps[kTaps * kChannels / 2];
  float2 tap[kTaps];
#pragma unroll
  for (int t = 0; t < kTaps; ++t) tap[t] = taps[t * kChannels / 2];
#pragma unroll
  for (int p = 0; p < 16; ++p) sum[p / 4][p % 4] = summand;
#pragma unroll
  for (int row = 0; row < 6; ++row) {
    float2 pixel[6];
#pragma unroll
    for (int j = 0; j < 6; ++j) {
      const uint32_t both = *reinterpret_cast<const uint32_t*>(pixels + (row * kBoxWidth + j) * kRowBytes);
      pixel[j] = {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int tap_row = row - i;
      if (tap_row < 0 || tap_row > 2) continue;
#pragma unroll
      for (int t = 0; t < 3; ++t) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[i][j].x = __fmaf_rn(tap[3 * tap_row + t].x, pixel[j + t].x, sum[i][j].x);
          sum[i][j].y = __fmaf_rn(tap[3 * tap_row + t].y, pixel[j + t].y, sum[i][j].y);
        }
      }
    }
  }
}

template <class S>
HOPPER_DEVICE void produce(const PipesParams& params, const Work& work, const Shared<S>& shared) {
  constexpr int kWarps = S::kProducers / 32;
  const bool products = params.active & kProducts, copies = params.active & kCopies;
  const bool depthwise = params.active & kDepthwise;
  const int warp = (threadIdx.x - kConsumers) / 32, lane = threadIdx.x % 32;
  const int x = warp % 4 * 4, y = warp / 4 * 4;
  // By the pixel's column, whose lowest three bits are those of the operand's row.
  uint32_t places[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    places[j] = (y * kTileWidth + x) * kRowBytes + ((lane / 4) ^ ((x + j) & 7)) * 16 + lane % 4 * 4;
  }

  // One thread also brings the inputs: into the stage of the time before, which the other warps have left by then.
  int channel = work.first * kChannels;
  const auto bring = [&](uint32_t stage) {
    const uint32_t full = shared.inputs.full(stage), to = shared.input(stage);
    arrive_expecting(full, S::kInputBytes);
    copy_tile_4d(to, &params.pixels, channel, work.x, work.y, 0, full);
    copy_bulk(to + kBoxBytes, params.taps + int64_t{channel} * (kTaps + 1), S::kTapBytes, full);
    channel += work.every * kChannels;
    if (channel >= params.channels) channel -= params.channels;
  };
  const auto refill = [&](const Ring<S::kInputs>& input, int step) {
    if (copies && warp == 0 && lane == 0 && step + S::kInputs * work.every < params.steps) {
      wait<S::kCluster>(shared.inputs.empty(input.stage), input.phase, params.watch, kInputEmpty, step);
      bring(input.stage);
    }
    __syncwarp();
  };
  if (copies && warp == 0 && lane == 0) {
    for (int i = 0; i < S::kInputs && work.first + i * work.every < params.steps; ++i) bring(i);
  }
  __syncwarp();

  Ring<S::kInputs> input, input_before;
  Ring<S::kOperands> operand;
  for (int i = 0; i < work.first; ++i) operand.advance();
#pragma unroll 1
  for (int step = work.first; step < params.steps; step += work.every) {
    if (copies) wait<S::kCluster>(shared.inputs.full(input.stage), input.phase, params.watch, kInputFull, step);
    if (step > work.first) refill(input_before, step - work.every);
    const auto release = [&] {
      __syncwarp();
      if (copies && lane == 0) arrive(shared.inputs.empty(input.stage));
    };
    if (depthwise) {
      const uint8_t* stage = shared.data + S::kInputsAt + input.stage * S::kInputBytes;
      const float2* taps = reinterpret_cast<const float2*>(stage + kBoxBytes) + lane;
      const uint8_t* pixels = stage + (y * kBoxWidth + x) * kRowBytes + 4 * lane;
      const uint32_t here = shared.operand(operand.stage);
      const uint32_t there = S::kShared ? address_at(here, work.peer) : 0;
#pragma unroll 1
      for (int down = 0; down < kTileHeight; down += kWarps) {  // with four warps, the upper pixels and the lower ones
        float2 sum[4][4];
        sum_taps(sum, pixels + down * kBoxWidth * kRowBytes, taps);
        if (down + kWarps == kTileHeight) release();
        if (products && down == 0) {
          wait<S::kCluster>(shared.operands.empty(operand.stage), operand.phase ^ 1, params.watch, kOperandEmpty, step);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const uint32_t both = pack_bfloat16(sum[i][j].x, sum[i][j].y);
            const uint32_t at = places[j] + ((i + down) * kTileWidth + j) * kRowBytes;
            store_shared(here + at, both);
            if constexpr (S::kShared) store_at(there + at, both);
          }
        }
      }
      fence_async();
      __syncwarp();
      if (lane == 0) {
        arrive(shared.operands.full(operand.stage));
        if (S::kShared) arrive_at(shared.operands.full(operand.stage), work.peer);
      }
      for (int i = 0; i < work.every; ++i) operand.advance();
    } else {
      release();
    }
    input_before = input;
    input.advance();
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) pipes(const __grid_constant__ PipesParams params) {
  const Shared<S> shared(dynamic_memory());

  Work work;
  const int block = blockIdx.x, group = block / S::kBlocks;
  work.rank = S::kCluster ? cluster_rank() : 0;
  work.peer = work.rank ^ 1;
  const int tile = (S::kShared ? group : block) % params.tiles;
  work.x = tile % params.tiles_across * kTileWidth - 1;
  work.y = tile / params.tiles_across * kTileHeight - 1;
  work.output = (S::kShared ? block : group) % (params.outputs / kOutputs) * kOutputs;
  work.first = S::kShared ? work.rank : 0;
  work.every = S::kShared ? 2 : 1;

  fill<S>(params, work, shared.data);
  if (threadIdx.x == 0) {
    constexpr uint32_t kWarps = kConsumers / 32, kBoth = 2 * kWarps, kMakers = S::kProducers / 32;
    shared.operands.init(kMakers, S::kShared ? kBoth : kWarps);
    shared.weights.init(1, S::kMulticast ? kBoth : kWarps);
    shared.inputs.init(1, kMakers);
    publish_barriers();
  }
  fence_async();
  __syncthreads();
  if constexpr (S::kCluster) sync_cluster();
  const int64_t start = clock64();

  if (threadIdx.x < kConsumers) {
    take_registers<S::kConsumerRegisters>();
    consume<S>(params, work, shared);
  } else {
    give_registers_back<S::kProducerRegisters>();
    produce<S>(params, work, shared);
  }
  __syncwarp();
  __syncthreads();
  if (threadIdx.x == 0) params.clocks[blockIdx.x] = clock64() - start;
  // Nobody leaves while a peer may still write to its memory or arrive at its barriers.
  if constexpr (S::kCluster) sync_cluster();
  if (params.data == nullptr) return;
  uint4* to = reinterpret_cast<uint4*>(params.data + int64_t{blockIdx.x} * S::kDataBytes);
  for (int i = threadIdx.x; i < S::kDataBytes / 16; i += S::kThreads) to[i] = reinterpret_cast<uint4*>(shared.data)[i];
}

}  // namespace hopper

// How the tensor cores' policies cut the work; see config.h for tiles and chunks.
#pragma once

#include "separable_pyramid/config.h"

namespace jpu::separable_pyramid {

// Outputs of a block, and a warp's share of kPixels by these.
constexpr int kMatrixColumns = 256;
constexpr int kWarpSide = 64;
static_assert(kThreads / 32 * kWarpSide * kWarpSide == kPixels * kMatrixColumns, "each result has one warp");

// Blocks to a tile.
constexpr int64_t shares_of(int64_t outputs) { return (outputs + kMatrixColumns - 1) / kMatrixColumns; }

constexpr int kUnits = 4;  // vectors of a chunk, which is 64 bytes of any dtype

// Chunks that a block of the first pass goes through, and stages of the second's pipeline.
constexpr int kSplitChunks = 8;
constexpr int kProductStages = 4;

// What a block may take of shared memory, by policy: every GPU since 8.0 gives 99 KiB.
constexpr int kMmaSharedBytes = 87 * 1024;
constexpr int kTwoPassSharedBytes = 96 * 1024;

}  // namespace jpu::separable_pyramid

// How the work is cut.
#pragma once

#include "common/integers.h"

namespace jpu::norm_statistics {

constexpr int kThreads = 256;

// Statistics and coefficients: so many channels, and rows of threads that share their parts. Runs of 64 bytes in
// float32; with twice as many channels, 4 branches of 512 outputs would leave half of a large GPU idle.
constexpr int kLanes = 16, kRows = kThreads / kLanes;

// Parts that a thread loads before it merges any: their values are on the way together.
constexpr int kWalk = 8;

// Sums of parts: no arithmetic to speak of, so whole lines of 128 bytes.
constexpr int kFoldLanes = 32, kFoldRows = kThreads / kFoldLanes;

// The gradient of pointwise weights: runs of 512 bytes a row, and rows of one thread.
constexpr int kGradientLanes = 32, kGradientRows = kThreads / kGradientLanes, kGradientWalk = 4;

// Sums over outputs: so many channels a block. Runs of 64 bytes in half precision, so that 1536
// channels of 4 branches make 192 blocks.
constexpr int kSumChannels = 32;
// By vectors of V elements.
JPU_HOST_DEVICE constexpr int sum_lanes(int V) { return kSumChannels / V; }
JPU_HOST_DEVICE constexpr int sum_rows(int V) { return kThreads / sum_lanes(V); }

}  // namespace jpu::norm_statistics

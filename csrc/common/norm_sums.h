// What training's launches hand each other of a norm: [sets, rows, branches, channels] in the type of sums, where a set
// is all images together, or each of them for GroupNorm.
#pragma once

#include <cstdint>

namespace jpu {

// Rows of statistics; the last two are the norm as an affine map.
enum Statistic : int32_t { kMean, kVariance, kInverseDeviation, kScale, kShift, kStatistics };

// Rows of coefficients: k, a and b of dx = k · dy − a − b · x̂.
enum Coefficient : int32_t { kOfGradient, kOfOne, kOfNormalised, kCoefficients };

// Rows of sums: Σ dy, Σ dy · x̂ and Σ x̂.
constexpr int kSums = 3;

}  // namespace jpu

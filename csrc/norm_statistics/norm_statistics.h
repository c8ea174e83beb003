// What a norm takes from sums over pixels: statistics and affine maps in the forward pass, and in the backward pass
// coefficients of dx = k · dy − a − b · x̂, the gradients of weights and biases, and that of pointwise weights after a
// norm. jpu_cuda/ops/_training_steps.py says what each result is.
//
// Sums over many parts are taken in two levels, rows of threads and then their sums: shorter chains round less.
#pragma once

#include <cstdint>

#include "common/norm_sums.h"
#include "norm_statistics/config.h"

namespace jpu::norm_statistics {

constexpr int kMaxBranches = 8;
constexpr int64_t kMaxChannels = 1 << 28;  // so that a tile's end stays an int
constexpr int64_t kMaxParts = 1 << 30;     // so that a row's end does

struct Norm {
  const void *weight, *bias;  // [channels]; null for 1 and 0
  const void *mean, *var;     // [channels]; null for the batch's own
  double eps;
};

struct StatisticsParams {
  const void* moments;    // [images, parts, branches, 2, channels]
  const int32_t* counts;  // [parts, branches]
  void* statistics;       // [sets, kStatistics, branches, channels]
  int32_t images, parts;  // kMaxParts of all images at most
  int32_t branches, channels;
  int32_t groups;  // of channels, whose images are a set each; 0 where all images are one
  int32_t tiles;   // groups, or kLanes channels each
  Norm norm[kMaxBranches];
};

// Sums of values that lie as far apart as parts do: out[image][value] = Σ in[image][part][value].
struct FoldParams {
  const void* in;
  void* out;  // [images, values]
  int64_t image_stride, part_stride;
  int64_t images, parts, values;
  uint32_t tiles;  // set by the launch
};

struct CoefficientsParams {
  const void* sums;        // [images, kSums, branches, channels]
  const void* statistics;  // [sets, kStatistics, branches, channels]
  void* coefficients;      // [sets, kCoefficients, branches, channels]
  void* totals;            // [images, branches, channels]
  void* gradients;         // [2, branches, channels], of weights and biases
  int64_t pixels;          // of an image
  int32_t images, branches, channels;
  int32_t groups;  // as for statistics
  int32_t channel_tiles;
  const void* weight[kMaxBranches];  // null for 1
  bool batch[kMaxBranches];          // whether statistics depend on what is normalised
};

struct PointwiseParams {
  const void* products;               // [branches, sets, outputs, channels], in the type of sums
  const void* pointwise[kMaxBranches];  // [outputs, channels]
  const void* weight[kMaxBranches];   // [channels]; null for 1
  const void* bias[kMaxBranches];     // [channels]; null for 0
  const void* set_totals;             // [sets, branches, outputs], sets so far apart
  int64_t set_stride;
  const void* all_totals;  // [branches, outputs], of all sets
  void* gradient;          // [branches, outputs, channels]
  void* sums;              // [sets, kSums, branches, channels]
  int32_t sets, branches, outputs, channels;
  bool norms_in_sums;  // weights and biases have the type of sums; else that of pointwise weights
  bool vectors;        // channels come in 16 bytes everywhere
  // Set by the launch.
  int32_t sum_tiles, channel_tiles, output_tiles;
  uint32_t sum_blocks;
};

// T is the dtype of the norms' own tensors; all else has that of its sums.
//
// Args:
//   stream: a cudaStream_t of the current device; ignored in host execution.
template <class T>
void statistics(StatisticsParams params, void* stream);
template <class T>
void coefficients(CoefficientsParams params, void* stream);

// In the type of sums of T.
template <class T>
void fold(FoldParams params, void* stream);

// T is the dtype of pointwise weights and their gradient; all else has that of its sums, norms perhaps.
template <class T>
void pointwise_gradient(PointwiseParams params, void* stream);

}  // namespace jpu::norm_statistics

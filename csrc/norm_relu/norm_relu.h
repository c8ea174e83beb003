// Norm with fixed statistics and ReLU of a list of levels, in one launch:
//   out = max(0, scale · x + shift)     scale = weight / √(var + eps)     shift = bias − mean · scale
//
// Scale and shift are worked out in the type of sums, and the result is rounded once. PyTorch subtracts the mean first
// on a GPU; where that is larger than the deviation, x itself was rounded at the mean's magnitude, and the product of
// mean and scale adds no more than that.
#pragma once

#include <cstdint>

#include "common/strides.h"
#include "norm_relu/config.h"

namespace jpu::norm_relu {

struct Level {
  const void* in;  // [batch, channels, height, width]
  void* out;       // of the same shape
  Strides in_stride, out_stride;
  const void *weight, *bias;  // [channels]; null for 1 and 0
  const void *mean, *var;     // [channels]
  double eps;
  int32_t batch, channels, height, width;  // plan() joins axes whose elements lie in a line
  // The rest is set by plan().
  Path path;
  uint32_t first_block;
  int32_t lanes, rows;
  int32_t inner_tiles, outer_tiles;
};

// They fit into what every GPU takes as kernel parameters; longer lists take more launches.
constexpr int kMaxLevels = 8;

struct Params {
  int32_t levels;
  bool norms_in_sums;  // weights, biases and statistics have the type of sums; else that of the levels
  Level level[kMaxLevels];
};

// Args:
//   stream: a cudaStream_t of the current device; ignored in host execution.
template <class T>
void forward(Params params, void* stream);

}  // namespace jpu::norm_relu

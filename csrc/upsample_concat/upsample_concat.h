// Bilinear resize of a list of levels to one size, in one launch; and its adjoint.
//
// Concatenation is a matter of where each level's result is put: targets may be slices of one tensor.
//
// The same launch folds the norms of what comes next, where their statistics are fixed, into affine maps:
//   scale = weight / √(var + eps)     shift = bias − mean · scale
#pragma once

#include <cstdint>

#include "common/strides.h"
#include "upsample_concat/config.h"

namespace jpu::upsample_concat {

struct Inverse {  // of an Axis: integers divide slowly on a GPU
  double denominator, step;
};

// One resize. `low` is the level, `high` its counterpart at the common size; forward reads low and writes
// high, backward reads high (a gradient) and writes low.
struct Level {
  void* low;   // [N, channels, height, width]
  void* high;  // [N, channels, Params::height, Params::width]
  Strides low_stride, high_stride;
  int32_t channels, height, width;
  // The rest is set by plan().
  Inverse rows, columns;
  Path path;
  Staging staging;
  uint32_t first_block;
  int32_t tiles_c, tiles_h, tiles_w;
};

// Forward reads weight and bias and writes scale and shift; backward reads the gradients of these and writes those.
struct Norm {
  void *weight, *bias;     // [channels]; forward: null for 1 and 0; backward: null where not asked for
  const void *mean, *var;  // [channels]
  void *scale, *shift;     // [channels], in the type of sums; backward: null for 0
  double eps;
  int32_t channels;
  uint32_t first_block;  // set by plan()
};

// They fit into what every GPU takes as kernel parameters; longer lists of levels take more launches.
constexpr int kMaxLevels = 16;
constexpr int kMaxNorms = 16;

struct Params {
  int32_t levels, batch;
  int32_t height, width;  // of the common size
  bool align_corners;
  bool norms_in_sums;  // their weights, biases and statistics have the type of sums; else that of the levels
  int32_t norms;
  Level level[kMaxLevels];
  Norm norm[kMaxNorms];
};

// The longest side: coordinates are exact in 64 bits up to here.
constexpr int64_t kMaxSize = int64_t{1} << 30;

// Args:
//   stream: a cudaStream_t of the current device; ignored in host execution.
template <class T>
void forward(Params params, void* stream);

template <class T>
void backward(Params params, void* stream);

}  // namespace jpu::upsample_concat

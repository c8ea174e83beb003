// Separable convolutions of several dilations over a list of levels, in one launch; and their derivatives.
//
// For each branch d, with u the levels' channels one after the other, read where they lie:
//   z = depthwise_d * u            3×3, dilated, zero-padded
//   h = scale_d · z + shift_d      in the type of sums, rounded once to the dtype
//   q = pointwise_d · h
//   output = ReLU(out_scale_d · q + out_shift_d), at channel d·O
#pragma once

#include <cstdint>

#include "device/strides.h"
#include "separable_pyramid/config.h"

namespace jpu::separable_pyramid {

constexpr int kMaxLevels = 8;
constexpr int kMaxBranches = 8;
// Indices of channels, and of rows and columns with a halo, stay in 32 bits.
constexpr int64_t kMaxChannels = 1 << 28;
constexpr int64_t kMaxSize = 1 << 30;

struct Level {
  const void* data;  // [N, channels, H, W]
  Strides stride;
  int32_t channels;
  int32_t first;  // channel of the concatenation
  bool vectors;   // set by plan(): channels are read 16 bytes at a time
};

struct Branch {
  const void* depthwise;  // [C, 3, 3]
  const void* pointwise;  // [O, C]
  int32_t dilation;
  // Set by plan().
  Tiling tiling;
  uint32_t first_block;
};

// A term of each channel, in the type of sums; null for none.
struct Affine {
  const void* scale;  // [D, channels], or [N, D, channels]
  const void* shift;
  int64_t scale_image, shift_image;  // elements from one image to the next; 0 for [D, channels]
};

struct Params {
  int32_t batch, height, width;
  int32_t levels, branches;
  int32_t channels, outputs;  // C, and O of one branch
  bool relu;
  Affine inner, outer;
  void* output;  // [N, D·O, H, W]
  Strides output_stride;
  // Set by plan(): what is accessed 16 bytes at a time.
  bool output_vectors, pointwise_vectors;
  int32_t output_tiles;
  Level level[kMaxLevels];
  Branch branch[kMaxBranches];
};
static_assert(sizeof(Params) <= 4096, "kernel parameters are limited to 4 KB");

// Args:
//   stream: a cudaStream_t of the current device; ignored in host execution.
template <class T>
void forward(Params params, void* stream);

}  // namespace jpu::separable_pyramid

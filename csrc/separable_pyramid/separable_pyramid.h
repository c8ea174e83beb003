// Separable convolutions of several dilations over a list of levels, in one launch; and their derivatives.
//
// For each branch d, with u the levels' channels one after the other, read where they lie:
//   z = depthwise_d * u            3×3, dilated, zero-padded
//   h = scale_d · z + shift_d      in the type of sums, rounded once to the dtype
//   q = pointwise_d · h
//   output = ReLU(out_scale_d · q + out_shift_d), at channel d·O
#pragma once

#include <cstdint>

#include "common/strides.h"
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
  const void* depthwise;  // [C, 1, 3, 3]
  const void* pointwise;  // [O, C, 1, 1]
  int32_t dilation;
  // Set by plan().
  Tiling tiling;
  uint32_t first_block;
  // Set by plan_gradient().
  Tiling weight_tiling;
  uint32_t first_input_block;
  int64_t first_tile;  // of all branches' and images' tiles
};

// A term of each channel, in the type of sums; null for none.
struct Affine {
  const void* scale;  // [D, channels], or [N, D, channels]
  const void* shift;
  int64_t scale_image, shift_image;  // elements from one image to the next; 0 for [D, channels]
};

// What training keeps of q beside itself: its moments over each tile of an image.
struct TileMoments {
  void* moments;    // [N, parts, D, 2, O] in the type of sums: mean, and Σ (q − mean)²
  int32_t* counts;  // [parts, D], of pixels; 0 for parts that a branch has not, whose moments are not written
  int64_t parts;    // tiles of the branch that has most
};

struct Params {
  int32_t batch, height, width;
  int32_t levels, branches;
  int32_t channels, outputs;  // C, and O of one branch
  bool relu;
  Affine inner, outer;
  void* output;  // [N, D·O, H, W]
  Strides output_stride;
  // Set by plan().
  int32_t output_tiles;
  // What is accessed 16 bytes at a time.
  bool output_vectors, pointwise_vectors;
  bool whole_vectors;  // each level's channels are
  // Set by plan_matrix(): depthwise and pointwise weights are, and terms.
  bool weight_vectors, term_vectors;
  Level level[kMaxLevels];
  Branch branch[kMaxBranches];
  TileMoments tile_moments;
};

struct LevelGradient {
  void* data;  // [N, channels, H, W]; null where not asked for
  Strides stride;
  // Set by plan_gradient().
  bool vectors;
  uint32_t first_block;
  int32_t channel_tiles;
};

// Results are null where not asked for.
struct GradientParams {
  Params forward;  // its output is only read, and only for ReLU
  const void* gradient;  // of the output
  Strides gradient_stride;
  LevelGradient level[kMaxLevels];
  void* depthwise;                   // [D, C, 3, 3]
  void* pointwise;                   // [D, O, C]
  void *inner_scale, *inner_shift;   // as the terms themselves
  void *outer_scale, *outer_shift;
  // Workspace, in the type of sums but for `inputs`; null where not needed.
  void* products;  // [splits, D, O, C]
  void* sums;      // [splits, D, O]
  void* terms;     // [tiles of all branches and images, 10, C]
  void* inputs;    // dz of `images` images, [images, D·C, H, W]
  Strides inputs_stride;
  int64_t inputs_branch;  // elements from one branch to the next
  bool add;               // levels' gradients, which hold something already
  // Set by plan_gradient().
  bool gradient_vectors;
  int32_t splits, weight_channel_tiles, weight_output_tiles;
  int32_t input_channel_tiles;
  int32_t images;  // that are worked on at a time
  bool spaced;          // strips of the levels' gradient: pixels lie the only branch's dilation apart
  int32_t strip_tiles;  // blocks' shares of an image's strips
  int64_t reduce_rows;
  // Of the group of images under way.
  int32_t first_image;
};

// Numbers of elements; 0 for what is not needed.
struct Workspace {
  int64_t products, sums, terms;
  int64_t images;  // that `inputs` has room for
};

// Args:
//   kMoments: the output is q, and its moments are kept.
//   stream: a cudaStream_t of the current device; ignored in host execution.
template <class T, bool kMoments = false>
void forward(Params params, void* stream);

// The same by tensor cores, for float16, bfloat16 and float32, whose operands become TF32. In one launch:
template <class T, bool kMoments = false>
void forward_mma(Params params, void* stream);

// In two for each `room` tiles of pixels; `normalised` has so many times the bytes of a tile.
template <class T, bool kMoments = false>
void forward_two_pass(Params params, void* normalised, int64_t room, void* stream);
struct NormalisedSize {
  int64_t tiles;  // of all branches and images
  int64_t tile_bytes;
};
template <class T>
NormalisedSize normalised_size(const Params& params);

// Sets what the structs say; the caller then provides the workspace. `input_bytes`: how much `inputs` may take if it
// holds more than one image.
template <class T>
Workspace plan_gradient(GradientParams& params, int64_t input_bytes);

template <class T>
void backward(GradientParams params, void* stream);

}  // namespace jpu::separable_pyramid

// Training's launches that convolve or hand gradients back to the levels; what they are for stands in jpu_cuda/ops.
//
// A branch's pixels lie in tiles as the forward pass cuts them. A block has one chunk of channels, and of one image a
// part: so many tiles, one after the other, so that it begins to fetch the next one's patch before it works on this one.
#pragma once

#include "common/norm_sums.h"
#include "separable_pyramid/separable_pyramid.h"

namespace jpu::separable_pyramid {

struct TrainingParams {
  Params forward;  // of the branches concerned: levels, depthwise weights, dilations
  int32_t all_branches;          // D
  int32_t number[kMaxBranches];  // of each branch concerned among them
  // Set by plan_training(). A branch's first block is the first of its parts, of an image.
  int32_t chunks;
  int32_t parts[kMaxBranches];  // of an image
  int32_t most_parts;           // S

  // Moments: [N, S, D, 2, C] in the type of sums, and [S, D].
  void* moments;
  void* counts;
  // ẑ, rows [branches, N·HW, C]: made of statistics [R, 5, D, C], or read.
  const void* statistics;
  int64_t statistics_image;  // elements from one set to the next; 0 if there is one
  void* normalised;
  // dh becomes dz, rows as above, with coefficients [R, 3, branches, C].
  const void* coefficients;
  int64_t coefficients_image;
  void* gradient;
  bool row_vectors;  // set by depthwise_gradient(): rows are accessed 16 bytes at a time
  void* weights;  // [branches, C, 3, 3]; null if not asked for
  void* terms;    // workspace: [parts of all branches and images, 9, C] in the type of sums
  int64_t first_term[kMaxBranches];
};

constexpr int kTaps = 9;

// Returns how many parts `terms` has.
template <class T>
int64_t plan_training(TrainingParams& params);

// Each needs a plan. Args:
//   stream: a cudaStream_t of the current device; ignored in host execution.
template <class T>
void moments(const TrainingParams& params, void* stream);
template <class T>
void normalised(const TrainingParams& params, void* stream);
template <class T>
void depthwise_gradient(const TrainingParams& params, void* stream);

// Needs none. Of `params`: what `inputs` is, its branches' depthwise weights and dilations, and the levels' gradients.
template <class T>
void level_gradient(GradientParams params, void* stream);

}  // namespace jpu::separable_pyramid

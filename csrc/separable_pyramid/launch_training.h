// Plans and starts training's kernels; included by their instantiations only.
#pragma once

#include <algorithm>

#include "separable_pyramid/depthwise_gradient.h"
#include "separable_pyramid/launch_backward.h"
#include "separable_pyramid/moments.h"

namespace jpu::separable_pyramid {

// Blocks that a launch should have: a few for each place that a large GPU has for one.
constexpr int64_t kTrainingBlocks = 2048;
// Tiles that a part has at least, if the image does: nothing hides the fetch of the first one.
constexpr int kLeastTiles = 4;

template <class T>
void plan_levels(Params& p) {
  constexpr int V = Vector<T>::kSize;
  p.whole_vectors = true;
  for (int i = 0; i < p.levels; ++i) {
    Level& level = p.level[i];
    level.vectors = level.channels % V == 0 && channels_in_vectors<T>(level.data, level.stride);
    p.whole_vectors &= level.channels % V == 0;
  }
}

template <class T>
int64_t plan_training(TrainingParams& t) {
  Params& p = t.forward;
  plan_levels<T>(p);
  t.chunks = 0;
  for (int i = 0; i < p.levels; ++i) t.chunks += ceil_divide(p.level[i].channels, kChunk<sizeof(T)>);
  const int64_t shares = int64_t{p.batch} * p.branches * t.chunks;
  const int64_t parts = (kTrainingBlocks + shares - 1) / shares;
  t.most_parts = 0;
  uint32_t blocks = 0;
  int64_t terms = 0;
  for (int i = 0; i < p.branches; ++i) {
    Branch& branch = p.branch[i];
    branch.tiling = choose_tiling<kPixels>(branch.dilation, p.height, p.width);
    branch.first_block = blocks;
    t.parts[i] = static_cast<int32_t>(std::min(parts, (branch.tiling.tiles() + kLeastTiles - 1) / kLeastTiles));
    t.most_parts = std::max(t.most_parts, t.parts[i]);
    t.first_term[i] = terms;
    blocks += t.parts[i];
    terms += int64_t{t.parts[i]} * p.batch;
  }
  return terms;
}

inline int64_t blocks_of_parts(const TrainingParams& t) {
  const int last = t.forward.branches - 1;
  return (int64_t{t.forward.branch[last].first_block} + t.parts[last]) * t.forward.batch * t.chunks;
}

template <class T, class Declare>
void declare_levels(const Params& p, Declare& declare) {
  for (int i = 0; i < p.levels; ++i) {
    const Level& l = p.level[i];
    declare(Buffer{"level", l.data, sizeof(T), {p.batch, l.channels, p.height, p.width},
                   {l.stride.n, l.stride.c, l.stride.h, l.stride.w}, Access::kRead});
  }
}

template <class T, class Declare>
void declare_depthwise(const Params& p, Declare& declare) {
  for (int i = 0; i < p.branches; ++i) {
    declare(contiguous("depthwise weight", p.branch[i].depthwise, sizeof(T), int64_t{p.channels} * kTaps,
                       Access::kRead));
  }
}

inline int64_t elements_of_rows(const Params& p) {
  return int64_t{p.branches} * p.batch * p.height * p.width * p.channels;
}

template <class T>
void moments(const TrainingParams& t, void* stream) {
  using A = Accumulate<T>;
  const Params& p = t.forward;
  launch("separable_pyramid training moments", &training_moments<T>,
         {blocks_of_parts(t), kThreads, kDynamicBytes<MomentsShared<T>>}, t, stream, [&](auto declare) {
           declare_levels<T>(p, declare);
           declare_depthwise<T>(p, declare);
           const int64_t part = int64_t{2} * t.all_branches * p.channels;
           for (int i = 0; i < p.branches; ++i) {
             declare(Buffer{"moments", static_cast<A*>(t.moments) + int64_t{2} * t.number[i] * p.channels, sizeof(A),
                            {p.batch, t.parts[i], 2, p.channels}, {t.most_parts * part, part, p.channels, 1},
                            Access::kWrite});
           }
           declare(contiguous("counts", t.counts, sizeof(int32_t), int64_t{t.most_parts} * t.all_branches,
                              Access::kWrite));
         });
}

template <class T>
void normalised(const TrainingParams& t, void* stream) {
  using A = Accumulate<T>;
  using Shared = WalkShared<T, 0>;
  const Params& p = t.forward;
  launch("separable_pyramid training normalised", &training_normalised<T>,
         {blocks_of_parts(t), kThreads, kDynamicBytes<Shared>}, t, stream, [&](auto declare) {
           declare_levels<T>(p, declare);
           declare_depthwise<T>(p, declare);
           const int64_t sets = t.statistics_image == 0 ? 1 : p.batch;
           declare(contiguous("statistics", t.statistics, sizeof(A), sets * kStatistics * t.all_branches * p.channels,
                              Access::kRead));
           declare(contiguous("normalised", t.normalised, sizeof(T), elements_of_rows(p), Access::kWrite));
         });
}

template <class T, class Declare>
void declare_rows(const TrainingParams& t, Declare& declare) {
  const Params& p = t.forward;
  const int64_t sets = t.coefficients_image == 0 ? 1 : p.batch;
  declare(contiguous("coefficients", t.coefficients, sizeof(Accumulate<T>),
                     sets * kCoefficients * p.branches * p.channels, Access::kRead));
  declare(contiguous("normalised", t.normalised, sizeof(T), elements_of_rows(p), Access::kRead));
  declare(contiguous("gradient", t.gradient, sizeof(T), elements_of_rows(p), Access::kUpdate));
}

template <class T>
void row_gradient(TrainingParams t, void* stream) {
  constexpr int V = Vector<T>::kSize;
  const Params& p = t.forward;
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0; };
  t.row_vectors = p.channels % V == 0 && aligned(t.normalised) && aligned(t.gradient);
  const int64_t tiles = int64_t{ceil_divide(p.channels, kRowLanes * (t.row_vectors ? V : 1))} *
                        ceil_divide(p.height * p.width, kBlockRows);
  launch("separable_pyramid training row gradient", &training_row_gradient<T>,
         {tiles * p.batch * p.branches, kThreads}, t, stream, [&](auto declare) { declare_rows<T>(t, declare); });
}

template <class T>
void depthwise_gradient(const TrainingParams& t, void* stream) {
  using A = Accumulate<T>;
  using Shared = WalkShared<T, kTaps>;
  if (t.weights == nullptr) return row_gradient<T>(t, stream);
  const Params& p = t.forward;
  const int last = p.branches - 1;
  const int64_t terms = (t.first_term[last] + int64_t{t.parts[last]} * p.batch) * kTaps * p.channels;
  launch("separable_pyramid training depthwise gradient", &training_depthwise_gradient<T>,
         {blocks_of_parts(t), kThreads, kDynamicBytes<Shared>}, t, stream, [&](auto declare) {
           declare_levels<T>(p, declare);
           declare_rows<T>(t, declare);
           declare(contiguous("terms", t.terms, sizeof(A), terms, Access::kWrite));
         });
  launch("separable_pyramid training depthwise terms", &training_depthwise_terms<T>,
         {int64_t{p.branches} * ceil_divide(p.channels, kTermChannels), kThreads}, t, stream, [&](auto declare) {
           declare(contiguous("terms", t.terms, sizeof(A), terms, Access::kRead));
           declare(contiguous("gradient of the depthwise weight", t.weights, sizeof(T),
                              int64_t{p.branches} * p.channels * kTaps, Access::kWrite));
         });
}

template <class T>
void level_gradient(GradientParams g, void* stream) {
  Params& p = g.forward;
  plan_levels<T>(p);
  g.first_image = 0;
  const int64_t blocks = place_level_blocks<T>(g, p.batch);
  launch("separable_pyramid training level gradient", &pyramid_level_gradient<T>, {blocks, kThreads}, g, stream,
         [&](auto declare) {
           declare(contiguous("gradient of the depthwise sums", g.inputs, sizeof(T), elements_of_rows(p),
                              Access::kRead));
           declare_depthwise<T>(p, declare);
           for (int i = 0; i < p.levels; ++i) {
             const LevelGradient& level = g.level[i];
             if (level.data == nullptr) continue;
             const Strides& s = level.stride;
             declare(Buffer{"gradient of the level", level.data, sizeof(T),
                            {p.batch, p.level[i].channels, p.height, p.width}, {s.n, s.c, s.h, s.w},
                            g.add ? Access::kUpdate : Access::kWrite});
           }
         });
}

}  // namespace jpu::separable_pyramid

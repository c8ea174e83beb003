// Plans and starts the kernels of the derivatives; included by their instantiations only.
#pragma once

#include <algorithm>

#include "separable_pyramid/launch.h"
#include "separable_pyramid/level_gradient.h"
#include "separable_pyramid/reduce.h"
#include "separable_pyramid/weight_gradient.h"

namespace jpu::separable_pyramid {

// Blocks that the weights' gradient should have, for GPUs of up to so many multiprocessors times two.
constexpr int64_t kWeightBlocks = 2 * 144;

inline bool any_level(const GradientParams& g) {
  return std::any_of(g.level, g.level + g.forward.levels, [](const LevelGradient& l) { return l.data != nullptr; });
}
inline bool any_of_weights(const GradientParams& g) { return g.pointwise || g.outer_scale || g.outer_shift; }
inline bool any_of_terms(const GradientParams& g) { return g.depthwise || g.inner_scale || g.inner_shift; }

template <class T>
Workspace plan_gradient(GradientParams& g, int64_t input_bytes) {
  using A = Accumulate<T>;
  constexpr int V = Vector<T>::kSize;
  constexpr int kSide = kWeightSide<sizeof(A)>, kSize = kChunk<sizeof(T)>;
  Params& p = g.forward;
  plan<T>(p, kColumns);
  g.gradient_vectors = p.outputs % V == 0 && channels_in_vectors<T>(g.gradient, g.gradient_stride) &&
                       (!p.relu || p.output_vectors);

  int32_t chunks = 0;
  for (int i = 0; i < p.levels; ++i) chunks += ceil_divide(p.level[i].channels, kSize);
  g.weight_channel_tiles = ceil_divide(chunks, kSide / kSize);
  g.weight_output_tiles = ceil_divide(p.outputs, kSide);
  g.input_channel_tiles = ceil_divide(chunks, kColumns / kSize);

  int64_t tiles = 0, most = 1;
  for (int i = 0; i < p.branches; ++i) {
    Branch& branch = p.branch[i];
    branch.weight_tiling = choose_tiling<kWeightPixels>(branch.dilation, p.height, p.width);
    most = std::max(most, branch.weight_tiling.tiles() * p.batch);
    branch.first_tile = tiles;
    tiles += branch.tiling.tiles() * p.batch;
  }
  const int64_t squares = int64_t{p.branches} * g.weight_output_tiles * g.weight_channel_tiles;
  g.splits = static_cast<int32_t>(std::clamp<int64_t>(kWeightBlocks / std::max<int64_t>(squares, 1), 1, most));

  // Not in integers: of an expanded image the product may pass 2^63.
  const double image_bytes = double(p.branches) * p.channels * p.height * p.width * sizeof(T);
  g.images = static_cast<int32_t>(std::max(std::min(double(input_bytes) / image_bytes, double(p.batch)), 1.0));
  g.reduce_rows = any_of_weights(g) ? int64_t{p.branches} * p.outputs : 0;

  const int64_t products = int64_t{g.splits} * p.branches * p.outputs;
  const bool weights = any_of_weights(g);
  return {weights ? products * p.channels : 0, weights ? products : 0,
          any_of_terms(g) ? tiles * kTerms * p.channels : 0, any_level(g) ? g.images : 0};
}

// How the levels' gradient is cut into strips. All load six rows of dz, which are those of four pixels where they lie
// the dilation apart, and of two elsewhere. But of large dilations a strip may have few pixels that the image has.
inline void plan_strips(GradientParams& g) {
  static_assert(level_rows(true) + 2 == 3 * level_rows(false));
  const Params& p = g.forward;
  const int spaced = lines_of_strips(p.height, p.branch[0].dilation, level_rows(true));
  const int others = lines_of_strips(p.height, 1, level_rows(false));
  g.spaced = p.branches == 1 && spaced <= others;
  const int64_t strips = int64_t{g.spaced ? spaced : others} * p.width;
  g.strip_tiles = static_cast<int32_t>((strips * level_rows(g.spaced) + kLevelPixels - 1) / kLevelPixels);
}

// Blocks of the gradient of a group of images, and where each branch's of an image and each level's begin.
template <class T>
int64_t place_input_blocks(GradientParams& g, int images) {
  int64_t blocks = 0;
  for (int i = 0; i < g.forward.branches; ++i) {
    Branch& branch = g.forward.branch[i];
    branch.first_input_block = static_cast<uint32_t>(blocks);
    blocks += branch.tiling.tiles() * g.input_channel_tiles;
    if (blocks > INT32_MAX) break;  // launch() refuses them
  }
  return blocks * images;
}

template <class T>
int64_t place_level_blocks(GradientParams& g, int images) {
  constexpr int V = Vector<T>::kSize;
  const Params& p = g.forward;
  const bool vectors = p.whole_vectors && channels_in_vectors<T>(g.inputs, g.inputs_stride);
  plan_strips(g);
  int64_t blocks = 0;
  for (int i = 0; i < p.levels; ++i) {
    LevelGradient& level = g.level[i];
    level.vectors = vectors && channels_in_vectors<T>(level.data, level.stride) && p.level[i].channels % V == 0;
    level.channel_tiles =
        level.data == nullptr ? 0 : ceil_divide(p.level[i].channels, level_channels<T>(level.vectors));
    level.first_block = static_cast<uint32_t>(blocks);
    blocks += int64_t{level.channel_tiles} * g.strip_tiles * images;
    if (blocks > INT32_MAX) break;  // launch() refuses them
  }
  return blocks;
}

template <class T, class Declare>
void declare_gradient(const GradientParams& g, Declare& declare) {
  const Params& p = g.forward;
  const int64_t channels = int64_t{p.branches} * p.outputs;
  const auto image = [&](const char* name, const void* data, const Strides& s) {
    declare(Buffer{name, data, sizeof(T), {p.batch, channels, p.height, p.width}, {s.n, s.c, s.h, s.w}, Access::kRead});
  };
  image("gradient of the output", g.gradient, g.gradient_stride);
  if (p.relu) image("output", p.output, p.output_stride);
}

template <class T>
Buffer inputs_of(const GradientParams& g, int images, Access access) {
  const Params& p = g.forward;
  const Strides& s = g.inputs_stride;
  return {"gradient of the depthwise sums", g.inputs, sizeof(T),
          {images, int64_t{p.branches} * p.channels, p.height, p.width}, {s.n, s.c, s.h, s.w}, access};
}

template <class T>
void start_weight_gradient(const GradientParams& g, void* stream) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const int64_t blocks = int64_t{p.branches} * g.splits * g.weight_output_tiles * g.weight_channel_tiles;
  launch("separable_pyramid weight gradient", &pyramid_weight_gradient<T>, {blocks, kThreads}, g, stream,
         [&](auto declare) {
           declare_inputs<T>(p, declare);
           declare_gradient<T>(g, declare);
           const int64_t rows = int64_t{g.splits} * p.branches * p.outputs;
           declare(contiguous("products", g.products, sizeof(A), rows * p.channels, Access::kWrite));
           declare(contiguous("sums", g.sums, sizeof(A), rows, Access::kWrite));
         });
}

template <class T>
void start_input_gradient(GradientParams& g, int images, void* stream) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const int64_t blocks = place_input_blocks<T>(g, images);
  launch("separable_pyramid input gradient", &pyramid_input_gradient<T>, {blocks, kThreads}, g, stream,
         [&](auto declare) {
           declare_inputs<T>(p, declare);
           declare_gradient<T>(g, declare);
           if (g.inputs != nullptr) declare(inputs_of<T>(g, images, Access::kWrite));
           for (int i = 0; g.terms != nullptr && i < p.branches; ++i) {
             const int64_t tiles = p.branch[i].tiling.tiles(), one = int64_t{kTerms} * p.channels;
             A* first = static_cast<A*>(g.terms) + (p.branch[i].first_tile + g.first_image * tiles) * one;
             declare(contiguous("terms", first, sizeof(A), images * tiles * one, Access::kWrite));
           }
         });
}

template <class T>
void start_level_gradient(GradientParams& g, int images, void* stream) {
  const Params& p = g.forward;
  g.inputs_branch = p.channels * g.inputs_stride.c;
  const int64_t blocks = place_level_blocks<T>(g, images);
  launch("separable_pyramid level gradient", &pyramid_level_gradient<T>, {blocks, kThreads}, g, stream,
         [&](auto declare) {
           declare(inputs_of<T>(g, images, Access::kRead));
           for (int i = 0; i < p.branches; ++i) {
             declare(contiguous("depthwise weight", p.branch[i].depthwise, sizeof(T), int64_t{p.channels} * 9,
                                Access::kRead));
           }
           for (int i = 0; i < p.levels; ++i) {
             if (g.level[i].data == nullptr) continue;
             const Strides& s = g.level[i].stride;
             T* first = static_cast<T*>(g.level[i].data) + g.first_image * s.n;
             declare(Buffer{"gradient of the level", first, sizeof(T), {images, p.level[i].channels, p.height, p.width},
                            {s.n, s.c, s.h, s.w}, Access::kWrite});
           }
         });
}

template <class T>
void start_reduce(const GradientParams& g, void* stream) {
  using A = Accumulate<T>;
  const Params& p = g.forward;
  const int64_t branches = p.branches;
  const int64_t blocks = g.reduce_rows + (any_of_terms(g) ? branches * ceil_divide(p.channels, kReduceChannels) : 0);
  launch("separable_pyramid reduce", &pyramid_reduce<T>, {blocks, kThreads}, g, stream, [&](auto declare) {
    declare_inputs<T>(p, declare);
    const int64_t rows = g.splits * branches * p.outputs;
    if (any_of_weights(g)) {
      declare(contiguous("products", g.products, sizeof(A), rows * p.channels, Access::kRead));
      declare(contiguous("sums", g.sums, sizeof(A), rows, Access::kRead));
    }
    if (any_of_terms(g)) {
      const Branch& last = p.branch[p.branches - 1];
      const int64_t tiles = last.first_tile + last.tiling.tiles() * p.batch;
      declare(contiguous("terms", g.terms, sizeof(A), tiles * kTerms * p.channels, Access::kRead));
    }
    const auto result = [&](const char* name, void* data, int64_t element_bytes, int64_t count) {
      if (data != nullptr) declare(contiguous(name, data, element_bytes, count, Access::kWrite));
    };
    const auto images = [&](int64_t image) { return image == 0 ? 1 : p.batch; };
    result("gradient of the depthwise weight", g.depthwise, sizeof(T), branches * p.channels * 9);
    result("gradient of the pointwise weight", g.pointwise, sizeof(T), branches * p.outputs * p.channels);
    result("gradient of scale", g.inner_scale, sizeof(A), images(p.inner.scale_image) * branches * p.channels);
    result("gradient of shift", g.inner_shift, sizeof(A), images(p.inner.shift_image) * branches * p.channels);
    result("gradient of out_scale", g.outer_scale, sizeof(A), branches * p.outputs);
    result("gradient of out_shift", g.outer_shift, sizeof(A), branches * p.outputs);
  });
}

template <class T>
void backward(GradientParams g, void* stream) {
  const Params& p = g.forward;
  if (any_of_weights(g)) start_weight_gradient<T>(g, stream);
  if (any_level(g) || any_of_terms(g)) {
    for (int64_t first = 0; first < p.batch; first += g.images) {
      g.first_image = static_cast<int32_t>(first);
      const int images = std::min(g.images, p.batch - g.first_image);
      start_input_gradient<T>(g, images, stream);
      if (any_level(g)) start_level_gradient<T>(g, images, stream);
    }
  }
  start_reduce<T>(g, stream);
}

}  // namespace jpu::separable_pyramid

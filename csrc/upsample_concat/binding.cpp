// jpu_cuda::upsample, jpu_cuda::upsample_concat and their adjoints; schemas stand in jpu_cuda/ops.
#include <string>

#include "binding/tensor.h"
#include "upsample_concat/upsample_concat.h"

namespace jpu::upsample_concat {
namespace {

using Tensors = std::vector<Tensor>;

void check_image(const Tensor& t, const Tensor& like, const char* name, size_t i) {
  STD_TORCH_CHECK(t.dim() == 4, name, "[", i, "]: expected 4 dimensions [N, C, H, W], got ", t.dim());
  STD_TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, "[", i, "]: expected dtype ", like.scalar_type(),
                  " as ", name, "[0], got ", t.scalar_type());
  check_device(t, like, indexed(name, i), indexed(name, 0));
  STD_TORCH_CHECK(t.size(0) == like.size(0), name, "[", i, "]: expected batch size ", like.size(0), ", got ", t.size(0));
  STD_TORCH_CHECK(t.size(1) <= INT32_MAX && t.size(0) <= INT32_MAX, name, "[", i,
                  "]: expected at most 2147483647 samples and channels");
}

void check_size(int64_t height, int64_t width, const std::string& name) {
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= kMaxSize && width <= kMaxSize, name,
                  ": expected height and width from 1 to ", kMaxSize, ", got ", height, " and ", width);
}

struct Pair {
  Tensor low, high;
  int64_t channel;  // first one in high
};

// One launch for each kMaxLevels pairs.
template <bool Forward>
void run(const std::vector<Pair>& all, int64_t height, int64_t width, bool align_corners) {
  std::vector<const Pair*> pairs;
  for (const Pair& pair : all) {
    if (pair.low.numel() != 0) pairs.push_back(&pair);
  }
  if (pairs.empty()) return;
  const Tensor& like = pairs[0]->low;
  const OnDevice device(like);
  dispatch_dtype(like, [&](auto element) {
    using T = decltype(element);
    for (size_t begin = 0; begin < pairs.size(); begin += kMaxLevels) {
      Params p{};
      p.batch = static_cast<int32_t>(like.size(0));
      p.height = static_cast<int32_t>(height);
      p.width = static_cast<int32_t>(width);
      p.align_corners = align_corners;
      for (size_t i = begin; i < pairs.size() && p.levels < kMaxLevels; ++i) {
        const auto& [low, high, channel] = *pairs[i];
        Level& level = p.level[p.levels++];
        level.low = low.data_ptr();
        level.low_stride = strides_of(low);
        level.high_stride = strides_of(high);
        level.high = static_cast<T*>(high.data_ptr()) + channel * level.high_stride.c;
        level.channels = static_cast<int32_t>(low.size(1));
        level.height = static_cast<int32_t>(low.size(2));
        level.width = static_cast<int32_t>(low.size(3));
      }
      Forward ? forward<T>(p, device.stream()) : backward<T>(p, device.stream());
    }
  });
}

Tensors upsample(Tensors levels, int64_t height, int64_t width, bool align_corners) {
  check_size(height, width, "size");
  std::vector<Pair> pairs;
  Tensors results;
  for (size_t i = 0; i < levels.size(); ++i) {
    const Tensor& level = levels[i];
    check_image(level, levels[0], "levels", i);
    check_size(level.size(2), level.size(3), indexed("levels", i));
    results.push_back(
        empty_image({level.size(0), level.size(1), height, width}, suggests_channels_last(level), level));
    pairs.push_back({level, results.back(), 0});
  }
  run<true>(pairs, height, width, align_corners);
  return results;
}

Tensor upsample_concat(Tensors levels, bool align_corners, bool reverse) {
  STD_TORCH_CHECK(!levels.empty(), "levels: expected at least one, got none");
  const Tensor& first = levels[0];
  int64_t channels = 0;
  bool channels_last = true;
  for (size_t i = 0; i < levels.size(); ++i) {
    check_image(levels[i], first, "levels", i);
    check_size(levels[i].size(2), levels[i].size(3), indexed("levels", i));
    channels += levels[i].size(1);
    channels_last &= suggests_channels_last(levels[i]);
  }
  const int64_t height = first.size(2), width = first.size(3);
  Tensor result = empty_image({first.size(0), channels, height, width}, channels_last, first);
  std::vector<Pair> pairs;
  int64_t channel = reverse ? channels : 0;
  for (const Tensor& level : levels) {
    if (reverse) channel -= level.size(1);
    pairs.push_back({level, result, channel});
    if (!reverse) channel += level.size(1);
  }
  run<true>(pairs, height, width, align_corners);
  return result;
}

// The gradients of levels of these heights and widths, from one gradient each at the common size.
Tensors upsample_backward(Tensors gradients, std::vector<int64_t> heights, std::vector<int64_t> widths,
                          bool align_corners) {
  STD_TORCH_CHECK(heights.size() == gradients.size() && widths.size() == gradients.size(),
                  "sizes: expected one height and width a gradient, got ", heights.size(), " and ", widths.size(),
                  " for ", gradients.size());
  std::vector<Pair> pairs;
  Tensors results;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const Tensor& g = gradients[i];
    check_image(g, gradients[0], "gradients", i);
    check_size(g.size(2), g.size(3), indexed("gradients", i));
    check_size(heights[i], widths[i], indexed("sizes", i));
    STD_TORCH_CHECK(g.size(2) == gradients[0].size(2) && g.size(3) == gradients[0].size(3), "gradients[", i,
                    "]: expected height and width ", gradients[0].size(2), " and ", gradients[0].size(3),
                    " as gradients[0], got ", g.size(2), " and ", g.size(3));
    results.push_back(empty_image({g.size(0), g.size(1), heights[i], widths[i]}, suggests_channels_last(g), g));
    pairs.push_back({results.back(), g, 0});
  }
  if (!gradients.empty()) run<false>(pairs, gradients[0].size(2), gradients[0].size(3), align_corners);
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("upsample", TORCH_BOX(&upsample));
  m.impl("upsample_concat", TORCH_BOX(&upsample_concat));
  m.impl("upsample_backward", TORCH_BOX(&upsample_backward));
}

}  // namespace jpu::upsample_concat

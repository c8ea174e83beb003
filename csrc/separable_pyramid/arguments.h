// The operators' arguments, checked and described.
#pragma once

#include <optional>
#include <string>

#include "binding/checks.h"
#include "binding/tensor.h"
#include "separable_pyramid/separable_pyramid.h"

namespace jpu::separable_pyramid {

using Term = std::optional<Tensor>;

// What the arguments amount to; the output is set by the caller. Checks all that a kernel would trip over.
inline Params describe(const Tensors& levels, const Tensors& depthwise, const Tensors& pointwise,
                       const std::vector<int64_t>& dilations, const Term& scale, const Term& shift,
                       const Term& out_scale, const Term& out_shift, bool relu) {
  const size_t branches = dilations.size();
  STD_TORCH_CHECK(!levels.empty() && levels.size() <= kMaxLevels, "levels: expected 1 to ", kMaxLevels, ", got ",
                  levels.size());
  STD_TORCH_CHECK(branches >= 1 && branches <= kMaxBranches, "dilations: expected 1 to ", kMaxBranches, ", got ",
                  branches);
  STD_TORCH_CHECK(depthwise.size() == branches && pointwise.size() == branches,
                  "weights: expected one of each a dilation, ", branches, ", got ", depthwise.size(), " and ",
                  pointwise.size());
  const Tensor& first = levels[0];
  Params p{};
  int64_t channels = 0;
  for (size_t i = 0; i < levels.size(); ++i) {
    const Tensor& level = levels[i];
    const std::string name = indexed("levels", i);
    STD_TORCH_CHECK(level.dim() == 4, name, ": expected 4 dimensions [N, C, H, W], got ", level.dim());
    check_like(level, first, name, first.scalar_type());
    STD_TORCH_CHECK(level.size(0) == first.size(0) && level.size(2) == first.size(2) && level.size(3) == first.size(3),
                    name, ": expected batch size and size of levels[0], ", text_of(shape_of(first)), ", got ",
                    text_of(shape_of(level)));
    if (level.size(1) > 0) {
      Level& l = p.level[p.levels++];
      l.data = level.data_ptr();
      l.stride = strides_of(level);
      l.channels = static_cast<int32_t>(level.size(1));
      l.first = static_cast<int32_t>(channels);
    }
    channels += level.size(1);
  }
  const int64_t outputs = pointwise[0].dim() == 4 ? pointwise[0].size(0) : 0;
  STD_TORCH_CHECK(channels >= 1 && outputs >= 1 && channels <= kMaxChannels && outputs <= kMaxChannels,
                  "channels: expected 1 to ", kMaxChannels, " of inputs and outputs, got ", channels, " and ", outputs);
  STD_TORCH_CHECK(first.size(0) <= INT32_MAX && first.size(2) <= kMaxSize && first.size(3) <= kMaxSize,
                  "levels: expected at most 2147483647 samples of at most ", kMaxSize, " pixels a side, got ",
                  text_of(shape_of(first)));
  STD_TORCH_CHECK(first.size(2) >= 1 && first.size(3) >= 1 && first.size(2) * first.size(3) <= INT32_MAX,
                  "levels: expected 1 to 2147483647 pixels, got ", text_of(shape_of(first)));
  for (size_t i = 0; i < branches; ++i) {
    STD_TORCH_CHECK(dilations[i] >= 1 && dilations[i] <= kMaxDilation, indexed("dilations", i), ": expected 1 to ",
                    kMaxDilation, ", got ", dilations[i]);
    check_like(depthwise[i], first, indexed("depthwise_weight", i), first.scalar_type());
    check_like(pointwise[i], first, indexed("pointwise_weight", i), first.scalar_type());
    check_contiguous(depthwise[i], {channels, 1, 3, 3}, indexed("depthwise_weight", i));
    check_contiguous(pointwise[i], {outputs, channels, 1, 1}, indexed("pointwise_weight", i));
    p.branch[i].depthwise = depthwise[i].data_ptr();
    p.branch[i].pointwise = pointwise[i].data_ptr();
    p.branch[i].dilation = static_cast<int32_t>(dilations[i]);
  }
  const int64_t images = first.size(0), count = static_cast<int64_t>(branches);
  const auto term = [&](const Term& t, const char* name, int64_t size, bool by_image, int64_t* image) -> const void* {
    if (!t.has_value()) return nullptr;
    check_like(*t, first, name, sum_dtype(first));
    const bool varies = by_image && t->dim() == 3;
    check_contiguous(*t, varies ? std::vector<int64_t>{images, count, size} : std::vector<int64_t>{count, size}, name);
    if (varies) *image = count * size;
    return t->data_ptr();
  };
  p.inner.scale = term(scale, "scale", channels, true, &p.inner.scale_image);
  p.inner.shift = term(shift, "shift", channels, true, &p.inner.shift_image);
  p.outer.scale = term(out_scale, "out_scale", outputs, false, nullptr);
  p.outer.shift = term(out_shift, "out_shift", outputs, false, nullptr);
  p.batch = static_cast<int32_t>(images);
  p.height = static_cast<int32_t>(first.size(2));
  p.width = static_cast<int32_t>(first.size(3));
  p.branches = static_cast<int32_t>(branches);
  p.channels = static_cast<int32_t>(channels);
  p.outputs = static_cast<int32_t>(outputs);
  p.relu = relu;
  return p;
}

inline bool all_channels_last(const Tensors& levels) {
  for (const Tensor& level : levels) {
    if (!suggests_channels_last(level)) return false;
  }
  return true;
}

}  // namespace jpu::separable_pyramid

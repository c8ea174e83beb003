// jpu_cuda::separable_pyramid and its derivatives; schemas stand in jpu_cuda/ops.
#include "separable_pyramid/separable_pyramid.h"

#include <optional>
#include <string>

#include "binding/tensor.h"

namespace jpu::separable_pyramid {
namespace {

using Tensors = std::vector<Tensor>;
using Term = std::optional<Tensor>;

std::string shape_of(const Tensor& t) {
  std::string text = "[";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(t.size(i));
  return text + "]";
}

void check_like(const Tensor& t, const Tensor& like, const std::string& name, ScalarType dtype) {
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, ": expected dtype ", dtype, ", got ", t.scalar_type());
  STD_TORCH_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), name,
                  ": expected the device of levels[0], index ", like.get_device_index(), ", got index ",
                  t.get_device_index());
}

void check_shape(const Tensor& t, const std::vector<int64_t>& expected, const std::string& name) {
  bool right = t.dim() == static_cast<int64_t>(expected.size());
  std::string text;
  for (size_t i = 0; i < expected.size(); ++i) {
    right = right && t.size(static_cast<int64_t>(i)) == expected[i];
    text += (i > 0 ? ", " : "") + std::to_string(expected[i]);
  }
  STD_TORCH_CHECK(right, name, ": expected shape [", text, "], got ", shape_of(t));
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor, got one of other strides");
}

ScalarType sum_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What the arguments amount to; the output is set by the caller. Checks all that a kernel would trip over.
Params describe(const Tensors& levels, const Tensors& depthwise, const Tensors& pointwise,
                const std::vector<int64_t>& dilations, const Term& scale, const Term& shift, const Term& out_scale,
                const Term& out_shift, bool relu) {
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
    const std::string name = "levels[" + std::to_string(i) + "]";
    STD_TORCH_CHECK(level.dim() == 4, name, ": expected 4 dimensions [N, C, H, W], got ", level.dim());
    check_like(level, first, name, first.scalar_type());
    STD_TORCH_CHECK(level.size(0) == first.size(0) && level.size(2) == first.size(2) && level.size(3) == first.size(3),
                    name, ": expected batch size and size of levels[0], ", shape_of(first), ", got ", shape_of(level));
    if (level.size(1) > 0) {
      Level& l = p.level[p.levels++];
      l.data = level.data_ptr();
      l.stride = strides_of(level);
      l.channels = static_cast<int32_t>(level.size(1));
      l.first = static_cast<int32_t>(channels);
    }
    channels += level.size(1);
  }
  const int64_t outputs = pointwise[0].dim() == 2 ? pointwise[0].size(0) : 0;
  STD_TORCH_CHECK(channels <= kMaxChannels && outputs <= kMaxChannels, "channels: expected at most ", kMaxChannels,
                  ", got ", channels, " and ", outputs);
  STD_TORCH_CHECK(first.size(0) <= INT32_MAX && first.size(2) <= kMaxSize && first.size(3) <= kMaxSize,
                  "levels: expected at most 2147483647 samples of at most ", kMaxSize, " pixels a side, got ",
                  shape_of(first));
  for (size_t i = 0; i < branches; ++i) {
    const std::string index = "[" + std::to_string(i) + "]";
    STD_TORCH_CHECK(dilations[i] >= 1 && dilations[i] <= kMaxDilation, "dilations", index, ": expected 1 to ",
                    kMaxDilation, ", got ", dilations[i]);
    check_like(depthwise[i], first, "depthwise_weight" + index, first.scalar_type());
    check_like(pointwise[i], first, "pointwise_weight" + index, first.scalar_type());
    check_shape(depthwise[i], {channels, 3, 3}, "depthwise_weight" + index);
    check_shape(pointwise[i], {outputs, channels}, "pointwise_weight" + index);
    p.branch[i].depthwise = depthwise[i].data_ptr();
    p.branch[i].pointwise = pointwise[i].data_ptr();
    p.branch[i].dilation = static_cast<int32_t>(dilations[i]);
  }
  const int64_t images = first.size(0), count = static_cast<int64_t>(branches);
  const auto term = [&](const Term& t, const char* name, int64_t size, bool by_image, int64_t* image) -> const void* {
    if (!t.has_value()) return nullptr;
    check_like(*t, first, name, sum_dtype(first));
    const bool varies = by_image && t->dim() == 3;
    check_shape(*t, varies ? std::vector<int64_t>{images, count, size} : std::vector<int64_t>{count, size}, name);
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

bool all_channels_last(const Tensors& levels) {
  for (const Tensor& level : levels) {
    if (!suggests_channels_last(level)) return false;
  }
  return true;
}

Tensor separable_pyramid(Tensors levels, Tensors depthwise, Tensors pointwise, std::vector<int64_t> dilations,
                         Term scale, Term shift, Term out_scale, Term out_shift, bool relu) {
  Params p = describe(levels, depthwise, pointwise, dilations, scale, shift, out_scale, out_shift, relu);
  const Tensor& first = levels[0];
  Tensor output = empty_image({p.batch, int64_t{p.branches} * p.outputs, p.height, p.width}, all_channels_last(levels),
                              first);
  if (output.numel() == 0) return output;
  p.output = output.data_ptr();
  p.output_stride = strides_of(output);
  const OnDevice device(first);
  dispatch_dtype(first, [&](auto element) { forward<decltype(element)>(p, device.stream()); });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("separable_pyramid", TORCH_BOX(&separable_pyramid));
}

}  // namespace jpu::separable_pyramid

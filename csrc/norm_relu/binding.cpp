// jpu_cuda::norm_relu; its schema stands in jpu_cuda/ops.
#include <optional>
#include <string>

#include "binding/checks.h"
#include "binding/tensor.h"
#include "norm_relu/norm_relu.h"

namespace jpu::norm_relu {
namespace {

using Optionals = std::vector<std::optional<Tensor>>;

struct Norms {
  const Optionals &weight, &bias;
  const Tensors &mean, &var;
  const std::vector<double>& eps;
};

void check_counts(const Tensors& levels, const Norms& norms) {
  const size_t count = levels.size();
  STD_TORCH_CHECK(norms.weight.size() == count && norms.bias.size() == count && norms.mean.size() == count &&
                      norms.var.size() == count && norms.eps.size() == count,
                  "norms: expected ", count, " weights, biases, means, variances and eps, one a level, got ",
                  norms.weight.size(), ", ", norms.bias.size(), ", ", norms.mean.size(), ", ", norms.var.size(),
                  " and ", norms.eps.size());
}

void check_level(const Tensors& levels, size_t i) {
  const Tensor& level = levels[i];
  check_image(level, levels[0], "levels", i);
  const int64_t height = level.size(2), width = level.size(3);
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= INT32_MAX / width, "levels[", i,
                  "]: expected 1 to 2147483647 pixels, got ", height, " and ", width, " a side");
}

// The level with all that plan() does not set; `dtype` is that of the norms.
Level describe(const Tensors& levels, const Norms& norms, size_t i, ScalarType dtype, const Tensor& out) {
  const Tensor& in = levels[i];
  const auto given = [&](const Tensor& values, const char* name) -> const void* {
    check_like(values, levels[0], indexed(name, i), dtype);
    check_contiguous(values, {in.size(1)}, indexed(name, i));
    return values.data_ptr();
  };
  const auto optional = [&](const std::optional<Tensor>& values, const char* name) {
    return values.has_value() ? given(*values, name) : nullptr;
  };
  Level level{};
  level.in = in.data_ptr();
  level.out = out.data_ptr();
  level.in_stride = strides_of(in);
  level.out_stride = strides_of(out);
  level.weight = optional(norms.weight[i], "weight");
  level.bias = optional(norms.bias[i], "bias");
  level.mean = given(norms.mean[i], "mean");
  level.var = given(norms.var[i], "var");
  level.eps = norms.eps[i];
  level.batch = static_cast<int32_t>(in.size(0));
  level.channels = static_cast<int32_t>(in.size(1));
  level.height = static_cast<int32_t>(in.size(2));
  level.width = static_cast<int32_t>(in.size(3));
  return level;
}

Tensors norm_relu(Tensors levels, Optionals weight, Optionals bias, Tensors mean, Tensors var,
                  std::vector<double> eps) {
  STD_TORCH_CHECK(!levels.empty(), "levels: expected at least one, got none");
  const Norms norms{weight, bias, mean, var, eps};
  check_counts(levels, norms);
  const Tensor& first = levels[0];
  const ScalarType dtype = mean[0].scalar_type();
  STD_TORCH_CHECK(dtype == first.scalar_type() || dtype == sum_dtype(first), "mean[0]: expected dtype ",
                  sum_dtype(first), " or that of levels[0], ", first.scalar_type(), ", got ", dtype);
  Tensors results;
  std::vector<Level> described;
  for (size_t i = 0; i < levels.size(); ++i) {
    check_level(levels, i);
    results.push_back(empty_image(shape_of(levels[i]), suggests_channels_last(levels[i]), levels[i]));
    const Level level = describe(levels, norms, i, dtype, results.back());
    if (levels[i].numel() != 0) described.push_back(level);
  }
  if (described.empty()) return results;
  const OnDevice device(first);
  dispatch_dtype(first, [&](auto element) {
    using T = decltype(element);
    for (size_t begin = 0; begin < described.size(); begin += kMaxLevels) {
      Params p{};
      p.norms_in_sums = dtype == sum_dtype(first);
      for (size_t i = begin; i < described.size() && p.levels < kMaxLevels; ++i) p.level[p.levels++] = described[i];
      forward<T>(p, device.stream());
    }
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) { m.impl("norm_relu", TORCH_BOX(&norm_relu)); }

}  // namespace jpu::norm_relu

// jpu_cuda::upsample, upsample_concat, upsample_fold and their adjoints; schemas stand in jpu_cuda/ops.
#include <optional>
#include <string>

#include "binding/checks.h"
#include "binding/tensor.h"
#include "upsample_concat/upsample_concat.h"

namespace jpu::upsample_concat {
namespace {

using Optionals = std::vector<std::optional<Tensor>>;

void check_size(int64_t height, int64_t width, const std::string& name) {
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= kMaxSize && width <= kMaxSize, name,
                  ": expected height and width from 1 to ", kMaxSize, ", got ", height, " and ", width);
}

struct Pair {
  Tensor low, high;
  int64_t channel;  // first one in high
};

// One launch for each kMaxLevels pairs, the first of which also folds the norms. `like` has the dtype of the levels.
template <bool Forward>
void run(const Tensor& like, const std::vector<Pair>& all, int64_t height, int64_t width, bool align_corners,
         const std::vector<Norm>& norms = {}, bool norms_in_sums = false) {
  std::vector<const Pair*> pairs;
  for (const Pair& pair : all) {
    if (pair.low.numel() != 0) pairs.push_back(&pair);
  }
  if (pairs.empty() && norms.empty()) return;
  const OnDevice device(like);
  dispatch_dtype(like, [&](auto element) {
    using T = decltype(element);
    size_t begin = 0;
    do {
      Params p{};
      p.batch = static_cast<int32_t>(pairs.empty() ? 0 : pairs[0]->low.size(0));
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
      if (begin == 0) {
        p.norms_in_sums = norms_in_sums;
        for (const Norm& norm : norms) p.norm[p.norms++] = norm;
      }
      Forward ? forward<T>(p, device.stream()) : backward<T>(p, device.stream());
      begin += kMaxLevels;
    } while (begin < pairs.size());
  });
}

// Checks the levels from `first` on, and adds their pairs and results.
void resize(const Tensors& levels, size_t first, int64_t height, int64_t width, std::vector<Pair>& pairs,
            Tensors& results) {
  for (size_t i = first; i < levels.size(); ++i) {
    const Tensor& level = levels[i];
    check_image(level, levels[0], "levels", i);
    check_size(level.size(2), level.size(3), indexed("levels", i));
    results.push_back(
        empty_image({level.size(0), level.size(1), height, width}, suggests_channels_last(level), level));
    pairs.push_back({level, results.back(), 0});
  }
}

Tensors upsample(Tensors levels, int64_t height, int64_t width, bool align_corners) {
  check_size(height, width, "size");
  std::vector<Pair> pairs;
  Tensors results;
  resize(levels, 0, height, width, pairs, results);
  if (!levels.empty()) run<true>(levels[0], pairs, height, width, align_corners);
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
  run<true>(first, pairs, height, width, align_corners);
  return result;
}

// Checks the gradients of levels of these heights and widths, and adds their pairs and results.
void resize_backward(const Tensors& gradients, const std::vector<int64_t>& heights, const std::vector<int64_t>& widths,
                     std::vector<Pair>& pairs, Tensors& results) {
  STD_TORCH_CHECK(heights.size() == gradients.size() && widths.size() == gradients.size(),
                  "sizes: expected one height and width a gradient, got ", heights.size(), " and ", widths.size(),
                  " for ", gradients.size());
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
}

// The gradients of levels of these heights and widths, from one gradient each at the common size.
Tensors upsample_backward(Tensors gradients, std::vector<int64_t> heights, std::vector<int64_t> widths,
                          bool align_corners) {
  std::vector<Pair> pairs;
  Tensors results;
  resize_backward(gradients, heights, widths, pairs, results);
  if (!gradients.empty()) {
    run<false>(gradients[0], pairs, gradients[0].size(2), gradients[0].size(3), align_corners);
  }
  return results;
}

// Norms of a pyramid: those after its D depthwise convolutions, then as many after the pointwise ones. What the terms
// folded from them, [D, channels] each, and results are is left to the caller.
std::vector<Norm> describe_norms(const Tensors& mean, const Tensors& var, const std::vector<double>& eps,
                                 const Tensor& like, const char* whose) {
  const size_t count = mean.size(), half = count / 2;
  STD_TORCH_CHECK(count >= 2 && count % 2 == 0 && count <= kMaxNorms && var.size() == count && eps.size() == count,
                  "norms: expected mean, var and eps of as many, an even number from 2 to ", kMaxNorms, ", got ", count,
                  ", ", var.size(), " and ", eps.size());
  const ScalarType dtype = mean[0].scalar_type();
  STD_TORCH_CHECK(dtype == like.scalar_type() || dtype == sum_dtype(like), "mean[0]: expected dtype ",
                  sum_dtype(like), " or that of ", whose, ", ", like.scalar_type(), ", got ", dtype);
  std::vector<Norm> norms(count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t channels = mean[i < half ? 0 : half].numel();
    STD_TORCH_CHECK(channels >= 1 && channels <= INT32_MAX, "norms: expected 1 to 2147483647 channels, got ", channels);
    for (const auto& [values, name] : {std::pair{&mean[i], "mean"}, std::pair{&var[i], "var"}}) {
      check_like(*values, like, indexed(name, i), dtype, whose);
      check_contiguous(*values, {channels}, indexed(name, i));
    }
    norms[i].mean = mean[i].data_ptr();
    norms[i].var = var[i].data_ptr();
    norms[i].eps = eps[i];
    norms[i].channels = static_cast<int32_t>(channels);
  }
  return norms;
}

// Gives each norm its row of the terms [D, channels]: inner ones first, scale before shift; null for those that lack.
void place_terms(std::vector<Norm>& norms, const std::vector<void*>& terms, ScalarType dtype) {
  const size_t half = norms.size() / 2, bytes = dtype == ScalarType::Double ? sizeof(double) : sizeof(float);
  const auto row = [&](void* term, size_t i) -> void* {
    return term == nullptr ? nullptr : static_cast<char*>(term) + i % half * norms[i].channels * bytes;
  };
  for (size_t i = 0; i < norms.size(); ++i) {
    norms[i].scale = row(terms[i < half ? 0 : 2], i);
    norms[i].shift = row(terms[i < half ? 1 : 3], i);
  }
}

// levels[1:] resized to the size of levels[0], then scale, shift [D, C], out_scale, out_shift [D, O].
Tensors upsample_fold(Tensors levels, bool align_corners, Optionals weight, Optionals bias, Tensors mean, Tensors var,
                      std::vector<double> eps) {
  STD_TORCH_CHECK(!levels.empty(), "levels: expected at least one, got none");
  const Tensor& first = levels[0];
  check_image(first, first, "levels", 0);
  const int64_t height = first.size(2), width = first.size(3);
  check_size(height, width, "levels[0]");
  std::vector<Pair> pairs;
  Tensors results;
  resize(levels, 1, height, width, pairs, results);
  std::vector<Norm> norms = describe_norms(mean, var, eps, first, "levels[0]");
  STD_TORCH_CHECK(weight.size() == norms.size() && bias.size() == norms.size(), "norms: expected ", norms.size(),
                  " weights and biases, got ", weight.size(), " and ", bias.size());
  for (size_t i = 0; i < norms.size(); ++i) {
    const auto given = [&](const std::optional<Tensor>& values, const char* name) -> void* {
      if (!values.has_value()) return nullptr;
      check_like(*values, first, indexed(name, i), mean[0].scalar_type());
      check_contiguous(*values, {norms[i].channels}, indexed(name, i));
      return values->data_ptr();
    };
    norms[i].weight = given(weight[i], "weight");
    norms[i].bias = given(bias[i], "bias");
  }
  const ScalarType sums = sum_dtype(first);
  const int64_t half = static_cast<int64_t>(norms.size() / 2);
  std::vector<void*> terms;
  for (const size_t norm : {size_t{0}, size_t{0}, norms.size() / 2, norms.size() / 2}) {
    results.push_back(empty({half, norms[norm].channels}, sums, first));
    terms.push_back(results.back().data_ptr());
  }
  place_terms(norms, terms, sums);
  run<true>(first, pairs, height, width, align_corners, norms, mean[0].scalar_type() == sums);
  return results;
}

// The gradients of levels as upsample_backward's, then of the weights and of the biases, those that `needed` (0 or 1
// each) asks for; `terms` are the gradients of the four terms, where they have any.
Tensors upsample_fold_backward(Tensors gradients, std::vector<int64_t> heights, std::vector<int64_t> widths,
                               bool align_corners, Optionals terms, Tensors mean, Tensors var, std::vector<double> eps,
                               std::vector<int64_t> needed) {
  std::vector<Pair> pairs;
  Tensors results;
  resize_backward(gradients, heights, widths, pairs, results);
  STD_TORCH_CHECK(!mean.empty(), "mean: expected at least one, got none");
  const Tensor& like = gradients.empty() ? mean[0] : gradients[0];
  std::vector<Norm> norms = describe_norms(mean, var, eps, like, gradients.empty() ? "mean[0]" : "gradients[0]");
  STD_TORCH_CHECK(terms.size() == 4 && needed.size() == 2 * norms.size(), "expected 4 terms and ", 2 * norms.size(),
                  " numbers, got ", terms.size(), " and ", needed.size());
  const ScalarType sums = sum_dtype(like);
  const int64_t half = static_cast<int64_t>(norms.size() / 2);
  std::vector<void*> given;
  for (size_t i = 0; i < 4; ++i) {
    const std::string name = indexed("terms", i);
    if (terms[i].has_value()) {
      check_like(*terms[i], like, name, sums);
      check_contiguous(*terms[i], {half, norms[i < 2 ? 0 : norms.size() / 2].channels}, name);
    }
    given.push_back(terms[i].has_value() ? terms[i]->data_ptr() : nullptr);
  }
  place_terms(norms, given, sums);
  for (size_t i = 0; i < 2 * norms.size(); ++i) {
    Norm& norm = norms[i % norms.size()];
    if (needed[i] == 0) continue;
    results.push_back(empty({norm.channels}, mean[0].scalar_type(), like));
    (i < norms.size() ? norm.weight : norm.bias) = results.back().data_ptr();
  }
  const auto size = [&](int d) { return gradients.empty() ? 1 : gradients[0].size(d); };
  run<false>(like, pairs, size(2), size(3), align_corners, norms, mean[0].scalar_type() == sums);
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("upsample", TORCH_BOX(&upsample));
  m.impl("upsample_concat", TORCH_BOX(&upsample_concat));
  m.impl("upsample_backward", TORCH_BOX(&upsample_backward));
  m.impl("upsample_fold", TORCH_BOX(&upsample_fold));
  m.impl("upsample_fold_backward", TORCH_BOX(&upsample_fold_backward));
}

}  // namespace jpu::upsample_concat

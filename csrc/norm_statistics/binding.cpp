// jpu_cuda::training_statistics, training_coefficients and training_pointwise_gradient; schemas stand in jpu_cuda/ops.
#include <optional>
#include <string>

#include "binding/checks.h"
#include "binding/tensor.h"
#include "device/numeric.h"
#include "norm_statistics/norm_statistics.h"

namespace jpu::norm_statistics {
namespace {

using Optionals = std::vector<std::optional<Tensor>>;

void check_sums(const Tensor& t, const char* name, int64_t dimensions) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, name,
                  ": expected dtype Float or Double, got ", t.scalar_type());
  STD_TORCH_CHECK(t.dim() == dimensions, name, ": expected ", dimensions, " dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.is_contiguous(), name, ": expected a contiguous tensor, got one of other strides");
}

void check_branches(int64_t branches) {
  STD_TORCH_CHECK(branches >= 1 && branches <= kMaxBranches, "branches: expected 1 to ", kMaxBranches, ", got ",
                  branches);
}

void check_list(size_t count, int64_t branches, const char* name) {
  STD_TORCH_CHECK(static_cast<int64_t>(count) == branches, name, ": expected one a branch, ", branches, ", got ",
                  count);
}

void check_channels(int64_t images, int64_t channels, int64_t groups) {
  STD_TORCH_CHECK(channels >= 1 && channels <= kMaxChannels && images <= INT32_MAX, "channels: expected 1 to ",
                  kMaxChannels, ", of at most 2147483647 images, got ", channels, " and ", images);
  STD_TORCH_CHECK(groups >= 0 && (groups == 0 || channels % groups == 0),
                  "groups: expected 0 or a divisor of channels, ", channels, ", got ", groups);
}

// Values of norms, which all have the dtype of the first one given, and a reader of their pointers.
class Values {
 public:
  Values(std::initializer_list<const Optionals*> lists, const Tensor& like) : like_(like) {
    for (const Optionals* list : lists) {
      for (const std::optional<Tensor>& values : *list) {
        if (!first_.has_value()) first_ = values;
      }
    }
  }

  // The tensor to dispatch on: that of sums where there are no values.
  const Tensor& first(const Tensor& otherwise) const { return first_.has_value() ? *first_ : otherwise; }

  const void* data(const Optionals& list, const char* name, int64_t i, int64_t channels) const {
    const std::optional<Tensor>& values = list[static_cast<size_t>(i)];
    if (!values.has_value()) return nullptr;
    const std::string which = indexed(name, static_cast<size_t>(i));
    check_like(*values, like_, which, first_->scalar_type(), "the first argument");
    check_contiguous(*values, {channels}, which);
    return values->data_ptr();
  }

 private:
  const Tensor& like_;
  std::optional<Tensor> first_;
};

// Whose sums have the dtype of `sums`.
void check_dtype_of_norms(const Tensor& norms, const Tensor& sums) {
  STD_TORCH_CHECK(sum_dtype(norms) == sums.scalar_type(), "norms: expected a dtype whose sums are ",
                  sums.scalar_type(), ", got ", norms.scalar_type());
}

Tensor training_statistics(Tensor moments, Tensor counts, Optionals weight, Optionals bias, Optionals mean,
                           Optionals var, std::vector<double> eps, int64_t groups) {
  const int64_t branches = static_cast<int64_t>(eps.size());
  check_branches(branches);
  check_list(weight.size(), branches, "weight");
  check_list(bias.size(), branches, "bias");
  check_list(mean.size(), branches, "mean");
  check_list(var.size(), branches, "var");
  bool merges = false;
  for (size_t i = 0; i < mean.size(); ++i) {
    STD_TORCH_CHECK(mean[i].has_value() == var[i].has_value(), indexed("var", i),
                    ": expected a variance with a mean, and none without");
    STD_TORCH_CHECK(groups == 0 || !mean[i].has_value(), indexed("mean", i), ": expected none with groups, got one");
    merges |= !mean[i].has_value();
  }
  check_sums(moments, "moments", merges ? 5 : moments.dim());
  StatisticsParams p{};
  int64_t channels = 0;
  if (merges) {
    channels = moments.size(4);
    check_shape(moments, {moments.size(0), moments.size(1), branches, 2, channels}, "moments");
    check_like(counts, moments, "counts", ScalarType::Int, "moments");
    check_contiguous(counts, {moments.size(1), branches}, "counts");
    const int64_t images = moments.size(0), parts = moments.size(1);
    STD_TORCH_CHECK(parts >= 1 && images <= kMaxParts && parts <= kMaxParts && images * parts <= kMaxParts,
                    "moments: expected 1 to ", kMaxParts, " parts, got ", parts, " of each of ", images, " images");
    p.images = static_cast<int32_t>(images);
    p.parts = static_cast<int32_t>(parts);
    p.moments = moments.data_ptr();
    p.counts = static_cast<const int32_t*>(counts.data_ptr());
  } else {
    channels = mean[0]->numel();
  }
  check_channels(p.images, channels, groups);
  const Values values({&weight, &bias, &mean, &var}, moments);
  const Tensor& norms = values.first(moments);
  check_dtype_of_norms(norms, moments);
  for (int64_t i = 0; i < branches; ++i) {
    p.norm[i] = {values.data(weight, "weight", i, channels), values.data(bias, "bias", i, channels),
                 values.data(mean, "mean", i, channels), values.data(var, "var", i, channels),
                 eps[static_cast<size_t>(i)]};
  }
  p.branches = static_cast<int32_t>(branches);
  p.channels = static_cast<int32_t>(channels);
  p.groups = static_cast<int32_t>(groups);
  const Tensor result =
      empty({groups > 0 ? p.images : 1, kStatistics, branches, channels}, moments.scalar_type(), moments);
  p.statistics = result.data_ptr();
  const OnDevice device(moments);
  dispatch_dtype(norms, [&](auto element) { statistics<decltype(element)>(p, device.stream()); });
  return result;
}

Tensors training_coefficients(Tensor sums, Tensor statistics, Optionals weight, std::vector<int64_t> batch,
                              int64_t groups, int64_t pixels) {
  check_sums(sums, "sums", 5);
  const int64_t images = sums.size(0), parts = sums.size(1), branches = sums.size(3), channels = sums.size(4);
  check_branches(branches);
  check_channels(images, channels, groups);
  check_shape(sums, {images, parts, kSums, branches, channels}, "sums");
  const int64_t sets = groups > 0 ? images : 1;
  check_like(statistics, sums, "statistics", sums.scalar_type(), "sums");
  check_contiguous(statistics, {sets, kStatistics, branches, channels}, "statistics");
  check_list(weight.size(), branches, "weight");
  check_list(batch.size(), branches, "batch");
  STD_TORCH_CHECK(pixels >= 1 && pixels <= INT64_MAX / kMaxChannels / (images + 1),
                  "pixels: expected at least one, and no more than fit, got ", pixels);
  const Values values({&weight}, sums);
  const Tensor& norms = values.first(sums);
  check_dtype_of_norms(norms, sums);
  CoefficientsParams p{};
  p.statistics = statistics.data_ptr();
  p.pixels = pixels;
  p.images = static_cast<int32_t>(images);
  p.branches = static_cast<int32_t>(branches);
  p.channels = static_cast<int32_t>(channels);
  p.groups = static_cast<int32_t>(groups);
  for (int64_t i = 0; i < branches; ++i) {
    p.weight[i] = values.data(weight, "weight", i, channels);
    p.batch[i] = batch[static_cast<size_t>(i)] != 0;
  }
  const auto make = [&](const std::vector<int64_t>& shape) { return empty(shape, sums.scalar_type(), sums); };
  const Tensors results = {make({sets, kCoefficients, branches, channels}), make({images, branches, channels}),
                           make({2, branches, channels})};
  p.coefficients = results[0].data_ptr();
  p.totals = results[1].data_ptr();
  p.gradients = results[2].data_ptr();
  const OnDevice device(sums);
  dispatch_dtype(norms, [&](auto element) {
    using T = decltype(element);
    const int64_t terms = kSums * branches * channels;
    std::optional<Tensor> folded;  // lives until the launches are queued, which on a stream is enough
    p.sums = sums.data_ptr();
    if (parts != 1) {
      folded = make({images, terms});
      fold<T>({sums.data_ptr(), folded->data_ptr(), parts * terms, terms, images, parts, terms, 0}, device.stream());
      p.sums = folded->data_ptr();
    }
    coefficients<T>(p, device.stream());
  });
  return results;
}

Tensors training_pointwise_gradient(Tensor products, Tensors pointwise, Tensor totals, Optionals weight,
                                    Optionals bias, int64_t first, int64_t branches) {
  STD_TORCH_CHECK(products.dim() == 4 && totals.dim() == 3, "products and totals: expected 4 and 3 dimensions, got ",
                  products.dim(), " and ", totals.dim());
  const int64_t sets = products.size(1), outputs = products.size(2), channels = products.size(3);
  const int64_t images = totals.size(0), all = totals.size(1);
  check_branches(all);
  check_channels(images, channels, 0);
  STD_TORCH_CHECK(first >= 0 && branches >= 1 && first <= all - branches, "branches: expected some of ", all, ", got ",
                  branches, " from ", first);
  STD_TORCH_CHECK(outputs >= 1 && outputs <= kMaxChannels && (sets == 1 || sets == images),
                  "products: expected 1 to ", kMaxChannels, " outputs, of 1 set or ", images, ", got ", outputs,
                  " and ", sets);
  check_list(pointwise.size(), all, "pointwise");
  const Tensor& like = pointwise[static_cast<size_t>(first)];
  const ScalarType dtype = like.scalar_type(), sums = sum_dtype(like);
  check_like(products, like, "products", sums, "pointwise");
  check_contiguous(products, {branches, sets, outputs, channels}, "products");
  check_like(totals, products, "totals", sums, "products");
  check_contiguous(totals, {images, all, outputs}, "totals");
  check_list(weight.size(), all, "weight");
  check_list(bias.size(), all, "bias");
  const Values values({&weight, &bias}, products);
  const ScalarType of_norms = values.first(totals).scalar_type();
  STD_TORCH_CHECK(of_norms == dtype || of_norms == sums, "norms: expected dtype ", sums, " or that of pointwise weights, ",
                  dtype, ", got ", of_norms);
  PointwiseParams p{};
  for (int64_t i = 0; i < branches; ++i) {
    const size_t at = static_cast<size_t>(first + i);
    check_like(pointwise[at], products, indexed("pointwise", at), dtype, "products");
    check_contiguous(pointwise[at], {outputs, channels, 1, 1}, indexed("pointwise", at));
    p.pointwise[i] = pointwise[at].data_ptr();
    p.weight[i] = values.data(weight, "weight", first + i, channels);
    p.bias[i] = values.data(bias, "bias", first + i, channels);
  }
  p.norms_in_sums = of_norms == sums;
  p.sets = static_cast<int32_t>(sets);
  p.branches = static_cast<int32_t>(branches);
  p.outputs = static_cast<int32_t>(outputs);
  p.channels = static_cast<int32_t>(channels);
  const Tensors results = {empty({branches, outputs, channels}, dtype, products),
                           empty({sets, 1, kSums, branches, channels}, sums, totals)};
  p.products = products.data_ptr();
  p.gradient = results[0].data_ptr();
  p.sums = results[1].data_ptr();
  const OnDevice device(products);
  dispatch_dtype(like, [&](auto element) {
    using T = decltype(element);
    const void* own = static_cast<const Accumulate<T>*>(totals.data_ptr()) + first * outputs;
    const int64_t terms = branches * outputs;
    std::optional<Tensor> folded;
    p.all_totals = own;
    if (images != 1) {
      folded = empty({terms}, totals.scalar_type(), totals);
      fold<T>({own, folded->data_ptr(), 0, all * outputs, 1, images, terms, 0}, device.stream());
      p.all_totals = folded->data_ptr();
    }
    p.set_totals = sets == 1 ? p.all_totals : own;
    p.set_stride = sets == 1 ? 0 : all * outputs;
    pointwise_gradient<T>(p, device.stream());
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(jpu_cuda, JPU_DISPATCH_KEY, m) {
  m.impl("training_statistics", TORCH_BOX(&training_statistics));
  m.impl("training_coefficients", TORCH_BOX(&training_coefficients));
  m.impl("training_pointwise_gradient", TORCH_BOX(&training_pointwise_gradient));
}

}  // namespace jpu::norm_statistics

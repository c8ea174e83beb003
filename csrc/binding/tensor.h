// What bindings need of tensors beyond the stable ABI's own classes. For GPU and host execution alike: they
// differ in the dispatch key, the device and the stream.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <memory>
#include <vector>

#include "common/strides.h"
#include "device/numeric_types.h"

#if defined(USE_CUDA)
#define JPU_DISPATCH_KEY CUDA
#else
#define JPU_DISPATCH_KEY CPU
#endif

// Says why a call of the stable ABI failed; headers before torch 2.13 have only what says which call it was.
#if defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define JPU_CHECK_CODE STABLE_TORCH_ERROR_CODE_CHECK
#else
#define JPU_CHECK_CODE TORCH_ERROR_CODE_CHECK
#endif

namespace jpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, const Tensor& like) {
  int32_t dtype, device_type, device_index;
  JPU_CHECK_CODE(aoti_torch_get_dtype(like.get(), &dtype));
  JPU_CHECK_CODE(aoti_torch_get_device_type(like.get(), &device_type));
  JPU_CHECK_CODE(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  JPU_CHECK_CODE(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                          device_type, device_index, &handle));
  return Tensor(handle);
}

// Contiguous.
inline Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& like) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * sizes[i];
  int32_t device_type, device_index;
  JPU_CHECK_CODE(aoti_torch_get_device_type(like.get(), &device_type));
  JPU_CHECK_CODE(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle handle;
  JPU_CHECK_CODE(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                          static_cast<int32_t>(dtype), device_type, device_index, &handle));
  return Tensor(handle);
}

// Of [N, C, H, W], contiguous or channels_last.
inline Tensor empty_image(const std::vector<int64_t>& size, bool channels_last, const Tensor& like) {
  // Empty dimensions count as one, as in torch.empty.
  const auto extent = [&](int d) { return size[d] > 1 ? size[d] : 1; };
  const int64_t c = extent(1), h = extent(2), w = extent(3);
  return channels_last ? empty_strided(size, {h * w * c, 1, w * c, c}, like)
                       : empty_strided(size, {c * h * w, h * w, w, 1}, like);
}

// As Tensor.suggest_memory_format decides: strides ascend C, W, H, N.
inline bool suggests_channels_last(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t least = 0;
  if (strides[1] == 0) return false;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < least) return false;
    if (d == 0 && least == strides[1]) return false;  // N·1·1·1 and the like: nothing tells the formats apart
    least = strides[d] * (sizes[d] > 1 ? sizes[d] : 1);
  }
  return true;
}

inline Strides strides_of(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

// Makes the tensor's device the current one, and says on which stream to launch.
class OnDevice {
 public:
#if defined(USE_CUDA)
  explicit OnDevice(const Tensor& t) : guard_(t.get_device_index()) {
    JPU_CHECK_CODE(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
  }
#else
  explicit OnDevice(const Tensor&) {}
#endif
  void* stream() const { return stream_; }

 private:
#if defined(USE_CUDA)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  void* stream_ = nullptr;
};

// Of what sums of a tensor's elements are kept in.
inline ScalarType sum_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a value of the element type.
template <class F>
void dispatch_dtype(const Tensor& t, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Half:
      return f(float16{});
    case ScalarType::BFloat16:
      return f(bfloat16{});
    default:
      STD_TORCH_CHECK(false, "dtype: expected float64, float32, float16 or bfloat16, got ", t.scalar_type());
  }
}

}  // namespace jpu

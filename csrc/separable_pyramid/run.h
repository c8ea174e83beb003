// Which of the kernels serves a call, and what it needs beside the arguments; for the bindings.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>

#include "separable_pyramid/arguments.h"
#include "separable_pyramid/matrix_config.h"
#include "separable_pyramid/policy.h"
#include "separable_pyramid/vectors.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace jpu::separable_pyramid {

// The tensor's; in host execution a typical one of `arch`, or one without tensor cores for 0.
inline Device device_of(const Tensor& t, int64_t arch) {
#if defined(USE_CUDA)
  (void)arch;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&value, which, t.get_device_index());
    STD_TORCH_CHECK(error == cudaSuccess, "device ", t.get_device_index(), ": ", cudaGetErrorString(error));
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrL2CacheSize)};
#else
  (void)t;
  return typical_device(static_cast<int>(arch));
#endif
}

// The call's levels and output as the tensor cores' kernels want them, and what had to be made for that.
template <class T>
class ByChannels {
 public:
  ByChannels(Params& p, const Tensors& levels, Tensor& output) : output_(output), target_(output) {
    constexpr int V = Vector<T>::kSize;
    int described = 0;
    for (const Tensor& tensor : levels) {
      if (tensor.size(1) == 0) continue;
      Level& level = p.level[described++];
      // Others are read element by element as they lie.
      if (level.channels % V != 0 || channels_in_vectors<T>(level.data, level.stride)) continue;
      copies_.push_back(empty_image(shape_of(tensor), true, tensor));
      torch::stable::copy_(copies_.back(), tensor);
      level.data = copies_.back().data_ptr();
      level.stride = strides_of(copies_.back());
    }
    if (p.outputs % V == 0 && !channels_in_vectors<T>(p.output, p.output_stride)) {
      target_ = empty_image(shape_of(output), true, output);
      p.output = target_.data_ptr();
      p.output_stride = strides_of(target_);
      copy_back_ = true;
    }
  }

  // After the launches.
  void finish() {
    if (copy_back_) torch::stable::copy_(output_, target_);
  }

 private:
  Tensors copies_;
  Tensor& output_;
  Tensor target_;
  bool copy_back_ = false;
};

struct Products {
  bool allow_tf32;
  int64_t arch;
  std::string policy;
  int64_t workspace_bytes;  // what the two passes may take at a time; 0 for half of the device's L2 cache
};

// Starts the kernels. The output is allocated, and described but for its data and strides.
template <bool kMoments>
void run(Params p, const Tensors& levels, Tensor& output, const Products& products) {
  const Tensor& first = levels[0];
  p.output = output.data_ptr();
  p.output_stride = strides_of(output);
  const OnDevice on_device(first);
  dispatch_dtype(first, [&](auto element) {
    using T = decltype(element);
    const Device device = device_of(first, products.arch);
    const Choice choice = choose(products.policy, device, {kElementType<T>, products.allow_tf32, p.outputs});
    if (output.numel() == 0) return;
    if constexpr (!std::is_same_v<T, double>) {
      if (choice.policy != Policy::kFma) {
        ByChannels<T> by_channels(p, levels, output);
        if (choice.policy == Policy::kMma) {
          forward_mma<T, kMoments>(p, on_device.stream());
        } else {
          const NormalisedSize size = normalised_size<T>(p);
          const int64_t bytes = products.workspace_bytes, cache = bytes > 0 ? bytes : device.cache_bytes / 2;
          const int64_t fitting = tiles_at_a_time(device, cache, size.tile_bytes, shares_of(p.outputs));
          // Multiprocessors without work cost more than h that passes a small cache by.
          const int64_t least = bytes > 0 ? 1 : tiles_of_a_wave(device, shares_of(p.outputs));
          const int64_t room = std::min(std::max(fitting, least), size.tiles);
          const Tensor normalised = empty({room * size.tile_bytes}, ScalarType::Byte, first);
          forward_two_pass<T, kMoments>(p, normalised.data_ptr(), room, on_device.stream());
        }
        by_channels.finish();
        return;
      }
    }
    forward<T, kMoments>(p, on_device.stream());
  });
}

}  // namespace jpu::separable_pyramid

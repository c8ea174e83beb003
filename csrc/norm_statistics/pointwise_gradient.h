// The gradient of pointwise weights after a norm, and the sums that the norm's own gradient takes, from the products
// A = dqᵀ · x̂ of each set, which have the type of sums: no pass over pixels.
#pragma once

#include "common/norm.h"
#include "device/memory.h"
#include "device/thread.h"
#include "norm_statistics/norm_statistics.h"

namespace jpu::norm_statistics {

// The terms of a tile's channels, or the sums of each row of threads.
template <class T>
struct PointwiseShared {
  static constexpr int kSize = 2 * kThreads * Vector<T>::kSize;
  static_assert(kSize >= 2 * kGradientLanes * Vector<T>::kSize);
  alignas(kVectorBytes) Accumulate<T> value[kSize];
};

// V elements that lie in a line: one, or as many vectors of 16 bytes as they fill.
template <int V, class T>
JPU_DEVICE void load_run(const T* address, Accumulate<T> (&result)[V]) {
  if constexpr (V == 1) {
    result[0] = widen(load(address));
  } else {
    static_assert(V % Vector<T>::kSize == 0);
    JPU_UNROLL for (int v = 0; v < V; v += Vector<T>::kSize) {
      const Vector<T> vector = load_vector(address + v);
      JPU_UNROLL for (int i = 0; i < Vector<T>::kSize; ++i) result[v + i] = widen(vector.at[i]);
    }
  }
}

// V elements: one, or 16 bytes.
template <int V, class T>
JPU_DEVICE void store_run(T* address, const Accumulate<T> (&value)[V]) {
  if constexpr (V == 1) {
    store(address, narrow<T>(value[0]));
  } else {
    Vector<T> vector;
    JPU_UNROLL for (int v = 0; v < V; ++v) vector.at[v] = narrow<T>(value[v]);
    store_vector(address, vector);
  }
}

// V values of shared memory, by the widest accesses that there are.
template <int V, class A>
JPU_DEVICE void read_values(const A* address, A (&result)[V]) {
  if constexpr (V == 1) {
    result[0] = *address;
  } else {
    JPU_UNROLL for (int v = 0; v < V; v += Vector<A>::kSize) {
      const Vector<A> part = read_vector(address + v);
      JPU_UNROLL for (int i = 0; i < Vector<A>::kSize; ++i) result[v + i] = part.at[i];
    }
  }
}

template <int V, class A>
JPU_DEVICE void store_values(A* address, const A (&value)[V]) {
  if constexpr (V == 1) {
    *address = value[0];
  } else {
    JPU_UNROLL for (int v = 0; v < V; v += Vector<A>::kSize) {
      Vector<A> part;
      JPU_UNROLL for (int i = 0; i < Vector<A>::kSize; ++i) part.at[i] = value[v + i];
      store_vector(address + v, part);
    }
  }
}

// A block: Σ_o P · S and Σ_o P · A of kSumChannels channels of a set.
template <class T, int V>
JPU_DEVICE void serve_sums(const PointwiseParams& p, uint32_t block, Accumulate<T>* shared) {
  using A = Accumulate<T>;
  constexpr int kSumLanes = sum_lanes(V), kSumRows = sum_rows(V);
  static_assert(2 * kSumRows * kSumChannels <= PointwiseShared<T>::kSize);
  const int lane = thread_index() % kSumLanes, row = thread_index() / kSumLanes;
  const int first = static_cast<int>(block % p.sum_tiles) * kSumChannels;
  const uint32_t rest = block / p.sum_tiles;
  const int64_t set = rest % p.sets;
  const int index = static_cast<int>(rest / p.sets);
  const int channel = first + lane * V;
  A by_totals[V] = {}, by_products[V] = {};
  if (channel < p.channels) {
    const T* pointwise = static_cast<const T*>(p.pointwise[index]) + channel;
    const A* products = static_cast<const A*>(p.products) +
                        (index * int64_t{p.sets} + set) * p.outputs * p.channels + channel;
    const A* totals = static_cast<const A*>(p.set_totals) + set * p.set_stride + int64_t{index} * p.outputs;
    JPU_UNROLL_BY(4) for (int o = row; o < p.outputs; o += kSumRows) {
      A weight[V], product[V];
      const A total = load(totals + o);
      load_run<V>(pointwise + int64_t{o} * p.channels, weight);
      load_run<V>(products + int64_t{o} * p.channels, product);
      JPU_UNROLL for (int v = 0; v < V; ++v) {
        by_totals[v] = multiply_add(weight[v], total, by_totals[v]);
        by_products[v] = multiply_add(weight[v], product[v], by_products[v]);
      }
    }
  }
  constexpr int kEach = kSumRows * kSumChannels;
  const int place = row * kSumChannels + lane * V;
  store_values<V>(shared + place, by_totals);
  store_values<V>(shared + kEach + place, by_products);
  block_barrier();
  static_assert(kSums * kSumChannels <= kThreads);
  const int which = thread_index() / kSumChannels, c = thread_index() % kSumChannels;
  if (which >= kSums || first + c >= p.channels) return;
  A sum = 0;  // of x̂, whose mean is 0
  if (which < 2) {
    for (int r = 0; r < kSumRows; ++r) sum += shared[which * kEach + r * kSumChannels + c];
  }
  const int64_t place_of_sum = ((set * kSums + which) * p.branches + index) * p.channels + first + c;
  store(static_cast<A*>(p.sums) + place_of_sum, sum);
}

// A block: a tile of the gradient of a branch's pointwise weights.
template <class T, int V>
JPU_DEVICE void serve_gradient(const PointwiseParams& p, uint32_t block, Accumulate<T>* shared) {
  using A = Accumulate<T>;
  constexpr int kTile = kGradientLanes * V;
  const int lane = thread_index() % kGradientLanes, row = thread_index() / kGradientLanes;
  const int first = static_cast<int>(block % p.channel_tiles) * kTile, channel = first + lane * V;
  const uint32_t rest = block / p.channel_tiles;
  const int output = static_cast<int>(rest % p.output_tiles) * kGradientRows * kGradientWalk + row;
  const int index = static_cast<int>(rest / p.output_tiles);
  const bool exists = channel < p.channels;

  // 1. All that this thread reads. Rows behind the last output load that one's again, and store nothing.
  const int64_t matrix = int64_t{p.outputs} * p.channels;
  const A* products = static_cast<const A*>(p.products) + index * p.sets * matrix + channel;
  A sum[kGradientWalk][V] = {}, total[kGradientWalk];
  JPU_UNROLL for (int i = 0; i < kGradientWalk; ++i) {
    const int o = smaller(output + i * kGradientRows, p.outputs - 1);
    total[i] = load(static_cast<const A*>(p.all_totals) + int64_t{index} * p.outputs + o);
  }
  for (int set = 0; exists && set < p.sets; ++set) {
    JPU_UNROLL for (int i = 0; i < kGradientWalk; ++i) {
      const int64_t o = smaller(output + i * kGradientRows, p.outputs - 1);
      A product[V];
      load_run<V>(products + set * matrix + o * p.channels, product);
      JPU_UNROLL for (int v = 0; v < V; ++v) sum[i][v] += product[v];
    }
  }

  // 2. The terms of the tile's channels, one a thread.
  const void *weights = p.weight[index], *biases = p.bias[index];
  for (int i = thread_index(); i < kTile && first + i < p.channels; i += kThreads) {
    shared[i] = weights == nullptr ? A(1) : load_norm<T>(weights, p.norms_in_sums, first + i);
    shared[kTile + i] = biases == nullptr ? A(0) : load_norm<T>(biases, p.norms_in_sums, first + i);
  }
  block_barrier();
  if (!exists) return;

  // 3. The gradient.
  A weight[V], bias[V];
  read_values<V>(shared + lane * V, weight);
  read_values<V>(shared + kTile + lane * V, bias);
  JPU_UNROLL for (int i = 0; i < kGradientWalk; ++i) {
    const int64_t o = output + i * kGradientRows;
    if (o >= p.outputs) break;
    JPU_UNROLL for (int v = 0; v < V; ++v) sum[i][v] = multiply_add(sum[i][v], weight[v], total[i] * bias[v]);
    store_run<V>(static_cast<T*>(p.gradient) + index * matrix + o * p.channels + channel, sum[i]);
  }
}

template <class T, int V>
JPU_DEVICE void serve_pointwise(const PointwiseParams& p, Accumulate<T>* shared) {
  if (block_index() < p.sum_blocks) return serve_sums<T, V>(p, block_index(), shared);
  serve_gradient<T, V>(p, block_index() - p.sum_blocks, shared);
}

template <class T>
JPU_KERNEL(kThreads, 2)
norm_pointwise_gradient(JPU_PARAMS PointwiseParams p) {
  PointwiseShared<T>& shared = shared_memory<PointwiseShared<T>>();
  if (p.vectors) return serve_pointwise<T, Vector<T>::kSize>(p, shared.value);
  serve_pointwise<T, 1>(p, shared.value);
}

}  // namespace jpu::norm_statistics

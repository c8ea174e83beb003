// dz = k · dh − a − b · ẑ in place of dh, and the depthwise weights' gradient, Σ dz · u of each tap.
#pragma once

#include "separable_pyramid/normalised.h"

namespace jpu::separable_pyramid {

template <class A>
struct Coefficients {
  A k, a, b;
};

// Of a channel of branch `index` of those concerned.
template <class A>
JPU_DEVICE Coefficients<A> load_coefficients(const TrainingParams& t, int index, int image, int64_t channel) {
  const Params& p = t.forward;
  const A* first = static_cast<const A*>(t.coefficients) + image * t.coefficients_image +
                   int64_t{index} * p.channels + channel;
  const int64_t step = int64_t{p.branches} * p.channels;
  return {load(first), load(first + step), load(first + 2 * step)};
}

template <class A>
JPU_DEVICE A gradient_of(const Coefficients<A>& c, A gradient, A normalised) {
  const A rest = multiply_add(c.k, gradient, -c.a);
  // Of fixed statistics b is 0, and infinite z have the gradient that they have in PyTorch.
  return c.b == 0 ? rest : multiply_add(-c.b, normalised, rest);
}

// terms[3 i + j] += Σ dz · u of a strip, where dz is that of pixels which the image has: what u is elsewhere, and be it
// infinite, does not count.
template <class T>
JPU_DEVICE void add_strip(const Patch<T, kPixels>& patch, const Shape& shape, int window, bool vectors, int rows,
                          int columns, const Accumulate<T> (&dz)[Strips<T>::kRows][kRun],
                          Accumulate<T> (&terms)[kTaps]) {
  constexpr int kRows = Strips<T>::kRows;
  JPU_UNROLL for (int r = 0; r < kRows + 2; ++r) {
    Accumulate<T> row[kRun + 2];
    read_row(patch, window + r * shape.patch_pitch(), vectors, row);
    JPU_UNROLL for (int i = 0; i < 3; ++i) {
      const int y = r - i;
      if (y < 0 || y >= kRows) continue;
      if (y >= rows) continue;
      JPU_UNROLL for (int x = 0; x < kRun; ++x) {
        if (x >= columns) continue;
        JPU_UNROLL for (int j = 0; j < 3; ++j) terms[3 * i + j] = multiply_add(dz[y][x], row[x + j], terms[3 * i + j]);
      }
    }
  }
}

// Rows of a strip whose pixels a thread reads at a time: more would take more registers than there are.
template <class T>
constexpr int kRowsAtOnce = smaller(Strips<T>::kRows, 2);

// With the weights' gradient. Terms have two levels, a tile's and all tiles'.
template <class T>
JPU_KERNEL(kThreads, 2)
training_depthwise_gradient(JPU_PARAMS TrainingParams t) {
  using A = Accumulate<T>;
  using S = Strips<T>;
  WalkShared<T, kTaps>& shared = shared_memory<WalkShared<T, kTaps>>();
  const Params& p = t.forward;
  const Part work = part_of_block<T>(t);
  const Branch& branch = p.branch[work.branch];
  const Level& level = p.level[work.chunk.level];
  const int own = Runs<T>::channel();
  const bool exists = own < work.chunk.count;
  const int64_t channel = level.first + work.chunk.channel + own;

  Coefficients<A> coefficients{};
  if (exists) coefficients = load_coefficients<A>(t, work.branch, work.image, channel);
  const int64_t first = first_row(p, work.branch, work.image) + channel;
  const T* normalised = static_cast<const T*>(t.normalised) + first;
  T* gradient = static_cast<T*>(t.gradient) + first;
  A total[kTaps] = {};
  auto& free = walk(p, work, shared, [&](const Patch<T, kPixels>& patch, const S& strips) {
    if (!exists) return;
    A terms[kTaps] = {};
    JPU_UNROLL for (int e = 0; e < S::kEach; ++e) {
      const int strip = S::number(e), rows = strips.rows[strip], columns = strips.columns[strip];
      const int pixel = strips.pixel[strip];
      const auto offset = [&](int y, int x) {
        return int64_t{pixel + (y * p.width + x) * branch.dilation} * p.channels;
      };
      A dz[S::kRows][kRun];
      JPU_UNROLL for (int half = 0; half < S::kRows; half += kRowsAtOnce<T>) {
        // All that memory has to answer first, then all that is written.
        T values[kRowsAtOnce<T>][kRun], others[kRowsAtOnce<T>][kRun];
        JPU_UNROLL for (int i = 0; i < kRowsAtOnce<T>; ++i) {
          JPU_UNROLL for (int x = 0; x < kRun; ++x) {
            if (half + i >= rows || x >= columns) continue;
            values[i][x] = gradient[offset(half + i, x)];
            others[i][x] = load(normalised + offset(half + i, x));
          }
        }
        JPU_UNROLL for (int i = 0; i < kRowsAtOnce<T>; ++i) {
          JPU_UNROLL for (int x = 0; x < kRun; ++x) {
            dz[half + i][x] = 0;
            if (half + i >= rows || x >= columns) continue;
            const T rounded = narrow<T>(gradient_of<A>(coefficients, widen(values[i][x]), widen(others[i][x])));
            store(gradient + offset(half + i, x), rounded);
            dz[half + i][x] = widen(rounded);
          }
        }
      }
      add_strip<T>(patch, branch.tiling.shape, strips.window[strip], level.vectors, rows, columns, dz, terms);
    }
    JPU_UNROLL for (int i = 0; i < kTaps; ++i) total[i] += terms[i];
  });

  JPU_UNROLL for (int i = 0; i < kTaps; ++i) free.part[i][thread_index()] = total[i];
  block_barrier();
  const int count = work.chunk.count;
  A* target = static_cast<A*>(t.terms) + level.first + work.chunk.channel +
              (t.first_term[work.branch] + int64_t{work.image} * t.parts[work.branch] + work.part) * kTaps * p.channels;
  for (int i = thread_index(); i < kTaps * count; i += kThreads) {
    const int c = i % count, tap = i / count;
    A sum = 0;
    for (int group = 0; group < Runs<T>::kStep; ++group) sum += free.part[tap][group * Runs<T>::kChannels + c];
    store(target + int64_t{tap} * p.channels + c, sum);
  }
}

// The terms of so many channels are added up by this many rows of threads, each every so-manieth part.
constexpr int kTermChannels = 32;
constexpr int kTermRows = kThreads / kTermChannels;

template <class A>
struct TermsShared {
  A part[kTermRows][kTermChannels * kTaps];  // in the order of the result
};

template <class T>
JPU_KERNEL(kThreads, 1)
training_depthwise_terms(JPU_PARAMS TrainingParams t) {
  using A = Accumulate<T>;
  TermsShared<A>& shared = shared_memory<TermsShared<A>>();
  const Params& p = t.forward;
  const uint32_t groups = static_cast<uint32_t>(ceil_divide(p.channels, kTermChannels));
  const int index = static_cast<int>(block_index() / groups);
  const int first = static_cast<int>(block_index() % groups) * kTermChannels;
  const int own = thread_index() % kTermChannels, row = thread_index() / kTermChannels;
  const int64_t parts = int64_t{p.batch} * t.parts[index];
  A sum[kTaps] = {};
  for (int64_t part = row; first + own < p.channels && part < parts; part += kTermRows) {
    const A* terms = static_cast<const A*>(t.terms) + (t.first_term[index] + part) * kTaps * p.channels + first + own;
    JPU_UNROLL for (int i = 0; i < kTaps; ++i) sum[i] += load(terms + int64_t{i} * p.channels);
  }
  JPU_UNROLL for (int i = 0; i < kTaps; ++i) shared.part[row][own * kTaps + i] = sum[i];
  block_barrier();
  const int channels = smaller(kTermChannels, p.channels - first);
  T* target = static_cast<T*>(t.weights) + (int64_t{index} * p.channels + first) * kTaps;
  for (int i = thread_index(); i < channels * kTaps; i += kThreads) {
    A whole = 0;
    for (int r = 0; r < kTermRows; ++r) whole += shared.part[r][i];
    store(target + i, narrow<T>(whole));
  }
}

// Without: a pass over rows. A block has so many vectors, or single elements, of each of these rows of an image.
constexpr int kRowLanes = 32;
constexpr int kRowWalk = 8;
constexpr int kBlockRows = kThreads / kRowLanes * kRowWalk;

template <class T, int V>
JPU_DEVICE void gradient_of_rows(const TrainingParams& t) {
  using A = Accumulate<T>;
  const Params& p = t.forward;
  const int pixels = p.height * p.width;
  const uint32_t channel_tiles = static_cast<uint32_t>(ceil_divide(p.channels, kRowLanes * V));
  const uint32_t row_tiles = static_cast<uint32_t>(ceil_divide(pixels, kBlockRows));
  uint32_t rest = block_index();
  const int channel = static_cast<int>(rest % channel_tiles * kRowLanes + thread_index() % kRowLanes) * V;
  rest /= channel_tiles;
  const int64_t first = int64_t{rest % row_tiles} * kBlockRows + thread_index() / kRowLanes;
  rest /= row_tiles;
  const int image = static_cast<int>(rest % static_cast<uint32_t>(p.batch));
  const int index = static_cast<int>(rest / static_cast<uint32_t>(p.batch));
  if (channel >= p.channels) return;
  const int64_t begin = first_row(p, index, image) + channel;
  Vector<T> values[kRowWalk], others[kRowWalk];
  const auto offset = [&](int i) { return begin + (first + i * (kThreads / kRowLanes)) * p.channels; };
  const auto inside = [&](int i) { return first + i * (kThreads / kRowLanes) < pixels; };
  JPU_UNROLL for (int i = 0; i < kRowWalk; ++i) {
    if (!inside(i)) break;
    const T* gradient = static_cast<const T*>(t.gradient) + offset(i);
    const T* normalised = static_cast<const T*>(t.normalised) + offset(i);
    if constexpr (V > 1) {
      values[i] = read_vector(gradient);
      others[i] = load_vector(normalised);
    } else {
      values[i].at[0] = *gradient;
      others[i].at[0] = load(normalised);
    }
  }
  Coefficients<A> coefficients[V];
  JPU_UNROLL for (int v = 0; v < V; ++v) coefficients[v] = load_coefficients<A>(t, index, image, channel + v);
  JPU_UNROLL for (int i = 0; i < kRowWalk; ++i) {
    if (!inside(i)) break;
    Vector<T> result;
    JPU_UNROLL for (int v = 0; v < V; ++v) {
      result.at[v] = narrow<T>(gradient_of<A>(coefficients[v], widen(values[i].at[v]), widen(others[i].at[v])));
    }
    T* target = static_cast<T*>(t.gradient) + offset(i);
    if constexpr (V > 1) {
      store_vector(target, result);
    } else {
      store(target, result.at[0]);
    }
  }
}

template <class T>
JPU_KERNEL(kThreads, 2)
training_row_gradient(JPU_PARAMS TrainingParams t) {
  if (t.row_vectors) {
    gradient_of_rows<T, Vector<T>::kSize>(t);
  } else {
    gradient_of_rows<T, 1>(t);
  }
}

}  // namespace jpu::separable_pyramid

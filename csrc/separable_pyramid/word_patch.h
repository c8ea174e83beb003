// A tile's input with its halo for the tensor cores' policies, and what becomes of it: h, by words of 4 bytes. A thread
// has one word of each pixel of a square of 4 by 4 pixels, and reads the 6 by 6 around it.
#pragma once

#include "device/async_copy.h"
#include "device/word.h"
#include "separable_pyramid/matrix_operand.h"
#include "separable_pyramid/patch.h"

namespace jpu::separable_pyramid {

constexpr int kSquare = 4;                        // pixels a side
constexpr int kWords = kUnits * 4;                // of a pixel's chunk
constexpr int kNormalisers = kPixels / (kSquare * kSquare) * kWords;  // threads that make a chunk's h

// With a halo of one pixel a side.
JPU_HOST_DEVICE constexpr int word_patch_pitch(const Shape& shape) { return shape.width + 2; }
JPU_HOST_DEVICE constexpr int word_patch_pixels(const Shape& shape) {
  return shape.classes * (shape.height + 2) * word_patch_pitch(shape);
}

constexpr int kMaxWordPatchPixels = [] {
  int most = 0;
  for (const Shape& shape : Shapes<kPixels>::kList) {
    if (shape.width % kSquare != 0 || shape.height % kSquare != 0) return -1;  // no array has this length
    most = word_patch_pixels(shape) > most ? word_patch_pixels(shape) : most;
  }
  return most;
}();

// Pixels are 64 bytes, two to a pass over the banks, and a warp reads two at once, those of neighbouring squares. So
// the two of a pair change places by the square's row, column and class, of which neighbours differ in one by one.
JPU_HOST_DEVICE constexpr int pair_swap(int which, int row, int column) {
  return (which ^ row / kSquare ^ column / kSquare) & 1;
}

// Where each pixel of a tile's patch, in the order of memory, is in the image; as in Patch.
struct Places {
  Tile tile;
  int32_t place[kMaxWordPatchPixels];
};

// Called once a tile by so many threads; a barrier must follow.
template <int Threads>
JPU_DEVICE void find_places(const Params& p, int dilation, const Shape& shape, const Tile& tile, Places& places) {
  const int top = origin(dilation, tile.row), left = origin(dilation, tile.column);
  const int pitch = word_patch_pitch(shape), rows = shape.height + 2;
  for (int q = thread_index(); q < word_patch_pixels(shape); q += Threads) {
    const int line = q / pitch, which = line / rows, row = line % rows;
    const int column = q % pitch ^ pair_swap(which, row, q % pitch);
    const Pixel pixel = pixel_at(p, dilation, tile, which, row - 1, column - 1);
    places.place[q] = pixel.inside ? (pixel.y - top) << 16 | (pixel.x - left) : kOutside;
  }
  if (thread_index() == 0) places.tile = tile;
}

// What a chunk's h is made of.
template <class T>
struct Inputs {
  static constexpr int kChannels = kChunk<sizeof(T)>;

  alignas(kVectorBytes) T patch[kMaxWordPatchPixels * kChannels];
  alignas(kVectorBytes) T depthwise[9 * kChannels];
  alignas(kVectorBytes) float scale[kChannels];
  alignas(kVectorBytes) float shift[kChannels];
};

// Copies elements that lie together, and fills up with zeros. `vectors`: whether they are whole vectors.
template <int Threads, class T>
JPU_DEVICE void fetch_row(T* shared, const T* global, int count, int filled, bool vectors) {
  constexpr int V = Vector<T>::kSize;
  if (vectors) {
    JPU_UNROLL_BY(1) for (int i = thread_index(); i < count / V; i += Threads) {
      copy_async<kVectorBytes>(shared + i * V, global + i * V);
    }
  } else {
    JPU_UNROLL_BY(1) for (int i = thread_index(); i < filled; i += Threads) {
      store(shared + i, i < count ? load(global + i) : T{});
    }
  }
}

// Begins to fetch a chunk's inputs; commit_copies, wait_copies and a barrier end it. Pixels outside of the image become
// 0; channels past the chunk's count are not defined, but those of its last word are 0.
template <int Threads, class T>
JPU_DEVICE void fetch_inputs(const Params& p, int index, const Chunk& chunk, int image, const Places& places,
                             Inputs<T>& inputs) {
  constexpr int V = Vector<T>::kSize, W = kWordSize<T>, kSize = Inputs<T>::kChannels;
  const Branch& branch = p.branch[index];
  const Level& level = p.level[chunk.level];
  const Strides& stride = level.stride;
  // May lie before the level's first element.
  const T* base = at<T>(level.data, stride, image, chunk.channel, origin(branch.dilation, places.tile.row),
                        origin(branch.dilation, places.tile.column));
  const int pixels = word_patch_pixels(branch.tiling.shape);
  const int count = ceil_divide(chunk.count, W) * W;
  if (level.vectors) {
    static_assert(Threads % kUnits == 0, "a thread has one unit");
    const int unit = thread_index() % kUnits;
    const T* own = base + unit * V;
    // plan_matrix() sees to it that 32 bits do.
    const int row = static_cast<int>(stride.h), column = static_cast<int>(stride.w);
    if (unit * V < chunk.count) {
      JPU_UNROLL_BY(1) for (int q = thread_index() / kUnits; q < pixels; q += Threads / kUnits) {
        const int32_t place = places.place[q];
        const bool inside = place != kOutside;
        const T* any = static_cast<const T*>(level.data);
        const T* source = inside ? own + ((place >> 16) * row + (place & 0xffff) * column) : any;
        copy_async<kVectorBytes>(&inputs.patch[q * kSize + unit * V], source, inside ? kVectorBytes : 0);
      }
    }
  } else {
    // Consecutive threads take what lies together: channels or columns.
    const bool channels_inside = stride.c < stride.w;
    JPU_UNROLL_BY(1) for (int i = thread_index(); i < pixels * count; i += Threads) {
      const int q = channels_inside ? i / count : i % pixels;
      const int c = channels_inside ? i % count : i / pixels;
      const int32_t place = places.place[q];
      T value{};
      if (place != kOutside && c < chunk.count) value = load(base + offset_of(place, stride) + c * stride.c);
      store(&inputs.patch[q * kSize + c], value);
    }
  }
  const int first = level.first + chunk.channel;
  fetch_row<Threads>(inputs.depthwise, static_cast<const T*>(branch.depthwise) + 9 * int64_t{first}, 9 * chunk.count,
                     9 * count, p.weight_vectors);
  const auto fetch_term = [&](float* target, const void* term, int64_t image_stride) {
    if (term == nullptr) return;
    const int64_t offset = image * image_stride + int64_t{index} * p.channels + first;
    fetch_row<Threads>(target, static_cast<const float*>(term) + offset, chunk.count, count, p.term_vectors);
  };
  fetch_term(inputs.scale, p.inner.scale, p.inner.scale_image);
  fetch_term(inputs.shift, p.inner.shift, p.inner.shift_image);
}

// A thread's square and its word. Squares of consecutive numbers are neighbours in a row, else in a column, else in
// classes.
struct Square {
  int word;
  int corner;  // pixel of the patch, in the order of the tile
  int slot;    // of its first pixel
  int swap;    // whether its corner changed places
};

JPU_DEVICE Square square_of(const Shape& shape, int thread) {
  int rest = thread / kWords;
  const int columns = shape.width / kSquare, rows = shape.height / kSquare;
  const int column = rest % columns * kSquare;
  rest /= columns;
  const int row = rest % rows * kSquare, which = rest / rows;
  return {thread % kWords, (which * (shape.height + 2) + row) * word_patch_pitch(shape) + column,
          (which * shape.height + row) * shape.width + column, pair_swap(which, row, column)};
}

// h of a chunk, by kNormalisers threads: `use` gets row and column within the square, and h's word. Words past the
// chunk's count are 0. Taps are summed in row-major order, as everywhere.
template <class T, class Use>
JPU_DEVICE void normalise(const Params& p, const Shape& shape, const Inputs<T>& inputs, int count,
                          const Square& square, Use&& use) {
  constexpr int W = kWordSize<T>, kSize = Inputs<T>::kChannels, kWindow = kSquare + 2;
  if (square.word * W >= count) {
    JPU_UNROLL for (int i = 0; i < kSquare * kSquare; ++i) use(i / kSquare, i % kSquare, uint32_t{0});
    return;
  }
  float weight[9][W];
  {
    float flat[9 * W];  // of one channel after the other
    JPU_UNROLL for (int i = 0; i < 9; ++i) {
      float part[W];
      widen_word<T>(read_word(&inputs.depthwise[(square.word * 9 + i) * W]), part);
      JPU_UNROLL for (int c = 0; c < W; ++c) flat[i * W + c] = part[c];
    }
    JPU_UNROLL for (int i = 0; i < 9 * W; ++i) weight[i % 9][i / 9] = flat[i];
  }
  const int pitch = word_patch_pitch(shape);
  const T* corner = &inputs.patch[square.corner * kSize + square.word * W];
  float sum[kSquare][kSquare][W] = {};
  JPU_UNROLL for (int r = 0; r < kWindow; ++r) {
    float row[kWindow][W];
    JPU_UNROLL for (int x = 0; x < kWindow; ++x) {
      const int step = (square.swap ^ (r / kSquare ^ x / kSquare)) * kSize;  // to the other pixel of the pair, or 0
      widen_word<T>(read_word(corner + (r * pitch + x) * kSize + (x % 2 == 0 ? step : -step)), row[x]);
    }
    JPU_UNROLL for (int y = 0; y < kSquare; ++y) {
      const int i = r - y;  // the tap's row
      if (i < 0 || i > 2) continue;
      JPU_UNROLL for (int x = 0; x < kSquare; ++x) {
        JPU_UNROLL for (int j = 0; j < 3; ++j) {
          JPU_UNROLL for (int c = 0; c < W; ++c) {
            sum[y][x][c] = multiply_add(weight[3 * i + j][c], row[x + j][c], sum[y][x][c]);
          }
        }
      }
    }
  }
  float scale[W], shift[W];
  JPU_UNROLL for (int c = 0; c < W; ++c) {
    scale[c] = p.inner.scale == nullptr ? 1 : inputs.scale[square.word * W + c];
    shift[c] = p.inner.shift == nullptr ? 0 : inputs.shift[square.word * W + c];
  }
  JPU_UNROLL for (int y = 0; y < kSquare; ++y) {
    JPU_UNROLL for (int x = 0; x < kSquare; ++x) {
      float h[W];
      JPU_UNROLL for (int c = 0; c < W; ++c) {
        h[c] = multiply_add(scale[c], sum[y][x][c], shift[c]);  // 0 of a last word's channel that does not exist
        if constexpr (W == 1) h[c] = round_tf32(h[c]);
      }
      use(y, x, narrow_word<T>(h));
    }
  }
}

}  // namespace jpu::separable_pyramid

// What a warp does together, and shared memory beyond 48 KiB.
#include "device/matrix.h"

#include "device/async_copy.h"
#include "device/memory.h"
#include "device/thread.h"
#include "entry.h"

namespace jpu::faulty {
namespace {

enum class Fault {
  kNone,
  // of product
  kLaneLeaves,
  kLaneAtBarrier,
  kLaneLoadsElsewhere,
  kLaneMultipliesInstead,
  kShortWarp,
  kNoBarrier,
  kOrderedByInstruction,
  kOverwrittenAfterLoad,
  kNoWait,
  kRowUnwritten,
  kRowMisaligned,
  kRowInGlobalMemory,
  kRowPastEnd,
  // of large
  kPastLargeEnd,
};

constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRowFloats = 8;  // that a matrix has in a row: 32 bytes
constexpr int kRowsA = 16, kRowsB = 8;
constexpr int kRows = kRowsA + kRowsB;  // of a warp's two matrices, one below the other

// Each warp multiplies two matrices of TF32, which the row of input holds warp after warp: A, 16 x 8, and B, 8 x 8 by
// columns. They come to shared memory `option` floats a row. Registers of the sum lie in the output lane after lane.
template <Fault F>
JPU_KERNEL(kThreads, 1)
product(JPU_PARAMS Memory m) {
  struct Shared {
    alignas(16) float value[kWarps * kRows * 12];
  };
  Shared& shared = shared_memory<Shared>();
  const int t = thread_index(), lane = lane_index(), pitch = m.option;
  const float* input = m.input + block_index() * m.input_stride;
  float* output = m.output + block_index() * m.output_stride;
  const bool odd_one = t == 5;

  // A warp brings its own matrices, so that no other warp's threads are involved.
  const int first = warp_index() * kRows;
  float sum[4] = {};
  for (int i = lane; i < kRows * kRowFloats; i += kWarpSize) {
    const int row = first + i / kRowFloats, column = i % kRowFloats;
    if (F == Fault::kRowUnwritten && row == 3) continue;
    if (F == Fault::kNoWait) {
      copy_async<4>(shared.value + row * pitch + column, input + row * kRowFloats + column);
    } else {
      shared.value[row * pitch + column] = load(input + row * kRowFloats + column);
    }
  }
  if (F == Fault::kNoWait) commit_copies();
  if (F == Fault::kOrderedByInstruction) multiply_matrices<float>(sum, {0, 0, 0, 0}, 0, 0);
  if (F != Fault::kNoBarrier && F != Fault::kOrderedByInstruction) block_barrier();
  if (F == Fault::kLaneLeaves && odd_one) return;

  uint32_t a[4], b[4];
  const float* row_a = shared.value + (first + lane % kRowsA) * pitch + lane / kRowsA * 4;
  const float* row_b = shared.value + (first + kRowsA + lane % kRowsB) * pitch + lane / kRowsB % 2 * 4;
  if (F == Fault::kRowMisaligned && odd_one) row_a += 1;
  if (F == Fault::kRowInGlobalMemory && odd_one) row_a = input;
  if (F == Fault::kRowPastEnd && odd_one) row_a = shared.value + kWarps * kRows * 12;
  if (F == Fault::kLaneAtBarrier && odd_one) block_barrier();
  if (F == Fault::kLaneMultipliesInstead && odd_one) multiply_matrices<float>(sum, {0, 0, 0, 0}, 0, 0);
  if (F == Fault::kLaneLoadsElsewhere && odd_one) {
    load_matrices(a, row_a);
  } else {
    load_matrices(a, row_a);
  }
  load_matrices(b, row_b);  // twice the same two matrices
  if (F == Fault::kOverwrittenAfterLoad && odd_one) shared.value[first * pitch] = 0;
  multiply_matrices<float>(sum, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) store(output + 4 * t + i, sum[i]);
}

// The row backwards, through the far end of `Bytes` of shared memory.
template <int Bytes, Fault F = Fault::kNone>
JPU_KERNEL(kThreads, 1)
far_end(JPU_PARAMS Memory m) {
  constexpr int kCount = Bytes / static_cast<int>(sizeof(float));
  struct Shared {
    float value[kCount];
  };
  Shared& shared = shared_memory<Shared>();
  const int t = thread_index();
  shared.value[kCount - kThreads + t] = load(m.input + block_index() * m.input_stride + t);
  block_barrier();
  const int from = F == Fault::kPastLargeEnd && t == 0 ? kCount : kCount - 1 - t;
  store(m.output + block_index() * m.output_stride + t, shared.value[from]);
}

constexpr int kSmall = 48 * 1024, kLarge = 64 * 1024, kLargest = 227 * 1024;

constexpr Entry kEntries[] = {
    {"product", &start<&product<Fault::kNone>>},
    {"lane_leaves", &start<&product<Fault::kLaneLeaves>>},
    {"lane_at_barrier", &start<&product<Fault::kLaneAtBarrier>>},
    {"lane_loads_elsewhere", &start<&product<Fault::kLaneLoadsElsewhere>>},
    {"lane_multiplies_instead", &start<&product<Fault::kLaneMultipliesInstead>>},
    {"short_warp", &start<&product<Fault::kNone>, kThreads - 16>},
    {"no_barrier", &start<&product<Fault::kNoBarrier>>},
    {"ordered_by_instruction", &start<&product<Fault::kOrderedByInstruction>>},
    {"overwritten_after_load", &start<&product<Fault::kOverwrittenAfterLoad>>},
    {"no_wait_before_load", &start<&product<Fault::kNoWait>>},
    {"row_unwritten", &start<&product<Fault::kRowUnwritten>>},
    {"row_misaligned", &start<&product<Fault::kRowMisaligned>>},
    {"row_in_global_memory", &start<&product<Fault::kRowInGlobalMemory>>},
    {"row_past_end", &start<&product<Fault::kRowPastEnd>>},
    {"small_shared", &start<&far_end<kSmall>>},
    {"large_shared", &start<&far_end<kLarge>, kThreads, kLarge>},
    {"largest_shared", &start<&far_end<kLargest>, kThreads, kLargest>},
    {"large_shared_past_end", &start<&far_end<kLarge, Fault::kPastLargeEnd>, kThreads, kLarge>},
    {"large_shared_not_launched", &start<&far_end<kLarge>>},
    {"large_shared_of_less", &start<&far_end<kLarge>, kThreads, kLarge - 16>},
    {"large_shared_of_more", &start<&far_end<kLarge>, kThreads, kLarge + 16>},
    {"small_shared_launched", &start<&far_end<kSmall>, kThreads, kSmall>},
    {"too_much_shared", &start<&far_end<kLarge>, kThreads, kLargest + 1>},
    {"negative_shared", &start<&far_end<kLarge>, kThreads, -1>},
};

}  // namespace

std::span<const Entry> matrix_kernels() { return kEntries; }

}  // namespace jpu::faulty

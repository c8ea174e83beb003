#include "faulty.h"

#include "device/async_copy.h"
#include "device/launch.h"
#include "device/memory.h"
#include "device/thread.h"
#include "entry.h"

namespace jpu::faulty {
namespace {

enum class Fault {
  kNone,
  kWaitsAgain,  // is none either
  // of reverse
  kDroppedBarrier,
  kRaceWithoutTrace,
  kRaceWithEarlierReader,
  kSharedWriteWrite,
  kLeavesBeforeBarrier,
  kTwoBarriers,
  kMisalignedVector,
  kMisalignedVectorStore,
  kReadPastEnd,
  kReadBeforeStart,
  kReadOfGap,
  kWritePastEnd,
  kWriteBeforeStart,
  kWriteOfGap,
  kSharedReadPastEnd,
  kSharedWritePastEnd,
  kSharedUnwritten,
  kSharedByte,
  kSharedTwice,
  kSharedTwiceAlike,
  kOutputReadEarly,
  kInputWritten,
  kOutputUnwritten,
  // of exchange
  kGlobalRace,
  kGlobalWriteWrite,
  kBlocksRace,
  kBlocksWriteWrite,
  kScratchUnwritten,
  // of updated
  kUpdateUnwritten,
  kUpdateOfOthers,
  // of copied
  kNoWait,
  kNoCommit,
  kNoBarrierAfterWait,
  kWaitsForAllButOne,
  kTooManySourceBytes,
  kNegativeSourceBytes,
  kSourceBytesPastEnd,
  kMisalignedSource,
  kMisalignedDestination,
  kCopyToGlobal,
  kCopyFromShared,
  kSourceOverwritten,
  kDestinationOverwritten,
  // of pipeline
  kStageReusedEarly,
  kWaitsForTooFew,
};

// Each row backwards, through shared memory.
template <Fault F>
JPU_KERNEL(kThreads, 1)
reverse(JPU_PARAMS Memory m) {
  struct Shared {
    float value[kThreads];
  };
  const int t = thread_index();
  const float* input = m.input + block_index() * m.input_stride;
  float* output = m.output + block_index() * m.output_stride;
  Shared& shared = shared_memory<Shared>();
  const float value = load(input + t);
  const bool last = t == kThreads - 1;

  if (F != Fault::kSharedUnwritten || t != 5) shared.value[F == Fault::kSharedWriteWrite ? t / 2 : t] = value;
  if (F == Fault::kSharedTwice && t == 1) store(output, shared_memory<float[kThreads + 1]>()[0]);
  if (F == Fault::kSharedTwiceAlike && t == 1) store(output, shared_memory<float[kThreads]>()[0]);
  if (F == Fault::kSharedWritePastEnd && last) shared.value[t + 1] = value;
  if (F == Fault::kSharedByte) reinterpret_cast<unsigned char*>(shared.value)[4 * t] = 0;
  if (F == Fault::kLeavesBeforeBarrier && t == 5) return;
  if (F == Fault::kTwoBarriers && t % 2 == 1) {
    store(output + t, value);
    block_barrier();
    return;
  }
  if (F == Fault::kDroppedBarrier) {
    store(output + t, shared.value[t == 0 ? 0 : t - 1]);
    return;
  }
  block_barrier();

  float result = shared.value[kThreads - 1 - t];
  // The values stay what they are, so no order of threads makes a difference.
  if (F == Fault::kRaceWithoutTrace) shared.value[t] = value;
  if (F == Fault::kRaceWithEarlierReader) result = shared.value[0];  // by all of them
  if (F == Fault::kRaceWithEarlierReader && last) shared.value[0] = value;
  if (F == Fault::kMisalignedVector && t == 0) result = load_vector(input + 1).at[0];
  if (F == Fault::kReadPastEnd && last) result = load(m.input + (m.rows - 1) * m.input_stride + m.columns);
  if (F == Fault::kReadBeforeStart && t == 0) result = load(m.input - 1);
  if (F == Fault::kReadOfGap && last && block_index() == 0) result = load(input + t + 1);
  if (F == Fault::kSharedReadPastEnd && last) result = shared.value[t + 1];
  if (F == Fault::kOutputReadEarly) result += load(output + t);
  if (F == Fault::kInputWritten && t == 7) store(const_cast<float*>(input), result);
  if (F == Fault::kMisalignedVectorStore && t == 0) store_vector(output + 2, Vector<float>{});
  if (F == Fault::kWritePastEnd && last) store(m.output + (m.rows - 1) * m.output_stride + m.output_columns, result);
  if (F == Fault::kWriteBeforeStart && t == 0) store(m.output - 1, result);
  if (F == Fault::kWriteOfGap && last && block_index() == 0) store(output + t + 1, result);
  if (F == Fault::kOutputUnwritten && t == 3) return;
  store(output + t, result);
}

// Each row backwards, through global memory.
template <Fault F>
JPU_KERNEL(kThreads, 1)
exchange(JPU_PARAMS Memory m) {
  const int t = thread_index();
  const int64_t block = block_index();
  float* scratch = m.scratch + block * m.scratch_stride;
  if (F == Fault::kBlocksWriteWrite) scratch = m.scratch;
  if (F != Fault::kScratchUnwritten || t != 5) {
    store(scratch + (F == Fault::kGlobalWriteWrite ? t / 2 : t), load(m.input + block * m.input_stride + t));
  }
  if (F == Fault::kGlobalRace) {
    store(m.output + block * m.output_stride + t, scratch[t == 0 ? 0 : t - 1]);
    return;
  }
  block_barrier();
  if (F == Fault::kBlocksRace && block > 0) scratch -= m.scratch_stride;
  store(m.output + block * m.output_stride + t, scratch[kThreads - 1 - t]);
}

// Each row added to what is there, which is the output too.
template <Fault F>
JPU_KERNEL(kThreads, 1)
updated(JPU_PARAMS Memory m) {
  const int t = thread_index();
  const int64_t block = block_index();
  float* scratch = m.scratch + block * m.scratch_stride;
  float sum = scratch[t] + load(m.input + block * m.input_stride + t);
  if (F == Fault::kUpdateOfOthers && block + 1 < m.rows) sum += scratch[m.scratch_stride + t];
  if (F != Fault::kUpdateUnwritten || t != 5) store(scratch + t, sum);
  store(m.output + block * m.output_stride + t, sum);
}

// Sums of four neighbours, which another thread has copied to shared memory; what lies beyond the row is zero.
template <Fault F>
JPU_KERNEL(kThreads, 1)
copied(JPU_PARAMS Memory m) {
  struct Shared {
    alignas(16) float value[4 * kThreads + 4];
  };
  const int t = thread_index();
  Shared& shared = shared_memory<Shared>();
  float* to = shared.value + 4 * t;
  const float* from = m.input + block_index() * m.input_stride + 4 * t;
  const int64_t left = m.columns - 4 * t;
  int bytes = left <= 0 ? 0 : left < 4 ? static_cast<int>(4 * left) : 16;
  if (F == Fault::kSourceOverwritten) {
    float* own = m.scratch + block_index() * m.scratch_stride + 4 * t;
    for (int i = 0; i < 4; ++i) store(own + i, load(from + i));
    from = own;
  }
  if (F == Fault::kTooManySourceBytes && t == 2) bytes = 20;
  if (F == Fault::kNegativeSourceBytes && t == 2) bytes = -4;
  if (F == Fault::kSourceBytesPastEnd) bytes = 16;
  if (F == Fault::kMisalignedSource && t == 2) from += 1, bytes = 4;
  if (F == Fault::kMisalignedDestination && t == 2) to += 1;
  if (F == Fault::kCopyToGlobal && t == 2) to = m.output;
  if (F == Fault::kCopyFromShared && t == 2) from = shared.value;

  if (F == Fault::kWaitsAgain) commit_copies();
  copy_async<16>(to, bytes == 0 ? m.input : from, bytes);
  if (F == Fault::kSourceOverwritten && t == 2) store(const_cast<float*>(from), 0.0f);
  if (F == Fault::kDestinationOverwritten && t == 2) to[0] = 0;
  if (F != Fault::kNoCommit) commit_copies();
  if (F == Fault::kWaitsForAllButOne) {
    wait_copies<1>();
  } else if (F != Fault::kNoWait) {
    wait_copies<0>();
  }
  if (F == Fault::kWaitsAgain) wait_copies<1>();  // for less, which takes nothing back
  if (F != Fault::kNoBarrierAfterWait) block_barrier();
  const int other = F == Fault::kNoBarrierAfterWait ? (t == 0 ? 0 : t - 1) : kThreads - 1 - t;
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += shared.value[4 * other + i];
  store(m.output + block_index() * m.output_stride + t, sum);
}

// The same, summed over all pieces of a long row: while one is summed, two are on their way.
template <Fault F>
JPU_KERNEL(kThreads, 1)
pipeline(JPU_PARAMS Memory m) {
  constexpr int kStages = 3;
  struct Shared {
    alignas(16) float stage[kStages][4 * kThreads];
  };
  const int t = thread_index();
  Shared& shared = shared_memory<Shared>();
  const float* row = m.input + block_index() * m.input_stride;
  const int steps = static_cast<int>((m.columns + 4 * kThreads - 1) / (4 * kThreads));
  const auto copy = [&](int step) {
    if (step < steps) {
      const int64_t first = 4 * (static_cast<int64_t>(step) * kThreads + t), left = m.columns - first;
      const int bytes = left <= 0 ? 0 : left < 4 ? static_cast<int>(4 * left) : 16;
      copy_async<16>(shared.stage[step % kStages] + 4 * t, bytes == 0 ? row : row + first, bytes);
    }
    commit_copies();  // also of nothing, so that the number of groups tells the step
  };
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    wait_copies<(F == Fault::kWaitsForTooFew ? kStages - 1 : kStages - 2)>();
    if (F == Fault::kStageReusedEarly) copy(step + kStages - 1);
    block_barrier();
    // The stage that all have just done with.
    if (F != Fault::kStageReusedEarly) copy(step + kStages - 1);
    for (int i = 0; i < 4; ++i) sum += shared.stage[step % kStages][4 * (kThreads - 1 - t) + i];
  }
  store(m.output + block_index() * m.output_stride + t, sum);
}

// --- kernels whose cost is counted by hand ---------------------------------------------------------------

JPU_KERNEL(kThreads, 1)
strided_read(JPU_PARAMS Memory m) {
  store(m.output + thread_index(), load(m.input + thread_index() * m.option));
}

JPU_KERNEL(kThreads, 1)
same_read(JPU_PARAMS Memory m) {
  store(m.output + thread_index(), load(m.input));
}

JPU_KERNEL(kThreads, 1)
vector_copy(JPU_PARAMS Memory m) {
  store_vector(m.output + 4 * thread_index(), load_vector(m.input + 4 * thread_index()));
}

// One write and one read of shared memory a thread, `option` floats apart.
JPU_KERNEL(kThreads, 1)
strided_shared(JPU_PARAMS Memory m) {
  struct Shared {
    float value[kThreads * 33];
  };
  Shared& shared = shared_memory<Shared>();
  shared.value[thread_index() * m.option] = 1;
  block_barrier();
  store(m.output + thread_index(), shared.value[(kThreads - 1 - thread_index()) * m.option]);
}

JPU_KERNEL(kThreads, 1)
vector_shared(JPU_PARAMS Memory m) {
  struct Shared {
    alignas(16) float value[4 * kThreads];
  };
  Shared& shared = shared_memory<Shared>();
  store_vector(shared.value + 4 * thread_index(), Vector<float>{});
  block_barrier();
  store_vector(m.output + 4 * thread_index(), load_vector(shared.value + 4 * (kThreads - 1 - thread_index())));
}

// Half of the threads, `option` multiply-adds each.
JPU_KERNEL(kThreads, 1)
half_of_threads(JPU_PARAMS Memory m) {
  float sum = 0;
  if (thread_index() % 2 == 0) {
    for (int i = 0; i < m.option; ++i) sum = multiply_add(sum, 2.0f, load(m.input + thread_index()));
  }
  store(m.output + thread_index(), sum);
}

// --- kernels that show what the runtime does -------------------------------------------------------------

JPU_KERNEL(kThreads, 1)
visits(JPU_PARAMS Memory m) {
  visit(block_index(), thread_index());
  block_barrier();
  visit(block_index(), thread_index());
  store(m.output + block_index() * m.output_stride + thread_index(), 0.0f);
}

// What shared memory holds before anything is written to it.
JPU_KERNEL(kThreads, 1)
fresh_shared(JPU_PARAMS Memory m) {
  struct Shared {
    float value[kThreads];
  };
  Shared& shared = shared_memory<Shared>();
  store(m.output + block_index() * m.output_stride + thread_index(), peek(shared.value + thread_index()));
  shared.value[thread_index()] = 1;
}

// What it holds while a copy to it is under way.
JPU_KERNEL(kThreads, 1)
copy_under_way(JPU_PARAMS Memory m) {
  struct Shared {
    float value[kThreads];
  };
  Shared& shared = shared_memory<Shared>();
  float* to = shared.value + thread_index();
  copy_async<4>(to, m.input + thread_index());
  commit_copies();
  store(m.output + thread_index(), peek(to));
  wait_copies<0>();
}

__attribute__((noinline)) float descend(int depth, float value) {
  volatile float frame[256];  // 1 KiB
  for (int i = 0; i < 256; ++i) frame[i] = value;
  return depth == 0 ? frame[255] : descend(depth - 1, frame[depth % 256] + 1) + frame[0] - frame[128];
}

JPU_KERNEL(kThreads, 1)
deep_stack(JPU_PARAMS Memory m) {
  const float before = descend(m.option, 0);
  block_barrier();
  store(m.output + thread_index(), before + descend(m.option, 0));
}

constexpr Entry kEntries[] = {
    {"reverse", &start<&reverse<Fault::kNone>>},
    {"exchange", &start<&exchange<Fault::kNone>>},
    {"copied", &start<&copied<Fault::kNone>>},
    {"waits_again", &start<&copied<Fault::kWaitsAgain>>},
    {"pipeline", &start<&pipeline<Fault::kNone>>},
    {"dropped_barrier", &start<&reverse<Fault::kDroppedBarrier>>},
    {"race_without_trace", &start<&reverse<Fault::kRaceWithoutTrace>>},
    {"race_with_earlier_reader", &start<&reverse<Fault::kRaceWithEarlierReader>>},
    {"shared_write_write", &start<&reverse<Fault::kSharedWriteWrite>>},
    {"leaves_before_barrier", &start<&reverse<Fault::kLeavesBeforeBarrier>>},
    {"two_barriers", &start<&reverse<Fault::kTwoBarriers>>},
    {"misaligned_vector", &start<&reverse<Fault::kMisalignedVector>>},
    {"misaligned_vector_store", &start<&reverse<Fault::kMisalignedVectorStore>>},
    {"read_past_end", &start<&reverse<Fault::kReadPastEnd>>},
    {"read_before_start", &start<&reverse<Fault::kReadBeforeStart>>},
    {"read_of_gap", &start<&reverse<Fault::kReadOfGap>>},
    {"write_past_end", &start<&reverse<Fault::kWritePastEnd>>},
    {"write_before_start", &start<&reverse<Fault::kWriteBeforeStart>>},
    {"write_of_gap", &start<&reverse<Fault::kWriteOfGap>>},
    {"shared_read_past_end", &start<&reverse<Fault::kSharedReadPastEnd>>},
    {"shared_write_past_end", &start<&reverse<Fault::kSharedWritePastEnd>>},
    {"shared_unwritten", &start<&reverse<Fault::kSharedUnwritten>>},
    {"shared_byte", &start<&reverse<Fault::kSharedByte>>},
    {"shared_twice", &start<&reverse<Fault::kSharedTwice>>},
    {"shared_twice_alike", &start<&reverse<Fault::kSharedTwiceAlike>>},
    {"too_many_threads", &start<&visits, 1025>},
    {"no_threads", &start<&visits, 0>},
    {"output_read_early", &start<&reverse<Fault::kOutputReadEarly>>},
    {"input_written", &start<&reverse<Fault::kInputWritten>>},
    {"output_unwritten", &start<&reverse<Fault::kOutputUnwritten>>},
    {"global_race", &start<&exchange<Fault::kGlobalRace>>},
    {"global_write_write", &start<&exchange<Fault::kGlobalWriteWrite>>},
    {"blocks_race", &start<&exchange<Fault::kBlocksRace>>},
    {"blocks_write_write", &start<&exchange<Fault::kBlocksWriteWrite>>},
    {"scratch_unwritten", &start<&exchange<Fault::kScratchUnwritten>>},
    {"updated", &start<&updated<Fault::kNone>, kThreads, 0, Access::kUpdate>},
    {"update_unwritten", &start<&updated<Fault::kUpdateUnwritten>, kThreads, 0, Access::kUpdate>},
    {"update_of_others", &start<&updated<Fault::kUpdateOfOthers>, kThreads, 0, Access::kUpdate>},
    {"no_wait", &start<&copied<Fault::kNoWait>>},
    {"no_commit", &start<&copied<Fault::kNoCommit>>},
    {"no_barrier_after_wait", &start<&copied<Fault::kNoBarrierAfterWait>>},
    {"waits_for_all_but_one", &start<&copied<Fault::kWaitsForAllButOne>>},
    {"too_many_source_bytes", &start<&copied<Fault::kTooManySourceBytes>>},
    {"negative_source_bytes", &start<&copied<Fault::kNegativeSourceBytes>>},
    {"source_bytes_past_end", &start<&copied<Fault::kSourceBytesPastEnd>>},
    {"misaligned_source", &start<&copied<Fault::kMisalignedSource>>},
    {"misaligned_destination", &start<&copied<Fault::kMisalignedDestination>>},
    {"copy_to_global", &start<&copied<Fault::kCopyToGlobal>>},
    {"copy_from_shared", &start<&copied<Fault::kCopyFromShared>>},
    {"source_overwritten", &start<&copied<Fault::kSourceOverwritten>>},
    {"destination_overwritten", &start<&copied<Fault::kDestinationOverwritten>>},
    {"stage_reused_early", &start<&pipeline<Fault::kStageReusedEarly>>},
    {"waits_for_too_few", &start<&pipeline<Fault::kWaitsForTooFew>>},
    {"strided_read", &start<&strided_read>},
    {"same_read", &start<&same_read>},
    {"vector_copy", &start<&vector_copy>},
    {"strided_shared", &start<&strided_shared>},
    {"vector_shared", &start<&vector_shared>},
    {"half_of_threads", &start<&half_of_threads>},
    {"visits", &start<&visits>},
    {"fresh_shared", &start<&fresh_shared>},
    {"copy_under_way", &start<&copy_under_way>},
    {"deep_stack", &start<&deep_stack>},
};

}  // namespace

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const auto entries : {std::span<const Entry>(kEntries), matrix_kernels()}) {
    for (const Entry& entry : entries) result.push_back(entry.name);
  }
  return result;
}

void run(const std::string& name, const Memory& memory) {
  for (const auto entries : {std::span<const Entry>(kEntries), matrix_kernels()}) {
    for (const Entry& entry : entries) {
      if (name == entry.name) return entry.start(entry.name, memory);
    }
  }
  throw std::runtime_error("expected one of names(), got " + name);
}

}  // namespace jpu::faulty

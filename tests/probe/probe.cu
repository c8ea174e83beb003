#include "probe.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "device/async_copy.h"
#include "device/launch.h"
#include "device/memory.h"
#include "device/numeric.h"
#include "device/thread.h"
#include "device/word.h"
#include "each.h"

namespace jpu::probe {
namespace {

constexpr uint32_t kFill = 0xa5a5a5a5u;  // what shared memory holds before copies arrive

// --- thread.h ---------------------------------------------------------------------------------------

struct ThreadIndex {
  using Input = uint32_t;  // left alone
  using Output = int32_t;
  static JPU_DEVICE void apply(const Input*, Output* output) { *output = thread_index(); }
};

struct WarpIndex {
  using Input = uint32_t;  // left alone
  using Output = int32_t;
  static JPU_DEVICE void apply(const Input*, Output* output) { *output = warp_index(); }
};

struct LaneIndex {
  using Input = uint32_t;  // left alone
  using Output = int32_t;
  static JPU_DEVICE void apply(const Input*, Output* output) { *output = lane_index(); }
};

struct ConvergeWarp {
  using Input = uint32_t;
  using Output = uint32_t;
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    uint32_t value = *input;
    for (int i = 0; i < lane_index(); ++i) value = value * 1664525u + 1013904223u;
    converge_warp();
    *output = value;
  }
};

struct BlockIndex {
  using Input = uint32_t;  // left alone
  using Output = uint32_t;
  static JPU_DEVICE void apply(const Input*, Output* output) { *output = block_index(); }
};

struct BlockBarrier {
  using Input = uint32_t;
  using Output = uint32_t;
  struct Shared {
    uint32_t at[kThreads];
  };

  static JPU_DEVICE void apply(const Input* input, Output* output) {
    Shared& shared = shared_memory<Shared>();
    uint32_t value = *input;
    for (int round = 0; round < 8; ++round) {
      // A warp that is late: without the barrier the others would read what it has not written yet.
      if (thread_index() / kWarpSize == round % (kThreads / kWarpSize)) {
        for (int i = 0; i < 1000; ++i) value = value * 1664525u + 1013904223u;
      }
      shared.at[thread_index()] = value;
      block_barrier();
      value ^= shared.at[(thread_index() + kWarpSize + round) % kThreads];
      block_barrier();
    }
    *output = value;
  }
};

// --- memory.h ---------------------------------------------------------------------------------------

template <class T>
struct Load {
  using Input = T;
  using Output = T;
  static JPU_DEVICE void apply(const Input* input, Output* output) { *output = load(input); }
};

template <class T>
struct Store {
  using Input = T;
  using Output = T;
  static JPU_DEVICE void apply(const Input* input, Output* output) { store(output, *input); }
};

template <class T>
struct LoadVector {
  using Input = Vector<T>;
  using Output = Vector<T>;
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    const Vector<T> value = load_vector(input->at);
    for (int i = 0; i < Vector<T>::kSize; ++i) output->at[i] = value.at[i];
  }
};

// Of every other thread: the rest have no address.
template <class T>
struct LoadVectorIf {
  using Input = Vector<T>;
  using Output = Vector<T>;
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    const bool exists = thread_index() % 2 == 0;
    const Vector<T> value = load_vector_if(exists, exists ? input->at : nullptr);
    for (int i = 0; i < Vector<T>::kSize; ++i) output->at[i] = value.at[i];
  }
};

template <class T>
struct ReadVector {
  using Input = Vector<T>;
  using Output = Vector<T>;
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    const Vector<T> value = read_vector(input->at);
    for (int i = 0; i < Vector<T>::kSize; ++i) output->at[i] = value.at[i];
  }
};

template <class T>
struct StoreVector {
  using Input = Vector<T>;
  using Output = Vector<T>;
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    Vector<T> value;
    for (int i = 0; i < Vector<T>::kSize; ++i) value.at[i] = input->at[i];
    store_vector(output->at, value);
  }
};

template <int Bytes>
struct SharedMemory {
  using Input = uint32_t;
  struct Output {
    uint32_t sum, misalignment;
  };
  struct Shared {
    uint32_t words[Bytes / 4];
  };
  static constexpr int kWords = Bytes / 4;

  static JPU_DEVICE void apply(const Input* input, Output* output) {
    Shared& shared = shared_memory<Shared>();
    const uint32_t factor = *input;
    for (int i = thread_index(); i < kWords; i += kThreads) shared.words[i] = factor * static_cast<uint32_t>(i + 1);
    block_barrier();
    uint32_t sum = 0;
    for (int i = kThreads - 1 - thread_index(); i < kWords; i += kThreads) sum += shared.words[i];
    output->sum = sum;
    output->misalignment = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(&shared) % kVectorBytes);
  }
};

// --- numeric.h --------------------------------------------------------------------------------------

template <class T>
struct Widen {
  using Input = T;
  using Output = Accumulate<T>;
  static JPU_DEVICE void apply(const Input* input, Output* output) { *output = widen(*input); }
};

template <class T>
struct Narrow {
  using Input = Accumulate<T>;
  using Output = T;
  static JPU_DEVICE void apply(const Input* input, Output* output) { *output = narrow<T>(*input); }
};

template <class A>
struct MultiplyAdd {
  struct Input {
    A a, b, c;
  };
  using Output = A;
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    *output = multiply_add(input->a, input->b, input->c);
  }
};

template <class A>
struct SquareRoot {
  using Input = A;
  using Output = A;
  static JPU_DEVICE void apply(const Input* input, Output* output) { *output = square_root(*input); }
};

// --- word.h -----------------------------------------------------------------------------------------

template <class T>
struct Word {
  T at[kWordSize<T>];
};

template <class T>
struct ReadWord {
  using Input = Word<T>;
  using Output = uint32_t;
  static JPU_DEVICE void apply(const Input* input, Output* output) { *output = read_word(input->at); }
};

template <class T>
struct StoreWord {
  using Input = uint32_t;
  using Output = Word<T>;
  static JPU_DEVICE void apply(const Input* input, Output* output) { store_word(output->at, *input); }
};

template <class T>
struct WidenWord {
  using Input = uint32_t;
  struct Output {
    float at[kWordSize<T>];
  };
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    float values[kWordSize<T>];
    widen_word<T>(*input, values);
    for (int i = 0; i < kWordSize<T>; ++i) output->at[i] = values[i];
  }
};

template <class T>
struct NarrowWord {
  struct Input {
    float at[kWordSize<T>];
  };
  using Output = uint32_t;
  static JPU_DEVICE void apply(const Input* input, Output* output) {
    float values[kWordSize<T>];
    for (int i = 0; i < kWordSize<T>; ++i) values[i] = input->at[i];
    *output = narrow_word<T>(values);
  }
};

// --- async_copy.h -----------------------------------------------------------------------------------

struct alignas(16) Slot {
  uint32_t words[4];
};

JPU_DEVICE uint32_t digest(const Slot& slot) {
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result = result * 31 + slot.words[i];
  return result;
}

template <int Bytes>
struct CopyAsync {
  struct Input {
    Slot data;
    int32_t source_bytes, unused[3];
  };
  struct Output {
    uint32_t own[4], other[4];
  };
  struct Shared {
    Slot slots[kThreads];
  };

  static JPU_DEVICE void apply(const Input* input, Output* output) {
    Shared& shared = shared_memory<Shared>();
    Slot& own = shared.slots[thread_index()];
    for (int i = 0; i < 4; ++i) own.words[i] = kFill;
    block_barrier();
    copy_async<Bytes>(&own, &input->data, input->source_bytes);
    commit_copies();
    wait_copies<0>();
    for (int i = 0; i < 4; ++i) output->own[i] = own.words[i];
    block_barrier();
    const Slot& other = shared.slots[kThreads - 1 - thread_index()];
    for (int i = 0; i < 4; ++i) output->other[i] = other.words[i];
  }
};

constexpr int kTiles = 6;

struct Tiles {
  Slot tile[kTiles];
};

struct Digests {
  uint32_t tile[kTiles];
};

// As a kernel's main loop: `Pending` tiles are on their way while one is worked on.
template <int Pending>
struct WaitCopies {
  using Input = Tiles;
  using Output = Digests;
  struct Shared {
    Slot slots[Pending + 1][kThreads];
  };

  static JPU_DEVICE void apply(const Input* input, Output* output) {
    Shared& shared = shared_memory<Shared>();
    const int own = thread_index(), other = (thread_index() + kWarpSize) % kThreads;
    const auto fetch = [&](int tile) {
      if (tile < kTiles) copy_async<16>(&shared.slots[tile % (Pending + 1)][own], &input->tile[tile]);
      commit_copies();  // an empty group at the end, so that the count below stays right
    };
    for (int tile = 0; tile < Pending; ++tile) fetch(tile);
    for (int tile = 0; tile < kTiles; ++tile) {
      fetch(tile + Pending);
      wait_copies<Pending>();
      block_barrier();
      output->tile[tile] = digest(shared.slots[tile % (Pending + 1)][other]);
      block_barrier();
    }
  }
};

// Groups of three copies, of none and of one.
struct CommitCopies {
  using Input = Tiles;
  using Output = Digests;
  struct Shared {
    Slot slots[kTiles][kThreads];
  };

  static JPU_DEVICE void apply(const Input* input, Output* output) {
    Shared& shared = shared_memory<Shared>();
    const int own = thread_index();
    const auto fetch = [&](int tile) { copy_async<16>(&shared.slots[tile][own], &input->tile[tile]); };
    const auto finish = [&](int tile) { output->tile[tile] = digest(shared.slots[tile][own]); };
    for (int tile = 0; tile < 3; ++tile) fetch(tile);
    commit_copies();
    commit_copies();
    fetch(3);
    commit_copies();
    wait_copies<1>();
    for (int tile = 0; tile < 3; ++tile) finish(tile);
    fetch(4);
    commit_copies();
    wait_copies<1>();
    finish(3);
    fetch(5);
    commit_copies();
    wait_copies<0>();
    finish(4);
    finish(5);
  }
};

// --- launch.h ---------------------------------------------------------------------------------------

constexpr int kTable = 256;

struct Launched {
  using Input = uint32_t;
  using Output = uint32_t;
};

// Parameters of a kilobyte, by value.
struct LaunchParams {
  Data<Launched> data;
  uint32_t table[kTable];
};

JPU_KERNEL(kThreads, 1) launched(JPU_PARAMS LaunchParams p) {
  p.data.output[item()] = p.data.input[item()] ^ p.table[item() % kTable];
}

void run_launch(const void* input, void* output, int64_t items) {
  LaunchParams params{data_of<Launched>(input, output), {}};
  for (uint32_t i = 0; i < kTable; ++i) params.table[i] = i * 2654435761u;
  start(&launched, params, params.data, items);
}

#define JPU_FOR_DTYPES(wrapper, F)                                                                            \
  of<F<double>>(wrapper "<double>"), of<F<float>>(wrapper "<float>"), of<F<float16>>(wrapper "<float16>"), \
      of<F<bfloat16>>(wrapper "<bfloat16>")

#define JPU_FOR_WORDS(wrapper, F) \
  of<F<float>>(wrapper "<float>"), of<F<float16>>(wrapper "<float16>"), of<F<bfloat16>>(wrapper "<bfloat16>")

// Not inside cases(): the guard of a local one is an atomic, which host execution has no hook for.
const std::vector<Case> all = {
    {"launch", sizeof(Launched::Input), sizeof(Launched::Output), &run_launch},
    of<ThreadIndex>("thread_index"),
    of<WarpIndex>("warp_index"),
    of<LaneIndex>("lane_index"),
    of<ConvergeWarp>("converge_warp"),
    of<BlockIndex>("block_index"),
    of<BlockBarrier>("block_barrier"),
    JPU_FOR_DTYPES("load", Load),
    JPU_FOR_DTYPES("store", Store),
    JPU_FOR_DTYPES("load_vector", LoadVector),
    JPU_FOR_DTYPES("load_vector_if", LoadVectorIf),
    JPU_FOR_DTYPES("read_vector", ReadVector),
    JPU_FOR_DTYPES("store_vector", StoreVector),
    of<SharedMemory<48 * 1024>>("shared_memory<48KiB>"),  // all that there is without an opt-in
    of<SharedMemory<99 * 1024>>("shared_memory<99KiB>"),  // and with it, on the GPUs that have least
    JPU_FOR_DTYPES("widen", Widen),
    JPU_FOR_DTYPES("narrow", Narrow),
    JPU_FOR_WORDS("read_word", ReadWord),
    JPU_FOR_WORDS("store_word", StoreWord),
    JPU_FOR_WORDS("widen_word", WidenWord),
    JPU_FOR_WORDS("narrow_word", NarrowWord),
    of<MultiplyAdd<double>>("multiply_add<double>"),
    of<MultiplyAdd<float>>("multiply_add<float>"),
    of<SquareRoot<double>>("square_root<double>"),
    of<SquareRoot<float>>("square_root<float>"),
    of<CopyAsync<4>>("copy_async<4>"),
    of<CopyAsync<8>>("copy_async<8>"),
    of<CopyAsync<16>>("copy_async<16>"),
    of<CommitCopies>("commit_copies"),
    of<WaitCopies<0>>("wait_copies<0>"),
    of<WaitCopies<1>>("wait_copies<1>"),
    of<WaitCopies<2>>("wait_copies<2>"),
};

}  // namespace

std::vector<Case> cases() {
  std::vector<Case> result = all;
  for (const Case& one : matrix_cases()) result.push_back(one);
  return result;
}

// --- memory of the target ----------------------------------------------------------------------------

#if JPU_CUDA

namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

Memory::Memory(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
  check(cudaMalloc(&data_, bytes_), "cudaMalloc");
  check(cudaMemset(data_, 0x5a, bytes_), "cudaMemset");
}

Memory::~Memory() { cudaFree(data_); }

void Memory::write(const void* from) { check(cudaMemcpy(data_, from, bytes_, cudaMemcpyHostToDevice), "cudaMemcpy"); }

void Memory::read(void* to) const {
  check(cudaDeviceSynchronize(), "kernel");
  check(cudaMemcpy(to, data_, bytes_, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

std::string target() {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "expected a CUDA device");
  return properties.name;
}

#else

Memory::Memory(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
  data_ = std::aligned_alloc(256, (bytes_ + 255) / 256 * 256);
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0x5a, bytes_);
}

Memory::~Memory() { std::free(data_); }

void Memory::write(const void* from) { std::memcpy(data_, from, bytes_); }

void Memory::read(void* to) const { std::memcpy(to, data_, bytes_); }

std::string target() { return "host"; }

#endif

}  // namespace jpu::probe

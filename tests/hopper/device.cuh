// The functions of benchmarks/hopper/cuda/device.cuh for threads of the operating system, one for each of CUDA's.
// Products take effect as late as waits allow, bulk copies in any order and at any time.
//
// It is one reader's understanding of the instructions, as the other file is; what it finds are deadlocks, wrong
// phases, stages that are overwritten too early, wrong addresses.
#pragma once

#include <barrier>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#define HOPPER_DEVICE inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

#if !defined(HOPPER_PATIENCE)
#define HOPPER_PATIENCE 60  // seconds, after which a wait counts as one that never ends
#endif

struct Index {
  unsigned x;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

struct CUtensorMap {
  const uint16_t* tensor;
  std::vector<int64_t> sizes, box, strides;
  bool swizzle;
};

namespace hopper {

[[noreturn]] inline void fault(const char* what, uint32_t value) {
  std::fprintf(stderr, "fault: %s (%u)\n", what, value);
  std::_Exit(1);
}

// --- blocks and their threads --------------------------------------------------------------------------------------

struct PhaseBarrier {
  uint32_t arrivals = 0;
  int64_t pending = 0, bytes = 0;
  uint64_t phase = 0;
  void advance() {
    if (pending < 0) fault("more arrivals at a barrier than it was made for", arrivals);
    if (pending > 0 || bytes != 0) return;
    ++phase;
    pending = arrivals;
  }
};

struct Cluster;

constexpr uint32_t kBase = 0x410;  // no multiple of 1024, as a launch does not promise one
constexpr int kMemory = 227 * 1024;

struct Block {
  explicit Block(int threads) : memory(kMemory, 0xcd), sync(threads) {
    for (int i = 0; i < threads; i += 32) warps.push_back(std::make_unique<std::barrier<>>(32));
  }
  std::vector<uint8_t> memory;
  std::map<uint32_t, PhaseBarrier> barriers;
  std::barrier<> sync;
  std::vector<std::unique_ptr<std::barrier<>>> warps;
  Cluster* cluster = nullptr;
  uint32_t rank = 0;
};

struct Cluster {
  explicit Cluster(int threads) : sync(threads) {}
  std::mutex mutex;
  std::condition_variable changed;
  std::barrier<> sync;
  std::vector<Block*> blocks;
  std::vector<std::function<void()>> copies;  // under way
  bool over = false;
  std::minstd_rand random{1};

  // Until all threads are through: lets any copy arrive.
  void run_copies() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return over || !copies.empty(); });
      if (copies.empty()) return;
      if (random() % 3 == 0) {
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 300));
        lock.lock();
      }
      const size_t which = random() % copies.size();
      const std::function<void()> copy = copies[which];
      copies.erase(copies.begin() + static_cast<int64_t>(which));
      copy();
      changed.notify_all();
    }
  }
};

inline thread_local Block* this_block;

// A group of products that was not waited for.
using Products = std::vector<std::function<void()>>;
inline thread_local Products open_products;
inline thread_local std::deque<Products> committed;

struct UnitCopy {
  uint32_t to;
  const void* from;
  bool inside;
};
inline thread_local std::vector<UnitCopy> open_units;
inline thread_local std::deque<std::vector<UnitCopy>> committed_units;

}  // namespace hopper

inline thread_local Index threadIdx, blockIdx, gridDim, blockDim;
inline void __syncthreads() { hopper::this_block->sync.arrive_and_wait(); }
inline void __syncwarp() { hopper::this_block->warps[threadIdx.x / 32]->arrive_and_wait(); }
inline int64_t clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

namespace hopper {

inline uint8_t* at(Block& block, uint32_t address, uint32_t bytes) {
  if (address < kBase || address + bytes > kBase + kMemory) fault("shared address out of bounds", address);
  return block.memory.data() + (address - kBase);
}

HOPPER_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - this_block->memory.data()) + kBase;
}
HOPPER_DEVICE uint8_t* dynamic_memory() { return this_block->memory.data(); }

struct alignas(16) Failure {
  uint32_t name, block, thread, step;
};
struct Watch {
  Failure* failure;
  int64_t cycles;
};

// --- barriers ------------------------------------------------------------------------------------------------------

inline std::unique_lock<std::mutex> locked() { return std::unique_lock(this_block->cluster->mutex); }

inline PhaseBarrier& barrier_at(Block& block, uint32_t address) {
  const auto found = block.barriers.find(address);
  if (found == block.barriers.end()) fault("no barrier at", address);
  return found->second;
}

HOPPER_DEVICE void init_barrier(uint32_t barrier, uint32_t arrivals) {
  const auto lock = locked();
  if (barrier % 8 != 0) fault("misaligned barrier", barrier);
  (void)at(*this_block, barrier, 8);
  this_block->barriers[barrier] = {arrivals, arrivals, 0, 0};
}
HOPPER_DEVICE void publish_barriers() {}

HOPPER_DEVICE void arrive_at(uint32_t barrier, uint32_t rank) {
  const auto lock = locked();
  PhaseBarrier& there = barrier_at(*this_block->cluster->blocks.at(rank), barrier);
  --there.pending;
  there.advance();
  this_block->cluster->changed.notify_all();
}
HOPPER_DEVICE void arrive(uint32_t barrier) { arrive_at(barrier, this_block->rank); }

HOPPER_DEVICE void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  const auto lock = locked();
  PhaseBarrier& here = barrier_at(*this_block, barrier);
  here.bytes += bytes;
  --here.pending;
  here.advance();
  this_block->cluster->changed.notify_all();
}

template <bool kCluster>
HOPPER_DEVICE void wait(uint32_t barrier, uint32_t parity, const Watch&, uint32_t name, uint32_t step) {
  auto lock = locked();
  const PhaseBarrier& here = barrier_at(*this_block, barrier);
  const std::chrono::seconds patience(HOPPER_PATIENCE);
  const bool over = this_block->cluster->changed.wait_for(lock, patience, [&] { return (here.phase & 1) != parity; });
  if (over) return;
  std::fprintf(stderr, "wait %u of step %u, block %u, thread %u never ended\n", name, step, blockIdx.x, threadIdx.x);
  std::_Exit(1);
}

HOPPER_DEVICE void fence_async() {}

template <int kStages>
struct Ring {
  uint32_t stage = 0, phase = 0;
  void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// --- clusters ------------------------------------------------------------------------------------------------------

HOPPER_DEVICE uint32_t cluster_rank() { return this_block->rank; }
HOPPER_DEVICE void sync_cluster() { this_block->cluster->sync.arrive_and_wait(); }
HOPPER_DEVICE uint32_t address_at(uint32_t address, uint32_t rank) { return address | (rank + 1) << 24; }
HOPPER_DEVICE void store_at(uint32_t address, uint32_t value) {
  Block& block = *this_block->cluster->blocks.at((address >> 24) - 1);
  std::memcpy(at(block, address & 0xffffff, 4), &value, 4);
}

// --- bulk copies ---------------------------------------------------------------------------------------------------

inline void begin_copy(std::function<void()> copy) {
  const auto lock = locked();
  this_block->cluster->copies.push_back(std::move(copy));
  this_block->cluster->changed.notify_all();
}

inline void complete(Block& block, uint32_t barrier, int64_t bytes) {
  PhaseBarrier& there = barrier_at(block, barrier);
  there.bytes -= bytes;
  there.advance();
}

HOPPER_DEVICE void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  if (to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes % 16 != 0) fault("misaligned copy", to);
  begin_copy([=, block = this_block] {
    std::memcpy(at(*block, to, bytes), from, bytes);
    complete(*block, barrier, bytes);
  });
}

// A box of up to four dimensions, given from the first.
inline void copy_box(uint16_t blocks, uint32_t to, const CUtensorMap* map, std::vector<int64_t> start,
                     uint32_t barrier) {
  if (to % (map->swizzle ? 1024 : 128) != 0) fault("misaligned tile", to);
  begin_copy([=, cluster = this_block->cluster] {
    for (size_t rank = 0; rank < cluster->blocks.size(); ++rank) {
      if (!(blocks >> rank & 1)) continue;
      Block& block = *cluster->blocks[rank];
      int64_t count = 1;
      std::vector<int64_t> loaded;
      for (size_t i = 0; i < map->box.size(); ++i) {
        loaded.push_back((map->box[i] + map->strides[i] - 1) / map->strides[i]);
        count *= loaded.back();
      }
      for (int64_t i = 0; i < count; ++i) {
        int64_t rest = i, from = 0, pitch = 1;
        bool inside = true;
        for (size_t k = 0; k < loaded.size(); ++k) {
          const int64_t place = start[k] + rest % loaded[k] * map->strides[k];
          rest /= loaded[k];
          inside = inside && place >= 0 && place < map->sizes[k];
          from += place * pitch;
          pitch *= map->sizes[k];
        }
        const uint16_t value = inside ? map->tensor[from] : 0;
        uint32_t place = to + static_cast<uint32_t>(2 * i);
        if (map->swizzle) place ^= (place >> 7 & 7) << 4;
        std::memcpy(at(block, place, 2), &value, 2);
      }
      complete(block, barrier, 2 * count);
    }
  });
}

HOPPER_DEVICE void copy_tile_2d_to(uint16_t blocks, uint32_t to, const CUtensorMap* map, int x, int y,
                                   uint32_t barrier) {
  copy_box(blocks, to, map, {x, y}, barrier);
}
HOPPER_DEVICE void copy_tile_2d(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier) {
  copy_box(static_cast<uint16_t>(1 << this_block->rank), to, map, {x, y}, barrier);
}
HOPPER_DEVICE void copy_tile_4d(uint32_t to, const CUtensorMap* map, int c, int x, int y, int n, uint32_t barrier) {
  copy_box(static_cast<uint16_t>(1 << this_block->rank), to, map, {c, x, y, n}, barrier);
}

// --- small loads, stores and copies --------------------------------------------------------------------------------

HOPPER_DEVICE void store_shared(uint32_t address, uint32_t value) {
  std::memcpy(at(*this_block, address, 4), &value, 4);
}

HOPPER_DEVICE uint32_t pack_bfloat16(float low, float high) {
  const auto rounded = [](float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}

HOPPER_DEVICE void copy_unit(uint32_t to, const void* from, bool inside) { open_units.push_back({to, from, inside}); }
HOPPER_DEVICE void commit_units() {
  committed_units.push_back(std::move(open_units));
  open_units.clear();
}
template <int kPending>
HOPPER_DEVICE void wait_units() {
  for (; committed_units.size() > kPending; committed_units.pop_front()) {
    for (const UnitCopy& copy : committed_units.front()) {
      uint8_t* to = at(*this_block, copy.to, 16);
      if (copy.inside) {
        std::memcpy(to, copy.from, 16);
      } else {
        std::memset(to, 0, 16);
      }
    }
  }
}

// --- products of a warpgroup ---------------------------------------------------------------------------------------

inline float element(const Block& block, uint64_t descriptor, int row, int k) {
  const uint32_t next = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  uint32_t address = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  address += static_cast<uint32_t>(row / 8) * next + static_cast<uint32_t>(row % 8 * 128 + k * 2);
  address ^= (address >> 7 & 7) << 4;
  uint16_t bits;
  std::memcpy(&bits, at(const_cast<Block&>(block), address, 2), 2);
  return __uint_as_float(uint32_t{bits} << 16);
}

inline void multiply_columns(float* sum, uint64_t a, uint64_t b, int columns) {
  const int lane = static_cast<int>(threadIdx.x % 32), row = static_cast<int>(threadIdx.x / 32 % 4 * 16) + lane / 4;
  for (int k = 0; k < 16; ++k) {
    const float rows[2] = {element(*this_block, a, row, k), element(*this_block, a, row + 8, k)};
    for (int j = 0; j < columns / 8; ++j) {
      for (int e = 0; e < 2; ++e) {
        const float x = element(*this_block, b, 8 * j + 2 * (lane % 4) + e, k);
        for (int i = 0; i < 2; ++i) sum[4 * j + 2 * i + e] += rows[i] * x;
      }
    }
  }
}

HOPPER_DEVICE void begin_products() {}
HOPPER_DEVICE void multiply(float (&sum)[128], uint64_t a, uint64_t b) {
  open_products.push_back([=, to = &sum[0]] { multiply_columns(to, a, b, 256); });
}
template <int kFirst>
HOPPER_DEVICE void multiply_half(float (&sum)[128], uint64_t a, uint64_t b) {
  open_products.push_back([=, to = &sum[kFirst]] { multiply_columns(to, a, b, 128); });
}
HOPPER_DEVICE void commit_products() {
  committed.push_back(std::move(open_products));
  open_products.clear();
}
template <int kPending>
HOPPER_DEVICE void wait_products() {
  for (; committed.size() > kPending; committed.pop_front()) {
    for (const auto& product : committed.front()) product();
  }
}
HOPPER_DEVICE void pin(float (&)[128]) {}

template <int kRegisters>
HOPPER_DEVICE void give_registers_back() {}
template <int kRegisters>
HOPPER_DEVICE void take_registers() {}

// --- launches ------------------------------------------------------------------------------------------------------

// Executes the blocks from `first` on that make a cluster of a grid.
inline void execute(int first, int blocks, int grid, int threads, const std::function<void()>& kernel) {
  Cluster cluster(blocks * threads);
  std::vector<std::unique_ptr<Block>> owned;
  for (int i = 0; i < blocks; ++i) {
    owned.push_back(std::make_unique<Block>(threads));
    owned.back()->cluster = &cluster;
    owned.back()->rank = static_cast<uint32_t>(i);
    cluster.blocks.push_back(owned.back().get());
  }
  std::thread copies([&] { cluster.run_copies(); });
  std::vector<std::thread> running;
  for (int i = 0; i < blocks * threads; ++i) {
    running.emplace_back([&, i] {
      this_block = cluster.blocks[static_cast<size_t>(i / threads)];
      threadIdx.x = static_cast<unsigned>(i % threads);
      blockIdx.x = static_cast<unsigned>(first + i / threads);
      blockDim.x = static_cast<unsigned>(threads);
      gridDim.x = static_cast<unsigned>(grid);
      kernel();
    });
  }
  for (std::thread& thread : running) thread.join();
  {
    const std::lock_guard lock(cluster.mutex);
    if (!cluster.copies.empty()) fault("copies that nobody waited for", static_cast<uint32_t>(cluster.copies.size()));
    cluster.over = true;
    cluster.changed.notify_all();
  }
  copies.join();
}

}  // namespace hopper

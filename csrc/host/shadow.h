// What is known of every two bytes that a kernel may touch: whose they are, whether anything wrote them, who
// accessed them last and when. From this come the faults that a GPU does not report.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/buffer.h"

namespace jpu::host {

// Who makes an access: thread t of the block is agent t, its asynchronous copies are agent threads + t.
using Agent = uint16_t;

// Which accesses of a block come before which. Threads meet at barriers only, so what a thread knows of the
// others is what all knew at the last one.
class Order {
 public:
  void start_block(int threads);
  void barrier();

  uint32_t clock(int thread) const { return now_[thread]; }
  // The copies that a thread issues now belong to this group; groups up to finished() have been waited for.
  uint32_t group(int thread) const { return group_[thread]; }
  void close_group(int thread) { ++group_[thread]; }
  // A later wait that asks for less takes nothing back.
  void finish_groups(int thread, uint32_t last) { finished_[thread] = std::max(finished_[thread], last); }

  // Whether an access of `agent` at `clock` comes before what `thread` does now.
  bool before(Agent agent, uint32_t clock, int thread) const {
    if (agent < threads_) return agent == thread || at_barrier_[agent] >= clock;
    const int owner = agent - threads_;
    return (owner == thread ? finished_[owner] : finished_at_barrier_[owner]) >= clock;
  }
  Agent copies_of(int thread) const { return static_cast<Agent>(threads_ + thread); }
  int threads() const { return threads_; }

 private:
  int threads_ = 0;
  std::vector<uint32_t> now_, at_barrier_, group_, finished_, finished_at_barrier_;
};

struct Cell {
  uint8_t buffer = 0;  // 1 + index of the buffer that the bytes belong to; 0 for none
  bool written = false;
  bool many_readers = false;  // read_clock is then an index into Shadow's lists of readers
  bool read_by_others = false;  // than the block of the last access
  Agent writer = 0, reader = 0;
  uint32_t write_clock = 0, read_clock = 0;  // 0 for never
  uint32_t block = 0;                            // of the last access, + 1
  uint32_t counted_read = 0, counted_write = 0;  // the last block, + 1, for which these bytes were counted
};

class Shadow {
 public:
  static constexpr int kGranule = 2;  // bytes; the smallest element there is

  explicit Shadow(const Order& order) : order_(order) {}

  // Returns what is wrong with a declaration, or nothing.
  std::string declare(const Buffer& buffer);
  void start_block(uint32_t block);
  // The block's shared memory, which begins as NaN, since a GPU's holds whatever was there. Null if it is too
  // large or of another type than the block asked for before, which a GPU would give memory of its own.
  void* shared_memory(size_t bytes, const void* type);
  bool is_shared(const void* address) const {
    return shared_bytes_ != 0 && reinterpret_cast<uintptr_t>(address) - shared_begin_ < kSharedCapacity;
  }

  struct Event {
    uintptr_t address;
    int bytes;
    bool write;
    bool aligned;  // whether the instruction needs the address to be a multiple of its bytes
    Agent agent;
    uint32_t clock;
    int thread;  // whose knowledge of the others counts
  };
  struct Verdict {
    bool shared = false;
    bool counts = true;  // whether counters want to see it: not an argument of the launch
    int distinct_bytes = 0;  // that this block touches for the first time
  };
  // Whether an access is allowed; if not, fault() says what is wrong.
  bool check(const Event& access, Verdict& verdict);
  const std::string& fault() const { return fault_; }

  // What no thread wrote though it was declared as written; nothing if all is.
  std::string unwritten() const;

 private:
  static constexpr size_t kSharedCapacity = 227 * 1024;  // the most that a block may have on any GPU so far
  static constexpr uintptr_t kPageBytes = 4096;
  struct Page {
    Cell cell[kPageBytes / kGranule];
  };
  struct Declared {
    std::string name;
    Access access;
    bool argument;         // passed by value, so the hardware has it in a constant bank
    uintptr_t begin, end;  // extent, gaps included
  };
  struct Cached {
    uintptr_t number = ~uintptr_t{0};
    Page* page = nullptr;
  };

  Cell* find(uintptr_t address);
  Cell& make(uintptr_t address);
  bool check_cell(Cell& cell, const Event& access, const Declared* buffer);
  void note_reader(Cell& cell, const Event& access);

  // Each says what is wrong and returns false.
  bool misaligned(const Event& access);
  bool outside(const Event& access, uintptr_t address);
  bool outside_shared(const Event& access);
  bool too_small(const std::string& name);
  bool unwritten_read(const Declared* buffer);
  bool race(const Declared* buffer, const Event& access, const char* earlier, const std::string& by, const char* lacks);
  bool race(const Declared* buffer, const Event& access, const char* earlier, Agent by);

  const Order& order_;
  uint32_t block_ = 0;
  std::vector<Declared> buffers_;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  Cached cached_[64];  // by the low bits of the page's number
  std::string fault_;
  std::unique_ptr<unsigned char[]> shared_storage_;
  uintptr_t shared_begin_ = 0;
  size_t shared_bytes_ = 0;
  const void* shared_type_ = nullptr;
  std::vector<Cell> shared_cells_;
  std::vector<std::vector<std::pair<Agent, uint32_t>>> readers_;
};

}  // namespace jpu::host

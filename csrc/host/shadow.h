// What is known of every two bytes that a kernel may touch: whose they are, whether anything wrote them, who
// accessed them last and when. From this come the faults that a GPU does not report.
#pragma once

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
  void finish_groups(int thread, uint32_t last) { finished_[thread] = last; }

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
  Agent writer = 0, reader = 0;
  uint32_t write_clock = 0, read_clock = 0;  // 0 for never
  uint32_t block = 0;                        // of the last access, + 1
  uint32_t counted_read = 0, counted_write = 0;  // the last block, + 1, for which these bytes were counted
};

class Shadow {
 public:
  static constexpr int kGranule = 2;  // bytes; the smallest element there is

  explicit Shadow(const Order& order) : order_(order) {}

  // Returns what is wrong with a declaration, or nothing.
  std::string declare(const Buffer& buffer);
  void start_block(uint32_t block, size_t shared_bytes_kept);
  // Zeroes nothing: fills with NaN, since a GPU's shared memory holds whatever was there.
  void* shared_memory(size_t bytes);

  struct Event {
    uintptr_t address;
    int bytes;
    bool write;
    Agent agent;
    uint32_t clock;
    int thread;  // whose knowledge of the others counts
  };
  // Returns what is wrong with an access, or nothing. `counted` is set to the bytes that this block touches for
  // the first time, `shared` to whether it is shared memory, `counts` to whether counters want to see it.
  struct Verdict {
    std::string fault;
    bool shared = false, counts = true;
    int distinct_bytes = 0;
  };
  void check(const Event& access, Verdict& verdict);

  // What no thread wrote though it was declared as written; nothing if all is.
  std::string unwritten() const;
  void clear();

 private:
  static constexpr uintptr_t kPageBytes = 4096;
  struct Page {
    Cell cell[kPageBytes / kGranule];
  };

  Cell* find(uintptr_t address);
  Cell& make(uintptr_t address);
  std::string outside(const Event& access) const;
  std::string race(const Cell& cell, const Event& access, bool with_write, Agent other, bool other_block) const;
  std::string check_cell(Cell& cell, const Event& access, const char* name, Access rights, bool shared);
  std::string agent(Agent a) const;

  const Order& order_;
  uint32_t block_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<std::string> names_;
  std::vector<std::pair<uintptr_t, uintptr_t>> extent_;
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  uintptr_t last_page_ = ~uintptr_t{0};
  Page* last_ = nullptr;
  std::unique_ptr<unsigned char[]> shared_storage_;
  uintptr_t shared_begin_ = 0;
  size_t shared_bytes_ = 0;
  std::vector<Cell> shared_cells_;
  std::vector<std::vector<std::pair<Agent, uint32_t>>> readers_;
};

}  // namespace jpu::host

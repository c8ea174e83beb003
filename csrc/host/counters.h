// What a launch costs, counted as the hardware would see it: per warp and instruction.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace jpu::host {

struct Counters {
  uint64_t global_read_bytes = 0, global_write_bytes = 0;      // requested, by all threads
  uint64_t global_read_sectors = 0, global_write_sectors = 0;  // of 32 bytes, distinct in each warp's instruction
  uint64_t distinct_read_bytes = 0, distinct_write_bytes = 0;  // distinct in each block, summed over blocks
  uint64_t shared_read_bytes = 0, shared_write_bytes = 0;
  uint64_t shared_accesses = 0;  // passes over the banks, the repeats of conflicts included
  uint64_t bank_conflicts = 0;   // those repeats
  uint64_t barriers = 0;         // arrivals of a whole block
  uint64_t multiply_adds = 0;
  uint64_t matrix_multiply_adds = 0;  // by tensor cores, of whole warps
  uint64_t matrix_instructions = 0, matrix_loads = 0;  // of warps
  std::map<int, uint64_t> global_reads, global_writes;  // accesses a thread, by their bytes
};

// Collects the accesses of a block's threads between two barriers, and groups them to instructions of warps.
class AccessLog {
 public:
  void start_block(int threads) {
    threads_.resize(threads);
    for (auto& log : threads_) log.clear();
  }
  void add(int thread, const void* site, uintptr_t address, int bytes, bool write, bool shared) {
    threads_[thread].push_back({site, address, bytes, write, shared});
  }
  void flush(Counters& counters);

 private:
  struct Entry {
    const void* site;
    uintptr_t address;
    int bytes;
    bool write, shared;
  };
  struct Lane {
    size_t index;
    const Entry* entry;
  };
  static void count_global(const std::vector<Lane>& lanes, Counters& counters);
  static void count_shared(const std::vector<Lane>& lanes, Counters& counters);

  std::vector<std::vector<Entry>> threads_;
};

}  // namespace jpu::host

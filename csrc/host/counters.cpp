#include "host/counters.h"

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>

namespace jpu::host {

namespace {

constexpr size_t kWarp = 32;
constexpr uintptr_t kSector = 32;
constexpr uintptr_t kBanks = 32;
constexpr uintptr_t kWord = 4;

// The numbers of the `unit`s that the bytes lie in.
void insert_units(std::set<uintptr_t>& units, uintptr_t address, int bytes, uintptr_t unit) {
  for (uintptr_t u = address / unit; u <= (address + bytes - 1) / unit; ++u) units.insert(u);
}

}  // namespace

void AccessLog::count_global(const std::vector<Lane>& lanes, Counters& counters) {
  const bool write = lanes.front().entry->write;
  std::set<uintptr_t> sectors;
  for (const auto& [lane, entry] : lanes) {
    (write ? counters.global_write_bytes : counters.global_read_bytes) += entry->bytes;
    ++(write ? counters.global_writes : counters.global_reads)[entry->bytes];
    insert_units(sectors, entry->address, entry->bytes, kSector);
  }
  (write ? counters.global_write_sectors : counters.global_read_sectors) += sectors.size();
}

void AccessLog::count_shared(const std::vector<Lane>& lanes, Counters& counters) {
  const auto& [lane, any] = lanes.front();
  // 32 banks of 4 bytes: accesses of 8 bytes are made by half a warp at a time, of 16 bytes by a quarter.
  const size_t together = any->bytes <= 4 ? kWarp : (any->bytes == 8 ? kWarp / 2 : kWarp / 4);
  for (size_t first = 0; first < kWarp; first += together) {
    std::set<uintptr_t> words;
    for (const auto& [index, entry] : lanes) {
      if (index / together != first / together) continue;
      (entry->write ? counters.shared_write_bytes : counters.shared_read_bytes) += entry->bytes;
      insert_units(words, entry->address, entry->bytes, kWord);
    }
    if (words.empty()) continue;
    // Lanes that want the same word share a pass.
    uint64_t in_bank[kBanks] = {};
    for (const uintptr_t word : words) ++in_bank[word % kBanks];
    const uint64_t passes = *std::max_element(in_bank, in_bank + kBanks);
    counters.shared_accesses += passes;
    counters.bank_conflicts += passes - 1;
  }
}

void AccessLog::flush(Counters& counters) {
  // An asynchronous copy is two accesses of one site.
  using Site = std::tuple<const void*, bool, bool>;
  for (size_t warp = 0; warp < threads_.size(); warp += kWarp) {
    const size_t end = std::min(threads_.size(), warp + kWarp);
    // The n-th time that threads reach one site is taken for one instruction: so it is where they run together.
    std::map<std::pair<Site, size_t>, std::vector<Lane>> instructions;
    for (size_t t = warp; t < end; ++t) {
      std::map<Site, size_t> times;
      for (const Entry& entry : threads_[t]) {
        const Site site{entry.site, entry.write, entry.shared};
        instructions[{site, times[site]++}].push_back({t - warp, &entry});
      }
    }
    for (const auto& [key, lanes] : instructions) {
      (lanes.front().entry->shared ? count_shared : count_global)(lanes, counters);
    }
  }
  for (auto& log : threads_) log.clear();
}

}  // namespace jpu::host

#include "host/counters.h"

#include <algorithm>
#include <set>
#include <utility>

namespace jpu::host {

namespace {
constexpr int kWarp = 32;
constexpr uintptr_t kSector = 32;
constexpr int kBanks = 32;
constexpr uintptr_t kWord = 4;
}  // namespace

void AccessLog::count_warp(const std::vector<const Entry*>& lanes, Counters& counters) const {
  const Entry& any = *lanes.front();
  if (!any.shared) {
    std::set<uintptr_t> sectors;
    uint64_t bytes = 0;
    for (const Entry* lane : lanes) {
      bytes += lane->bytes;
      for (uintptr_t s = lane->address / kSector; s <= (lane->address + lane->bytes - 1) / kSector; ++s) sectors.insert(s);
    }
    (any.write ? counters.global_write_bytes : counters.global_read_bytes) += bytes;
    (any.write ? counters.global_write_sectors : counters.global_read_sectors) += sectors.size();
    (any.write ? counters.global_writes : counters.global_reads)[any.bytes] += lanes.size();
    return;
  }
  // 32 banks of 4 bytes: 8-byte accesses take two passes of half a warp, 16-byte ones four.
  const size_t together = any.bytes <= 4 ? kWarp : (any.bytes == 8 ? kWarp / 2 : kWarp / 4);
  for (size_t begin = 0; begin < lanes.size(); begin += together) {
    std::set<uintptr_t> words;
    for (size_t i = begin; i < std::min(lanes.size(), begin + together); ++i) {
      (any.write ? counters.shared_write_bytes : counters.shared_read_bytes) += lanes[i]->bytes;
      for (uintptr_t a = lanes[i]->address / kWord; a <= (lanes[i]->address + lanes[i]->bytes - 1) / kWord; ++a) words.insert(a);
    }
    uint64_t in_bank[kBanks] = {};
    for (const uintptr_t word : words) ++in_bank[word % kBanks];
    const uint64_t passes = *std::max_element(in_bank, in_bank + kBanks);
    counters.shared_accesses += passes;
    counters.bank_conflicts += passes - 1;
  }
}

void AccessLog::flush(Counters& counters) {
  for (size_t warp = 0; warp < threads_.size(); warp += kWarp) {
    const size_t end = std::min(threads_.size(), warp + kWarp);
    // The n-th time that threads reach one site is taken for one instruction: so it is where they run together.
    std::map<std::pair<const void*, size_t>, std::vector<const Entry*>> instructions;
    for (size_t t = warp; t < end; ++t) {
      std::map<const void*, size_t> times;
      for (const Entry& entry : threads_[t]) instructions[{entry.site, times[entry.site]++}].push_back(&entry);
    }
    for (const auto& [key, lanes] : instructions) count_warp(lanes, counters);
  }
  for (auto& log : threads_) log.clear();
}

}  // namespace jpu::host

#include "host/shadow.h"

#include <algorithm>
#include <cstring>

namespace jpu::host {

namespace {
constexpr size_t kSharedCapacity = 227 * 1024;  // the most that a block may have on any GPU so far
constexpr size_t kSharedAlignment = 1024;
}  // namespace

void Order::start_block(int threads) {
  threads_ = threads;
  now_.assign(threads, 1);
  at_barrier_.assign(threads, 0);
  group_.assign(threads, 1);
  finished_.assign(threads, 0);
  finished_at_barrier_.assign(threads, 0);
}

void Order::barrier() {
  at_barrier_ = now_;
  finished_at_barrier_ = finished_;
  for (uint32_t& clock : now_) ++clock;
}

Cell* Shadow::find(uintptr_t address) {
  const uintptr_t page = address / kPageBytes;
  if (page != last_page_) {
    const auto found = pages_.find(page);
    if (found == pages_.end()) return nullptr;
    last_page_ = page;
    last_ = found->second.get();
  }
  return &last_->cell[address % kPageBytes / kGranule];
}

Cell& Shadow::make(uintptr_t address) {
  if (Cell* cell = find(address)) return *cell;
  last_page_ = address / kPageBytes;
  last_ = (pages_[last_page_] = std::make_unique<Page>()).get();
  return last_->cell[address % kPageBytes / kGranule];
}

std::string Shadow::declare(const Buffer& buffer) {
  const uintptr_t base = reinterpret_cast<uintptr_t>(buffer.data);
  if (buffers_.size() == 255) return "expected at most 255 buffers";
  buffers_.push_back(buffer);
  names_.emplace_back(buffer.name);
  std::pair<uintptr_t, uintptr_t> extent{~uintptr_t{0}, 0};
  const uint8_t id = static_cast<uint8_t>(buffers_.size());
  // Innermost last: the dimension order does not matter but for speed.
  for (int64_t a = 0; a < buffer.size[0]; ++a) {
    for (int64_t b = 0; b < buffer.size[1]; ++b) {
      for (int64_t c = 0; c < buffer.size[2]; ++c) {
        for (int64_t d = 0; d < buffer.size[3]; ++d) {
          const uintptr_t address = base + static_cast<uintptr_t>((a * buffer.stride[0] + b * buffer.stride[1] +
                                                                   c * buffer.stride[2] + d * buffer.stride[3]) *
                                                                  buffer.element_bytes);
          extent.first = std::min(extent.first, address);
          extent.second = std::max(extent.second, address + buffer.element_bytes);
          for (int64_t byte = 0; byte < buffer.element_bytes; byte += kGranule) {
            Cell& cell = make(address + byte);
            if (cell.buffer != 0 && cell.buffer != id &&
                (buffer.access != Access::kRead || buffers_[cell.buffer - 1].access != Access::kRead)) {
              return "'" + names_.back() + "' overlaps '" + names_[cell.buffer - 1] + "', and one is written";
            }
            if (cell.buffer == id && buffer.access != Access::kRead) {
              return "'" + names_.back() + "' is written and has elements that share memory";
            }
            cell.buffer = id;
            cell.written = buffer.access == Access::kRead;
          }
        }
      }
    }
  }
  extent_.push_back(extent);
  return {};
}

void Shadow::start_block(uint32_t block, size_t shared_bytes_kept) {
  block_ = block;
  shared_bytes_ = shared_bytes_kept;
  readers_.clear();
}

void* Shadow::shared_memory(size_t bytes) {
  if (!shared_storage_) {
    shared_storage_ = std::make_unique<unsigned char[]>(kSharedCapacity + kSharedAlignment);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(shared_storage_.get());
    shared_begin_ = (begin + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
  }
  // The first thread of a block that asks gets it fresh; the others the same.
  if (shared_bytes_ != bytes) {
    shared_bytes_ = bytes;
    std::memset(reinterpret_cast<void*>(shared_begin_), 0xff, bytes);
    shared_cells_.assign((bytes + kGranule - 1) / kGranule, Cell{});
  }
  return reinterpret_cast<void*>(shared_begin_);
}

std::string Shadow::agent(Agent a) const {
  return a < order_.threads() ? "thread " + std::to_string(a)
                              : "an asynchronous copy of thread " + std::to_string(a - order_.threads());
}

std::string Shadow::outside(const Event& access) const {
  std::string where = "memory that this launch was not given";
  uintptr_t nearest = 4096;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const auto [begin, end] = extent_[i];
    const auto propose = [&](uintptr_t distance, const std::string& text) {
      if (distance >= nearest) return;
      nearest = distance;
      where = text + " '" + names_[i] + "'";
    };
    if (access.address >= begin && access.address < end) {
      propose(0, "between the elements of");
    } else if (access.address >= end) {
      propose(access.address - end + 1, std::to_string(access.address - end) + " bytes past the end of");
    } else {
      propose(begin - access.address, std::to_string(begin - access.address) + " bytes before the start of");
    }
  }
  return std::string("out-of-bounds ") + (access.write ? "write" : "read") + " of " + std::to_string(access.bytes) +
         " bytes, " + where;
}

std::string Shadow::race(const Cell& cell, const Event& access, bool with_write, Agent other,
                         bool other_block) const {
  const std::string name = cell.buffer ? "'" + names_[cell.buffer - 1] + "'" : "shared memory";
  return std::string("race: ") + (access.write ? "write to " : "read of ") + name + " without a barrier after the " +
         (with_write ? "write" : "read") + " by " +
         (other_block ? "block " + std::to_string(cell.block - 1) : agent(other));
}

std::string Shadow::check_cell(Cell& cell, const Event& access, const char* name, Access rights, bool shared) {
  if (!access.write && !cell.written) {
    return std::string("read of ") + (shared ? "" : "'") + name + (shared ? "" : "'") + " that nothing wrote";
  }
  if (rights == Access::kRead) {
    if (access.write) return std::string("write to '") + name + "', which this launch only reads";
    return {};
  }
  if (!shared && cell.block != 0 && cell.block != block_ + 1) {
    if (cell.write_clock != 0) return race(cell, access, true, cell.writer, true);
    if (access.write && cell.read_clock != 0) return race(cell, access, false, cell.reader, true);
  }
  if (cell.write_clock != 0 && !order_.before(cell.writer, cell.write_clock, access.thread)) {
    return race(cell, access, true, cell.writer, false);
  }
  if (access.write) {
    if (cell.many_readers) {
      for (const auto& [reader, clock] : readers_[cell.read_clock]) {
        if (!order_.before(reader, clock, access.thread)) return race(cell, access, false, reader, false);
      }
    } else if (cell.read_clock != 0 && !order_.before(cell.reader, cell.read_clock, access.thread)) {
      return race(cell, access, false, cell.reader, false);
    }
    cell.written = true;
    cell.writer = access.agent;
    cell.write_clock = access.clock;
    cell.read_clock = 0;
    cell.many_readers = false;
  } else if (cell.many_readers) {
    auto& list = readers_[cell.read_clock];
    const auto own = std::find_if(list.begin(), list.end(), [&](const auto& r) { return r.first == access.agent; });
    if (own == list.end()) {
      list.emplace_back(access.agent, access.clock);
    } else {
      own->second = access.clock;
    }
  } else if (cell.read_clock != 0 && cell.reader != access.agent &&
             !order_.before(cell.reader, cell.read_clock, access.thread)) {
    readers_.push_back({{cell.reader, cell.read_clock}, {access.agent, access.clock}});
    cell.read_clock = static_cast<uint32_t>(readers_.size() - 1);
    cell.many_readers = true;
  } else {
    cell.reader = access.agent;
    cell.read_clock = access.clock;
  }
  cell.block = block_ + 1;
  return {};
}

void Shadow::check(const Event& access, Verdict& verdict) {
  const uintptr_t begin = access.address / kGranule * kGranule, end = access.address + access.bytes;
  verdict.shared = shared_bytes_ != 0 && access.address - shared_begin_ < kSharedCapacity;
  if ((access.bytes & (access.bytes - 1)) == 0 && access.address % access.bytes != 0) {
    verdict.fault = std::string("misaligned ") + (access.write ? "write" : "read") + " of " +
                    std::to_string(access.bytes) + " bytes: the address is " +
                    std::to_string(access.address % access.bytes) + " past a multiple of that";
    return;
  }
  for (uintptr_t address = begin; address < end; address += kGranule) {
    if (verdict.shared) {
      const size_t offset = address - shared_begin_;
      if (offset >= shared_bytes_) {
        verdict.fault = std::string("out-of-bounds ") + (access.write ? "write" : "read") + " of " +
                        std::to_string(access.bytes) + " bytes at byte " + std::to_string(access.address - shared_begin_) +
                        " of " + std::to_string(shared_bytes_) + " bytes of shared memory";
        return;
      }
      if (access.bytes < kGranule) {
        verdict.fault = "access of 1 byte: expected at least 2, the smallest that races are told apart by";
        return;
      }
      verdict.fault = check_cell(shared_cells_[offset / kGranule], access, "shared memory", Access::kScratch, true);
    } else {
      Cell* cell = find(address);
      if (cell == nullptr || cell->buffer == 0) {
        verdict.fault = outside(access);
        return;
      }
      const Buffer& buffer = buffers_[cell->buffer - 1];
      verdict.fault = check_cell(*cell, access, names_[cell->buffer - 1].c_str(), buffer.access, false);
      uint32_t& counted = access.write ? cell->counted_write : cell->counted_read;
      if (counted != block_ + 1) {
        counted = block_ + 1;
        verdict.distinct_bytes += kGranule;
      }
    }
    if (!verdict.fault.empty()) return;
  }
}

std::string Shadow::unwritten() const {
  std::vector<uint64_t> bytes(buffers_.size(), 0);
  for (const auto& [number, page] : pages_) {
    for (const Cell& cell : page->cell) {
      if (cell.buffer != 0 && !cell.written && buffers_[cell.buffer - 1].access == Access::kWrite) {
        bytes[cell.buffer - 1] += kGranule;
      }
    }
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != 0) return "left " + std::to_string(bytes[i]) + " bytes of '" + names_[i] + "' unwritten";
  }
  return {};
}

void Shadow::clear() {
  buffers_.clear();
  names_.clear();
  extent_.clear();
  pages_.clear();
  last_page_ = ~uintptr_t{0};
  last_ = nullptr;
  shared_bytes_ = 0;
}

}  // namespace jpu::host

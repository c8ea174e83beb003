#include "host/shadow.h"

#include <algorithm>
#include <cstring>
#include <iterator>

// Beyond the block's shared memory lies more of the same allocation, which AddressSanitizer would let pass.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define JPU_POISON(begin, bytes) __asan_poison_memory_region(reinterpret_cast<void*>(begin), bytes)
#define JPU_UNPOISON(begin, bytes) __asan_unpoison_memory_region(reinterpret_cast<void*>(begin), bytes)
#else
#define JPU_POISON(begin, bytes)
#define JPU_UNPOISON(begin, bytes)
#endif

namespace jpu::host {

namespace {

constexpr size_t kSharedAlignment = 1024;

std::string what(const Shadow::Event& access) {
  return std::string(access.write ? "write" : "read") + " of " + std::to_string(access.bytes) + " bytes";
}

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
  const uintptr_t number = address / kPageBytes;
  Cached& cached = cached_[number % std::size(cached_)];
  if (cached.number != number) {
    const auto found = pages_.find(number);
    if (found == pages_.end()) return nullptr;
    cached = {number, found->second.get()};
  }
  return &cached.page->cell[address % kPageBytes / kGranule];
}

Cell& Shadow::make(uintptr_t address) {
  if (Cell* cell = find(address)) return *cell;
  pages_[address / kPageBytes] = std::make_unique<Page>();
  return *find(address);
}

std::string Shadow::declare(const Buffer& buffer) {
  if (buffers_.size() == 255) return "expected at most 255 buffers";
  if (!buffer.argument && buffer.element_bytes < kGranule) {
    return std::string("'") + buffer.name + "': expected elements of at least " + std::to_string(kGranule) +
           " bytes, by which races are told apart, got " + std::to_string(buffer.element_bytes);
  }
  const uintptr_t base = reinterpret_cast<uintptr_t>(buffer.data);
  buffers_.push_back({buffer.name, buffer.access, buffer.argument, ~uintptr_t{0}, 0});
  Declared& declared = buffers_.back();
  const uint8_t id = static_cast<uint8_t>(buffers_.size());
  for (int64_t a = 0; a < buffer.size[0]; ++a) {
    for (int64_t b = 0; b < buffer.size[1]; ++b) {
      for (int64_t c = 0; c < buffer.size[2]; ++c) {
        for (int64_t d = 0; d < buffer.size[3]; ++d) {
          const uintptr_t address = base + static_cast<uintptr_t>((a * buffer.stride[0] + b * buffer.stride[1] +
                                                                   c * buffer.stride[2] + d * buffer.stride[3]) *
                                                                  buffer.element_bytes);
          declared.begin = std::min(declared.begin, address);
          declared.end = std::max(declared.end, address + buffer.element_bytes);
          for (int64_t byte = 0; byte < buffer.element_bytes; byte += kGranule) {
            Cell& cell = make(address + byte);
            if (cell.buffer != 0 && cell.buffer != id &&
                (buffer.access != Access::kRead || buffers_[cell.buffer - 1].access != Access::kRead)) {
              return "'" + declared.name + "' overlaps '" + buffers_[cell.buffer - 1].name + "', and one is written";
            }
            if (cell.buffer == id && buffer.access != Access::kRead) {
              return "'" + declared.name + "' is written and has elements that share memory";
            }
            cell.buffer = id;
            cell.written = buffer.access == Access::kRead || buffer.access == Access::kUpdate;
          }
        }
      }
    }
  }
  return {};
}

void Shadow::start_block(uint32_t block) {
  block_ = block;
  shared_bytes_ = 0;
  readers_.clear();
}

void* Shadow::shared_memory(size_t bytes, const void* type) {
  if (!shared_storage_) {
    shared_storage_ = std::make_unique<unsigned char[]>(kSharedCapacity + kSharedAlignment);
    const uintptr_t begin = reinterpret_cast<uintptr_t>(shared_storage_.get());
    shared_begin_ = (begin + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
  }
  // The first thread of a block that asks gets it fresh; the others the same.
  if (shared_bytes_ == 0 && bytes <= kSharedCapacity) {
    shared_bytes_ = bytes;
    shared_type_ = type;
    JPU_UNPOISON(shared_begin_, kSharedCapacity);
    std::memset(reinterpret_cast<void*>(shared_begin_), 0xff, bytes);
    JPU_POISON(shared_begin_ + bytes, kSharedCapacity - bytes);
    shared_cells_.assign((bytes + kGranule - 1) / kGranule, Cell{});
  }
  return shared_bytes_ == bytes && shared_type_ == type ? reinterpret_cast<void*>(shared_begin_) : nullptr;
}

bool Shadow::misaligned(const Event& access) {
  fault_ = "misaligned " + what(access) + ": the address is " + std::to_string(access.address % access.bytes) +
           " past a multiple of that";
  return false;
}

// `address`: the first byte of the access that is.
bool Shadow::outside(const Event& access, uintptr_t address) {
  std::string where = "memory that this launch was not given";
  uintptr_t nearest = 4096;
  for (const Declared& buffer : buffers_) {
    const auto propose = [&](uintptr_t distance, const std::string& text) {
      if (distance >= nearest) return;
      nearest = distance;
      where = text + " '" + buffer.name + "'";
    };
    if (address >= buffer.begin && address < buffer.end) {
      propose(0, "between the elements of");
    } else if (address >= buffer.end) {
      propose(address - buffer.end + 1, std::to_string(address - buffer.end) + " bytes past the end of");
    } else {
      propose(buffer.begin - address, std::to_string(buffer.begin - address) + " bytes before the start of");
    }
  }
  fault_ = "out-of-bounds " + what(access) + ", " + where;
  return false;
}

bool Shadow::outside_shared(const Event& access) {
  fault_ = "out-of-bounds " + what(access) + " at byte " + std::to_string(access.address - shared_begin_) + " of " +
           std::to_string(shared_bytes_) + " bytes of shared memory";
  return false;
}

bool Shadow::too_small(const std::string& name) {
  fault_ = "access of 1 byte to " + name + ": expected at least " + std::to_string(kGranule) +
           ", the smallest that races are told apart by";
  return false;
}

bool Shadow::unwritten_read(const Declared* buffer) {
  fault_ = "read of " + (buffer ? "'" + buffer->name + "'" : std::string("shared memory")) + " that nothing wrote";
  return false;
}

bool Shadow::race(const Declared* buffer, const Event& access, const char* earlier, const std::string& by,
                  const char* lacks) {
  const std::string name = buffer ? "'" + buffer->name + "'" : "shared memory";
  const bool copy = access.agent >= order_.threads();
  fault_ = std::string("race: ") + (access.write ? "write to " : "read of ") + name +
           (copy ? " by an asynchronous copy" : "") + " after the " + earlier + " by " + by + ", " + lacks;
  return false;
}

bool Shadow::race(const Declared* buffer, const Event& access, const char* earlier, Agent by) {
  const int owner = by % order_.threads();
  const std::string thread = "thread " + std::to_string(owner);
  if (by == owner) return race(buffer, access, earlier, thread, "with no barrier between");
  return race(buffer, access, earlier, "an asynchronous copy of " + thread,
              owner == access.thread ? "with no wait for it" : "with no wait for it, or no barrier after that");
}

void Shadow::note_reader(Cell& cell, const Event& access) {
  if (cell.many_readers) {
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
    // Whoever comes after this read comes after the one that it replaces.
    cell.reader = access.agent;
    cell.read_clock = access.clock;
  }
}

// `buffer`: null for shared memory.
bool Shadow::check_cell(Cell& cell, const Event& access, const Declared* buffer) {
  if (buffer && buffer->access == Access::kRead) {
    if (!access.write) return true;
    fault_ = "write to '" + buffer->name + "', which this launch only reads";
    return false;
  }
  if (!access.write && !cell.written) return unwritten_read(buffer);
  if (cell.block != block_ + 1) {
    if (cell.write_clock != 0) {
      return race(buffer, access, "write", "block " + std::to_string(cell.block - 1), "and nothing orders blocks");
    }
    // Inputs are dealt with above, so what was only read is what an update begins with.
    cell.read_by_others = cell.read_by_others || cell.read_clock != 0;
    cell.read_clock = 0;
    cell.many_readers = false;
    cell.block = block_ + 1;
  }
  if (access.write && cell.read_by_others) {
    return race(buffer, access, "read", "another block", "and nothing orders blocks");
  }
  if (cell.write_clock != 0 && !order_.before(cell.writer, cell.write_clock, access.thread)) {
    return race(buffer, access, "write", cell.writer);
  }
  if (!access.write) {
    note_reader(cell, access);
    return true;
  }
  if (cell.many_readers) {
    for (const auto& [reader, clock] : readers_[cell.read_clock]) {
      if (!order_.before(reader, clock, access.thread)) return race(buffer, access, "read", reader);
    }
  } else if (cell.read_clock != 0 && !order_.before(cell.reader, cell.read_clock, access.thread)) {
    return race(buffer, access, "read", cell.reader);
  }
  cell.written = true;
  cell.writer = access.agent;
  cell.write_clock = access.clock;
  cell.read_clock = 0;
  cell.many_readers = false;
  return true;
}

bool Shadow::check(const Event& access, Verdict& verdict) {
  if (access.aligned && access.address % access.bytes != 0) return misaligned(access);
  const uintptr_t begin = access.address / kGranule * kGranule, end = access.address + access.bytes;
  verdict.shared = is_shared(reinterpret_cast<const void*>(access.address));
  if (verdict.shared) {
    if (end - shared_begin_ > shared_bytes_) return outside_shared(access);
    if (access.bytes < kGranule) return too_small("shared memory");
    for (uintptr_t address = begin; address < end; address += kGranule) {
      if (!check_cell(shared_cells_[(address - shared_begin_) / kGranule], access, nullptr)) return false;
    }
    return true;
  }
  for (uintptr_t address = begin; address < end; address += kGranule) {
    Cell* cell = find(address);
    if (cell == nullptr || cell->buffer == 0) return outside(access, std::max(address, access.address));
    const Declared& buffer = buffers_[cell->buffer - 1];
    if (access.bytes < kGranule && buffer.access != Access::kRead) return too_small("'" + buffer.name + "'");
    if (!check_cell(*cell, access, &buffer)) return false;
    if (buffer.argument) verdict.counts = false;
    uint32_t& counted = access.write ? cell->counted_write : cell->counted_read;
    if (counted != block_ + 1) {
      counted = block_ + 1;
      verdict.distinct_bytes += kGranule;
    }
  }
  return true;
}

std::string Shadow::unwritten() const {
  std::vector<uint64_t> bytes(buffers_.size(), 0);
  for (const auto& [number, page] : pages_) {
    for (const Cell& cell : page->cell) {
      if (cell.buffer == 0 || cell.write_clock != 0) continue;
      const Access access = buffers_[cell.buffer - 1].access;
      if (access == Access::kWrite || access == Access::kUpdate) bytes[cell.buffer - 1] += kGranule;
    }
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != 0) return "left " + std::to_string(bytes[i]) + " bytes of '" + buffers_[i].name + "' unwritten";
  }
  return {};
}

}  // namespace jpu::host

#include "host/execution.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

#include "host/device_api.h"

namespace jpu::host {

thread_local Execution* current_execution = nullptr;

namespace {

// Stacks are kept from launch to launch; only one runs at a time.
std::vector<std::unique_ptr<Fiber>>& fibers(size_t count) {
  static std::vector<std::unique_ptr<Fiber>> pool;
  while (pool.size() < count) pool.push_back(std::make_unique<Fiber>());
  return pool;
}

}  // namespace

void Execution::thread_entry() {
  Fiber::entered();
  Execution& e = *running();
  e.in_kernel = true;
  e.body(e.argument);
  e.in_kernel = false;
  DeviceThread& self = e.threads_[e.thread];
  e.apply_copies(self, ~uint32_t{0});
  self.state = DeviceThread::State::kDone;
  self.fiber->leave(true);
}

void Execution::fault(const std::string& what) {
  in_kernel = false;
  fault_ = kernel + ": block " + std::to_string(block) + ", thread " + std::to_string(thread) + ": " + what;
  threads_[thread].state = DeviceThread::State::kDone;
  threads_[thread].fiber->leave(true);
  std::abort();  // not reached: the scheduler resumes nobody after a fault
}

void Execution::run() {
  std::mt19937_64 random(settings.seed);
  std::vector<uint32_t> block_order(blocks);
  std::iota(block_order.begin(), block_order.end(), 0u);
  if (settings.seed != 0) std::shuffle(block_order.begin(), block_order.end(), random);
  threads_.resize(thread_count);
  const auto& pool = fibers(thread_count);
  for (int t = 0; t < thread_count; ++t) threads_[t].fiber = pool[t].get();
  arrived_.assign((thread_count + kWarp - 1) / kWarp, 0);
  for (const uint32_t b : block_order) {
    block = b;
    shadow.start_block(b);
    order.start_block(thread_count);
    if (counting) log_.start_block(thread_count);
    for (DeviceThread& t : threads_) {
      t.state = DeviceThread::State::kRunnable;
      t.copies.clear();
      t.fiber->prepare(&Execution::thread_entry);
    }
    run_block();
    if (counting) log_.flush(counters);
  }
#if !defined(JPU_HOST_UNCHECKED)
  const std::string missing = shadow.unwritten();
  if (!missing.empty()) throw std::runtime_error(kernel + ": " + missing);
#endif
}

void Execution::run_block() {
  std::mt19937_64 random(settings.seed ^ (uint64_t{block} << 20));
  std::vector<int> schedule(thread_count);
  std::iota(schedule.begin(), schedule.end(), 0);
  for (;;) {
    if (settings.seed != 0) std::shuffle(schedule.begin(), schedule.end(), random);
    bool any = false;
    for (const int t : schedule) {
      if (threads_[t].state != DeviceThread::State::kRunnable) continue;
      any = true;
      thread = t;
      threads_[t].fiber->resume();
      if (!fault_.empty()) throw std::runtime_error(fault_);
    }
    if (any) continue;  // to where all wait, or are done
    check_warps();
    if (!release_barrier()) return;
  }
}

// No thread can go on; none may then wait for the rest of its warp.
void Execution::check_warps() const {
  const auto waits = [](const DeviceThread& t) { return t.state == DeviceThread::State::kAtWarpInstruction; };
  const auto first = std::find_if(threads_.begin(), threads_.end(), waits);
  if (first == threads_.end()) return;
  const size_t waiting = first - threads_.begin(), begin = waiting / kWarp * kWarp;
  for (size_t t = begin; t < begin + kWarp; ++t) {
    if (!waits(threads_[t]) || threads_[t].site != first->site) throw_divergent("warp instruction", waiting, t);
  }
}

void Execution::throw_divergent(const std::string& what, size_t waiting, size_t other) const {
  using State = DeviceThread::State;
  const State state = threads_[other].state;
  const char* does = state == threads_[waiting].state ? "waits at another"
                     : state == State::kAtBarrier     ? "waits at a barrier"
                     : state == State::kDone          ? "has left the kernel"
                                                      : "";
  throw std::runtime_error(kernel + ": block " + std::to_string(block) + ", thread " + std::to_string(other) +
                           ": divergent " + what + ": thread " + std::to_string(waiting) +
                           " waits at one while this thread " + does);
}

// Every thread waits at one barrier, or every thread is done, which false says.
bool Execution::release_barrier() {
  const auto at_barrier = [](const DeviceThread& t) { return t.state == DeviceThread::State::kAtBarrier; };
  const auto first = std::find_if(threads_.begin(), threads_.end(), at_barrier);
  if (first == threads_.end()) return false;
  for (size_t t = 0; t < threads_.size(); ++t) {
    if (!at_barrier(threads_[t]) || threads_[t].site != first->site) {
      throw_divergent("barrier", first - threads_.begin(), t);
    }
  }
  order.barrier();
  ++counters.barriers;
  if (counting) log_.flush(counters);
  for (DeviceThread& t : threads_) t.state = DeviceThread::State::kRunnable;
  return true;
}

void Execution::touch(const Shadow::Event& event, const void* site) {
  Shadow::Verdict verdict;
  if (!shadow.check(event, verdict)) fault(shadow.fault());
  if (!counting || !verdict.counts) return;
  (event.write ? counters.distinct_write_bytes : counters.distinct_read_bytes) += verdict.distinct_bytes;
  log_.add(thread, site, event.address, event.bytes, event.write, verdict.shared);
}

void Execution::access(uintptr_t address, int bytes, bool write, bool aligned, const void* site) {
  touch({address, bytes, write, aligned, static_cast<Agent>(thread), order.clock(thread), thread}, site);
}

void Execution::copy_access(uintptr_t address, int bytes, bool write, const void* site) {
  touch({address, bytes, write, false, order.copies_of(thread), order.group(thread), thread}, site);
}

void* Execution::shared_memory(size_t bytes, int dynamic_bytes, const void* type) {
  if (launched_bytes != dynamic_bytes) {
    fault("shared memory of " + std::to_string(bytes) + " bytes: expected a launch with " +
          std::to_string(dynamic_bytes) + " bytes of dynamic shared memory, got " + std::to_string(launched_bytes));
  }
  void* memory = shadow.shared_memory(bytes, type);
  if (memory == nullptr) fault("shared memory of " + std::to_string(bytes) + " bytes: too much, or asked for twice");
  return memory;
}

void Execution::barrier(const void* site) {
  DeviceThread& self = threads_[thread];
  self.state = DeviceThread::State::kAtBarrier;
  self.site = site;
  self.fiber->leave();
}

bool Execution::join_warp(void* operands, const void* site) {
  const int warp = thread / kWarp, lanes = std::min(kWarp, thread_count - warp * kWarp);
  if (lanes < kWarp) {
    fault("divergent warp instruction: expected a warp of " + std::to_string(kWarp) + " threads, got " +
          std::to_string(lanes));
  }
  DeviceThread& self = threads_[thread];
  self.state = DeviceThread::State::kAtWarpInstruction;
  self.site = site;
  self.operands = operands;
  if (++arrived_[warp] == kWarp) {
    const auto begin = threads_.begin() + warp * kWarp;
    if (std::all_of(begin, begin + kWarp, [site](const DeviceThread& t) { return t.site == site; })) return true;
    // Nobody goes on, which the scheduler reports.
  }
  self.fiber->leave();
  return false;
}

template <class Operands>
void Execution::gather(Operands* (&lanes)[kWarp]) const {
  const int first = thread / kWarp * kWarp;
  for (int lane = 0; lane < kWarp; ++lane) lanes[lane] = static_cast<Operands*>(threads_[first + lane].operands);
}

void Execution::finish_warp() {
  const int warp = thread / kWarp;
  arrived_[warp] = 0;
  for (int lane = 0; lane < kWarp; ++lane) threads_[warp * kWarp + lane].state = DeviceThread::State::kRunnable;
}

Word16 Execution::load_matrices(const void* row, const void* site) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(row);
  constexpr int kRowBytes = 16;
  if (!shadow.is_shared(row)) fault("row of a matrix: expected an address in shared memory");
  if (address % kRowBytes != 0) {
    fault("misaligned row of a matrix: the address is " + std::to_string(address % kRowBytes) +
          " past a multiple of 16 bytes");
  }
#if !defined(JPU_HOST_UNCHECKED)
  // When the lane comes, though the warp reads later: between them is no barrier that would make a difference.
  access(address, kRowBytes, false, true, site);
#endif
  struct Operands {
    const void* row;
    Word16 result;
  } own{row, {}};
  if (join_warp(&own, site)) {
    Operands* lanes[kWarp];
    gather(lanes);
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        uint32_t word;
        std::memcpy(&word, static_cast<const char*>(lanes[8 * i + lane / 4]->row) + 4 * (lane % 4), sizeof word);
        lanes[lane]->result[i] = word;
      }
    }
    ++counters.matrix_loads;
    finish_warp();
  }
  return own.result;
}

Float4 Execution::multiply_matrices(MatrixType type, const MatrixOperands& operands, const void* site) {
  MatrixOperands own = operands;
  if (join_warp(&own, site)) {
    MatrixOperands* lanes[kWarp];
    gather(lanes);
    host::multiply_matrices(type, lanes);
    ++counters.matrix_instructions;
    counters.matrix_multiply_adds += matrix_multiply_adds(type);
    finish_warp();
  }
  return own.sum;
}

void Execution::copy_async(void* shared, const void* global, int bytes, int source_bytes, const void* site) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(global), to = reinterpret_cast<uintptr_t>(shared);
  if (source_bytes < 0 || source_bytes > bytes) {
    fault("asynchronous copy: expected 0 to " + std::to_string(bytes) + " source bytes, got " +
          std::to_string(source_bytes));
  }
  if (!shadow.is_shared(shared)) fault("asynchronous copy: expected a destination in shared memory");
  if (shadow.is_shared(global)) fault("asynchronous copy: expected a source in global memory, got shared memory");
  if (from % bytes != 0 || to % bytes != 0) {
    fault("misaligned asynchronous copy of " + std::to_string(bytes) + " bytes: the source is " +
          std::to_string(from % bytes) + " past a multiple of that, the destination " + std::to_string(to % bytes));
  }
#if !defined(JPU_HOST_UNCHECKED)
  if (source_bytes != 0) copy_access(from, source_bytes, false, site);
  copy_access(to, bytes, true, site);
#else
  (void)site;
#endif
  threads_[thread].copies.push_back({shared, global, bytes, source_bytes, order.group(thread)});
  if (!settings.late) apply_copies(threads_[thread], ~uint32_t{0});
}

void Execution::commit_copies() { order.close_group(thread); }

void Execution::wait_copies(int pending) {
  // group() is the open group; the closed ones are those before it.
  const int64_t last = static_cast<int64_t>(order.group(thread)) - 1 - pending;
  if (last <= 0) return;
  apply_copies(threads_[thread], static_cast<uint32_t>(last));
  order.finish_groups(thread, static_cast<uint32_t>(last));
}

void Execution::apply_copies(DeviceThread& owner, uint32_t last_group) {
  auto keep = owner.copies.begin();
  for (const PendingCopy& copy : owner.copies) {
    if (copy.group > last_group) {
      *keep++ = copy;
      continue;
    }
    std::memcpy(copy.shared, copy.global, copy.source_bytes);
    std::memset(static_cast<char*>(copy.shared) + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
  }
  owner.copies.erase(keep, owner.copies.end());
}

// --- what device/ calls -------------------------------------------------------------------------------

int thread_index() { return running()->thread; }

uint32_t block_index() { return running()->block; }

void block_barrier() {
  const void* site = __builtin_return_address(0);
  const InRuntime inside;
  running()->barrier(site);
}

void* shared_memory(size_t bytes, int dynamic_bytes, const void* type) {
  const InRuntime inside;
  return running()->shared_memory(bytes, dynamic_bytes, type);
}

void copy_async(void* shared, const void* global, int bytes, int source_bytes) {
  const void* site = __builtin_return_address(0);
  const InRuntime inside;
  running()->copy_async(shared, global, bytes, source_bytes, site);
}

void commit_copies() {
  const InRuntime inside;
  running()->commit_copies();
}

void wait_copies(int pending) {
  const InRuntime inside;
  running()->wait_copies(pending);
}

Word16 load_matrices(const void* row) {
  const void* site = __builtin_return_address(0);
  const InRuntime inside;
  return running()->load_matrices(row, site);
}

Float4 multiply_matrices(MatrixType type, Word16 a, uint32_t b0, uint32_t b1, Float4 sum) {
  const void* site = __builtin_return_address(0);
  const InRuntime inside;
  return running()->multiply_matrices(type, {a, {b0, b1}, sum}, site);
}

float multiply_add(float a, float b, float c) {
  ++running()->counters.multiply_adds;
  return std::fma(a, b, c);
}

double multiply_add(double a, double b, double c) {
  ++running()->counters.multiply_adds;
  return std::fma(a, b, c);
}

}  // namespace jpu::host

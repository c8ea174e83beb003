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
    if (!any) return;
    release_barrier();
  }
}

// Every thread waits at one barrier, or every thread is done.
void Execution::release_barrier() {
  const auto at_barrier = [](const DeviceThread& t) { return t.state == DeviceThread::State::kAtBarrier; };
  const auto first = std::find_if(threads_.begin(), threads_.end(), at_barrier);
  if (first == threads_.end()) return;
  for (size_t t = 0; t < threads_.size(); ++t) {
    const bool other_site = at_barrier(threads_[t]) && threads_[t].barrier_site != first->barrier_site;
    if (!at_barrier(threads_[t]) || other_site) {
      throw std::runtime_error(kernel + ": block " + std::to_string(block) + ", thread " + std::to_string(t) +
                               ": divergent barrier: thread " + std::to_string(first - threads_.begin()) +
                               " waits at one while this thread " +
                               (other_site ? "waits at another" : "has left the kernel"));
    }
  }
  order.barrier();
  ++counters.barriers;
  if (counting) log_.flush(counters);
  for (DeviceThread& t : threads_) t.state = DeviceThread::State::kRunnable;
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

void* Execution::shared_memory(size_t bytes, const void* type) {
  void* memory = shadow.shared_memory(bytes, type);
  if (memory == nullptr) fault("shared memory of " + std::to_string(bytes) + " bytes: too much, or asked for twice");
  return memory;
}

void Execution::barrier(const void* site) {
  DeviceThread& self = threads_[thread];
  self.state = DeviceThread::State::kAtBarrier;
  self.barrier_site = site;
  self.fiber->leave();
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

void* shared_memory(size_t bytes, const void* type) {
  const InRuntime inside;
  return running()->shared_memory(bytes, type);
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

float multiply_add(float a, float b, float c) {
  ++running()->counters.multiply_adds;
  return std::fma(a, b, c);
}

double multiply_add(double a, double b, double c) {
  ++running()->counters.multiply_adds;
  return std::fma(a, b, c);
}

}  // namespace jpu::host

// One launch under way: its fibers, its order, its shadow.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "host/counters.h"
#include "host/fiber.h"
#include "host/matrix.h"
#include "host/runtime.h"
#include "host/shadow.h"

namespace jpu::host {

struct PendingCopy {
  void* shared;
  const void* global;
  int bytes, source_bytes;
  uint32_t group;
};

struct DeviceThread {
  enum class State { kRunnable, kAtBarrier, kAtWarpInstruction, kDone };
  Fiber* fiber = nullptr;
  State state = State::kRunnable;
  const void* site = nullptr;  // of the barrier or instruction that it waits at
  void* operands = nullptr;    // what it brings to the latter
  std::vector<PendingCopy> copies;
};

class Execution {
 public:
  Execution() : shadow(order) {}

  std::string kernel;
  uint32_t blocks = 0;
  int thread_count = 0;
  int launched_bytes = 0;  // of dynamic shared memory
  void (*body)(const void*) = nullptr;
  const void* argument = nullptr;
  Settings settings;
  bool counting = false;

  Order order;
  Shadow shadow;
  Counters counters;

  // Throws at the first fault.
  void run();

  // What follows is called from a device thread, that is on a fiber.
  int thread = 0;
  uint32_t block = 0;
  // Whether kernel code is running: not the scheduler, not a function of the runtime.
  bool in_kernel = false;

  void access(uintptr_t address, int bytes, bool write, bool aligned, const void* site);
  void barrier(const void* site);
  void* shared_memory(size_t bytes, int dynamic_bytes, const void* type);
  void copy_async(void* shared, const void* global, int bytes, int source_bytes, const void* site);
  void commit_copies();
  void wait_copies(int pending);
  Word16 load_matrices(const void* row, const void* site);
  Float4 multiply_matrices(MatrixType type, const MatrixOperands& operands, const void* site);
  // Ends the launch; does not return.
  [[noreturn]] void fault(const std::string& what);
  bool on_own_stack(uintptr_t address) const { return threads_[thread].fiber->holds(address); }

 private:
  static void thread_entry();
  void run_block();
  bool release_barrier();
  // `what` says at what thread `waiting` waits, in vain for thread `other`.
  [[noreturn]] void throw_divergent(const std::string& what, size_t waiting, size_t other) const;
  void check_warps() const;
  // Waits for the other lanes; whether this one is the last, and so has the instruction to execute for all of them
  // before it calls finish_warp.
  bool join_warp(void* operands, const void* site);
  template <class Operands>
  void gather(Operands* (&lanes)[kWarp]) const;
  void finish_warp();
  void copy_access(uintptr_t address, int bytes, bool write, const void* site);
  void touch(const Shadow::Event& event, const void* site);
  void apply_copies(DeviceThread& owner, uint32_t last_group);

  std::vector<DeviceThread> threads_;
  std::vector<int> arrived_;  // lanes of each warp at an instruction
  AccessLog log_;
  std::string fault_;
};

// The launch that this thread of the CPU is executing, or null. Each has its own: a launcher is instrumented as
// the kernels beside it are, and may prepare a launch while another thread's is under way.
extern thread_local Execution* current_execution __attribute__((tls_model("initial-exec")));

inline Execution* running() { return current_execution; }

// While in scope, accesses are the runtime's own and not looked at.
class InRuntime {
 public:
  InRuntime() : e_(running()) { e_->in_kernel = false; }
  ~InRuntime() { e_->in_kernel = true; }

 private:
  Execution* e_;
};

}  // namespace jpu::host

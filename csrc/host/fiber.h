// Stackful coroutines: a device thread is one, so that it can stop in the middle of a kernel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace jpu::host {

class Fiber {
 public:
  static constexpr size_t kStackBytes = 128 * 1024;

  Fiber();  // allocates a stack with a guard page below
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() starts at entry, which ends in leave(true).
  void prepare(void (*entry)());
  // From the scheduler: runs the fiber until it leaves.
  void resume();
  // From the fiber: goes back to the scheduler. `for_good` if it is not resumed.
  void leave(bool for_good = false);

  // Called first thing on a fiber that was just entered, for AddressSanitizer.
  static void entered();

  bool holds(uintptr_t address) const { return address - stack_begin_ < kStackBytes; }

 private:
  void* memory_;
  uintptr_t stack_begin_;
  struct Context;
  Context* context_;
};

}  // namespace jpu::host

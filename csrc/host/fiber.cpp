#include "host/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// swapcontext makes two system calls a switch; this makes none. Saves what the System V ABI says a callee
// must keep.
asm(R"(
.text
.local jpu_switch_stack
.type jpu_switch_stack, @function
jpu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size jpu_switch_stack, .-jpu_switch_stack
)");
extern "C" void jpu_switch_stack(void** save, void* load) __asm__("jpu_switch_stack");
#else
#include <ucontext.h>
#endif

namespace jpu::host {

struct Fiber::Context {
#if defined(__x86_64__)
  void* fiber;
  void* scheduler;
#else
  ucontext_t fiber;
  ucontext_t scheduler;
#endif
};

#if defined(__SANITIZE_ADDRESS__)
namespace {
const void* scheduler_bottom = nullptr;
size_t scheduler_size = 0;
}  // namespace
#endif

Fiber::Fiber() : context_(new Context) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  memory_ = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory_, page, PROT_NONE);
  stack_begin_ = reinterpret_cast<uintptr_t>(memory_) + page;
}

Fiber::~Fiber() {
  munmap(memory_, stack_begin_ - reinterpret_cast<uintptr_t>(memory_) + kStackBytes);
  delete context_;
}

void Fiber::prepare(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  // What ran here before left for good, and its frames' red zones stay.
  __asan_unpoison_memory_region(reinterpret_cast<void*>(stack_begin_), kStackBytes);
#endif
#if defined(__x86_64__)
  // As if entry had been called: the return address, then six saved registers below it.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(stack_begin_ + kStackBytes) - 2;
  top[0] = reinterpret_cast<uintptr_t>(entry);
  top[1] = 0;
  for (int i = 1; i <= 6; ++i) top[-i] = 0;
  context_->fiber = top - 6;
#else
  getcontext(&context_->fiber);
  context_->fiber.uc_stack.ss_sp = reinterpret_cast<void*>(stack_begin_);
  context_->fiber.uc_stack.ss_size = kStackBytes;
  context_->fiber.uc_link = nullptr;
  makecontext(&context_->fiber, entry, 0);
#endif
}

void Fiber::resume() {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, reinterpret_cast<void*>(stack_begin_), kStackBytes);
#endif
#if defined(__x86_64__)
  jpu_switch_stack(&context_->scheduler, context_->fiber);
#else
  swapcontext(&context_->scheduler, &context_->fiber);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave(bool for_good) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, scheduler_bottom, scheduler_size);
#else
  (void)for_good;
#endif
#if defined(__x86_64__)
  jpu_switch_stack(&context_->fiber, context_->scheduler);
#else
  swapcontext(&context_->fiber, &context_->scheduler);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_bottom, &scheduler_size);
#endif
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
}

}  // namespace jpu::host

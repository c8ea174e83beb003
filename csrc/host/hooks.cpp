// What g++ -fsanitize=thread calls at every access of a kernel: not ThreadSanitizer's runtime, but ours.
#include <link.h>

#include <cstdint>

#include "host/execution.h"

namespace jpu::host {
namespace {

// The image of this library, whose constants kernels may read.
struct Image {
  uintptr_t begin = 0, end = 0;

  Image() { dl_iterate_phdr(&Image::visit, this); }

  static int visit(dl_phdr_info* info, size_t, void* self) {
    Image& image = *static_cast<Image*>(self);
    const uintptr_t here = reinterpret_cast<uintptr_t>(&visit);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
      if (segment.p_type == PT_LOAD && here >= begin && here < begin + segment.p_memsz) {
        image.begin = info->dlpi_addr;
        for (int j = 0; j < info->dlpi_phnum; ++j) {
          const auto& s = info->dlpi_phdr[j];
          if (s.p_type == PT_LOAD && info->dlpi_addr + s.p_vaddr + s.p_memsz > image.end) {
            image.end = info->dlpi_addr + s.p_vaddr + s.p_memsz;
          }
        }
        return 1;
      }
    }
    return 0;
  }

  bool holds(uintptr_t address) const { return address >= begin && address < end; }
};

#if defined(JPU_HOST_COVERAGE)
constexpr bool kWritesCounters = true;  // gcov's own counters are in the image
#else
constexpr bool kWritesCounters = false;
#endif

const Image image;

inline void on_access(void* pointer, int bytes, bool write, bool aligned, const void* site) {
  Execution* e = running();
  if (e == nullptr || !e->in_kernel) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (e->on_own_stack(address)) return;
  if (image.holds(address) && (!write || kWritesCounters)) return;
  const InRuntime inside;
  e->access(address, bytes, write, aligned, site);
}

}  // namespace
}  // namespace jpu::host

extern "C" {

#define JPU_HOOK(kind, bytes, write, aligned)                                            \
  void __tsan_##kind##bytes(void* p) {                                                   \
    jpu::host::on_access(p, bytes, write, aligned, __builtin_return_address(0));         \
  }
// The compiler takes the unaligned ones where the type promises less than its size, such as a struct of two
// floats: nvcc splits those accesses.
#define JPU_HOOKS(bytes)                        \
  JPU_HOOK(read, bytes, false, true)            \
  JPU_HOOK(write, bytes, true, true)            \
  JPU_HOOK(volatile_read, bytes, false, true)   \
  JPU_HOOK(volatile_write, bytes, true, true)   \
  JPU_HOOK(unaligned_read, bytes, false, false) \
  JPU_HOOK(unaligned_write, bytes, true, false)
JPU_HOOKS(1)
JPU_HOOKS(2)
JPU_HOOKS(4)
JPU_HOOKS(8)
JPU_HOOKS(16)
#undef JPU_HOOKS
#undef JPU_HOOK

void __tsan_read_range(void* p, long bytes) {
  jpu::host::on_access(p, static_cast<int>(bytes), false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, long bytes) {
  jpu::host::on_access(p, static_cast<int>(bytes), true, false, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"

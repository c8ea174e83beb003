// A kernel around each wrapper, and how it is started.
#pragma once

#include "device/launch.h"
#include "device/memory.h"
#include "device/thread.h"
#include "probe.h"

namespace jpu::probe {

template <class F>
struct Data {
  const typename F::Input* input;  // [items]
  typename F::Output* output;      // [items]
};

JPU_DEVICE int64_t item() { return int64_t{block_index()} * kThreads + thread_index(); }

// F::apply(&input, &output): a thread works on an item, and may use the block's shared memory.
template <class F>
JPU_KERNEL(kThreads, 1) each(JPU_PARAMS Data<F> p) {
  F::apply(p.input + item(), p.output + item());
}

template <class F, class Params>
void start(void (*kernel)(Params), const Params& params, const Data<F>& data, int64_t items) {
  int dynamic_bytes = 0;
  if constexpr (requires { typename F::Shared; }) dynamic_bytes = kDynamicBytes<typename F::Shared>;
  launch("probe", kernel, {items / kThreads, kThreads, dynamic_bytes}, params, nullptr, [&](auto declare) {
    declare(Buffer{"input", data.input, sizeof(*data.input), {items, 1, 1, 1}, {1, 1, 1, 1}, Access::kRead});
    declare(Buffer{"output", data.output, sizeof(*data.output), {items, 1, 1, 1}, {1, 1, 1, 1}, Access::kWrite});
  });
}

template <class F>
Data<F> data_of(const void* input, void* output) {
  return {static_cast<const typename F::Input*>(input), static_cast<typename F::Output*>(output)};
}

template <class F>
void run(const void* input, void* output, int64_t items) {
  const Data<F> data = data_of<F>(input, output);
  start(&each<F>, data, data, items);
}

template <class F>
Case of(const char* name) {
  return {name, sizeof(typename F::Input), sizeof(typename F::Output), &run<F>};
}

}  // namespace jpu::probe

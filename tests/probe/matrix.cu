#include "device/matrix.h"

#include "each.h"

namespace jpu::probe {
namespace {

struct LoadMatrices {
  struct Input {
    uint32_t words[4];  // which the block's threads put beside each other
    uint32_t row;       // that this thread gives to the load, of all of the block
  };
  struct Output {
    uint32_t result[4];
  };
  struct Shared {
    alignas(16) uint32_t words[kThreads][4];
  };

  static JPU_DEVICE void apply(const Input* input, Output* output) {
    Shared& shared = shared_memory<Shared>();
    for (int i = 0; i < 4; ++i) shared.words[thread_index()][i] = input->words[i];
    block_barrier();
    uint32_t result[4];
    load_matrices(result, shared.words[input->row]);
    for (int i = 0; i < 4; ++i) output->result[i] = result[i];
  }
};

template <class T>
struct MultiplyMatrices {
  struct Input {
    uint32_t a[4], b[2];
    float sum[4];
  };
  struct Output {
    float sum[4];
  };

  static JPU_DEVICE void apply(const Input* input, Output* output) {
    uint32_t a[4];
    float sum[4];
    for (int i = 0; i < 4; ++i) a[i] = input->a[i];
    for (int i = 0; i < 4; ++i) sum[i] = input->sum[i];
    multiply_matrices<T>(sum, a, input->b[0], input->b[1]);
    for (int i = 0; i < 4; ++i) output->sum[i] = sum[i];
  }
};

template <class T>
struct RoundTf32 {
  using Input = T;
  using Output = T;
  static JPU_DEVICE void apply(const Input* input, Output* output) { *output = round_tf32(*input); }
};

}  // namespace

std::vector<Case> matrix_cases() {
  return {
      of<LoadMatrices>("load_matrices"),
      of<MultiplyMatrices<float>>("multiply_matrices<float>"),
      of<MultiplyMatrices<float16>>("multiply_matrices<float16>"),
      of<MultiplyMatrices<bfloat16>>("multiply_matrices<bfloat16>"),
      of<RoundTf32<float>>("round_tf32<float>"),
      of<RoundTf32<uint32_t>>("round_tf32<uint32_t>"),
  };
}

}  // namespace jpu::probe

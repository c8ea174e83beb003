// What compute capability 9.0 gives beyond 8.0, as thin wrappers: barriers in shared memory, bulk copies, products of
// warpgroups, clusters. Shared memory is addressed by 32-bit numbers, as these instructions take it.
#pragma once

#include <cuda.h>

#include <cstdint>

#define HOPPER_DEVICE __device__ __forceinline__

namespace hopper {

HOPPER_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// What a launch gave this block, at any address.
HOPPER_DEVICE uint8_t* dynamic_memory() {
  extern __shared__ __align__(1024) uint8_t memory[];
  return memory;
}

// --- a wait that ends ----------------------------------------------------------------------------------------------

// Which wait gave up; in memory of the host, which outlives the trap.
struct alignas(16) Failure {
  uint32_t name, block, thread, step;  // name 0: none
};

struct Watch {
  Failure* failure;
  int64_t cycles;  // that a wait may take
};

HOPPER_DEVICE void give_up(const Watch& watch, uint32_t name, uint32_t step) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(watch.failure), "r"(name), "r"(blockIdx.x),
               "r"(threadIdx.x), "r"(step)
               : "memory");
  __threadfence_system();
  __trap();
}

// --- barriers ------------------------------------------------------------------------------------------------------

HOPPER_DEVICE void init_barrier(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// After all init_barrier of a thread: other threads of the cluster, and the copy engine, see them after the next sync.
HOPPER_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

HOPPER_DEVICE void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// The barrier of the block of that rank in the cluster which lies where `barrier` does in this one.
HOPPER_DEVICE void arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
      "}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Arrives, and makes the phase wait for so many bytes of bulk copies.
HOPPER_DEVICE void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Whether the phase of that parity is over; of a new barrier, phase "minus one" of parity 1 is.
template <bool kCluster>
HOPPER_DEVICE bool is_over(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  if constexpr (kCluster) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
  } else {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(over)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
  return over != 0;
}

template <bool kCluster>
HOPPER_DEVICE void wait(uint32_t barrier, uint32_t parity, const Watch& watch, uint32_t name, uint32_t step) {
  if (is_over<kCluster>(barrier, parity)) return;
  const int64_t start = clock64();
  while (!is_over<kCluster>(barrier, parity)) {
    if (clock64() - start > watch.cycles) give_up(watch, name, step);
  }
}

// What this thread wrote to shared memory, its own or a peer's, is seen by bulk copies and warpgroup products that are
// ordered after it.
HOPPER_DEVICE void fence_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

// Stages of a ring in turn, and the parity of the times around.
template <int kStages>
struct Ring {
  uint32_t stage = 0, phase = 0;
  HOPPER_DEVICE void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// --- clusters ------------------------------------------------------------------------------------------------------

HOPPER_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of the cluster; orders memory between them. Every thread of a warp calls it together.
HOPPER_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

HOPPER_DEVICE uint32_t address_at(uint32_t address, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

HOPPER_DEVICE void store_at(uint32_t address, uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// --- bulk copies ---------------------------------------------------------------------------------------------------

// Addresses and size are multiples of 16.
HOPPER_DEVICE void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

HOPPER_DEVICE void copy_tile_2d(uint32_t to, const CUtensorMap* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// To the same place in each block of the cluster whose bit is set, and to the barrier there.
HOPPER_DEVICE void copy_tile_2d_to(uint16_t blocks, uint32_t to, const CUtensorMap* map, int x, int y,
                                   uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}

HOPPER_DEVICE void copy_tile_4d(uint32_t to, const CUtensorMap* map, int c, int x, int y, int n, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(map), "r"(c), "r"(x), "r"(y), "r"(n), "r"(barrier)
      : "memory");
}

// --- small loads, stores and copies -------------------------------------------------------------------------------

HOPPER_DEVICE void store_shared(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// Two numbers, each rounded to nearest.
HOPPER_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// 16 bytes by this thread, or zeros.
HOPPER_DEVICE void copy_unit(uint32_t to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0) : "memory");
}
HOPPER_DEVICE void commit_units() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
HOPPER_DEVICE void wait_units() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// --- products of a warpgroup ---------------------------------------------------------------------------------------

HOPPER_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
HOPPER_DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
HOPPER_DEVICE void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads or writes of sums across this place.
HOPPER_DEVICE void pin(float (&sum)[128]) {
#pragma unroll
  for (int i = 0; i < 128; ++i) asm volatile("" : "+f"(sum[i])::"memory");
}

#define HOPPER_4(i) "+f"(sum[i]), "+f"(sum[i + 1]), "+f"(sum[i + 2]), "+f"(sum[i + 3])
#define HOPPER_16(i) HOPPER_4(i), HOPPER_4(i + 4), HOPPER_4(i + 8), HOPPER_4(i + 12)
#define HOPPER_64(i) HOPPER_16(i), HOPPER_16(i + 16), HOPPER_16(i + 32), HOPPER_16(i + 48)

// sum += A·Bᵀ of 64 × 16 and 256 × 16 elements of bfloat16, both by rows. In thread t of the warpgroup,
// sum[4 j + 2 i + e] is row t / 32 · 16 + t % 32 / 4 + 8 i, column 8 j + 2 (t % 4) + e.
HOPPER_DEVICE void multiply(float (&sum)[128], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, 1, 1, 1, 0, 0;"
      : HOPPER_64(0), HOPPER_64(64)
      : "l"(a), "l"(b));
}

// The same of 64 × 16 and 128 × 16 elements, into the first or the second half of the columns.
template <int kFirst>
HOPPER_DEVICE void multiply_half(float (&sum)[128], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, 1, 1, 1, 0, 0;"
      : HOPPER_64(kFirst)
      : "l"(a), "l"(b));
}

#undef HOPPER_64
#undef HOPPER_16
#undef HOPPER_4

// Of a whole warpgroup: how many registers each of its threads has from here on.
template <int kRegisters>
HOPPER_DEVICE void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
HOPPER_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace hopper

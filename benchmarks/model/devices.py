"""What devices can do, each figure with the place that it comes from."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20

ASSUMED = (
    "every unit runs at the clock at which NVIDIA states the tensor peak",
    "an SM serves one pass over its shared memory and issues four instructions of warps a cycle",
    "mma.sync reaches the whole tensor peak; what share of it on Hopper, whose peak is stated for wgmma, is not known",
)


@dataclass(frozen=True)
class Device:
    """One GPU.

    Attributes:
        name: as the sheet shows it.
        reported: the name by which the driver knows it.
        arch: what the kernels are compiled for, as in ``sm_90a``.
        sms: multiprocessors.
        clock: in Hz.
        fp32: multiply-adds in float32, a cycle and SM.
        tensor: multiply-adds of tensor cores that sum in float32, a cycle and SM, by dtype; TF32 for float32.
        dram: bytes a second.
        l2: bytes of the L2 cache; a cache in two halves counts whole.
        l2_read: bytes a cycle that L2 delivers; None where NVIDIA gives no figure.
        shared, shared_block: bytes of shared memory of an SM, and that one block may have.
        threads, blocks: most that reside on an SM.
        sources: where the figures are from.
        measured_tensor: FLOP a second of dense matrix products in half precision that one was seen to reach; takes
            the place of the stated peak.
        measured_dram: bytes a second likewise.
        registers: of an SM.
        schedulers: of an SM, one instruction a cycle each.
    """

    name: str
    reported: str
    arch: str
    sms: int
    clock: float
    fp32: int
    tensor: dict[str, int]
    dram: float
    l2: int
    l2_read: int | None
    shared: int
    shared_block: int
    threads: int
    blocks: int
    sources: tuple[str, ...]
    measured_tensor: float | None = None
    measured_dram: float | None = None
    registers: int = 65536
    schedulers: int = 4

    @property
    def bandwidth(self) -> float:
        """Of DRAM, in bytes a second: as measured where it was, else as stated."""
        return self.measured_dram or self.dram

    def fp32_flops(self) -> float:
        """FLOP a second of the FP32 pipe; a multiply-add is two."""
        return 2.0 * self.sms * self.fp32 * self.clock

    def tensor_flops(self, dtype: str) -> float:
        """FLOP a second of dense matrix products: as measured where they were, else as stated."""
        stated = 2.0 * self.sms * self.tensor[dtype] * self.clock
        if self.measured_tensor is None:
            return stated
        # Power limits the clock, so other dtypes are scaled by their share of the work a cycle.
        return self.measured_tensor * self.tensor[dtype] / self.tensor["bfloat16"]

    def peak_flops(self, dtype: str, tensor: bool) -> float:
        """Of a matrix product in this dtype, by tensor cores or by plain multiply-adds."""
        return self.tensor_flops(dtype) if tensor else self.fp32_flops()


_LIMITS = "limits of an SM: CUDA C++ Programming Guide, table of technical specifications by compute capability"

_H100 = Device(
    name="H100 SXM",
    reported="NVIDIA H100 80GB HBM3",
    arch="90a",
    sms=132,
    clock=1.83e9,
    fp32=128,
    tensor={"bfloat16": 2048, "float16": 2048, "float32": 1024},
    dram=3.35e12,
    l2=50 * MIB,
    l2_read=5120,
    shared=228 * KIB,
    shared_block=227 * KIB,
    threads=2048,
    blocks=32,
    measured_tensor=798e12,
    measured_dram=3.0e12,
    sources=(
        "H100 datasheet: 989 TFLOP/s dense bf16, 495 TF32, 3.35 TB/s; 132 SMs × 2048 multiply-adds: 1.83 GHz",
        "H100 whitepaper: 132 SMs, 128 FP32 lanes and 228 KB of shared memory each, 50 MB of L2",
        "798 TFLOP/s dense bf16 and 3.0 TB/s: measured on one H100, and used here in place of the stated peaks",
        "L2 bandwidth: assumed to be A100's 5120 bytes a cycle, since NVIDIA states none",
        _LIMITS,
    ),
)

DEVICES: dict[str, Device] = {
    "h100": _H100,
    "h200": Device(
        name="H200 SXM",
        reported="NVIDIA H200",
        arch="90a",
        sms=132,
        clock=1.83e9,
        fp32=128,
        tensor=_H100.tensor,
        dram=4.8e12,
        l2=50 * MIB,
        l2_read=5120,
        shared=228 * KIB,
        shared_block=227 * KIB,
        threads=2048,
        blocks=32,
        sources=(
            "H200 datasheet: 989 TFLOP/s dense bf16, 4.8 TB/s; the chip is H100's",
            "L2 bandwidth: assumed to be A100's 5120 bytes a cycle, since NVIDIA states none",
            _LIMITS,
        ),
    ),
    "a100": Device(
        name="A100 SXM 80 GB",
        reported="NVIDIA A100-SXM4-80GB",
        arch="80",
        sms=108,
        clock=1.41e9,
        fp32=64,
        tensor={"bfloat16": 1024, "float16": 1024, "float32": 512},
        dram=2.039e12,
        l2=40 * MIB,
        l2_read=5120,
        shared=164 * KIB,
        shared_block=163 * KIB,
        threads=2048,
        blocks=32,
        sources=(
            "A100 datasheet: 312 TFLOP/s dense bf16, 156 TF32, 19.5 FP32, 2039 GB/s (80 GB)",
            "A100 whitepaper: 108 SMs at 1410 MHz, 1024 dense FP16 multiply-adds a cycle and SM, 40 MB of L2 that "
            "delivers 5120 bytes a cycle, 164 KB of shared memory",
            _LIMITS,
        ),
    ),
    "rtx4090": Device(
        name="RTX 4090",
        reported="NVIDIA GeForce RTX 4090",
        arch="89",
        sms=128,
        clock=2.52e9,
        fp32=128,
        tensor={"bfloat16": 256, "float16": 256, "float32": 128},
        dram=1.008e12,
        l2=72 * MIB,
        l2_read=None,
        shared=100 * KIB,
        shared_block=99 * KIB,
        threads=1536,
        blocks=24,
        sources=(
            "Ada whitepaper, appendix A: 128 SMs at 2520 MHz, 82.6 TFLOP/s FP32, 165.2 dense FP16 with FP32 sums, "
            "82.6 TF32, 1008 GB/s, 72 MB of L2",
            _LIMITS,
        ),
    ),
    "rtx3090": Device(
        name="RTX 3090",
        reported="NVIDIA GeForce RTX 3090",
        arch="86",
        sms=82,
        clock=1.695e9,
        fp32=128,
        tensor={"bfloat16": 256, "float16": 256, "float32": 128},
        dram=0.936e12,
        l2=6 * MIB,
        l2_read=None,
        shared=100 * KIB,
        shared_block=99 * KIB,
        threads=1536,
        blocks=16,
        sources=(
            "GA102 whitepaper, appendix A: 82 SMs at 1695 MHz, 35.6 TFLOP/s FP32, 71 dense FP16 with FP32 sums, "
            "35.6 TF32, 936 GB/s, 6 MB of L2",
            _LIMITS,
        ),
    ),
    "l4": Device(
        name="L4",
        reported="NVIDIA L4",
        arch="89",
        sms=58,
        clock=2.04e9,
        fp32=128,
        tensor={"bfloat16": 512, "float16": 512, "float32": 256},
        dram=0.300e12,
        l2=48 * MIB,
        l2_read=None,
        shared=100 * KIB,
        shared_block=99 * KIB,
        threads=1536,
        blocks=24,
        sources=(
            "L4 datasheet: 30.3 TFLOP/s FP32, 121 dense FP16, 60 TF32, 300 GB/s; 7424 lanes are 58 SMs, and the rest "
            "is that at 2040 MHz; 48 MB of L2",
            _LIMITS,
        ),
    ),
}

"""How long a kernel takes at least, and which resource of the device says so.

Each resource is taken for itself, at its full rate, as if all others were free: overlap cannot beat what is predicted,
which is no estimate of the time. Full rates are measured ones where a device has some, so that one which clocks higher
may be faster. What is not modelled: latencies, barriers, instructions outside of the loops that hold the multiply-adds;
L1 hits, which are assumed wherever a block reads a byte again; and what L2 still holds of the launch before, which is
charged to DRAM all the same. The latter makes DRAM's time too long where a call's tensors fit L2, as at small batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import sass
from .binary import Compiled
from .devices import Device
from .kernels import Counts, Kernel
from .occupancy import Occupancy, occupancy
from .work import Work

# Of a launch that follows another on a busy stream: assumed, as no device was measured.
LAUNCH = 2e-6

RESOURCES = ("DRAM", "L2", "shared", "issue", "FP32", "tensor")
_WARP = 32


@dataclass(frozen=True)
class Prediction:
    """Of one kernel.

    Attributes:
        seconds: that each resource is busy; those that nothing is known of are missing.
        occupancy: of the compiled kernel; None without one.
        waves: blocks over those that reside at once; None without a compiled kernel.
        imbalance: what the busiest SM has to do over the average.
        launches: how many there are.
    """

    seconds: Mapping[str, float]
    occupancy: Occupancy | None
    waves: float | None
    imbalance: float
    launches: int

    @property
    def binding(self) -> str:
        """The resource that is busy longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    @property
    def total(self) -> float:
        """Seconds, launches included."""
        return self.seconds[self.binding] + self.launches * LAUNCH


def imbalance(blocks: int, sms: int) -> float:
    """How much more than the average the busiest SM has to do.

    Blocks that share an SM share its units, so a last wave of fewer blocks is shorter too; what counts is that the
    blocks of an SM are a whole number.
    """
    return -(-blocks // sms) / (blocks / sms)


def warp_instructions(loops: Sequence[sass.Loop], main: sass.Loop, main_fused: int, fused: int, matrix: int) -> float:
    """Instructions that warps issue in the loops that hold the multiply-adds.

    Of a loop those count that it always meets, and blocks with multiply-adds as often as these are counted: a block
    that some warps pass by, or that serves another layout, makes this no larger than the truth.

    Args:
        loops: of the kernel.
        main: the one of its product.
        main_fused: multiply-adds of FP32 units in the main loop, unless it has a tensor core's.
        fused: of FP32 units, in all.
        matrix: of tensor cores, in all.

    Returns:
        Those of the main loop, and of the loop with the next most FFMA, to which all other multiply-adds are ascribed.
    """
    by_tensor, some = sass.matrix(main.own), main.sometimes_fused
    if not by_tensor:
        found, rest = _issued(main, main_fused), float(fused - main_fused)
    else:
        trips = matrix / by_tensor
        rest = max(0.0, fused - trips * _WARP * sass.fused(main.always))
        share = min(1.0, rest / (trips * _WARP * sass.fused(some))) if some else 0.0
        found = trips * (len(main.always) + share * len(some))
        rest -= share * trips * _WARP * sass.fused(some)
    others = [loop for loop in loops if loop is not main and sass.fused(loop.own)]
    if rest > 0 and others:
        found += _issued(max(others, key=lambda loop: sass.fused(loop.own)), rest)
    return found


def _issued(loop: sass.Loop, multiply_adds: float) -> float:
    trips = multiply_adds / (_WARP * sass.fused(loop.own))
    return trips * (len(loop.always) + len(loop.sometimes_fused))


def predict(
    device: Device, kernel: Kernel, work: Work, counts: Counts | None = None, compiled: Compiled | None = None
) -> Prediction:
    """Of a kernel in a call.

    Args:
        device: that it runs on.
        kernel: which.
        work: the call.
        counts: of host execution; without them L2, shared memory and issue slots are not known.
        compiled: for this device; without it issue slots and waves are not known.
    """
    moved = kernel.moved(work) + kernel.moved_again(work, device)
    seconds = {"DRAM": moved / device.bandwidth}
    cycle = 1 / device.clock
    if counts is None:
        tensor = kernel.by_tensor_cores(work)
        flops = 2.0 * kernel.multiply_adds(work)
        seconds["tensor" if tensor else "FP32"] = flops / device.peak_flops(work.dtype, tensor)
        launches = kernel.launches(work, device, {}) if kernel.vendor else 1
        return Prediction(seconds, _resident(device, kernel, compiled), None, 1.0, launches)
    blocks, launches = counts["blocks"], kernel.launches(work, device, counts)
    uneven = imbalance(blocks // launches, device.sms)
    fused, matrix = counts["multiply_adds"], counts.get("matrix_multiply_adds", 0)
    if device.l2_read is not None:
        bytes_of_blocks = counts["distinct_read_bytes"] + counts["distinct_write_bytes"]
        seconds["L2"] = bytes_of_blocks / device.l2_read * cycle
    seconds["shared"] = counts["shared_accesses"] / device.sms * cycle * uneven
    seconds["FP32"] = 2.0 * fused / device.fp32_flops() * uneven
    if matrix:
        seconds["tensor"] = 2.0 * matrix / device.tensor_flops(work.dtype) * uneven
    resident = _resident(device, kernel, compiled)
    if compiled is not None and compiled.loop is not None:
        main = fused if kernel.main_multiply_adds is None else kernel.main_multiply_adds(work, counts)
        issued = warp_instructions(compiled.program.loops, compiled.loop, main, fused, matrix)
        seconds["issue"] = issued / (device.sms * device.schedulers) * cycle * uneven
    waves = blocks / launches / (device.sms * resident.blocks) if resident is not None and resident.blocks else None
    return Prediction(seconds, resident, waves, uneven, launches)


def _resident(device: Device, kernel: Kernel, compiled: Compiled | None) -> Occupancy | None:
    if compiled is None:
        return None
    shared = compiled.resources.shared + kernel.dynamic_shared
    return occupancy(device, kernel.threads, compiled.resources.registers, shared)

"""How many blocks reside on a multiprocessor, by NVIDIA's rules."""

from __future__ import annotations

from dataclasses import dataclass

from .devices import Device

_WARP = 32
# Of compute capability 8.0 and newer.
_REGISTER_UNIT = 256  # a warp's registers are handed out in such portions,
_PARTITIONS = 4  # and each quarter of the SM has its own share of them
_SHARED_UNIT = 128
_SHARED_RESERVED = 1024  # bytes a block that the system takes


@dataclass(frozen=True)
class Occupancy:
    """Blocks that reside on an SM.

    Attributes:
        blocks: how many; 0 if not even one does.
        warps: of those blocks.
        limit: what bounds them: "registers", "shared memory", "threads" or "blocks", the scarcest first.
    """

    blocks: int
    warps: int
    limit: str


def occupancy(device: Device, threads: int, registers: int, shared: int) -> Occupancy:
    """Of a kernel.

    Args:
        device: whose limits hold.
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block, static and dynamic.
    """
    warps = -(-threads // _WARP)
    warp_registers = _round_up(registers * _WARP, _REGISTER_UNIT)
    by_registers = device.registers // _PARTITIONS // warp_registers * _PARTITIONS // warps if registers else None
    block_shared = _round_up(shared + _SHARED_RESERVED, _SHARED_UNIT)
    limits = {
        "registers": device.blocks if by_registers is None else by_registers,
        "shared memory": device.shared // block_shared if shared <= device.shared_block else 0,
        "threads": device.threads // _WARP // warps,
        "blocks": device.blocks,
    }
    limit = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limit], limits[limit] * warps, limit)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit

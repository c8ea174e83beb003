"""What a step of the fused kernel should take of each resource, from its shapes alone; source: design.

A step is 64 channels of a tile of 128 pixels and 256 outputs, in one multiprocessor. Nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..model.devices import DEVICES, Device

SOURCE = "design"

PIXELS, OUTPUTS, CHANNELS = 128, 256, 64
HALO_PIXELS = 18 * 10  # of 16 × 8
ELEMENT, TAP = 2, 4  # bytes
TAPS = 9 + 1  # with the summand
WARPGROUPS, DEPTH = 2, 16  # that multiply; channels of an instruction
SHARED_WIDTH = 128  # bytes a cycle of a multiprocessor's shared memory
WARP_BLOCKS = PIXELS // 16  # of 4 × 4 pixels, which a warp makes at a time

# Of a warp and a block of 4 × 4 pixels: multiply-adds, unpacking of 6 × 6 pixels, loads, packing, stores.
INSTRUCTIONS = {"FFMA": 288, "unpack": 72, "LDS": 36 + TAPS, "pack": 16, "STS": 16}

WEIGHT_BYTES = OUTPUTS * CHANNELS * ELEMENT
INPUT_BYTES = HALO_PIXELS * CHANNELS * ELEMENT + TAPS * CHANNELS * TAP
TILE_BYTES = HALO_PIXELS * CHANNELS * ELEMENT
OPERAND_BYTES = PIXELS * CHANNELS * ELEMENT
READ_BYTES = WARP_BLOCKS * (36 * CHANNELS * ELEMENT + TAPS * CHANNELS * TAP)

LAYOUTS = {
    "single": "each block does all of its own",
    "pair": "two blocks share pixels: each makes every other left operand, for both",
    "multicast": "two blocks share outputs: each brings half of the weights, for both",
}
COLUMNS = {"256": 256, "2x128": 128}  # of a product's instruction
PRODUCTS, COPIES, DEPTHWISE = "products", "copies", "depthwise"

LIMIT_OF_PAIR = 1400  # cycles a step, above which the pair's kernel is not built
LEAST_OF_STRIDED = 0.5  # of the rate at stride 1, below which strided tiles come by cp.async; this bench's choice


@dataclass(frozen=True)
class Variant:
    """What runs at once.

    Attributes:
        layout: a key of LAYOUTS.
        columns: a key of COLUMNS.
        active: of PRODUCTS, COPIES and DEPTHWISE.
    """

    layout: str
    columns: str
    active: frozenset[str]

    @property
    def own(self) -> float:
        """The share of the left operands that a block makes itself."""
        return 0.5 if self.layout == "pair" else 1.0


VARIANTS = [
    Variant(layout, columns, frozenset(active))
    for layout in LAYOUTS
    for active in (
        (PRODUCTS,),
        (COPIES,),
        (DEPTHWISE,),
        (PRODUCTS, COPIES),
        (PRODUCTS, DEPTHWISE),
        (COPIES, DEPTHWISE),
        (PRODUCTS, COPIES, DEPTHWISE),
    )
    for columns in COLUMNS
    if layout != "multicast" or (COPIES in active and (PRODUCTS in active or DEPTHWISE not in active))
]


def operand_bytes_read(columns: int) -> int:
    """By the products of a step: both operands of each instruction, the right one once for each warpgroup."""
    instructions = WARPGROUPS * CHANNELS // DEPTH * OUTPUTS // columns
    return instructions * DEPTH * ELEMENT * (PIXELS // WARPGROUPS + columns)


def copied_bytes(variant: Variant) -> float:
    """That the copies of a step bring into a multiprocessor's shared memory."""
    return WEIGHT_BYTES + variant.own * INPUT_BYTES if COPIES in variant.active else 0.0


def shared_bytes(variant: Variant) -> float:
    """That a step moves into and out of a multiprocessor's shared memory."""
    total = copied_bytes(variant)
    if PRODUCTS in variant.active:
        total += operand_bytes_read(COLUMNS[variant.columns])
    if DEPTHWISE in variant.active:
        total += variant.own * READ_BYTES + OPERAND_BYTES  # written here, by itself or by its peer
    return total


def l2_bytes(variant: Variant) -> float:
    """That a step takes from L2 for a multiprocessor."""
    saved = WEIGHT_BYTES / 2 if variant.layout == "multicast" and COPIES in variant.active else 0.0
    return copied_bytes(variant) - saved


def flops(variant: Variant) -> float:
    """Of the products of a step; a multiply-add is two."""
    return 2.0 * PIXELS * OUTPUTS * CHANNELS if PRODUCTS in variant.active else 0.0


def cycles(variant: Variant, device: Device = DEVICES["h100"]) -> dict[str, float]:
    """Cycles of a step by resource, as if each had the multiprocessor to itself."""
    depthwise = variant.own if DEPTHWISE in variant.active else 0.0
    remote = INSTRUCTIONS["STS"] if variant.layout == "pair" else 0
    issued = WARP_BLOCKS * (sum(INSTRUCTIONS.values()) + remote) / device.schedulers
    found = {
        "tensor": flops(variant) / 2 / device.tensor["bfloat16"],
        "shared": shared_bytes(variant) / SHARED_WIDTH,
        "issue": depthwise * issued,
    }
    if device.l2_read is not None:
        found["L2"] = l2_bytes(variant) / (device.l2_read / device.sms)
    return found


def bound(variant: Variant, device: Device = DEVICES["h100"]) -> tuple[str, float]:
    """The resource that takes longest, and its cycles: what a step takes if all the others hide behind it."""
    return max(cycles(variant, device).items(), key=lambda item: item[1])

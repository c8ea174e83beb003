"""The sizes of stage (b), and what it needs whatever computes it: multiply-adds and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .devices import Device

ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Of the stride-8 map, for images of 480×480, 512×512, 512×1024 and 1024×2048.
SIZES = ((60, 60), (64, 64), (64, 128), (128, 256))
BATCHES = (1, 4, 16)
# Of training: crops of 480×480.
TRAINED_SIZES, TRAINED_BATCHES = ((60, 60),), (16,)


@dataclass(frozen=True)
class Work:
    """One call of stage (b): levels at strides 8, 16 and 32, channels_last.

    Attributes:
        batch: images.
        height, width: of the first level; each further one is half of that before, rounded up.
        dtype: of levels and weights.
        levels, channels: how many, and of how many channels each.
        outputs: channels that each dilation makes.
        dilations: of the branches.
    """

    batch: int
    height: int
    width: int
    dtype: str
    levels: int = 3
    channels: int = 512
    outputs: int = 512
    dilations: tuple[int, ...] = (1, 2, 4, 8)

    @property
    def branches(self) -> int:
        return len(self.dilations)

    @property
    def all_channels(self) -> int:
        """Of the concatenation."""
        return self.levels * self.channels

    @property
    def pixels(self) -> int:
        return self.batch * self.height * self.width

    @property
    def element_bytes(self) -> int:
        return ELEMENT_BYTES[self.dtype]

    @property
    def size(self) -> str:
        return f"{self.height}×{self.width}"

    def level_size(self, level: int) -> tuple[int, int]:
        """Height and width of a level as the backbone gives it."""
        return -(-self.height // 2**level), -(-self.width // 2**level)

    def level_bytes(self, first: int = 0) -> int:
        """Of the levels from ``first`` on, as the backbone gives them."""
        pixels = sum(height * width for height, width in map(self.level_size, range(first, self.levels)))
        return self.batch * pixels * self.channels * self.element_bytes

    def resized_bytes(self, levels: int | None = None) -> int:
        """Of so many levels at the first one's size; of all if None."""
        return self.pixels * (self.levels if levels is None else levels) * self.channels * self.element_bytes

    def weight_bytes(self) -> int:
        """Of depthwise and pointwise weights."""
        return self.branches * self.all_channels * (9 + self.outputs) * self.element_bytes

    def depthwise_bytes(self) -> int:
        """Of the depthwise weights alone."""
        return self.branches * self.all_channels * 9 * self.element_bytes

    def term_bytes(self) -> int:
        """Of the folded norms: scale and shift in float32."""
        return self.branches * (self.all_channels + self.outputs) * 2 * 4

    def output_elements(self) -> int:
        return self.pixels * self.branches * self.outputs

    def output_bytes(self) -> int:
        return self.output_elements() * self.element_bytes

    def pointwise_multiply_adds(self) -> int:
        return self.pixels * self.branches * self.all_channels * self.outputs

    def depthwise_multiply_adds(self) -> int:
        return self.pixels * self.branches * self.all_channels * 9

    def stage_bytes(self) -> int:
        """What stage (b) must move: the levels as they come, the weights, the output."""
        return self.level_bytes() + self.weight_bytes() + self.output_bytes()


def floor(device: Device, dtype: str, multiply_adds: int, moved: int, tensor: bool) -> float:
    """Seconds of its multiply-adds at the device's peak, or of its bytes through DRAM, whichever are more.

    Rates are measured ones where the device has some. A higher clock may undercut that, and so may bytes that are in L2
    already.
    """
    return max(2.0 * multiply_adds / device.peak_flops(dtype, tensor), moved / device.bandwidth)


def stage_floor(device: Device, work: Work, tf32: bool = False) -> float:
    """Of stage (b): the pointwise convolutions on tensor cores (FP32 units for float32, unless TF32), or its bytes."""
    tensor = tf32 or work.dtype != "float32"
    return floor(device, work.dtype, work.pointwise_multiply_adds(), work.stage_bytes(), tensor)


def backward_floor(device: Device, work: Work) -> float:
    """Of the gradients of stage (b): two matrix products for each of the forward pass, or its bytes.

    These are the levels, weights and results, each read for one gradient or written as one, and read as such again.
    """
    return floor(
        device, work.dtype, 2 * work.pointwise_multiply_adds(), 2 * work.stage_bytes(), work.dtype != "float32"
    )


def select(
    sizes: Sequence[tuple[int, int]] = SIZES, batches: Sequence[int] = BATCHES, dtypes: Sequence[str] = ("bfloat16",)
) -> list[Work]:
    """The sheet's calls, in its order."""
    return [Work(batch, *size, dtype) for dtype in dtypes for size in sizes for batch in batches]

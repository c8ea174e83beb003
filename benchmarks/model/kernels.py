"""The kernels of inference that the sheet covers; one more is one more entry of CALLS and KERNELS.

A call is something that host execution can run, with the smaller versions of it that are run in its place. A
kernel is one of the launches that a call makes; several launches of one name count as one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jpu_cuda import functional

from .devices import KIB, Device
from .tiles import Rows
from .work import Work

Counts = dict[str, int]

# Of config.h and matrix_config.h: slots of pixels and outputs of a block, bytes of a pixel's chunk of channels, chunks
# of a block of the first of two passes, and what blocks may have of shared memory.
TILE_PIXELS, FMA_OUTPUTS, MATRIX_OUTPUTS = 128, 64, 256
CHUNK_BYTES, SPLIT_CHUNKS = 64, 8
# Of norm_relu/config.h: steps of a thread.
WALK = 8
MMA_SHARED, TWO_PASS_SHARED = 87 * KIB, 96 * KIB


@dataclass(frozen=True)
class Call:
    """What is run.

    Attributes:
        run: makes the launches on CPU tensors, under a backend that was chosen before.
        samples: smaller versions, which between them show each kernel's ``features``.
        policy: how matrix products are done.
        arch: the compute capability of the device that host execution stands for; None for one without tensor cores.
    """

    run: Callable[[Work], object]
    samples: Callable[[Work], Sequence[Work]]
    policy: str = "auto"
    arch: int | None = None


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: of its launches.
        call: key of CALLS; "" for one of PyTorch's, of which no more is known than what it must do.
        policy: the sum of time that it is part of, beside "any", which is part of all of them; None for none.
        source: its instantiation, a path below csrc with ``{dtype}``.
        symbol: what its symbol in the binary matches.
        features: a few numbers of a call that each count is a linear combination of: blocks and their steps, say.
        multiply_adds: that the result needs most of: those of the product, where it has one, without padding.
        moved: bytes that it must move, each once.
        moved_again: bytes that a device's DRAM moves beyond those, since its L2 cache does not hold them.
        known: what a count has beside that combination, by formula.
        tensor: whether its matrix product is one of tensor cores.
        main_multiply_adds: of all counted, those of the main loop; None if it has them all.
        wide: whether its main loop accesses global memory 16 bytes at a time, where loops for other layouts do not.
        threads: of a block.
        dynamic_shared: bytes that a launch adds to the static ones, at most.
        launches: how many there are.
        direction: of training, "forward" or "backward"; None for inference.
    """

    name: str
    call: str
    policy: str | None
    source: str
    symbol: str
    features: Callable[[Work], Sequence[int]]
    multiply_adds: Callable[[Work], int]
    moved: Callable[[Work], int]
    moved_again: Callable[[Work, Device], int] = lambda work, device: 0
    known: Callable[[Work], Counts] = lambda work: {}
    tensor: bool = False
    main_multiply_adds: Callable[[Work, Counts], int] | None = None
    wide: bool = False
    threads: int = 256
    dynamic_shared: int = 0
    launches: Callable[[Work, Device, Counts], int] = lambda work, device, counts: 1
    direction: str | None = None

    @property
    def row(self) -> str:
        """As the sheet calls it."""
        return self.call if self.name == "upsample_concat forward" else self.name

    @property
    def vendor(self) -> bool:
        """Whether it is one of PyTorch's."""
        return not self.call

    def launched(self, work: Work) -> bool:
        """Whether a call has such a launch at all."""
        return self.vendor or any(self.features(work))

    def by_tensor_cores(self, work: Work) -> bool:
        """Whether its product is; PyTorch leaves those of float32 at full precision."""
        return self.tensor and not (self.vendor and work.dtype == "float32")


def dtype_of(work: Work) -> torch.dtype:
    found: torch.dtype = getattr(torch, work.dtype)
    return found


def levels_of(work: Work, resized: bool) -> list[Tensor]:
    """Ones, since neither the path nor the cost depends on values."""
    sizes = [work.level_size(0 if resized else i) for i in range(work.levels)]
    levels = [torch.ones(work.batch, work.channels, *size, dtype=dtype_of(work)) for size in sizes]
    return [level.contiguous(memory_format=torch.channels_last) for level in levels]


def _norm_relu(work: Work) -> object:
    norms = [torch.ones(work.channels)] * work.levels
    return torch.ops.jpu_cuda.norm_relu(
        levels_of(work, resized=False), norms, norms, norms, norms, [1e-5] * work.levels
    )


def _fold(work: Work) -> object:
    # The norms keep their size in samples: they cost next to nothing and are no multiple of the levels.
    full = Work(1, 1, 1, work.dtype, dilations=work.dilations)
    norms = [torch.ones(full.all_channels)] * work.branches + [torch.ones(full.outputs)] * work.branches
    groups = (norms, norms, norms, norms)
    return torch.ops.jpu_cuda.upsample_fold(levels_of(work, resized=False), False, *groups, [1e-5] * len(norms))


def _concat(work: Work) -> object:
    # Half-pixel centres: the pattern of weights repeats from tile to tile.
    return functional.upsample_concat(levels_of(work, resized=False), align_corners=False)


def _pyramid(work: Work) -> object:
    terms = [torch.ones(work.branches, n) for n in (work.all_channels, work.outputs)]
    return functional.separable_pyramid(
        levels_of(work, resized=True),
        torch.ones(work.branches, work.all_channels, 3, 3, dtype=dtype_of(work)),
        torch.ones(work.branches, work.outputs, work.all_channels, dtype=dtype_of(work)),
        work.dilations,
        scale=terms[0],
        shift=terms[0],
        out_scale=terms[1],
        out_shift=terms[1],
    )


def counted_dtype(work: Work) -> str:
    # What is counted depends on the size of elements alone.
    return "bfloat16" if work.dtype == "float16" else work.dtype


def _pixels_of_norm_relu(work: Work) -> tuple[Work, Work]:
    # As many channels as there are, by which tiles go; two small maps.
    small = replace(work, batch=1, height=8, width=8, dtype=counted_dtype(work))
    return small, replace(small, height=16, width=16)


def channels_of_upsample(work: Work) -> tuple[Work, Work]:
    # 64 channels are whole tiles of channels in every dtype. One image.
    small = replace(work, batch=1, channels=64, dtype=counted_dtype(work))
    return small, replace(small, channels=128)


def _channels_of_pyramid(outputs: int) -> Callable[[Work], tuple[Work, Work]]:
    # One image, one tile of outputs, and so few chunks of channels that the whole map takes seconds.
    def samples(work: Work) -> tuple[Work, Work]:
        small = replace(work, batch=1, levels=1, channels=32, outputs=outputs, dtype=counted_dtype(work))
        return small, replace(small, channels=64)

    return samples


CALLS = {
    "norm_relu": Call(_norm_relu, _pixels_of_norm_relu),
    "upsample_fold": Call(_fold, channels_of_upsample),
    "upsample_concat": Call(_concat, channels_of_upsample),
    "fma": Call(_pyramid, _channels_of_pyramid(FMA_OUTPUTS), policy="fma"),
    "mma": Call(_pyramid, _channels_of_pyramid(MATRIX_OUTPUTS), policy="mma", arch=80),
    "two-pass": Call(_pyramid, _channels_of_pyramid(MATRIX_OUTPUTS), policy="two-pass", arch=80),
}


def _level_elements(work: Work) -> int:
    return work.level_bytes() // work.element_bytes


def _norm_relu_features(work: Work) -> tuple[int, int]:
    # Of norm_relu/config.h, for channels_last and whole warps in a row of channels: blocks, each of which works out its
    # channels' terms, and elements.
    rows = Rows(work.channels, work.element_bytes)
    pixels = rows.rows * WALK
    areas = (work.batch * height * width for height, width in map(work.level_size, range(work.levels)))
    return sum(-(-area // pixels) for area in areas) * rows.tiles, _level_elements(work)


def _fold_moved(work: Work) -> int:
    # The norms' weights, biases, means and variances are as many numbers again as two pairs of terms.
    return work.level_bytes(1) + work.resized_bytes(work.levels - 1) + 3 * work.term_bytes()


def _pyramid_moved(work: Work) -> int:
    return work.resized_bytes() + work.weight_bytes() + work.term_bytes() + work.output_bytes()


def levels_again(work: Work, device: Device) -> int:
    # Blocks go image by image, and within one branch by branch: where the cache does not hold the levels of a single
    # image, they come once for each branch.
    of_image = work.resized_bytes() // work.batch
    return (work.branches - 1) * work.resized_bytes() if of_image > device.l2 else 0


def fma_product(work: Work, counts: Counts) -> int:
    return counts["blocks"] * TILE_PIXELS * FMA_OUTPUTS * work.all_channels


def _steps(work: Work) -> tuple[int, int]:
    # The tiles of pixels are those of the real map: blocks for each tile of outputs, and their chunks of channels.
    return work.batch * work.outputs, work.batch * work.outputs * work.all_channels


def chunks(work: Work) -> int:
    return work.levels * -(-work.channels * work.element_bytes // CHUNK_BYTES)


def _splits(work: Work) -> int:
    return -(-chunks(work) // SPLIT_CHUNKS)


def _tile_bytes(work: Work) -> int:
    """Of h, for a tile of pixels."""
    return chunks(work) * TILE_PIXELS * CHUNK_BYTES


def room(work: Work, device: Device, tiles: int) -> int:
    """Tiles of a round of the two passes: as many as half of L2 holds the h of, in whole waves; at least one wave."""
    shares = -(-work.outputs // MATRIX_OUTPUTS)
    fitting = max(device.l2 // 2 // _tile_bytes(work), 1)
    wave = max(device.sms // shares, 1)
    return min(max(fitting // wave * wave, wave), tiles)


def rounds(work: Work, device: Device, tiles: int) -> int:
    """How often the two passes run, one after the other."""
    return -(-tiles // room(work, device, tiles))


def normalised_again(work: Work, device: Device) -> int:
    """Bytes of h that one pass writes to DRAM and the other reads from there: all, where a round's exceed L2."""
    tiles = work.branches * -(-work.pixels // TILE_PIXELS)  # at least
    if room(work, device, tiles) * _tile_bytes(work) <= device.l2:
        return 0
    return work.pixels * work.branches * work.all_channels * work.element_bytes


def _normalise_launches(work: Work, device: Device, counts: Counts) -> int:
    return rounds(work, device, counts["blocks"] // _splits(work))


def product_launches(work: Work, device: Device, counts: Counts) -> int:
    return rounds(work, device, counts["blocks"] // -(-work.outputs // MATRIX_OUTPUTS))


KERNELS = (
    # Of stage (a), so in no sum of stage (b).
    Kernel(
        name="norm_relu forward",
        call="norm_relu",
        policy=None,
        source="norm_relu/forward_{dtype}.cu",
        symbol="norm_relu_forward",
        features=_norm_relu_features,
        multiply_adds=_level_elements,
        # Weights, biases, means and variances are float32.
        moved=lambda work: 2 * work.level_bytes() + 4 * 4 * work.all_channels,
        wide=True,
    ),
    Kernel(
        name="upsample_concat forward",
        call="upsample_fold",
        policy="any",
        source="upsample_concat/forward_{dtype}.cu",
        symbol="upsample_forward",
        # The norms' blocks, and those of the levels.
        features=lambda work: (1, work.batch * work.channels),
        # Three mixes of two values each, one of which is a plain product.
        multiply_adds=lambda work: 3 * work.pixels * (work.levels - 1) * work.channels,
        moved=_fold_moved,
        wide=True,
    ),
    Kernel(
        name="upsample_concat forward",
        call="upsample_concat",
        policy=None,
        source="upsample_concat/forward_{dtype}.cu",
        symbol="upsample_forward",
        features=lambda work: (1, work.batch * work.channels),
        multiply_adds=lambda work: 3 * work.pixels * (work.levels - 1) * work.channels,
        moved=lambda work: work.level_bytes() + work.resized_bytes(),
        wide=True,
    ),
    Kernel(
        name="separable_pyramid forward",
        call="fma",
        policy="fma",
        source="separable_pyramid/forward_{dtype}.cu",
        symbol="pyramid_forward",
        features=_steps,
        multiply_adds=lambda work: work.pointwise_multiply_adds(),
        moved=_pyramid_moved,
        moved_again=levels_again,
        main_multiply_adds=fma_product,
    ),
    Kernel(
        name="separable_pyramid mma",
        call="mma",
        policy="mma",
        source="separable_pyramid/matrix_{dtype}.cu",
        symbol="pyramid_mma",
        features=_steps,
        multiply_adds=lambda work: work.pointwise_multiply_adds(),
        moved=_pyramid_moved,
        moved_again=levels_again,
        tensor=True,
        dynamic_shared=MMA_SHARED,
    ),
    Kernel(
        name="separable_pyramid normalise",
        call="two-pass",
        policy="two-pass",
        source="separable_pyramid/matrix_{dtype}.cu",
        symbol="pyramid_normalise",
        features=lambda work: (work.batch * _splits(work), work.batch * work.all_channels),
        multiply_adds=lambda work: work.depthwise_multiply_adds(),
        # h is written to L2, where the second pass finds it, unless a wave's h is too large for that.
        moved=lambda work: work.resized_bytes() + work.depthwise_bytes() + work.term_bytes(),
        moved_again=lambda work, device: levels_again(work, device) + normalised_again(work, device),
        threads=128,
        launches=_normalise_launches,
    ),
    Kernel(
        name="separable_pyramid product",
        call="two-pass",
        policy="two-pass",
        source="separable_pyramid/matrix_{dtype}.cu",
        symbol="pyramid_product",
        features=_steps,
        multiply_adds=lambda work: work.pointwise_multiply_adds(),
        moved=lambda work: work.weight_bytes() - work.depthwise_bytes() + work.output_bytes(),
        moved_again=normalised_again,
        tensor=True,
        dynamic_shared=TWO_PASS_SHARED,
        launches=product_launches,
    ),
)

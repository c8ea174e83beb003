"""What inference is measured on: the branches of a JPU, a whole JPU, a whole FastFCN, at sizes of stride 8."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jpu_cuda import JPU, use_backend
from jpu_cuda.segment import to_input

from . import cases, measure, systems
from .equivalence import randomise_norms
from .providers import Provider, settings
from .systems import FORMATS
from .verify import Truth, find_truth

PARTS = {"branches": "branches", "jpu": "JPU", "fastfcn": "FastFCN (ResNet-50, Encoding)"}
# The most important first: the order of a run that its budget may cut. A crop of 480 pixels has 60×60 at stride 8.
SHAPES = ((64, 64), (60, 60), (64, 128), (128, 256))
BATCHES = (16, 1, 4)
# tf32 is float32 whose matrix products and convolutions may round their operands.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
CHANNELS = 512
DILATIONS = 4
_BACKBONE = (512, 1024, 2048)  # channels of ResNet's levels at strides 8, 16, 32
W = TypeVar("W", bound="Workload")


@dataclass(frozen=True)
class Workload:
    """One call.

    Attributes:
        part: of the network, a key of :data:`PARTS`.
        height: of the finest level, at stride 8; the coarser ones have half and a quarter, rounded up.
        width: likewise.
        batch: images at once.
        dtype: a key of :data:`DTYPES`.
        memory_format: ``"contiguous"`` (NCHW) or ``"channels_last"``.
        channels: of the JPU's stages and of each branch; FastFCN's has 512.
    """

    part: str
    height: int
    width: int
    batch: int = 1
    dtype: str = "bfloat16"
    memory_format: str = "contiguous"
    channels: int = CHANNELS

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls: type[W], values: Mapping[str, Any]) -> W:
        """The inverse of :meth:`as_dict`; ValueError where the keys are not those of a workload."""
        expected = [field.name for field in fields(cls)]
        if sorted(values) != sorted(expected):
            raise ValueError(f"case: expected the keys {', '.join(expected)}, got {', '.join(values) or 'none'}")
        return cls(**values)

    @property
    def label(self) -> str:
        return f"{self.part} {self.height}×{self.width}, batch {self.batch}, {self.dtype}"

    @property
    def in_any_format(self: W) -> W:
        """The same for all memory formats."""
        return replace(self, memory_format="contiguous")


def select(
    parts: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    dtypes: Sequence[str],
    channels: int,
) -> list[Workload]:
    """All combinations, what stands first in each first: dtype by dtype, part by part."""
    combinations = product(dtypes, parts, shapes, batches)
    return [Workload(p, *shape, batch, dtype, channels=channels) for dtype, p, shape, batch in combinations]


class Pyramid(nn.Module):
    """A JPU's own output; FastFCN's form passes the inputs on as well."""

    def __init__(self, jpu: JPU) -> None:
        super().__init__()
        self.jpu = jpu

    def forward(self, *levels: Tensor) -> Tensor:
        return self.jpu.pyramid(levels)


class Products(nn.Module):
    """The branches' pointwise convolutions alone, as D matrix products of the vendor's library.

    Args:
        into: ``"bmm"`` for one batched product, or ``"slices"`` of a channels_last output for D products.
    """

    def __init__(self, into: str, like: Workload, device: torch.device) -> None:
        super().__init__()
        torch.manual_seed(0)
        kind: dict[str, Any] = {"device": device, "dtype": DTYPES[like.dtype]}
        channels = 3 * like.channels
        self.into = into
        self.weight = nn.Parameter(torch.randn(DILATIONS, channels, like.channels, **kind) / channels**0.5)
        pixels = like.batch * like.height * like.width if into == "slices" else 0
        self.out = torch.empty(pixels, DILATIONS * like.channels, **kind)

    def forward(self, operand: Tensor) -> Tensor:
        """[D, pixels, 3·channels] → [D, pixels, channels] or [pixels, D·channels]."""
        if self.into == "bmm":
            return torch.bmm(operand, self.weight)
        for matrix, weight, out in zip(operand, self.weight, self.out.chunk(DILATIONS, dim=1), strict=True):
            torch.mm(matrix, weight, out=out)
        return self.out

    def outer_images(self, result: Tensor, pixels: int) -> Tensor:
        """[D, pixels, channels] of the first and last image, whichever way the products were made."""
        result = result if self.into == "bmm" else torch.stack(result.chunk(DILATIONS, dim=1))
        return outer_images(result.unflatten(1, (-1, pixels)), 1).flatten(1, 2)


def outer_images(batch: Tensor, dim: int = 0) -> Tensor:
    """The first and the last image, between which an offset goes wrong that is too large for its type."""
    count = batch.shape[dim]
    return batch if count <= 2 else batch.index_select(dim, torch.tensor([0, count - 1], device=batch.device))


@dataclass
class Prepared:
    """A workload's model and inputs, for any memory format, and what its result should be.

    Attributes:
        workload: in any format.
        model: in eval mode.
        inputs: of the model.
        truth: of what :func:`outer_images` leaves.
        flops: of one call, all images.
    """

    workload: Workload
    model: nn.Module
    inputs: list[Tensor]
    truth: Truth
    flops: float

    def compared(self, result: Any) -> Tensor:
        """What of a result is held to the truth."""
        if isinstance(self.model, Products):
            return self.model.outer_images(result, self.workload.height * self.workload.width)
        return outer_images(_output(self.workload.part, result))

    def in_format(self, memory_format: str) -> tuple[nn.Module, list[Tensor]]:
        """Model and inputs; weights and levels are copied where they lie otherwise."""
        if isinstance(self.model, Products):
            return self.model, self.inputs
        layout = FORMATS[memory_format]
        model = copy.deepcopy(self.model).to(memory_format=layout)
        return model, [x.contiguous(memory_format=layout) for x in self.inputs]


def prepare(workload: Workload, provider: Provider, device: torch.device) -> Prepared:
    """Makes model and inputs, and computes what two images of the result should be; for tf32, PyTorch's has TF32."""
    model, inputs = _build(workload, provider, device)
    with settings(workload.dtype == "tf32"):
        if isinstance(model, Products):
            pixels = workload.height * workload.width
            operand = outer_images(inputs[0].unflatten(1, (-1, pixels)), 1).flatten(1, 2)
            with torch.no_grad():
                value = torch.bmm(operand.double(), model.weight.double())
                truth = Truth.of(value, [torch.bmm(operand, model.weight)])
            flops = 2.0 * model.weight.numel() * workload.batch * pixels
        else:
            images = [outer_images(x) for x in inputs]
            truth = find_truth(model, images, partial(_output, workload.part), workload.dtype == "tf32")
            with use_backend("reference"):
                flops = 2e9 * measure.multiply_adds(model, *(x[:1] for x in inputs)) * workload.batch
    return Prepared(workload, model, inputs, truth, flops)


def _output(part: str, result: Any) -> Tensor:
    output: Tensor = result[0] if part == "fastfcn" else result
    return output


def _build(workload: Workload, provider: Provider, device: torch.device) -> tuple[nn.Module, list[Tensor]]:
    dtype = DTYPES[workload.dtype]
    if provider.products is not None:
        pixels = workload.batch * workload.height * workload.width
        generator = torch.Generator(device).manual_seed(1)
        shape = (DILATIONS, pixels, 3 * workload.channels)
        operand = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return Products(provider.products, workload, device), [operand]
    if workload.part == "fastfcn":
        name = "float32" if workload.dtype == "tf32" else workload.dtype
        model = systems.build_model(cases.Case("resnet50", "encoding", "jpu", dtype=name), device)
        image = to_input(systems.photograph(8 * workload.width, 8 * workload.height))
        return model, [image.to(device, dtype).repeat(workload.batch, 1, 1, 1)]
    pyramid, levels = build_pyramid(workload, device)
    return pyramid.to(dtype).eval(), levels


def build_pyramid(workload: Workload, device: torch.device) -> tuple[Pyramid, list[Tensor]]:
    """A JPU with float32 weights, or its branches alone, and levels in the workload's dtype."""
    torch.manual_seed(0)
    whole = workload.part == "jpu"
    channels = _BACKBONE if whole else (workload.channels,) * 3
    with device:
        jpu = JPU(channels, width=workload.channels)
        randomise_norms(jpu)
        if not whole:  # their results are the inputs
            jpu.conv3, jpu.conv4, jpu.conv5 = (nn.Sequential(nn.Identity()) for _ in range(3))
    generator = torch.Generator(device).manual_seed(0)
    levels = []
    for count, stride in zip(channels, (1, 2, 4), strict=True):
        size = -(-workload.height // stride), -(-workload.width // stride)
        shape = workload.batch, count, *size
        level = torch.randn(shape, generator=generator, device=device, dtype=DTYPES[workload.dtype])
        levels.append(level.relu_())  # as what makes them ends with a ReLU
    return Pyramid(jpu), levels

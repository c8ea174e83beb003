"""Cases of separable_pyramid, and what its results are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from helpers import assert_no_worse_than, assert_within, max_error, to_numpy
from hypothesis import strategies as st
from torch import Tensor

from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference.loops import Bounded
from jpu_cuda.reference.separable_pyramid import separable_pyramid as reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Pyramid:
    """Shapes and kinds of a call's arguments; ``terms`` is "none", "channels" or "images" ([N, D, C]).

    ``policy`` other than "fma" means tensor cores, and TF32 for float32; ``workspace`` is what two passes keep.
    """

    batch: int
    channels: tuple[int, ...]
    outputs: int
    size: tuple[int, int]
    dilations: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    terms: str = "channels"
    relu: bool = True
    device: str = "cpu"
    policy: str = "fma"
    workspace: int = 0

    @property
    def options(self) -> tuple[bool, int, str, int]:
        """The operator's arguments that say how products are done."""
        cores = self.policy != "fma"
        return cores, 80 if cores else 0, self.policy, self.workspace

    @property
    def tensor_cores(self) -> bool:
        return self.policy != "fma" and self.dtype != torch.float64

    def arguments(self, seed: int = 0) -> dict[str, Any]:
        """Random levels, lists of weights and terms; sums keep to the scale of their inputs."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.device)

        count, total = len(self.dilations), sum(self.channels)
        images = (self.batch,) if self.terms == "images" else ()
        term_shapes = ((*images, count, total), (*images, count, total), (count, self.outputs), (count, self.outputs))
        terms = (None,) * 4
        if self.terms != "none":
            terms = tuple(
                (normal(*shape) / 4 + (i % 2 == 0)).to(sum_dtype(self.dtype)) for i, shape in enumerate(term_shapes)
            )
        return {
            "levels": [self.laid_out(normal(self.batch, c, *self.size)) for c in self.channels],
            "depthwise": [(normal(total, 1, 3, 3) / 3).to(self.dtype) for _ in self.dilations],
            "pointwise": [(normal(self.outputs, total, 1, 1) / total**0.5).to(self.dtype) for _ in self.dilations],
            "terms": list(terms),
        }

    def gradient(self, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + seed)
        shape = (self.batch, len(self.dilations) * self.outputs, *self.size)
        return self.laid_out(torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.device))

    def laid_out(self, image: Tensor) -> Tensor:
        image = image.to(self.dtype)
        if self.layout == "channels_last":
            return image.contiguous(memory_format=torch.channels_last)
        if self.layout == "channels of more":  # whole vectors each, which do not begin at 16 bytes
            more = torch.cat([image, image[:, :2]], dim=1).contiguous(memory_format=torch.channels_last)
            return more[:, : image.shape[1]]
        if self.layout == "sliced":  # of wider rows
            return torch.cat([image, image], dim=3)[..., : image.shape[3]]
        if self.layout == "transposed":
            return image.transpose(2, 3).contiguous().transpose(2, 3)
        return image


def tensors_of(arguments: dict[str, Any]) -> list[Tensor | None]:
    return [*arguments["levels"], *arguments["depthwise"], *arguments["pointwise"], *arguments["terms"]]


def stacked(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Weights as the public function takes them: [D, C, 3, 3] and [D, O, C]."""
    return torch.stack(arguments["depthwise"]).flatten(1, 2), torch.stack(arguments["pointwise"]).flatten(2)


def by_kernels(case: Pyramid, arguments: dict[str, Any]) -> Tensor:
    a = arguments
    return torch.ops.jpu_cuda.separable_pyramid(
        a["levels"], a["depthwise"], a["pointwise"], list(case.dilations), *a["terms"], case.relu, *case.options
    )


def by_torch(case: Pyramid, tensors: Sequence[Tensor | None], relu: bool) -> Tensor:
    levels, count = len(case.channels), len(case.dilations)
    depthwise, pointwise = tensors[levels : levels + count], tensors[levels + count : levels + 2 * count]
    weights = stacked({"depthwise": depthwise, "pointwise": pointwise})
    return reference(tensors[:levels], *weights, case.dilations, *tensors[levels + 2 * count :], relu)


def to_tf32(x: Tensor) -> Tensor:
    """Rounded to 10 bits of fraction, ties away from zero; of finite float32."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def by_tf32(case: Pyramid, tensors: Sequence[Tensor | None]) -> Tensor:
    """What PyTorch makes of float32 where pointwise convolutions may use TF32: both operands are rounded to it."""
    levels, count = len(case.channels), len(case.dilations)
    u = torch.cat([t for t in tensors[:levels] if t is not None], dim=1)
    scale, shift, out_scale, out_shift = tensors[levels + 2 * count :]
    outputs = []
    for d, dilation in enumerate(case.dilations):
        z = F.conv2d(u, tensors[levels + d], padding=dilation, dilation=dilation, groups=u.shape[1])
        terms = [None if t is None else t[..., d, :, None, None] for t in (scale, shift, out_scale, out_shift)]
        h = z if terms[0] is None else terms[0] * z + terms[1]
        q = F.conv2d(to_tf32(h.contiguous()), to_tf32(tensors[levels + count + d]))
        outputs.append(q if terms[2] is None else terms[2] * q + terms[3])
    out = torch.cat(outputs, dim=1)
    return out.relu() if case.relu else out


def changed(tensors: Sequence[Tensor | None], change: Any) -> list[Tensor | None]:
    return [None if t is None else change(t) for t in tensors]


def check_forward(case: Pyramid) -> Tensor:
    """Holds every entry to a bound that is derived, and all to 1.25 times PyTorch's own error.

    Returns:
        The output.
    """
    arguments = case.arguments()
    out = by_kernels(case, arguments)
    tensors = tensors_of(arguments)
    truth = by_torch(case, changed(tensors, Tensor.double), case.relu)
    assert (out.shape, out.dtype) == (truth.shape, case.dtype)
    # On the CPU, since PyTorch's depthwise convolution on GPUs may forget the layout.
    alike = changed(tensors, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype))
    assert out.stride() == by_torch(case, alike, case.relu).stride()
    magnitude = by_torch(case, changed(tensors, lambda t: t.double().abs()), False)
    assert_bounded(out, truth, magnitude, steps=steps_of(case), operands=operands_of(case))
    if case.dtype != torch.float64:
        assert_no_worse_than(out, exact(truth), [error_of_torch(case, seed) for seed in range(8)])
    return out


def steps_of(case: Pyramid) -> int:
    """Roundings of the sums' type, of half a unit in the last place each, that an output is the result of.

    Tensor cores align products and the sum so far to the largest of them and drop what lies below: up to a unit, that
    is two roundings, of each, for every 16 bytes' worth of products or fewer.
    """
    channels = sum(case.channels)
    return 16 + (2 * (channels + ceil(channels / 4) + len(case.channels)) if case.tensor_cores else channels)


def operands_of(case: Pyramid) -> float:
    """The relative error of a product's operands: h is rounded to the dtype; of TF32 are both."""
    if case.dtype == torch.float32:
        return 2 * 2**-11 + 2**-22 if case.tensor_cores else 0.0
    return torch.finfo(case.dtype).eps / 2 if case.dtype != torch.float64 else 0.0


def assert_bounded(actual: Tensor, truth: Tensor, magnitude: Tensor, steps: int, operands: float) -> None:
    """Asserts that an entry is off by ``steps`` roundings of the sums' type, its operands' and its own."""
    own = torch.finfo(actual.dtype).eps / 2
    sums = steps * torch.finfo(sum_dtype(actual.dtype)).eps / 2
    assert_near(actual, truth, (sums + operands) * magnitude + own * truth.abs())


def assert_near(actual: Tensor, truth: Tensor, bound: Tensor) -> None:
    """Asserts that each entry is within its bound, which higher orders and subnormal numbers widen."""
    if actual.numel():
        error = 1.01 * bound + torch.finfo(actual.dtype).smallest_normal
        assert_within(actual, Bounded(to_numpy(truth), to_numpy(error)))


def exact(truth: Tensor) -> np.ndarray:
    return to_numpy(truth).astype(np.longdouble)


def error_of_torch(case: Pyramid, seed: int) -> float:
    tensors = tensors_of(case.arguments(seed))
    truth = by_torch(case, changed(tensors, Tensor.double), case.relu)
    tf32 = case.tensor_cores and case.dtype == torch.float32
    return max_error(by_tf32(case, tensors) if tf32 else by_torch(case, tensors, case.relu), exact(truth))


def gradients_by_torch(case: Pyramid, tensors: Sequence[Tensor | None], gradient: Tensor) -> list[Tensor]:
    """Of every tensor that is there, from the gradient before the ReLU."""
    leaves = changed(tensors, lambda t: t.detach().clone().requires_grad_())
    out = by_torch(case, leaves, False)
    return list(torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], gradient))


def gradients_by_kernels(case: Pyramid, arguments: dict[str, Any], gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and a gradient of every tensor that is there."""
    tensors = changed(tensors_of(arguments), lambda t: t.detach().requires_grad_())
    levels, count = len(case.channels), len(case.dilations)
    lists = tensors[:levels], tensors[levels : levels + count], tensors[levels + count : levels + 2 * count]
    out = torch.ops.jpu_cuda.separable_pyramid(
        *map(list, lists), list(case.dilations), *tensors[levels + 2 * count :], case.relu, *case.options
    )
    return out, list(torch.autograd.grad(out, [t for t in tensors if t is not None], gradient))


def check_backward(case: Pyramid) -> None:
    """Holds the gradient of every tensor to a derived bound, and to 1.25 times PyTorch's own error.

    Which entries pass the ReLU is taken from the kernels' output: where it is next to 0, rounding decides.
    """
    arguments, gradient = case.arguments(), case.gradient()
    out, gradients = gradients_by_kernels(case, arguments, gradient)
    passes = (out > 0).to(gradient.dtype) if case.relu else torch.ones_like(gradient)
    tensors = tensors_of(arguments)
    truths = gradients_by_torch(case, changed(tensors, Tensor.double), (gradient * passes).double())
    absolute = changed(tensors, lambda t: t.double().abs())
    magnitudes = gradients_by_torch(case, absolute, (gradient * passes).double().abs())
    baselines = []
    for seed in range(8):
        draw, masked = tensors_of(case.arguments(seed)), case.gradient(seed) * passes
        own, true = (
            gradients_by_torch(case, draw, masked),
            gradients_by_torch(case, changed(draw, Tensor.double), masked.double()),
        )
        baselines.append([max_error(a, exact(b)) for a, b in zip(own, true, strict=True)])
    pixels = case.batch * case.size[0] * case.size[1]
    steps = 32 + sum(case.channels) + case.outputs + 9 * len(case.dilations) + pixels
    for got, truth, magnitude, baseline in zip(
        gradients, truths, magnitudes, zip(*baselines, strict=True), strict=True
    ):
        assert got.shape == truth.shape
        # The operand h and the kept dz are rounded to the dtype; terms' gradients are sums of float32.
        own = torch.finfo(case.dtype).eps / 2
        bound = steps * torch.finfo(sum_dtype(case.dtype)).eps / 2 * magnitude + 2 * own * magnitude
        assert_near(got, truth, bound)
        if case.dtype != torch.float64:
            assert_no_worse_than(got, exact(truth), baseline)


# --- cases ---------------------------------------------------------------------------------------------

# Every tile shape, path of access, tail and number of chunks that the kernels know.
CASES = {
    "packed classes, several levels": Pyramid(1, (16, 8, 8), 24, (16, 16), (1, 2, 4, 8), layout="channels_last"),
    "odd channels and sizes": Pyramid(2, (5, 3), 7, (9, 11), (1, 2)),
    "odd channels, channels last": Pyramid(2, (5, 3), 7, (9, 11), (1, 2), layout="channels_last", terms="images"),
    "two tiles of outputs": Pyramid(1, (9,), 70, (8, 17), (3,), relu=False),
    "several chunks": Pyramid(1, (40, 72), 8, (6, 5), (2,), layout="channels_last", terms="none"),
    "large dilation": Pyramid(1, (8,), 8, (33, 19), (16,), layout="channels_last"),
    "one pixel": Pyramid(2, (3,), 2, (1, 1), (1, 5)),
    "transposed": Pyramid(1, (8, 4), 5, (7, 9), (2, 1), layout="transposed"),
    "eight levels, one without channels": Pyramid(1, (3, 1, 0, 2, 8, 1, 1, 5), 6, (5, 7), (1,)),
    "eight dilations": Pyramid(1, (4,), 8, (5, 6), (1, 2, 3, 4, 5, 7, 8, 16), layout="channels_last"),
    "uneven chunks": Pyramid(1, (9, 9, 9), 5, (4, 5), (1,), terms="none"),
    "vectors that are not aligned": Pyramid(1, (8, 16), 8, (3, 8), (1,), layout="channels of more"),
    "sliced": Pyramid(1, (8,), 9, (4, 9), (1,), layout="sliced", terms="images"),
}

# What only the tensor cores' policies know: more chunks than twice their pipelines' stages, of every dtype; blocks of
# outputs, the last not full; every shape of tile.
MATRIX_CASES = {
    "many chunks": Pyramid(1, (160, 136), 24, (5, 9), (2,), layout="channels_last"),
    "many chunks of odd channels": Pyramid(2, (133, 39, 130), 9, (5, 6), (1,), terms="images"),
    "two blocks of outputs": Pyramid(1, (16,), 264, (8, 9), (1, 2), layout="channels_last", relu=False),
    "odd outputs of two blocks": Pyramid(1, (10,), 259, (7, 8), (1,)),
    "large classes": Pyramid(1, (24,), 16, (33, 34), (1, 2), layout="channels_last"),
    "wide": Pyramid(1, (8,), 8, (4, 66), (1, 2), layout="channels_last"),
    "tall": Pyramid(1, (8,), 8, (66, 4), (1, 2), layout="channels_last"),
    "small classes": Pyramid(2, (8, 8), 8, (32, 32), (8, 4, 16), layout="channels_last", terms="images"),
}

_SIDES = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 31, 33)


@st.composite
def pyramids(draw: Any) -> Pyramid:
    """Any that the op takes, small enough for host execution."""
    side = st.sampled_from(_SIDES)
    channels = draw(st.sampled_from([st.integers(1, 9), st.sampled_from([8, 16, 24])]))
    case = Pyramid(
        batch=draw(st.integers(0, 2)),
        channels=tuple(draw(st.lists(channels, min_size=1, max_size=4))),
        outputs=draw(st.sampled_from([1, 3, 8, 16, 67])),
        size=(draw(side), draw(side)),
        dilations=tuple(draw(st.lists(st.integers(1, 16), min_size=1, max_size=3))),
        dtype=draw(st.sampled_from(DTYPES)),
        layout=draw(st.sampled_from(["contiguous", "channels_last", "sliced", "transposed"])),
        terms=draw(st.sampled_from(["none", "channels", "images"])),
        relu=draw(st.booleans()),
    )
    while case.batch * case.size[0] * case.size[1] * len(case.dilations) > 600:
        if case.batch > 1:
            case = replace(case, batch=1)
        elif len(case.dilations) > 1:
            case = replace(case, dilations=case.dilations[:-1])
        else:
            case = replace(case, size=(min(case.size[0], 16), min(case.size[1], 33)))
    return case

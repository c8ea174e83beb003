"""Cases of trained_pyramid, and what its results are held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from helpers import assert_no_worse_than, max_error, to_numpy
from hypothesis import strategies as st
from pyramids import DTYPES, to_tf32
from torch import Tensor

from jpu_cuda import host
from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference.trained_pyramid import _normalise
from jpu_cuda.reference.trained_pyramid import trained_pyramid as reference
from jpu_cuda.reference.upsample_concat import upsample_concat

KINDS = ("batch", "fixed", "mixed", "group")


@dataclass(frozen=True)
class Trained:
    """Shapes and kinds of a call's arguments.

    ``norms`` are those before and after the pointwise convolutions: "batch", "fixed", "mixed" (of these two, by turns)
    or "group". ``ratio`` is that of mean to standard deviation which z and q have. ``absent``: neither weights nor
    biases of norms. ``wide``: norms have the type of sums. ``policy`` other than "fma" means tensor cores, and TF32 for
    float32.
    """

    batch: int
    channels: tuple[int, ...]
    outputs: int
    sizes: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    norms: tuple[str, str] = ("batch", "batch")
    dtype: torch.dtype = torch.float64
    layout: str = "channels_last"
    groups: tuple[int, int] = (2, 2)
    ratio: float = 0
    wide: bool = True
    absent: bool = False
    align_corners: bool = True
    reverse: bool = False
    policy: str = "fma"
    workspace: int = 1 << 28
    device: str = "cpu"

    @property
    def tf32(self) -> bool:
        return self.dtype == torch.float32 and self.policy != "fma"

    @property
    def options(self) -> tuple[bool, int, str]:
        cores = self.policy != "fma"
        return cores, 80 if cores else 0, self.policy

    def arguments(self, seed: int = 0) -> list[Any]:
        """The operator's, but for its options."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.device)

        count, total = len(self.dilations), sum(self.channels)
        levels = [
            self.laid_out(normal(self.batch, c, *size) + self.ratio)
            for c, size in zip(self.channels, self.sizes, strict=True)
        ]
        depthwise = [normal(total, 1, 3, 3) / 3 for _ in self.dilations]
        if self.ratio:  # a padded border would be farther from the mean than anything else
            for weight in depthwise:
                weight[:] = 0
                weight[..., 1, 1] = 1 + normal(total, 1) / 8
        pointwise = [normal(self.outputs, total, 1, 1) / total**0.5 for _ in self.dilations]
        widths = [total] * count + [self.outputs] * count
        kept = sum_dtype(self.dtype) if self.wide else self.dtype
        norm = [normal(2, c) for c in widths]
        weight = [(1 + n[0] / 4).to(kept) for n in norm]
        bias = [(n[1] / 2).to(kept) for n in norm]
        for i in range(count if self.ratio else 0):  # so that q has a mean
            bias[i] = (bias[i].double() + self.ratio / 2 * pointwise[i].mean(0).flatten().sign()).to(kept)
        fixed = [self.fixes(i) for i in range(2 * count)]
        mean = [(normal(c) / 2).to(kept) if f else None for c, f in zip(widths, fixed, strict=True)]
        var = [(1 + normal(c).square()).to(kept) if f else None for c, f in zip(widths, fixed, strict=True)]
        none: list[Tensor | None] = [None] * (2 * count)
        groups = [g if kind == "group" else 0 for g, kind in zip(self.groups, self.norms, strict=True)]
        return [
            levels,
            self.align_corners,
            self.reverse,
            [w.to(self.dtype) for w in depthwise],
            [w.to(self.dtype) for w in pointwise],
            list(self.dilations),
            none if self.absent else weight,
            none if self.absent else bias,
            mean,
            var,
            [1e-5] * (2 * count),
            groups,
        ]

    def fixes(self, i: int) -> bool:
        """Whether the statistics of the i-th norm are given."""
        kind = self.norms[i // len(self.dilations)]
        return kind == "fixed" or (kind == "mixed" and i % 2 == 1)

    def laid_out(self, image: Tensor) -> Tensor:
        image = image.to(self.dtype)
        if self.layout == "channels_last":
            return image.contiguous(memory_format=torch.channels_last)
        if self.layout == "sliced":
            return torch.cat([image, image], dim=1)[:, : image.shape[1]]
        if self.layout == "shifted":  # channels_last, one element behind where vectors begin
            image = image.contiguous(memory_format=torch.channels_last)
            return image.new_empty(image.numel() + 1)[1:].as_strided(image.shape, image.stride(), 1).copy_(image)
        return image


def flat(arguments: Sequence[Any]) -> list[Tensor]:
    """All that may have a gradient."""
    return [t for part in (arguments[0], *arguments[3:5], *arguments[6:8]) for t in part if t is not None]


def changed(arguments: Sequence[Any], change: Any) -> list[Any]:
    """With all tensors changed."""
    return [
        [change(x) if isinstance(x, Tensor) else x for x in part] if isinstance(part, list) else part
        for part in arguments
    ]


def leaves(arguments: Sequence[Any], dtype: torch.dtype | None = None) -> list[Any]:
    """The same values where they lie, which need gradients where they may have some."""
    copies = changed(arguments, lambda x: x.detach().to(dtype or x.dtype))
    for tensor in flat(copies):
        tensor.requires_grad_()
    return copies


def by_kernels(case: Trained, arguments: Sequence[Any]) -> list[Tensor]:
    """Output, q and statistics."""
    if case.device == "cpu":
        host.load()
    return torch.ops.jpu_cuda.trained_pyramid(*arguments, *case.options)


def gradient_of(case: Trained, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    shape = (case.batch, len(case.dilations) * case.outputs, *case.sizes[0])
    return case.laid_out(torch.randn(shape, generator=generator, dtype=torch.float64).to(case.device))


def backward_arguments(case: Trained) -> tuple[Any, ...]:
    """Those of trained_pyramid_backward for every gradient, but for its workspace."""
    arguments = case.arguments()
    with torch.no_grad():
        _, *saved = by_kernels(case, arguments)
    return (*arguments, gradient_of(case), saved, [1] * (len(case.channels) + 6))


def differentiated(case: Trained, arguments: Sequence[Any], gradient: Tensor, kernels: bool) -> list[Tensor]:
    """The output, then all gradients."""
    arguments = leaves(arguments)
    if kernels:
        out = by_kernels(case, arguments)[0]
    else:
        out = by_tf32(*arguments) if case.tf32 and arguments[0][0].dtype == case.dtype else reference(*arguments)
    return [out.detach(), *torch.autograd.grad(out, flat(arguments), gradient)]


class _Tf32Convolution(torch.autograd.Function):
    """A pointwise convolution whose products, those of the gradients too, take operands that are rounded to TF32."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor) -> Tensor:
        image, weight = to_tf32(image.contiguous()), to_tf32(weight)
        ctx.save_for_backward(image, weight)
        return F.conv2d(image, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        image, weight = ctx.saved_tensors
        gradient = to_tf32(gradient.contiguous())
        return F.conv_transpose2d(gradient, weight), torch.einsum("nohw,nchw->oc", gradient, image)[..., None, None]


def by_tf32(
    levels: Sequence[Tensor],
    align_corners: bool,
    reverse: bool,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    dilations: Sequence[int],
    *norms: Sequence[Any],
) -> Tensor:
    """What PyTorch makes of float32 where its convolutions may use TF32, which may depend on shapes and devices."""
    u = upsample_concat(levels, align_corners, reverse)
    count, (*parts, groups) = len(dilations), norms
    outputs = []
    for i, dilation in enumerate(dilations):
        before, after = ([*(part[j] for part in parts), groups[j // count]] for j in (i, count + i))
        z = F.conv2d(u, depthwise[i], padding=dilation, dilation=dilation, groups=u.shape[1])
        outputs.append(_normalise(_Tf32Convolution.apply(_normalise(z, *before), pointwise[i]), *after).relu())
    return torch.cat(outputs, dim=1)


def check_in_float64(case: Trained) -> None:
    """Everything differs from PyTorch's by the order of additions alone."""
    arguments, gradient = case.arguments(), gradient_of(case)
    expected = differentiated(case, arguments, gradient, kernels=False)
    found = differentiated(case, arguments, gradient, kernels=True)
    scale = max(float(x.abs().max()) for x in expected if x.numel() > 0)
    for right, served in zip(expected, found, strict=True):
        torch.testing.assert_close(served, right, rtol=1e-8, atol=1e-11 * scale)


def names_of(case: Trained) -> list[str]:
    count = len(case.dilations)
    norms = [] if case.absent else ["weight", "out_weight", "bias", "out_bias"]
    names = [f"level {i}" for i in range(len(case.channels))]
    return ["output", *names, *["depthwise"] * count, *["pointwise"] * count, *[n for n in norms for _ in range(count)]]


def check_no_worse(case: Trained, draws: int = 16) -> None:
    """Holds the output and all gradients to 1.25 times PyTorch's own error in the same dtype, over several draws.

    The gradient is 0 where the output is near 0: there rounding would decide what passes the ReLU. In float32, what is
    made of the products dqᵀ·ẑ is held to a derived bound: a CPU adds these up one by one in float32, and PyTorch's
    norms have sums of float64 there (of float32 on a GPU). Where float32 means TF32, PyTorch's error is that of
    products of rounded operands.
    """
    truths: list[list[Tensor]] = []
    errors: dict[str, list[float]] = {}
    for seed in range(draws):
        arguments, gradient = case.arguments(seed), gradient_of(case, seed)
        exact = changed(arguments, lambda x: x.double())
        passing = (reference(*exact) - 0.3).sign().clamp(0).to(gradient.dtype)
        gradient = gradient * passing
        truth = differentiated(case, exact, gradient.double(), kernels=False)
        torchs = differentiated(case, arguments, gradient, kernels=False)
        for name, right, theirs in zip(names_of(case), truth, torchs, strict=True):
            errors.setdefault(name, []).append(max_error(theirs, to_numpy(right)))
        truths.append(truth)
        if seed == 0:
            first = arguments, gradient
    found = differentiated(case, *first, kernels=True)
    bounds = product_bounds(case, *first) if case.dtype == torch.float32 and not case.tf32 else {}
    for name, right, ours in zip(names_of(case), truths[0], found, strict=True):
        if name in bounds:
            assert ((ours.double() - right).abs() <= next(bounds[name])).all(), name
            continue
        try:
            assert_no_worse_than(ours, to_numpy(right), errors[name])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def product_bounds(case: Trained, arguments: Sequence[Any], gradient: Tensor) -> dict[str, Iterator[Tensor]]:
    """How far the gradients of pointwise weights, and of the norms' weights before them, may be off by rounding alone.

    They are A·γ + S·βᵀ and Σ_o P·A with A = Σ_p dq·ẑ and S = Σ_p dq: sums of as many terms as there are pixels, and
    outputs, each of which has some roundings of its own: of z (9), ẑ (3), q (a sum over channels), and those of the
    statistics, which are sums over pixels too, and of the last norm (8). What rounds z is relative to its mean too.
    """
    levels, align_corners, reverse, depthwise, pointwise, dilations, weight, bias, mean, var, eps, groups = changed(
        arguments, lambda x: x.double()
    )
    count, pixels = len(dilations), case.batch * case.sizes[0][0] * case.sizes[0][1]
    u = upsample_concat(levels, align_corners, reverse)
    steps = 2 * pixels + case.outputs + u.shape[1] + 32
    weights, products = [], []
    for i, dilation in enumerate(dilations):
        z = F.conv2d(u, depthwise[i], padding=dilation, dilation=dilation, groups=u.shape[1])
        norm = None if weight[i] is None else torch.ones_like(weight[i])
        plain = F.group_norm(z, groups[0]) if groups[0] else F.batch_norm(z, mean[i], var[i], training=mean[i] is None)
        scale = (plain.amax((2, 3)) - plain.amin((2, 3))) / (z.amax((2, 3)) - z.amin((2, 3))).clamp_min(1e-300)
        magnitude = plain.abs() + (z.abs().amax((2, 3)) * scale)[..., None, None]
        h = plain if norm is None else plain * weight[i][:, None, None] + bias[i][:, None, None]
        q = F.conv2d(h, pointwise[i]).requires_grad_()
        j = count + i
        y = (
            F.group_norm(q, groups[1], weight[j], bias[j], eps[j])
            if groups[1]
            else F.batch_norm(q, mean[j], var[j], weight[j], bias[j], training=mean[j] is None, eps=eps[j])
        )
        passed = gradient[:, i * case.outputs : (i + 1) * case.outputs].double()
        (dq,) = torch.autograd.grad(y.relu(), q, passed)
        # dq has its own roundings beside those of its terms: of g, and of the bracket that g exceeds by no more.
        size = dq.abs() + dq.abs().amax((0, 2, 3), keepdim=True)
        dh = F.conv_transpose2d(size, pointwise[i].abs())
        rounding = steps * torch.finfo(torch.float32).eps / 2
        weights.append(rounding * (dh * magnitude).sum((0, 2, 3)))
        terms = magnitude if norm is None else magnitude * weight[i].abs()[:, None, None] + bias[i].abs()[:, None, None]
        products.append(rounding * torch.einsum("nohw,nchw->oc", size, terms)[..., None, None])
    return {"weight": iter(weights), "pointwise": iter(products)}


@st.composite
def cases(draw: Any, dtypes: Sequence[torch.dtype] = DTYPES, least: int = 1) -> Trained:
    """Whatever fits; ``least``: pixels a side of the first level, and images, at least."""
    count = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([(1, 1), (2, 4), (4, 2)]))
    channels = tuple(4 * draw(st.integers(1, 6)) for _ in range(count))
    side = st.integers(1, 9)
    first = st.integers(max(least, 2), 9)
    sizes = ((draw(first), draw(first)), *((draw(side), draw(side)) for _ in range(count - 1)))
    return Trained(
        draw(st.integers(min(least, 2), 3)),
        channels,
        4 * draw(st.integers(1, 6)),
        sizes,
        tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 8, 16]), min_size=1, max_size=3))),
        (draw(st.sampled_from(KINDS)), draw(st.sampled_from(KINDS))),
        draw(st.sampled_from(list(dtypes))),
        draw(st.sampled_from(["contiguous", "channels_last", "sliced"])),
        groups,
        wide=draw(st.booleans()),
        absent=draw(st.booleans()),
        align_corners=draw(st.booleans()),
        reverse=draw(st.booleans()),
        workspace=draw(st.sampled_from([1, 1 << 28])),
    )

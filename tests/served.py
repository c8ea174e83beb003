"""JPUs whose norms have fixed statistics, and what those that kernels serve are held to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from helpers import pyramid, randomise
from torch import Tensor, nn

from jpu_cuda import JPU, host, mmseg, use_backend

CHANNELS = (4, 8, 16)


FUSED = ["upsample_concat forward", "separable_pyramid forward"]
INFERENCE = ["norm_relu forward", *FUSED]  # where nothing needs a gradient: the stages' norms and ReLUs too
# Where something does; of norms whose statistics are fixed, so that none of z are taken.
TRAINED = [
    "upsample_concat forward",
    "norm_statistics statistics",
    "separable_pyramid forward with moments",
    "norm_statistics statistics",
    "norm_relu output",
]
# Of norms that take the statistics of a batch or of groups.
MEASURED = [TRAINED[0], "separable_pyramid training moments", *TRAINED[1:]]


def levels_of(**kwargs: Any) -> list[Tensor]:
    return pyramid(CHANNELS, **kwargs)


def run(module: nn.Module, levels: list[Tensor], backend: str) -> tuple[Tensor, list[str]]:
    """The output, and the kernels that were launched."""
    inputs = (levels,) if isinstance(module, mmseg.JPU) else levels
    with use_backend(backend), host.record() as launches:
        out = module(*inputs)
    return out[-1] if isinstance(out, tuple) else out, [launch.kernel for launch in launches]


def jpu_of(norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d, seed: int = 0) -> JPU:
    torch.manual_seed(seed)
    return randomise(JPU(CHANNELS, width=8, norm_layer=norm_layer), seed).double().eval()


def check_lower_precision(dtype: torch.dtype, wide_norms: bool, device: str = "cpu") -> None:
    """Holds the output and all gradients to 1.25 times PyTorch's own error.

    Of several draws, over all four branches; stages are left out, whose own error would hide the rest.
    """
    kernels = "host" if device == "cpu" else device
    errors: dict[str, list[tuple[float, float, float]]] = {}
    for seed in range(4):
        jpu = jpu_of(seed=seed).to(device, dtype)
        jpu.conv3, jpu.conv4, jpu.conv5 = (nn.Sequential(nn.Identity()) for _ in range(3))
        for module in jpu.modules():
            if wide_norms and isinstance(module, nn.BatchNorm2d):
                module.float()
        levels = pyramid((8, 8, 8), dtype=dtype, seed=seed, device=device)
        exact = copy.deepcopy(jpu).double()
        magnitudes = _watch_norms(exact)
        truth = _results(exact, [x.double() for x in levels], "reference")
        passing = truth["out"] > 0.1  # so that rounding does not decide what passes the ReLU
        truth, torchs, served = (
            _results(module, [x.to(kind) for x in levels], backend, passing)
            for module, kind, backend in (
                (exact, torch.float64, "reference"),
                (jpu, dtype, "reference"),
                (jpu, dtype, kernels),
            )
        )
        for name, right in truth.items():
            if name in magnitudes and dtype == torch.float32:
                # Sums that are not centred, over pixels and channels; PyTorch's are.
                bound = (16 + 24 + passing[:, 0].numel()) * torch.finfo(dtype).eps / 2 * magnitudes[name]()
                assert ((served[name].double() - right).abs() <= bound).all(), name
                continue
            found = [float((x[name].double() - right).abs().max()) for x in (served, torchs)]
            rounding = torch.finfo(served[name].dtype).eps / 2 * float(right.abs().max())
            errors.setdefault(name.translate(str.maketrans("", "", "1234")), []).append((*found, rounding))
    for name, rows in errors.items():
        ours, torchs, rounding = (max(column) for column in zip(*rows, strict=True))
        assert ours <= 1.25 * torchs + rounding, (name, ours, torchs, rounding)


def _results(module: JPU, levels: list[Tensor], backend: str, passing: Tensor | None = None) -> dict[str, Tensor]:
    """The output, and gradients of the levels and of all parameters by name."""
    module.zero_grad()
    levels = [level.detach().requires_grad_() for level in levels]  # without the gradients of a run before
    with use_backend(backend):
        out = module.pyramid(levels)
    gradient = torch.linspace(-1, 1, out.numel(), device=out.device).to(out.dtype).view_as(out)
    out.backward(gradient if passing is None else gradient * passing)
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}
    return {"out": out.detach(), **{f"level{i}": x.grad for i, x in enumerate(levels, start=1)}, **gradients}


def _watch_norms(module: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """For the name of each norm's weight, what gives the magnitude of its gradient's terms after a backward pass."""
    found = {}
    for name, norm in module.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            seen: dict[str, Tensor] = {}

            def forward(norm: nn.Module, args: tuple[Tensor], out: Tensor, seen: dict[str, Tensor] = seen) -> None:
                seen["x"] = args[0].detach().abs()
                out.register_hook(lambda gradient: seen.update(gradient=gradient.abs()))

            def magnitude(norm: nn.BatchNorm2d = norm, seen: dict[str, Tensor] = seen) -> Tensor:
                x, gradient = seen["x"], seen["gradient"]
                sums = (x + norm.running_mean.abs()[:, None, None]) * gradient
                return sums.sum((0, 2, 3)) / (norm.running_var + norm.eps).sqrt()

            norm.register_forward_hook(forward)
            found[f"{name}.weight"] = magnitude
    return found


# --- what may change between calls ---------------------------------------------------------------------


def write_data(jpu: JPU, other: JPU) -> None:
    for mine, theirs in zip((*jpu.parameters(), *jpu.buffers()), (*other.parameters(), *other.buffers()), strict=True):
        mine.data.copy_(theirs.data)


def swap_data(jpu: JPU, other: JPU) -> None:
    """As averages of weights are put into a model for its validation."""
    for mine, theirs in zip((*jpu.parameters(), *jpu.buffers()), (*other.parameters(), *other.buffers()), strict=True):
        mine.data, theirs.data = theirs.data, mine.data


def train_a_step(jpu: JPU, other: JPU) -> None:
    """Which moves the statistics, whose version does not tell."""
    jpu.train()(*levels_of(seed=5))
    jpu.eval()

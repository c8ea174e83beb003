"""JPUs in training, by PyTorch and by the kernels, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from helpers import pyramid, randomise
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jpu_cuda import JPU, JPU_X, host, mmseg, models, use_backend
from jpu_cuda.modules.fastfcn import TramacJPU
from jpu_cuda.modules.sssegmentation import SSSegmentationJPU

CHANNELS = (4, 8, 16)
X_CHANNELS = (8, 128, 16)  # JPU_X: the second is twice the width

MOMENTS = "separable_pyramid forward with moments"

GROUP_NORM = {"type": "GN", "num_groups": 4, "requires_grad": True}

MODULES: dict[str, Callable[[], nn.Module]] = {
    "JPU": lambda: JPU(CHANNELS, width=8),
    "JPU without aligned corners": lambda: JPU(
        CHANNELS, width=8, up_kwargs={"mode": "bilinear", "align_corners": False}
    ),
    "TramacJPU": lambda: TramacJPU(CHANNELS, width=8),
    "JPU_X": lambda: JPU_X(X_CHANNELS, width=64),
    "mmseg.JPU": lambda: mmseg.JPU(CHANNELS, 8),
    "mmseg.JPU with GroupNorm": lambda: mmseg.JPU(CHANNELS, 8, norm_cfg=GROUP_NORM),
    "SSSegmentationJPU": lambda: SSSegmentationJPU(CHANNELS, 8),
}


def kernels_of(device: str) -> str:
    """The backend."""
    return "host" if device == "cpu" else "cuda"


def recorded(device: str) -> AbstractContextManager[list[host.Launch]]:
    """The launches of host execution; of a GPU there are none to see."""
    return host.record() if device == "cpu" else nullcontext([])


def levels_for(module: nn.Module, **kwargs: Any) -> list[Tensor]:
    if isinstance(module, JPU_X):  # whose dilations take many tiles of an image
        return pyramid(X_CHANNELS, batch=1, **kwargs)
    return pyramid(CHANNELS, **kwargs)


def bare(jpu: JPU, width: int = 8) -> JPU:
    """Without stages: all that is left is the kernels'."""
    jpu.conv3, jpu.conv4, jpu.conv5 = (nn.Sequential(nn.Identity()) for _ in range(3))
    jpu.level_channels = (width,) * 3
    return jpu


def inputs_of(module: nn.Module, levels: list[Tensor]) -> tuple[Any, ...]:
    """What the module is called with."""
    if isinstance(module, JPU_X):
        return levels[0], *levels
    if isinstance(module, JPU) and not isinstance(module, mmseg.JPU | SSSegmentationJPU):
        return tuple(levels)
    return (levels,)


def call(module: nn.Module, levels: list[Tensor]) -> Tensor:
    return module(*inputs_of(module, levels))[-1]


def results(
    module: nn.Module, levels: list[Tensor], backend: str, gradient: Tensor | None = None, **options: Any
) -> tuple[dict[str, Tensor | None], list[str]]:
    """Of a copy of the module: output, gradients, buffers afterwards; and what was launched."""
    module = copy.deepcopy(module)
    module.zero_grad()
    levels = [level.detach().requires_grad_(level.requires_grad) for level in levels]
    with use_backend(backend, **options), recorded(levels[0].device.type) as launches:
        out = call(module, levels)
        found: dict[str, Tensor | None] = {"out": out.detach()}
        if out.requires_grad:
            if gradient is None:
                gradient = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).to(out).view_as(out)
            out.backward(gradient)
    found |= {f"level{i}": level.grad for i, level in enumerate(levels)}
    found |= {name: p.grad for name, p in module.named_parameters()}
    found |= dict(module.named_buffers())
    return found, [launch.kernel for launch in launches]


def assert_alike(module: nn.Module, levels: list[Tensor], **options: Any) -> list[str]:
    """That float64 differs by the order of additions only; returns what was launched."""
    expected, none = results(module, levels, "reference")
    found, kernels = results(module, levels, kernels_of(levels[0].device.type), **options)
    assert none == []
    # A bias before batch statistics has a gradient that is zero but for rounding, so the scale is that of all.
    scale = max(float(x.abs().max()) for x in expected.values() if x is not None and x.numel() > 0)
    for name, right in expected.items():
        assert (right is None) == (found[name] is None), name
        if right is not None:
            torch.testing.assert_close(
                found[name], right, rtol=1e-9, atol=1e-12 * scale, msg=lambda m, name=name: f"{name}: {m}"
            )
    return kernels


def made(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return randomise(MODULES[name](), seed).double()


def saved_bytes(jpu: JPU, levels: list[Tensor], backend: str) -> int:
    """Of the storages that a forward pass keeps, without parameters."""
    storages: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in jpu.parameters()}
    kept = []  # or an address might be given out again

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), use_backend(backend):
        out = jpu.pyramid(levels)
    assert out.requires_grad
    return sum(size for address, size in storages.items() if address not in parameters)


def check_saved_bytes(width: int, sizes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: str = "cpu") -> None:
    """That a sixth of eager's activations is kept, of branches alone."""
    jpu = bare(JPU((width,) * 3, width=width), width).to(device, dtype).train()
    for norm in (m for m in jpu.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.float()  # as under autocast
    levels = pyramid((width,) * 3, sizes, dtype=dtype, device=device, requires_grad=True)
    ours, eager = (saved_bytes(jpu, levels, backend) for backend in (kernels_of(device), "reference"))
    assert eager >= 35 * width * levels[0].shape[0] * sizes[0][0] * sizes[0][1] * dtype.itemsize
    assert eager >= 6 * ours


def amplified(dtype: torch.dtype, backend: str, device: str, scale: float = 1024.0) -> tuple[list[float], float]:
    """Losses of a few steps under autocast with a gradient scaler, and the scale that is left."""
    jpu = made("JPU").float().to(device).train()
    optimizer = torch.optim.SGD(jpu.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(device, init_scale=scale)
    losses = []
    for step in range(4):
        levels = levels_for(jpu, dtype=torch.float32, seed=step, device=device)
        with use_backend(backend), torch.autocast(device, dtype):
            out = jpu(*levels)[-1]
            assert out.dtype == dtype
            loss = (out.float() - 1).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert {p.grad.dtype for p in jpu.parameters() if p.grad is not None} == {torch.float32}
    return losses, scaler.get_scale()


def check_amplified(dtype: torch.dtype, device: str = "cpu") -> None:
    """Losses, scale and parameters as PyTorch's, within its own rounding."""
    expected, scale = amplified(dtype, "reference", device)
    ours, our_scale = amplified(dtype, kernels_of(device), device)
    assert scale == our_scale
    assert ours[-1] < ours[0]
    for one, other in zip(ours, expected, strict=True):
        # Means over thousands of values, each of which may be rounded otherwise a few times.
        assert abs(one - other) <= 4 * torch.finfo(dtype).eps * other


def check_checkpointed(reentrant: bool, device: str = "cpu") -> None:
    """Running statistics move twice, as PyTorch's do, where anything in the checkpoint follows the JPU."""
    found = []
    for backend in ("reference", kernels_of(device)):
        jpu = made("JPU").to(device).train()
        levels = levels_for(jpu, requires_grad=True, device=device)
        with use_backend(backend):
            out = checkpoint(lambda *x, jpu=jpu: jpu(*x)[-1].square(), *levels, use_reentrant=reentrant)
            out.sum().backward()
        found.append([out.detach(), *(p.grad for p in jpu.parameters()), *(x.grad for x in levels), *jpu.buffers()])
    for expected, served in zip(*found, strict=True):
        torch.testing.assert_close(served, expected, rtol=1e-9, atol=1e-8)


def learned(backend: str, dtype: torch.dtype, steps: int, device: str = "cpu") -> list[float]:
    """Losses of a FastFCN that learns generated scenes, in which colours say nearly all."""
    torch.manual_seed(0)
    model = models.fastfcn("resnet50", "jpu", "fcn", num_classes=3, width=8).to(device, dtype).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 33, 40, generator=generator, dtype=torch.float64).to(device, dtype)
    targets = images.argmax(1)
    losses = []
    for _ in range(steps):
        torch.manual_seed(2)  # the head's dropout
        with use_backend(backend), recorded(device) as launches:
            logits = model(images)[0]
            loss = F.cross_entropy(logits, targets)
        assert (MOMENTS in [launch.kernel for launch in launches]) == (backend == "host")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses

"""The operator library and what registrations share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import register_flop_formula

from .. import _extension

LIBRARY = torch.library.Library("jpu_cuda", "FRAGMENT")

# Where the package is imported a second time (reloaded, or from another path), its first copy's operators stay.
_KEPT = "_kept_library"  # deleting it would take its operators along
_FIRST = not hasattr(torch.ops.jpu_cuda, _KEPT)
if _FIRST:
    setattr(torch.ops.jpu_cuda, _KEPT, LIBRARY)


def define(schema: str) -> None:
    """Defines an operator that compiles, exports and has right fake kernels."""
    if _FIRST:
        LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))


def register(name: str, function: Callable[..., Any], key: str) -> None:
    """Registers an implementation for a dispatch key."""
    if _FIRST:
        LIBRARY.impl(name, function, key)


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the function that gives an operator's results without computing them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if _FIRST:
            torch.library.register_fake(f"jpu_cuda::{name}", function, lib=LIBRARY)
        return function

    return decorate


def register_flops(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorates the function that counts an operator's multiplications and additions, by the shapes of its arguments.

    PyTorch's counter knows its own operators only, and would take others for nothing.
    """

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        if _FIRST:
            register_flop_formula(getattr(torch.ops.jpu_cuda, name))(function)
        return function

    return decorate


def is_batched(tensors: Sequence[Tensor]) -> bool:
    """Whether a transform runs, as torch.autograd.functional.jacobian(vectorize=True) makes one of a backward pass.

    They know PyTorch's own operators only.
    """
    if torch._C._are_functorch_transforms_active():
        return True
    return any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """For what is below autocast: its tensors have the dtypes that they were cast to, and keep them."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def differentiate(
    function: Callable[[list[Tensor | None]], Tensor],
    tensors: Sequence[Tensor | None],
    gradient: Tensor,
    needed: Sequence[bool],
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients of a reference's tensors: in batches, or with a graph of their own, for second derivatives."""
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(gradient.device):
        pairs = zip(tensors, needed, strict=True)
        inputs = [None if t is None else _leaf(t, wanted, create_graph) for t, wanted in pairs]
        output = function(inputs)
        asked = [t for t, wanted in zip(inputs, needed, strict=True) if wanted and t is not None]
        found = iter(torch.autograd.grad(output, asked, gradient, create_graph=create_graph))
    return [next(found) if wanted else None for wanted in needed]


def _leaf(tensor: Tensor, wanted: bool, create_graph: bool) -> Tensor:
    """What to differentiate by: an alias of its own, so that of tensors that depend on each other none counts twice."""
    if create_graph:
        return tensor.view_as(tensor)
    if tensor.is_inference():
        tensor = tensor.clone()
    return tensor.detach().requires_grad_(wanted)


def register_reference(name: str, function: Callable[..., Any], position: int = 0) -> None:
    """Registers what serves an operator where no kernel is loaded: an exported program may be the first to call it.

    The GPU binary is looked for then, as :func:`jpu_cuda.backend.choose` does for functions and modules.
    ``position``: of the argument whose tensors, one or more, say on which device.
    """
    operator = getattr(torch.ops.jpu_cuda, name)

    def serve(*arguments: Any) -> Any:
        tensors = arguments[position]
        if not tensors:  # without a device to choose by, the dispatcher calls this
            raise ValueError(f"{name}: expected at least one tensor, got none")
        if tensors[0].is_cuda and _extension.load().available:
            return operator(*arguments)
        return function(*arguments)

    register(name, serve, "CompositeExplicitAutograd")


def register_backward(name: str) -> None:
    """Registers what autograd makes of an operator's derivative, ``name``_backward: nothing, and says what to do."""
    operator = getattr(torch.ops.jpu_cuda, f"{name}_backward")

    def refuse(*arguments: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(arguments)):
            raise RuntimeError(
                f"{name}_backward: expected inputs that need no gradient, got some that do; differentiate {name} "
                "twice, which works"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    register(f"{name}_backward", refuse, "Autograd")


def register_autocast(name: str, function: Callable[..., Any]) -> None:
    """Registers what autocast makes of the arguments; it returns those to call the operator with."""
    operator = getattr(torch.ops.jpu_cuda, name)

    def register_for(key: str) -> None:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def autocast(*args: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return operator(*function(*args))

        register(name, autocast, key)

    register_for("AutocastCUDA")
    register_for("AutocastCPU")


def widest(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Casts to the widest dtype among them, as autocast does for ``torch.cat``."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


# What the kernels are instantiated for.
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the kernels keep sums of a dtype in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_images(name: str, images: Sequence[Tensor]) -> None:
    """What the binding checks, for fake kernels: they would answer for anything without a word."""
    if not images:
        raise ValueError(f"{name}: expected at least one, got none")
    first = images[0]
    if first.dtype not in DTYPES:
        raise ValueError(f"dtype: expected float64, float32, float16 or bfloat16, got {first.dtype}")
    for i, image in enumerate(images):
        if image.dim() != 4:
            raise ValueError(f"{name}[{i}]: expected 4 dimensions [N, C, H, W], got {image.dim()}")
        for what in ("dtype", "device"):
            expected, got = getattr(first, what), getattr(image, what)
            if got != expected:
                raise ValueError(f"{name}[{i}]: expected {what} {expected} as {name}[0], got {got}")
        if image.shape[0] != first.shape[0]:
            raise ValueError(f"{name}[{i}]: expected batch size {first.shape[0]} as {name}[0], got {image.shape[0]}")
        check_size(f"{name}[{i}]", image.shape[2], image.shape[3])


_LARGEST = 2**30  # kMaxSize of csrc


def check_size(name: str, height: Any, width: Any) -> None:
    """As :func:`check_images`; sizes that are symbols are left to the binding."""
    if any(isinstance(size, int) and not 1 <= size <= _LARGEST for size in (height, width)):
        raise ValueError(f"{name}: expected height and width from 1 to {_LARGEST}, got {height} and {width}")


def suggests_channels_last(image: Tensor) -> bool:
    """As ``Tensor::suggest_memory_format`` in C++ and the binding decide: strides ascend C, W, H, N.

    Python's copy of that rule (``torch._prims_common``) differed in some cases before torch 2.11.
    """
    size, stride = image.shape, image.stride()
    least: Any = 0
    if stride[1] == 0:
        return False
    for d in (1, 3, 2, 0):
        if size[d] == 0 or stride[d] < least:
            return False
        if d == 0 and least == stride[1]:  # N·1·1·1 and the like: nothing tells the formats apart
            return False
        least = stride[d] * size[d] if size[d] > 1 else stride[d]
    return True


def empty_image(like: Tensor, channels: Any, height: Any, width: Any, formats: Sequence[Tensor]) -> Tensor:
    """An uninitialised [N, channels, height, width], channels_last if all of ``formats`` are."""
    channels_last = all(suggests_channels_last(tensor) for tensor in formats)
    return torch.empty(
        (like.shape[0], channels, height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )

"""Argument checks shared by the public functions and modules; every message says expected and got."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_autocasting(device: torch.device) -> bool:
    """Whether autocast is on for a device; it never is on one that has none, such as meta."""
    return _has_autocast(device.type) and torch.is_autocast_enabled(device.type)


# Nothing for torch.compile to look into: before torch 2.14 it cannot.
@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def same_for_convolution(a: Tensor, b: Tensor) -> bool:
    """Whether the dtypes of two tensors on one device agree once autocast, if on, has cast them.

    It brings every floating-point dtype to one, but leaves float64 alone.
    """
    if is_autocasting(a.device):
        return (a.dtype == torch.float64) == (b.dtype == torch.float64)
    return a.dtype == b.dtype


def as_convolved(level: Tensor) -> Tensor:
    """A tensor with the device and dtype of what convolutions make of ``level``: under autocast they have its dtype."""
    if is_autocasting(level.device) and level.dtype != torch.float64:
        return level.new_empty(0, dtype=torch.get_autocast_dtype(level.device.type))
    return level


def check_flag(name: str, value: bool) -> None:
    """Raises TypeError for anything but a bool: 0.5 or "no" would count as True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {value!r}")


def check_levels(levels: Sequence[Tensor], channels: Sequence[int] | None = None, *, name: str = "levels") -> None:
    """Checks a pyramid of feature maps.

    Args:
        levels: feature maps [N, C_i, H_i, W_i].
        channels: the channels that each level must have; not checked if None.
        name: how the caller calls them, for the message.

    Raises:
        TypeError: not a sequence, or a level that is not a strided floating-point tensor.
        ValueError: no levels, or levels that are not 4-D, are empty in height or width, have other
            channels than expected, or differ from each other in batch size, dtype or device.
    """
    if not isinstance(levels, Sequence) or isinstance(levels, str):
        raise TypeError(f"{name}: expected a sequence of tensors, got {type(levels).__name__}")
    if len(levels) == 0:
        raise ValueError(f"{name}: expected at least one level, got none")
    for i, level in enumerate(levels):
        if not isinstance(level, Tensor):
            raise TypeError(f"{name}[{i}]: expected a Tensor, got {type(level).__name__}")
        if level.dim() != 4:
            raise ValueError(f"{name}[{i}]: expected 4 dimensions [N, C, H, W], got shape {tuple(level.shape)}")
        if level.layout != torch.strided:
            raise TypeError(f"{name}[{i}]: expected a strided tensor, got layout {level.layout}")
        if not level.is_floating_point():
            raise TypeError(f"{name}[{i}]: expected a floating-point dtype, got {level.dtype}")
        if level.shape[2] == 0 or level.shape[3] == 0:
            raise ValueError(f"{name}[{i}]: expected height and width of at least 1, got shape {tuple(level.shape)}")
        if channels is not None and level.shape[1] != channels[i]:
            raise ValueError(
                f"{name}[{i}]: expected {channels[i]} channels, got {level.shape[1]} (shape {tuple(level.shape)})"
            )
    first = levels[0]
    for i, level in enumerate(levels[1:], start=1):
        if level.shape[0] != first.shape[0]:
            raise ValueError(f"{name}[{i}]: expected batch size {first.shape[0]} as in {name}[0], got {level.shape[0]}")
        if level.device != first.device:
            raise ValueError(f"{name}[{i}]: expected device {first.device} as {name}[0], got {level.device}")
        if not same_for_convolution(level, first):
            raise ValueError(f"{name}[{i}]: expected dtype {first.dtype} as {name}[0], got {level.dtype}")

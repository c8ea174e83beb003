"""Norms of fixed statistics folded into the convolutions before them, as one would by hand to make PyTorch faster."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_MARK = "_made_by"


def fold_norms(model: nn.Module, inputs: Sequence[Tensor]) -> tuple[nn.Module, int]:
    """A copy of a model in eval mode in which convolutions have the norms that follow them.

    Which norm follows which convolution is seen in one call, so that it does not matter how the model is written.
    Weights are folded in float64 and rounded once.

    Args:
        model: as it stands; it is not changed.
        inputs: of one call.

    Returns:
        The copy, and how many norms went into their convolutions.
    """
    folded = copy.deepcopy(model)
    pairs = _pairs(folded, inputs)
    for conv, norm in pairs:
        dtype, layout = conv.weight.dtype, _layout(conv.weight)
        fused = fuse_conv_bn_eval(copy.deepcopy(conv).double(), copy.deepcopy(norm).double())
        _replace(folded, conv, fused.to(dtype).to(memory_format=layout))
        _replace(folded, norm, nn.Identity())
    return folded, len(pairs)


def _layout(weight: Tensor) -> torch.memory_format:
    # Of one channel or one pixel both hold, and then it does not matter.
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _pairs(model: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the norms that take their results as they are, each called once."""
    calls: Counter[nn.Module] = Counter()
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_convolution(conv: nn.Module, _: Any, output: Tensor) -> None:
        calls[conv] += 1
        setattr(output, _MARK, (conv, output._version))

    def before_norm(norm: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls[norm] += 1
        conv, version = getattr(arguments[0], _MARK, (None, None))
        if conv is not None and arguments[0]._version == version:  # nothing was written into it since
            found.append((conv, norm))  # type: ignore[arg-type]

    hooks = []
    for module in model.modules():
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(after_convolution))
        elif type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm) and not module.training:
            hooks.append(module.register_forward_pre_hook(before_norm))
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return [pair for pair in found if all(calls[module] == 1 for module in pair)]


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new

"""JPUs of the public families in a live model, turned into this package's in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from . import mmseg
from .modules import branches, stages
from .modules.core import JointPyramid
from .modules.fastfcn import JPU, JPU_X, JUM, TramacJPU
from .modules.layout import Layout
from .modules.parts import prove
from .modules.sssegmentation import SSSegmentationJPU

_CLASSES: tuple[type[JointPyramid], ...] = (JPU, TramacJPU, mmseg.JPU, SSSegmentationJPU)


def replace_jpu(model: nn.Module) -> list[tuple[str, str]]:
    """Turns every JPU in a model into this package's, in place.

    A JPU is recognised by its structure, so a copy of a family's code under any name is found: its
    submodules, their kernel sizes, dilations and channels must be the family's, and nothing else may
    stand beside them. The module object stays the same one and takes on this package's class, as
    ``torch.nn.utils.parametrize`` does it; so parameters, buffers, optimizers that hold them, hooks,
    state_dict keys, device, dtype, mode, and every reference to the module stay as they are, the
    model itself included if it is a JPU. What structure cannot show is not looked for: the original's
    ``forward`` is replaced by the family's, whatever it did. Its stages and branches keep
    theirs; copies of them are tried out, and the kernels take those that run their layers in order and do no more.

    Args:
        model: any module.

    Returns:
        (path, family) of each JPU that was turned, the path as in ``model.named_modules()``
        (``""`` for the model itself); family is ``"fastfcn"`` (JPU and JPU_X), ``"tramac"``,
        ``"mmseg"`` or ``"sssegmentation"``. Empty when called again.

    Raises:
        TypeError: not a module.
        ValueError: a JPU by structure whose resize options cannot be read, or whose object has a forward of
            its own. Nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    found = [_plan(path, module) for path, module in model.named_modules()]
    plans = [plan for plan in found if plan is not None]  # all of them are read before any is carried out
    for plan in plans:
        plan.carry_out()
    return [(plan.path, plan.family) for plan in plans]


@dataclass(frozen=True)
class _Structure:
    """What can be read off a JPU's submodules."""

    level_channels: tuple[int, ...]
    dilations: tuple[int, ...]


@dataclass(frozen=True)
class _Adoption:
    """A module that is to become a JPU (or JUM) of this package."""

    module: Any
    cls: type[JointPyramid]
    structure: _Structure
    up_kwargs: dict[str, Any]

    def carry_out(self) -> None:
        module = self.module
        module.__class__ = self.cls
        module.configure(self.structure.level_channels, len(self.structure.dilations), self.up_kwargs)
        module.proven = {}
        for path in map(self.cls.layout.stage, range(module.num_levels)):
            module.proven |= prove(path, module.get_submodule(path), stages.parts_of)
        for path in map(self.cls.layout.branch, range(module.num_branches)):
            module.proven |= prove(path, module.get_submodule(path), branches.parts_of)
        if issubclass(self.cls, mmseg.LevelledJPU):
            if not hasattr(module, "in_channels"):
                module.in_channels = tuple(module.in_channels_list)
            module.num_ins = len(module.in_channels)
            module.dilations = self.structure.dilations


@dataclass(frozen=True)
class _Plan:
    """What is to be done at one path: one adoption, or for a JPU_X both JUMs' and its own class."""

    path: str
    family: str
    adoptions: tuple[_Adoption, ...]
    pyramid_of_two: nn.Module | None = None

    def carry_out(self) -> None:
        for adoption in self.adoptions:
            adoption.carry_out()
        if self.pyramid_of_two is not None:
            self.pyramid_of_two.__class__ = JPU_X


def _plan(path: str, module: nn.Module) -> _Plan | None:
    """How to turn a module into this package's JPU, or None where it is none, or is ours already."""
    if isinstance(module, JointPyramid | JPU_X):
        return None
    plan = _match(path, module)
    if plan is not None and "forward" in vars(module):
        raise ValueError(
            f"{path!r}: expected the forward of the JPU's class, got one set on the object, which would go on to run; "
            "remove it before calling replace_jpu"
        )
    return plan


def _match(path: str, module: nn.Module) -> _Plan | None:
    for cls in _CLASSES:
        structure = _read(module, cls.layout)
        if structure is not None:
            adoption = _Adoption(module, cls, structure, _up_kwargs(path, module, cls))
            return _Plan(path, cls.layout.family, (adoption,))
    jums = dict(module.named_children())
    if jums.keys() != {"jum_1", "jum_2"}:
        return None
    adoptions = []
    for name, jum in jums.items():
        structure = _read(jum, JUM.layout)
        if structure is None:
            return None
        adoptions.append(_Adoption(jum, JUM, structure, _up_kwargs(f"{path}.{name}".lstrip("."), jum, JUM)))
    return _Plan(path, JUM.layout.family, tuple(adoptions), pyramid_of_two=module)


def _read(module: nn.Module, layout: Layout) -> _Structure | None:
    """The structure of a JPU in this layout, or None where the module is something else."""
    levels = _count(module, layout.stage, layout.levels)
    branches = _count(module, layout.branch, len(layout.dilations) if layout.dilations else None)
    if not levels or not branches:
        return None
    paths = [*map(layout.stage, range(levels)), *map(layout.branch, range(branches))]
    # Nothing else may stand beside them, neither in the module nor in its lists of stages and branches.
    holders = {path.rpartition(".")[0] for path in paths}
    owned = {*paths, *(holder for holder in holders if holder)}
    if owned != {
        f"{holder}.{name}".lstrip(".")
        for holder in {"", *holders}
        for name, _ in module.get_submodule(holder).named_children()
    }:
        return None

    convs = [_part(module, layout.stage_path(i, "conv")) for i in range(levels)]
    width = getattr(convs[0], "out_channels", None)
    if width is None or not all(_is_conv(c, 3, 1, 1, getattr(c, "in_channels", None), width) for c in convs):
        return None
    channels = levels * width
    dilations = []
    for i in range(branches):
        depthwise = _part(module, layout.branch_path(i, "depthwise"))
        pointwise = _part(module, layout.branch_path(i, "pointwise"))
        dilation = getattr(depthwise, "dilation", (0,))[0]
        if not _is_conv(depthwise, 3, dilation, channels, channels, channels):
            return None
        if not _is_conv(pointwise, 1, 1, 1, channels, width):
            return None
        dilations.append(dilation)
    if layout.dilations is not None and tuple(dilations) != layout.dilations:
        return None
    return _Structure(tuple(c.in_channels for c in convs), tuple(dilations))


def _part(module: nn.Module, path: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _count(module: nn.Module, path: Any, fixed: int | None) -> int:
    """How many of path(0), path(1), … exist; 0 if that is not the fixed number."""
    n = 0
    while n != fixed and _part(module, path(n)) is not None:
        n += 1
    return n if fixed in (None, n) else 0


def _is_conv(conv: Any, kernel: int, dilation: int, groups: int, in_channels: int | None, out_channels: int) -> bool:
    """Whether a module has the attributes of that convolution with stride 1 and "same" zero padding."""
    padding = dilation * (kernel // 2)
    expected = {
        "kernel_size": (kernel, kernel),
        "stride": (1, 1),
        "dilation": (dilation, dilation),
        "padding": (padding, padding),
        "padding_mode": "zeros",
        "in_channels": in_channels,
        "out_channels": out_channels,
        "groups": groups,
    }
    return all(getattr(conv, name, None) == value for name, value in expected.items())


def _up_kwargs(path: str, module: Any, cls: type[JointPyramid]) -> dict[str, Any]:
    """How the module resizes, which its submodules do not show."""
    if cls is TramacJPU:  # which keeps no options
        return {"mode": "bilinear", "align_corners": True}
    if issubclass(cls, mmseg.LevelledJPU):
        for names in (
            ("align_corners",),
            ("start_level",),
            ("backbone_end_level",),
            ("in_channels", "in_channels_list"),
        ):
            if not any(hasattr(module, name) for name in names):
                raise ValueError(
                    f"{path!r}: expected the attribute {names[0]!r} on a JPU of {cls.layout.family}, got none"
                )
        return {"mode": "bilinear", "align_corners": bool(module.align_corners)}
    options = getattr(module, "up_kwargs", None)
    if not isinstance(options, Mapping):
        raise ValueError(
            f"{path!r}: expected the attribute 'up_kwargs' with the resize options on a JPU of fastfcn, got "
            f"{options!r}; set it, e.g. {{'mode': 'bilinear', 'align_corners': True}}, before calling replace_jpu"
        )
    return dict(options)

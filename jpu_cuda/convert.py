"""Checkpoints of one public JPU family turned into another's, to the last bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .modules.layout import FAMILIES, JUM, Layout

_CONV_TENSORS = ("weight", "bias")
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Parts whose tensors run over the concatenated channels, and the dimension in which they do.
_CONCATENATED = {"depthwise": 0, "norm": 0, "pointwise": 1}


def convert_state_dict(sd: Mapping[str, Any], *, source: str, target: str) -> OrderedDict[str, Any]:
    """Renames and permutes the JPU's entries of a state dict from one family's form to another's.

    FastFCN and Tramac concatenate (c5, c4, c3), mmsegmentation and sssegmentation (c3, c4, c5), so
    between the two the channel blocks of the depthwise convolutions, of their norms and of the
    pointwise convolutions' inputs are permuted. No value is computed anew. The families also differ
    in ``align_corners`` (True in FastFCN's and Tramac's models, False by default in the other two),
    which no state dict holds: build the target with the value that the weights were trained with.

    Args:
        sd: the state dict of a JPU, or of a model with one or more. Entries outside the JPU pass
            unchanged. Where the JPU stands under its family's attribute (``jpu.``, ``neck.``,
            ``jpu_neck.``) it moves to the target's; other prefixes, and none, stay.
        source: ``"fastfcn"``, ``"tramac"``, ``"mmseg"`` or ``"sssegmentation"``.
        target: one of the same.

    Returns:
        A new dict; tensors that are not permuted are shared with ``sd``.

    Raises:
        TypeError: ``sd`` is not a mapping from names to tensors.
        ValueError: an unknown family; no JPU of the source family in ``sd``; a JPU that the target
            cannot hold (JPU_X, another number of levels or dilations, other norms).
    """
    for argument, name in (("source", source), ("target", target)):
        if not isinstance(name, str) or name not in FAMILIES:
            raise ValueError(f"{argument}: expected one of {', '.join(FAMILIES)}, got {name!r}")
    if not isinstance(sd, Mapping) or not all(isinstance(key, str) for key in sd):
        raise TypeError(f"sd: expected a mapping from names to tensors, got {type(sd).__name__}")
    if "state_dict" in sd:
        raise ValueError("sd: expected a state dict, got a checkpoint around one; pass sd['state_dict']")

    _refuse_jpu_x(sd, target)
    old, new = FAMILIES[source], FAMILIES[target]
    found = list(_find(sd, old))
    if not found:
        raise ValueError(f"sd: expected {_describe(old)}, got {_what_is_there(sd)}")

    renamed: dict[str, tuple[str, Any]] = {}
    for jpu in found:
        _check_target_holds(jpu, new)
        flip = old.coarsest_first != new.coarsest_first
        for key, part in jpu.parts.items():
            value = sd[key]
            dim = _CONCATENATED.get(part.name)
            if flip and part.in_branch and dim is not None and value.dim() > dim:
                value = _reverse_blocks(value, dim, len(jpu.levels))
            renamed[key] = (
                jpu.renamed_prefix(new) + part.path(new, jpu.norm_name) + "." + part.tensor,
                value,
            )

    result: OrderedDict[str, Any] = OrderedDict()
    for key, value in sd.items():
        name, value = renamed.get(key, (key, value))
        if name in result:
            raise ValueError(f"sd: expected {name!r} to be free for the JPU's {key!r}, got an entry of that name")
        result[name] = value
    return result


@dataclass(frozen=True)
class _Part:
    """One tensor of a JPU: which part of which stage or branch it belongs to, and its name there."""

    in_branch: bool
    index: int
    name: str
    tensor: str

    def path(self, layout: Layout, norm: str) -> str:
        find = layout.branch_path if self.in_branch else layout.stage_path
        return find(self.index, self.name, norm)


@dataclass(frozen=True)
class _FoundJPU:
    layout: Layout
    prefix: str
    levels: range
    branches: range
    parts: dict[str, _Part]  # by full key

    def renamed_prefix(self, new: Layout) -> str:
        head, _, last = self.prefix[:-1].rpartition(".")
        if last != self.layout.attribute:
            return self.prefix
        return f"{head}.{new.attribute}." if head else f"{new.attribute}."

    @property
    def norm_kinds(self) -> dict[str, str]:
        """Part → kind of its norm: bn (with running statistics) or gn (without)."""
        kinds: dict[str, str] = {}
        for part in self.parts.values():
            if part.name in ("norm", "out_norm"):
                name = f"{'branch' if part.in_branch else 'stage'} {part.name}"
                if part.tensor == "running_mean" or name not in kinds:
                    kinds[name] = "bn" if part.tensor == "running_mean" else "gn"
        return kinds

    @property
    def norm_name(self) -> str:
        return "bn" if "bn" in self.norm_kinds.values() else "gn"


def _reverse_blocks(tensor: Tensor, dim: int, blocks: int) -> Tensor:
    return torch.cat(tensor.chunk(blocks, dim)[::-1], dim)


def _find(sd: Mapping[str, Any], layout: Layout) -> Iterator[_FoundJPU]:
    """The JPUs of a family in a state dict, each recognised by its first stage and first branch."""
    stage = layout.stage_path(0, "conv") + ".weight"
    branch = layout.branch_path(0, "depthwise") + ".weight"
    for key in sd:
        prefix = key[: -len(stage)] if key.endswith(stage) else None
        if prefix is None or (prefix and not prefix.endswith(".")) or prefix + branch not in sd:
            continue
        yield _collect(sd, layout, prefix)


def _count(sd: Mapping[str, Any], prefix: str, path: Any) -> range:
    n = 0
    while f"{prefix}{path(n)}.weight" in sd:
        n += 1
    return range(n)


def _collect(sd: Mapping[str, Any], layout: Layout, prefix: str) -> _FoundJPU:
    levels = _count(sd, prefix, lambda i: layout.stage_path(i, "conv"))
    branches = _count(sd, prefix, lambda i: layout.branch_path(i, "depthwise"))
    known: dict[str, _Part] = {}
    for in_branch, indices, parts in (
        (False, levels, layout.stage_parts),
        (True, branches, layout.branch_parts),
    ):
        for i in indices:
            for name in parts:
                tensors = _NORM_TENSORS if name in ("norm", "out_norm") else _CONV_TENSORS
                for tensor in tensors:
                    for norm in ("bn", "gn"):
                        part = _Part(in_branch, i, name, tensor)
                        known[f"{prefix}{part.path(layout, norm)}.{tensor}"] = part
    # Whatever stands under the same stage or branch must be known, or it would be left behind.
    roots = {layout.stage(i).split(".")[0] for i in levels} | {layout.branch(i).split(".")[0] for i in branches}
    found: dict[str, _Part] = {}
    for key in sd:
        if key.startswith(prefix) and key[len(prefix) :].split(".")[0] in roots:
            if not isinstance(sd[key], Tensor):
                raise TypeError(f"sd: expected a tensor as {key!r}, got {type(sd[key]).__name__}")
            if key not in known:
                raise ValueError(f"sd: expected only entries of a {layout.family} JPU under {prefix!r}, got {key!r}")
            found[key] = known[key]
    jpu = _FoundJPU(layout, prefix, levels, branches, found)
    _check_whole(sd, jpu)
    return jpu


def _check_whole(sd: Mapping[str, Any], jpu: _FoundJPU) -> None:
    """Raises where a JPU lacks a part or has one of another shape: its blocks could not be told apart."""
    layout, levels, branches = jpu.layout, len(jpu.levels), len(jpu.branches)
    expected = (layout.levels or levels, len(layout.dilations or jpu.branches))
    if (levels, branches) != expected:
        raise ValueError(
            f"sd: expected {expected[0]} levels and {expected[1]} dilations in a {layout.family} JPU, "
            f"got the convolutions of {levels} and {branches}"
        )
    width = sd[jpu.prefix + layout.stage_path(0, "conv") + ".weight"].shape[0]
    channels = levels * width
    weights = {"conv": (width, None, 3, 3), "depthwise": (channels, 1, 3, 3), "pointwise": (width, channels, 1, 1)}
    tensors: dict[tuple[bool, str], dict[int, set[str]]] = {(True, "pointwise"): {}}
    for key, part in jpu.parts.items():
        tensors.setdefault((part.in_branch, part.name), {}).setdefault(part.index, set()).add(part.tensor)
        shape: tuple[int | None, ...] = (width,)
        if part.tensor == "num_batches_tracked":
            shape = ()
        elif part.tensor == "weight" and part.name in weights:
            shape = weights[part.name]
        elif part.in_branch and part.name in ("norm", "depthwise"):
            shape = (channels,)
        got = tuple(sd[key].shape)
        if len(got) != len(shape) or any(e not in (None, g) for e, g in zip(shape, got, strict=True)):
            wanted = ", ".join("any" if e is None else str(e) for e in shape)
            raise ValueError(f"sd: expected shape ({wanted}) of {key!r} at width {width}, got {got}")
    for (in_branch, name), found in tensors.items():
        every = set.union({"weight"} if name in weights else set(), *found.values())
        for i in jpu.branches if in_branch else jpu.levels:
            for tensor in sorted(every - found.get(i, set())):
                path = jpu.prefix + _Part(in_branch, i, name, tensor).path(layout, jpu.norm_name)
                raise ValueError(
                    f"sd: expected {f'{path}.{tensor}'!r} as in the {layout.family} JPU's other parts, got none"
                )


def _check_target_holds(jpu: _FoundJPU, new: Layout) -> None:
    expected = (new.levels or len(jpu.levels), len(new.dilations or jpu.branches))
    if (len(jpu.levels), len(jpu.branches)) != expected:
        raise ValueError(
            f"sd: expected {expected[0]} levels and {expected[1]} dilations for {new.family}, "
            f"got {len(jpu.levels)} and {len(jpu.branches)}"
        )
    kinds = jpu.norm_kinds
    if new.levels is not None and kinds.get("branch norm") != "bn":
        raise ValueError(
            f"sd: expected batch norms with running statistics inside the separable convolutions, as "
            f"{new.family} has them, got {'a norm without' if 'branch norm' in kinds else 'none'}"
        )
    if new.family == "mmseg" and len(set(kinds.values())) > 1:
        raise ValueError(f"sd: expected one kind of norm throughout, as mmseg has by norm_cfg, got {kinds}")
    if new.family != "mmseg":
        for key, part in jpu.parts.items():
            if part.tensor == "bias" and part.name in ("conv", "depthwise", "pointwise"):
                raise ValueError(f"sd: expected convolutions without bias, as {new.family} has them, got {key!r}")


def _jpu_x_prefix(sd: Mapping[str, Any]) -> str | None:
    for key in sd:
        head, separator, _ = key.partition(f"jum_1.{JUM.stage(0)}.")
        if separator and (not head or head.endswith(".")):
            return head
    return None


def _refuse_jpu_x(sd: Mapping[str, Any], target: str) -> None:
    prefix = _jpu_x_prefix(sd)
    if prefix is not None:
        raise ValueError(
            f"sd: expected a JPU, got FastFCN's JPU_X under {prefix!r}, to which {target} and the other "
            "families have no counterpart"
        )


def _describe(layout: Layout) -> str:
    return f"a {layout.family} JPU (entries such as {layout.branch_path(0, 'depthwise') + '.weight'!r})"


def _what_is_there(sd: Mapping[str, Any]) -> str:
    for layout in FAMILIES.values():
        for jpu in _find(sd, layout):
            return f"{_describe(layout)} under {jpu.prefix!r}"
    some = ", ".join(map(repr, list(sd)[:3]))
    return f"{len(sd)} entries with no JPU of any known family among them" + (f" ({some}, …)" if some else "")

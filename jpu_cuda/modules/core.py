"""The one Joint Pyramid Upsampling under every family's module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from .. import functional
from .._checks import as_convolved, check_levels, same_for_convolution
from ..backend import choose, matrix_options
from ..ops.separable_pyramid import why_not
from . import branches, stages
from .layout import Layout
from .parts import Proof, Unfit
from .statistics import update_running


# Asked, not traced: before torch 2.14, torch.compile takes every compilation for an export.
@torch.compiler.assume_constant_result
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()


class JointPyramid(nn.Module):
    """Stages, upsample-concat and separable branches of a JPU (FastFCN, section 3.3, Figure 4).

    A subclass names its ``layout``, creates the submodules that the layout names, calls
    :meth:`configure`, and gives :meth:`levels_of` and :meth:`forward` its family's signature and return
    value. The parts stay ordinary submodules, so hooks, parametrisations, pruning and replaced layers
    act as usual.
    """

    layout: ClassVar[Layout]

    num_levels: int
    num_branches: int
    # Channels expected of each level that pyramid() is given, finest first.
    level_channels: tuple[int, ...]
    # Keyword arguments of F.interpolate: mode and align_corners.
    up_kwargs: dict[str, Any]
    # What is foreign in stages and branches and was found to run as the family's; see parts.prove.
    proven: Mapping[str, Proof] = MappingProxyType({})
    # JUM alone puts the upsampled coarsest level before its branches.
    emits_coarsest: ClassVar[bool] = False

    def configure(self, level_channels: Sequence[int], num_branches: int, up_kwargs: dict[str, Any]) -> None:
        """Says what the submodules are; called once they exist.

        Args:
            level_channels: channels of each level used, finest first.
            num_branches: how many dilations there are.
            up_kwargs: keyword arguments of :func:`torch.nn.functional.interpolate`.
        """
        self.level_channels = tuple(level_channels)
        self.num_levels = len(self.level_channels)
        self.num_branches = num_branches
        self.up_kwargs = up_kwargs

    def stage(self, level: int) -> nn.Module:
        """Convolution, norm and ReLU of a level; 0 is the finest."""
        return self.get_submodule(self.layout.stage(level))

    def branch(self, index: int) -> nn.Module:
        """Separable convolution, norms and ReLU of one dilation."""
        return self.get_submodule(self.layout.branch(index))

    def levels_of(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The levels used, finest first, among the arguments of :meth:`forward`.

        Raises:
            TypeError, ValueError: levels that do not fit; the message says expected and got.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which of its inputs are levels")

    def check(self, levels: Sequence[Tensor], name: str) -> None:
        """Raises TypeError or ValueError where levels (finest first) do not fit each other or this module."""
        check_levels(levels, self.level_channels, name=name)
        self.check_like_module(levels, name)

    def check_like_module(self, levels: Sequence[Tensor], name: str) -> None:
        """Raises ValueError where levels have another device or dtype than the module takes."""
        conv = self.get_submodule(self.layout.stage_path(0, "conv"))
        # A replaced layer, or one that a hook prepares (offloading, sharding), may hold its weight otherwise.
        if type(conv) is not nn.Conv2d or conv._forward_pre_hooks:
            return
        weight = conv.weight
        if levels[0].device != weight.device:
            raise ValueError(f"{name}: expected device {weight.device} as the module, got {levels[0].device}")
        if not same_for_convolution(levels[0], weight):
            raise ValueError(f"{name}: expected dtype {weight.dtype} as the module, got {levels[0].dtype}")

    def pyramid(self, levels: Sequence[Tensor]) -> Tensor:
        """Runs the JPU.

        Args:
            levels: [N, C_i, H_i, W_i] of each level, finest first; any sizes.

        Returns:
            [N, D·width, H_0, W_0], the branches in the order of their dilations.
        """
        features = self._features(levels)
        if choose(features[0]).backend != "reference":
            try:
                return self._fused(features, self.fused_branches(features[0], features[0].shape))
            except Unfit:
                pass
        u = self._upsample_concat(features)
        outputs = [self.branch(i)(u) for i in range(self.num_branches)]
        if self.emits_coarsest:
            coarsest = features[-1].shape[1]
            outputs.insert(0, u[:, :coarsest] if self.layout.coarsest_first else u[:, -coarsest:])
        return torch.cat(outputs, dim=1)

    def _features(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What the stages make of their levels: where they fit, all norms and ReLUs in one launch."""
        if choose(levels[0]).backend == "reference":
            return [self.stage(i)(level) for i, level in enumerate(levels)]
        try:
            convolutions, *norms = self.fused_stages(levels)
        except Unfit:
            return [self.stage(i)(level) for i, level in enumerate(levels)]
        convolved = [convolution(level) for convolution, level in zip(convolutions, levels, strict=True)]
        return torch.ops.jpu_cuda.norm_relu(convolved, *norms)

    def fused_stages(self, levels: Sequence[Tensor]) -> stages.Stages:
        """What :meth:`pyramid` gives the kernels, and PyTorch's convolutions, for the stages of these levels.

        Raises:
            Unfit: PyTorch runs the stages instead.
        """
        named = [(self.layout.stage(i), self.stage(i)) for i in range(self.num_levels)]
        return stages.read(named, self.proven, levels, as_convolved(levels[0]))

    def fused_branches(self, like: Tensor, shape: Sequence[int]) -> branches.Branches:
        """What :meth:`pyramid` gives the kernels for everything after the stages.

        Args:
            like: a tensor with the device and dtype of the stages' results.
            shape: [N, _, H, W] of the first of them.

        Raises:
            Unfit: PyTorch runs the branches instead.
        """
        named = [(self.layout.branch(i), self.branch(i)) for i in range(self.num_branches)]
        found = branches.read(named, self.proven, like)  # first, since its reasons name a part
        if forward_ad._current_level >= 0:
            raise Unfit("forward-mode derivatives are PyTorch's")
        if (reason := why_not(self.num_levels, found.dilations)) is not None:
            raise Unfit(reason)
        branches.check_counts(found, shape)
        return found

    def _fused(self, features: list[Tensor], fused: branches.Branches) -> Tensor:
        """Everything after the stages by kernels."""
        if any(x.dtype != features[0].dtype or x.device != features[0].device for x in features):
            raise Unfit("stages differ in dtype or device")
        if not self.resizes_bilinearly:
            features = self._resized(features)
        infers = self.infers(fused, features)
        out = self._inferred(features, fused) if infers else self._trained(features, fused)
        if self.emits_coarsest:
            out = torch.cat([self._resized(features)[-1], out], dim=1)
        return out

    @staticmethod
    def infers(fused: branches.Branches, inputs: Sequence[Tensor]) -> bool:
        """Whether two launches will do: statistics are fixed, and neither the inputs nor weights need a gradient.

        Exported programs, which are made with gradients enabled and run without, are given the two as well, and so are
        empty batches, of which there is nothing to keep; the two have gradients of their own.
        """
        if _is_exporting() or inputs[0].shape[0] == 0:
            return fused.fixed
        return fused.fixed and not fused.needs_gradient(inputs)

    @property
    def _align_corners(self) -> bool:
        return bool(self.up_kwargs.get("align_corners", False))

    def _inferred(self, features: list[Tensor], fused: branches.Branches) -> Tensor:
        """Two launches: resize all and fold the norms; all dilations."""
        first, *others = features
        size = first.shape[2:]
        # An exported program may be called with other sizes: there, all are resized, which changes nothing.
        resize = [_is_exporting() or x.shape[2:] != size for x in others]
        norms = fused.weight, fused.bias, fused.mean, fused.var, fused.eps
        *found, scale, shift, out_scale, out_shift = torch.ops.jpu_cuda.upsample_fold(
            [first, *itertools.compress(others, resize)], self._align_corners, *norms
        )
        resized = iter(found)
        levels = [first, *(next(resized) if wanted else x for x, wanted in zip(others, resize, strict=True))]
        if self.layout.coarsest_first:
            levels.reverse()
        weights = fused.depthwise, fused.pointwise, fused.dilations
        return torch.ops.jpu_cuda.separable_pyramid(
            levels, *weights, scale, shift, out_scale, out_shift, True, *matrix_options()
        )

    def _trained(self, features: list[Tensor], fused: branches.Branches) -> Tensor:
        """With the statistics that the norms ask for, and gradients by kernels; moves the running statistics."""
        *parts, norms = fused
        out, _, *statistics = torch.ops.jpu_cuda.trained_pyramid(
            features, self._align_corners, self.layout.coarsest_first, *parts, *matrix_options()
        )
        taken = [m is None and not fused.groups[i // len(fused.dilations)] for i, m in enumerate(fused.mean)]

        def column(row: int) -> list[Tensor]:
            return list(itertools.compress((x for side in statistics for x in side[0, row].unbind(0)), taken))

        images, _, height, width = features[0].shape
        update_running(list(itertools.compress(norms, taken)), column(0), column(1), images * height * width)
        # Autocast has PyTorch's GroupNorm give float32 on a GPU, and so would the branches.
        wide = fused.groups[1] > 0 and out.is_cuda and torch.is_autocast_enabled("cuda")
        return out.float() if wide and out.dtype != torch.float64 else out

    @property
    def resizes_bilinearly(self) -> bool:
        """Whether ``up_kwargs`` ask for what the kernels do; any other resize is PyTorch's."""
        return self.up_kwargs.get("mode") == "bilinear" and self.up_kwargs.keys() <= {"mode", "align_corners"}

    def _upsample_concat(self, features: list[Tensor]) -> Tensor:
        reverse = self.layout.coarsest_first
        if self.resizes_bilinearly:
            return functional.upsample_concat(features, self._align_corners, reverse)
        resized = self._resized(features)
        return torch.cat(resized[::-1] if reverse else resized, dim=1)

    def _resized(self, features: list[Tensor]) -> list[Tensor]:
        """All in the size of the first."""
        if self.resizes_bilinearly:
            return functional.upsample(features, self._align_corners)
        return [features[0], *(F.interpolate(x, features[0].shape[2:], **self.up_kwargs) for x in features[1:])]


def conv_norm_relu(in_channels: int, width: int, norm_layer: Any) -> nn.Sequential:
    """A stage in FastFCN's form: 3×3 convolution without bias, norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False), norm_layer(width), nn.ReLU(inplace=True)
    )

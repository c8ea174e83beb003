"""FastFCN's JPU and JPU_X, and the JPU of awesome-semantic-segmentation-pytorch that follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .._checks import check_levels
from .core import JointPyramid, conv_norm_relu
from .layout import FASTFCN, TRAMAC
from .layout import JUM as JUM_LAYOUT
from .parts import runs_children_in_order

NormLayer = Callable[[int], nn.Module]


def _check_arguments(in_channels: Sequence[int], width: int, norm_layer: Any, up_kwargs: Any) -> None:
    if not isinstance(in_channels, Sequence):
        raise TypeError(f"in_channels: expected a sequence of integers, got {in_channels!r}")
    if not all(isinstance(c, int) and c >= 1 for c in in_channels):
        raise ValueError(f"in_channels: expected positive integers, got {list(in_channels)}")
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width: expected a positive integer, got {width!r}")
    if not callable(norm_layer):
        raise TypeError(
            f"norm_layer: expected a callable that makes a norm from its number of channels, "
            f"such as nn.BatchNorm2d, got {norm_layer!r}"
        )
    if not isinstance(up_kwargs, dict):
        raise TypeError(
            "up_kwargs: expected keyword arguments of torch.nn.functional.interpolate, such as "
            f"{{'mode': 'bilinear', 'align_corners': True}}, got {up_kwargs!r}"
        )


def _default_up_kwargs() -> dict[str, Any]:
    return {"mode": "bilinear", "align_corners": True}


@runs_children_in_order
class SeparableConv2d(nn.Module):
    """Depthwise 3×3 convolution, norm, pointwise convolution; no activation between them."""

    # The name of the depthwise convolution, in which FastFCN and Tramac differ.
    depthwise_name = "conv1"

    def __init__(self, in_channels: int, width: int, dilation: int, norm_layer: NormLayer) -> None:
        super().__init__()
        depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.add_module(self.depthwise_name, depthwise)
        self.bn = norm_layer(in_channels)
        self.pointwise = nn.Conv2d(in_channels, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, width, H, W]."""
        return self.pointwise(self.bn(self.get_submodule(self.depthwise_name)(x)))


@runs_children_in_order
class _TramacSeparableConv2d(SeparableConv2d):
    depthwise_name = "conv"


class JPU(JointPyramid):
    """Joint Pyramid Upsampling, a drop-in for ``encoding.nn.JPU`` of FastFCN (section 3.3, Figure 4).

    Arguments, inputs, return value, state_dict keys and initialisation are the original's. As there,
    ``norm_layer`` makes the norms after the stages and at the end of the branches; the norm inside
    each separable convolution is always a plain :class:`torch.nn.BatchNorm2d`.

    Args:
        in_channels: channels of the backbone's levels; the last three are used (strides 8, 16, 32).
        width: channels of each stage and each branch.
        norm_layer: makes a norm from its number of channels.
        up_kwargs: keyword arguments of :func:`torch.nn.functional.interpolate`;
            ``{'mode': 'bilinear', 'align_corners': True}`` if None.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """

    layout = FASTFCN
    _separable = SeparableConv2d

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 512,
        norm_layer: NormLayer = nn.BatchNorm2d,
        up_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        up_kwargs = _default_up_kwargs() if up_kwargs is None else up_kwargs
        _check_arguments(in_channels, width, norm_layer, up_kwargs)
        if len(in_channels) < 3:
            raise ValueError(f"in_channels: expected at least 3 levels, got {len(in_channels)}")
        # Coarsest first, as the original creates them: a seeded initialisation is the same.
        self.conv5 = conv_norm_relu(in_channels[-1], width, norm_layer)
        self.conv4 = conv_norm_relu(in_channels[-2], width, norm_layer)
        self.conv3 = conv_norm_relu(in_channels[-3], width, norm_layer)
        dilations = self.layout.dilations or ()
        for i, dilation in enumerate(dilations):
            separable = self._separable(3 * width, width, dilation, nn.BatchNorm2d)
            branch = nn.Sequential(separable, norm_layer(width), nn.ReLU(inplace=True))
            self.add_module(self.layout.branch(i), branch)
        self.configure(in_channels[-3:], len(dilations), up_kwargs)

    def levels_of(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The last three inputs, checked."""
        if len(inputs) < 3:
            raise ValueError(f"inputs: expected at least 3 levels, got {len(inputs)}")
        levels = inputs[-3:]
        self.check(levels, name="inputs[-3:]")
        return levels

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Upsamples the last three inputs jointly.

        Args:
            inputs: 3 or more feature maps [N, C_i, H_i, W_i], finest first.

        Returns:
            ``(inputs[0], inputs[1], inputs[2], out)``; out is [N, 4·width, H, W] in the size of
            ``inputs[-3]``.
        """
        levels = self.levels_of(*inputs)
        return inputs[0], inputs[1], inputs[2], self.pyramid(levels)


class TramacJPU(JPU):
    """The JPU of Tramac/awesome-semantic-segmentation-pytorch: FastFCN's with other keys.

    There ``align_corners`` is always True and further keyword arguments are ignored.
    """

    layout = TRAMAC
    _separable = _TramacSeparableConv2d

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 512,
        norm_layer: NormLayer = nn.BatchNorm2d,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, width, norm_layer)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)


class JUM(JointPyramid):
    """Joint upsampling of two levels, of which :class:`JPU_X` has two.

    Args:
        in_channels: channels of (high, low) resolution.
        width: channels of each stage and each branch; a multiple of 32.
        dilation: d of the branches' dilations d, 2d, 4d.
        norm_layer: makes the norms of the two stages; the branches have GroupNorm(32).
        up_kwargs: keyword arguments of :func:`torch.nn.functional.interpolate`.
    """

    layout = JUM_LAYOUT
    emits_coarsest = True

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int,
        dilation: int,
        norm_layer: NormLayer,
        up_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self.conv_l = conv_norm_relu(in_channels[-1], width, norm_layer)
        self.conv_h = conv_norm_relu(in_channels[-2], width, norm_layer)
        dilations = (dilation, 2 * dilation, 4 * dilation)
        for i, d in enumerate(dilations):
            separable = SeparableConv2d(2 * width, width, d, _group_norm)
            self.add_module(self.layout.branch(i), nn.Sequential(separable, _group_norm(width), nn.ReLU(inplace=True)))
        self.configure(in_channels[-2:], len(dilations), up_kwargs)

    def levels_of(self, x_l: Tensor, x_h: Tensor) -> tuple[Tensor, ...]:
        """``(x_h, x_l)``, checked."""
        self.check((x_h, x_l), name="(x_h, x_l)")
        return x_h, x_l

    def forward(self, x_l: Tensor, x_h: Tensor) -> Tensor:
        """Upsamples ``x_l`` [N, C_l, H_l, W_l] to the size of ``x_h`` [N, C_h, H, W].

        Returns:
            [N, 4·width, H, W]: the upsampled low level, then the three branches.
        """
        return self.pyramid(self.levels_of(x_l, x_h))


class JPU_X(nn.Module):
    """The pyramid version of the JPU, a drop-in for ``encoding.nn.JPU_X`` of FastFCN.

    Two joint upsamplings in a row: stride 16 to 8 at half the width, then stride 32 to 8.

    Args:
        in_channels: channels of strides 8, 16 and 32; the second must be ``2·width``, since the second
            step reads the first one's output in its place.
        width: channels of the second step; a multiple of 64, since the first has half of it and
            GroupNorm 32 groups.
        norm_layer: makes the norms of the stages; the branches have GroupNorm(32).
        up_kwargs: as for :class:`JPU`.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 512,
        norm_layer: NormLayer = nn.BatchNorm2d,
        up_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        up_kwargs = _default_up_kwargs() if up_kwargs is None else up_kwargs
        _check_arguments(in_channels, width, norm_layer, up_kwargs)
        if len(in_channels) != 3:
            raise ValueError(f"in_channels: expected 3 levels, got {len(in_channels)}")
        if width % 64 != 0:
            raise ValueError(f"width: expected a multiple of 64, got {width}")
        if in_channels[1] != 2 * width:
            raise ValueError(f"in_channels[1]: expected 2·width = {2 * width}, got {in_channels[1]}")
        self.jum_1 = JUM(in_channels[:2], width // 2, 1, norm_layer, up_kwargs)
        self.jum_2 = JUM(in_channels[1:], width, 2, norm_layer, up_kwargs)

    def levels_of(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs 1, 2 and 3, checked."""
        if len(inputs) < 4:
            raise ValueError(f"inputs: expected at least 4 levels, got {len(inputs)}")
        levels = inputs[1:4]
        channels = (*self.jum_1.level_channels, self.jum_2.level_channels[-1])
        check_levels(levels, channels, name="inputs[1:4]")
        self.jum_1.check_like_module(levels, name="inputs[1:4]")
        return levels

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Upsamples inputs 1, 2 and 3 (strides 8, 16, 32) jointly.

        Args:
            inputs: 4 or more feature maps [N, C_i, H_i, W_i], finest first.

        Returns:
            ``(inputs[0], inputs[1], inputs[2], out)``; out is [N, 4·width, H, W] in the size of
            ``inputs[1]``.
        """
        c3, c4, c5 = self.levels_of(*inputs)
        return inputs[0], inputs[1], inputs[2], self.jum_2(c5, self.jum_1(c4, c3))

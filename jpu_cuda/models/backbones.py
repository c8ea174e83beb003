"""Backbones that give features of strides 4, 8, 16 and 32: FastFCN's ResNets, and timm's models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .resnet import DEPTHS, ResNet

STRIDES = (4, 8, 16, 32)


class TimmBackbone(nn.Module):
    """A timm model through ``features_only``, its levels in NCHW.

    Images of any size: those whose sides are no multiples of 32, which Swin, HRNet and others refuse, are
    padded with zeros (ImageNet's mean colour) at the right and the bottom, and the levels cropped to what a
    convolutional network has for the image itself, ⌈H/stride⌉ × ⌈W/stride⌉.

    Args:
        name: of the model in timm.
        dilated: output stride 8 instead of 32, where the model can be dilated.
        pretrained: whether timm is to download ImageNet weights.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, or it has no features of these strides, or cannot be dilated.
    """

    def __init__(self, name: str, dilated: bool, pretrained: bool) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ImportError(f"backbone {name!r}: expected timm to be installed (pip install timm)") from error
        if not timm.is_model(name):
            known = timm.list_models(f"*{name[:6]}*")[:5]
            raise ValueError(
                f"backbone: expected {', '.join(map(repr, DEPTHS))} or a model of timm"
                f"{' such as ' + ', '.join(known) if known else ''}, got {name!r}"
            )
        options: dict[str, Any] = {"features_only": True, "pretrained": pretrained}
        if dilated:
            options["output_stride"] = 8
        self.body = self._create(timm, name, options)
        reductions, channels = self.body.feature_info.reduction(), self.body.feature_info.channels()
        if dilated:
            # Levels past stride 8 keep it; the last four are those of strides 4, 8, 16 and 32 undilated.
            self._indices = list(range(len(reductions)))[-4:]
            found = tuple(reductions[i] for i in self._indices)
            if found != (4, 8, 8, 8):
                raise ValueError(f"backbone {name!r}: expected strides (4, 8, 8, 8) when dilated, got {found}")
            self._strides = found
        else:
            missing = [s for s in STRIDES if s not in reductions]
            if missing:
                raise ValueError(f"backbone {name!r}: expected features of strides {STRIDES}, got {tuple(reductions)}")
            self._indices = [reductions.index(s) for s in STRIDES]
            self._strides = STRIDES
        self.channels = tuple(channels[i] for i in self._indices)
        # Swin and its like return [N, H, W, C].
        self._channels_last = getattr(self.body, "output_fmt", None) is not None and (
            str(getattr(self.body.output_fmt, "value", self.body.output_fmt)) == "NHWC"
        )

    @staticmethod
    def _create(timm: Any, name: str, options: dict[str, Any]) -> Any:
        # Models with a fixed image size take any with this; the others do not know the option.
        for extra in ({"strict_img_size": False}, {}):
            try:
                return timm.create_model(name, **options, **extra)
            except TypeError as error:
                if "strict_img_size" not in str(error):
                    raise ValueError(f"backbone {name!r}: timm cannot build it with {options}: {error}") from error
            except (NotImplementedError, AssertionError, RuntimeError) as error:
                raise ValueError(f"backbone {name!r}: timm cannot build it with {options}: {error}") from error
        raise AssertionError("the second try has no option to refuse")

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, 3, H, W] → features of strides 4, 8, 16 and 32 (dilated: 4, 8, 8 and 8)."""
        height, width = x.shape[2:]
        features = self.body(F.pad(x, (0, -width % 32, 0, -height % 32)))
        levels = [features[i] for i in self._indices]
        if self._channels_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        return [
            level[:, :, : math.ceil(height / stride), : math.ceil(width / stride)]
            for level, stride in zip(levels, self._strides, strict=True)
        ]


def make_backbone(name: str, dilated: bool, norm_layer: Callable[[int], nn.Module], pretrained: bool) -> nn.Module:
    """A backbone by name, with the attribute ``channels`` of strides 4, 8, 16 and 32.

    Args:
        name: ``"resnet50"`` or ``"resnet101"`` in FastFCN's form, or a model of timm; ``"timm/resnet50"``
            is timm's own.
        dilated: output stride 8 instead of 32.
        norm_layer: makes the norms of FastFCN's forms; timm's models keep their own.
        pretrained: whether timm is to download ImageNet weights.

    Raises:
        ImportError: a model of timm without timm.
        TypeError: ``name`` is not a string.
        ValueError: an unknown backbone, one without these strides, or weights that cannot be had.
    """
    if not isinstance(name, str):
        raise TypeError(f"backbone: expected a name, got {name!r}")
    if name in DEPTHS:
        if pretrained:
            raise ValueError(
                f"pretrained: expected False for {name!r}, whose deep-stem weights no library hosts; load a "
                f"checkpoint with models.load_weights, or use 'timm/{name}'"
            )
        return ResNet(DEPTHS[name], dilated, norm_layer)
    return TimmBackbone(name.removeprefix("timm/"), dilated, pretrained)

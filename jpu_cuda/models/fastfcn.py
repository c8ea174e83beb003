"""FastFCN: backbone × upsampling × head, every system of the paper's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..modules import JPU, JPU_X
from .backbones import make_backbone
from .heads import AsppHead, EncHead, FCNHead, PSPHead, resize
from .upsampling import FPN, Bilinear

UPSAMPLINGS = ("none", "bilinear", "fpn", "jpu", "jpu_x")
HEADS = ("encoding", "aspp", "psp", "fcn")


class FastFCN(nn.Module):
    """A segmentation network (FastFCN, section 3 and Figure 2); :func:`fastfcn` documents the arguments.

    For upsampling none, jpu and jpu_x on ResNet-50 and -101 the names and shapes of the state dict are
    those of the original's models, so its published checkpoints load strictly.

    Attributes:
        config: the arguments, enough for ``fastfcn(**config)`` to build the model anew; not
            ``norm_layer``, which is code: a model with another than BatchNorm2d needs it given again.
    """

    def __init__(
        self,
        backbone: str,
        upsampling: str,
        head: str,
        num_classes: int,
        aux: bool,
        se_loss: bool,
        lateral: bool,
        width: int,
        norm_layer: Callable[[int], nn.Module],
        pretrained: bool,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "upsampling": upsampling,
            "head": head,
            "num_classes": num_classes,
            "aux": aux,
            "se_loss": se_loss,
            "lateral": lateral,
            "width": width,
        }
        self.pretrained = make_backbone(backbone, upsampling == "none", norm_layer, pretrained)
        channels: tuple[int, ...] = self.pretrained.channels  # type: ignore[assignment]
        self.jpu, features = _make_upsampling(upsampling, channels, width, norm_layer)
        self.head: nn.Module
        if head == "encoding":
            # 1×1 after any upsampling, 3×3 on the dilated backbone. The paper says so of the JPU only, but
            # its Table 2 has bilinear faster than JPU: with the 3×3 it would have more multiply-adds.
            kernel_size = 3 if self.jpu is None else 1
            self.head = EncHead(channels[1:3], features, num_classes, kernel_size, se_loss, lateral, norm_layer)
        else:
            self.head = {"aspp": AsppHead, "psp": PSPHead, "fcn": FCNHead}[head](features, num_classes, norm_layer)
        self.auxlayer = FCNHead(channels[2], num_classes, norm_layer) if aux else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Segments images.

        Args:
            x: [N, 3, H, W], normalised as the backbone expects it.

        Returns:
            Logits [N, num_classes, H, W]; with ``se_loss`` logits [N, num_classes] of the classes that are
            present; with ``aux`` the auxiliary head's logits [N, num_classes, H, W].
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: expected a floating-point Tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"x: expected images [N, 3, H, W], got shape {tuple(x.shape)}")
        size = x.shape[2:]
        levels = tuple(self.pretrained(x))
        if self.jpu is not None:
            levels = self.jpu(*levels)
        if isinstance(self.head, EncHead):
            logits, *presence = self.head(levels[-1], levels[1:3])
        else:
            logits, presence = self.head(levels[-1]), []
        outputs = [resize(logits, size), *presence]
        if self.auxlayer is not None:
            outputs.append(resize(self.auxlayer(levels[2]), size))
        return tuple(outputs)


def _make_upsampling(
    name: str, channels: tuple[int, ...], width: int, norm_layer: Callable[[int], nn.Module]
) -> tuple[nn.Module | None, int]:
    """The module between backbone and head, and the channels of its features."""
    if name == "none":
        return None, channels[-1]
    if name == "bilinear":
        return Bilinear(channels), channels[-1]
    if name == "fpn":
        return FPN(channels, norm_layer, width, 4 * width), 4 * width
    cls = JPU if name == "jpu" else JPU_X
    return cls(channels[1:], width=width, norm_layer=norm_layer), 4 * width


def fastfcn(
    backbone: str = "resnet50",
    upsampling: str = "jpu",
    head: str = "encoding",
    *,
    num_classes: int,
    aux: bool = True,
    se_loss: bool | None = None,
    lateral: bool = False,
    width: int = 512,
    norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    pretrained: bool = False,
    classes: Sequence[str] | None = None,
) -> FastFCN:
    """Builds one of the paper's systems (FastFCN, Tables 1 and 2), with random weights unless asked otherwise.

    Args:
        backbone: ``"resnet50"`` or ``"resnet101"`` in FastFCN's deep-stem form; else a model of timm, with
            an optional ``timm/`` before its name.
        upsampling: ``"none"`` (backbone dilated to output stride 8), or on an undilated backbone
            ``"bilinear"``, ``"fpn"``, ``"jpu"`` or ``"jpu_x"``.
        head: ``"encoding"`` (EncNet), ``"aspp"`` (DeepLabV3), ``"psp"`` or ``"fcn"``.
        num_classes: of the logits.
        aux: whether to add the auxiliary FCN head on the backbone's third level.
        se_loss: whether the encoding head predicts which classes are present; True for it if None.
        lateral: whether the encoding head fuses the levels of strides 8 and 16.
        width: of JPU, JPU_X and FPN; their features have four times as many channels.
        norm_layer: makes a norm from its number of channels; timm's backbones keep their own.
        pretrained: whether timm is to download ImageNet weights; nothing is downloaded otherwise.
        classes: names of the classes, kept in ``config`` for whoever shows results.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: arguments that do not fit; the message says expected and got.
        ImportError: a backbone of timm without timm.
    """
    if upsampling not in UPSAMPLINGS:
        raise ValueError(f"upsampling: expected one of {', '.join(map(repr, UPSAMPLINGS))}, got {upsampling!r}")
    if head not in HEADS:
        raise ValueError(f"head: expected one of {', '.join(map(repr, HEADS))}, got {head!r}")
    for name, number in (("num_classes", num_classes), ("width", width)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name}: expected a positive integer, got {number!r}")
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"classes: expected {num_classes} names, got {len(classes)}")
    for name, value in (("lateral", lateral), ("se_loss", se_loss)):
        if value and head != "encoding":
            raise ValueError(f"{name}: expected False for head {head!r}, since only 'encoding' has it, got True")
    se_loss = head == "encoding" if se_loss is None else se_loss
    model = FastFCN(backbone, upsampling, head, num_classes, aux, se_loss, lateral, width, norm_layer, pretrained)
    if classes is not None:
        model.config["classes"] = list(classes)
    return model

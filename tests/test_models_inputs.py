"""What models take beyond the ordinary: sizes that timm's models refuse, half precision, wrong arguments."""

from typing import Any

import pytest
import torch
from torch import nn

from jpu_cuda import models
from jpu_cuda.models.backbones import TimmBackbone
from jpu_cuda.models.heads import EncModule, Encoding

SMALL = "test_resnet.r160_in1k"


def images(*size: int) -> torch.Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "hrnet_w18_small", "test_convnext.r160_in1k", SMALL],
)
def test_timm_backbones_take_any_size(name: str) -> None:
    """Swin and HRNet by themselves refuse sides that are no multiples of 4 and of 32."""
    backbone = TimmBackbone(name, dilated=False, pretrained=False).eval()
    with torch.no_grad():
        levels = backbone(images(33, 47))
    assert [tuple(x.shape[2:]) for x in levels] == [(9, 12), (5, 6), (3, 3), (2, 2)]


def test_timm_backbones_are_untouched_at_multiples_of_32() -> None:
    backbone = TimmBackbone(SMALL, dilated=False, pretrained=False).eval()
    expected = backbone.body(images(64, 96))[-4:]
    assert all(torch.equal(a, b) for a, b in zip(backbone(images(64, 96)), expected, strict=True))


def test_a_dilated_timm_backbone_keeps_stride_8_at_any_size() -> None:
    levels = TimmBackbone(SMALL, dilated=True, pretrained=False).eval()(images(33, 47))
    assert [tuple(x.shape[2:]) for x in levels] == [(9, 12), (5, 6), (5, 6), (5, 6)]


def test_a_swin_trains_at_an_odd_size() -> None:
    model = models.fastfcn("swin_tiny_patch4_window7_224", "jpu", "fcn", num_classes=5, width=8)
    outputs = model(images(33, 47))
    sum(y.square().mean() for y in outputs).backward()  # type: ignore[union-attr]
    assert [tuple(y.shape) for y in outputs] == [(2, 5, 33, 47)] * 2
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_one_step_of_descent_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = models.fastfcn(SMALL, "jpu", "encoding", num_classes=5, width=16)
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # the same function before and after
    target = torch.randint(5, (2, 33, 47))

    def loss() -> torch.Tensor:
        logits, presence, aux = model(images(33, 47))
        cross_entropy = nn.functional.cross_entropy
        return cross_entropy(logits, target) + 0.4 * cross_entropy(aux, target) + 0.2 * presence.square().mean()

    before = loss()
    before.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad  # type: ignore[operator]
    assert float(loss().detach()) < float(before.detach())


def test_the_encoding_of_a_large_image_passes_float16s_range_under_autocast() -> None:
    torch.manual_seed(0)
    layer, x = Encoding(4, 2), 20 + torch.rand(1, 4, 96, 96)
    with torch.autocast("cpu", torch.float16):
        encoded = layer(x.half())
    assert float(encoded.detach().abs().max()) > torch.finfo(torch.float16).max
    assert encoded.isfinite().all()


def test_the_encoding_module_trains_under_float16_autocast() -> None:
    torch.manual_seed(0)
    module = EncModule(8, 3, True, nn.BatchNorm2d)
    with torch.autocast("cpu", torch.float16):
        outputs = module(torch.randn(2, 8, 16, 16))
    sum(y.float().square().mean() for y in outputs).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"width": 0}, ValueError, "width: expected a positive integer, got 0"),
        ({"width": 2.5, "upsampling": "fpn"}, ValueError, "width: expected a positive integer, got 2.5"),
        ({"num_classes": True}, ValueError, "num_classes: expected a positive integer, got True"),
        ({"num_classes": 2.0}, ValueError, "num_classes: expected a positive integer, got 2.0"),
        ({"backbone": None}, TypeError, "backbone: expected a name, got None"),
        ({"classes": ["a", "b"]}, ValueError, "classes: expected 5 names, got 2"),
        ({"backbone": "test_vit"}, ValueError, r"expected features of strides \(4, 8, 16, 32\), got \(16, 16, 16\)"),
        ({"backbone": "resnet18.nothing"}, ValueError, "timm cannot build it with .*Invalid pretrained tag"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        models.fastfcn(**{"backbone": SMALL, "num_classes": 5, **kwargs})

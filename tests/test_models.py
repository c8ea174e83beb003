"""models.fastfcn: the original's names and shapes, every combination, and what it refuses."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

from jpu_cuda import JPU, models
from jpu_cuda.models.fastfcn import HEADS
from jpu_cuda.models.heads import Encoding
from jpu_cuda.models.upsampling import FPN

SMALL = "test_resnet.r160_in1k"  # channels 32, 48, 48, 96; dilates
BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
Shapes = dict[str, tuple[int, ...]]


def small(upsampling: str = "jpu", head: str = "fcn", **kwargs: Any) -> models.FastFCN:
    torch.manual_seed(0)
    return models.fastfcn(SMALL, upsampling, head, **{"num_classes": 5, "width": 16, **kwargs})


def images(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


# --- FastFCN's names and shapes, stated from its published structure ---


def norm(name: str, channels: int) -> Shapes:
    return {f"{name}.{n}": () if n == "num_batches_tracked" else (channels,) for n in BN}


def conv(name: str, out: int, channels: int, k: int) -> Shapes:
    return {f"{name}.weight": (out, channels, k, k)}


def conv_norm(name: str, out: int, channels: int, k: int, at: int = 0) -> Shapes:
    return conv(f"{name}.{at}", out, channels, k) | norm(f"{name}.{at + 1}", out)


def classifier(name: str, classes: int, channels: int) -> Shapes:
    return {f"{name}.weight": (classes, channels, 1, 1), f"{name}.bias": (classes,)}


def backbone(depths: tuple[int, ...]) -> Iterator[Shapes]:
    p = "pretrained"
    yield (
        conv_norm(f"{p}.conv1", 64, 3, 3) | conv_norm(f"{p}.conv1", 64, 64, 3, at=3) | conv(f"{p}.conv1.6", 128, 64, 3)
    )
    yield norm(f"{p}.bn1", 128)
    channels = 128
    for i, depth in enumerate(depths):
        planes = 64 * 2**i
        for j in range(depth):
            b = f"{p}.layer{i + 1}.{j}"
            yield conv(f"{b}.conv1", planes, channels, 1) | norm(f"{b}.bn1", planes)
            yield conv(f"{b}.conv2", planes, planes, 3) | norm(f"{b}.bn2", planes)
            yield conv(f"{b}.conv3", 4 * planes, planes, 1) | norm(f"{b}.bn3", 4 * planes)
            if j == 0:
                yield conv_norm(f"{b}.downsample", 4 * planes, channels, 1)
            channels = 4 * planes
    yield {f"{p}.fc.weight": (1000, 2048), f"{p}.fc.bias": (1000,)}


def separable(name: str, out: int, channels: int, groups: bool) -> Shapes:
    affine = BN[:2] if groups else BN
    return (
        conv(f"{name}.0.conv1", channels, 1, 3)
        | {k: v for k, v in norm(f"{name}.0.bn", channels).items() if k.split(".")[-1] in affine}
        | conv(f"{name}.0.pointwise", out, channels, 1)
        | {k: v for k, v in norm(f"{name}.1", out).items() if k.split(".")[-1] in affine}
    )


def upsampling(name: str) -> Iterator[Shapes]:
    if name == "jpu":
        for level, channels in ((5, 2048), (4, 1024), (3, 512)):
            yield conv_norm(f"jpu.conv{level}", 512, channels, 3)
        for i in (1, 2, 3, 4):
            yield separable(f"jpu.dilation{i}", 512, 1536, groups=False)
    if name == "jpu_x":
        for jum, width, low, high in (("jum_1", 256, 1024, 512), ("jum_2", 512, 2048, 1024)):
            yield conv_norm(f"jpu.{jum}.conv_l", width, low, 3) | conv_norm(f"jpu.{jum}.conv_h", width, high, 3)
            for i in (1, 2, 3):
                yield separable(f"jpu.{jum}.dilation{i}", width, 2 * width, groups=True)


def head(name: str, classes: int, k: int, lateral: bool, se_loss: bool) -> Iterator[Shapes]:
    if name == "encoding":
        yield conv_norm("head.conv5", 512, 2048, k)
        if lateral:
            yield conv_norm("head.connect.0", 512, 512, 1) | conv_norm("head.connect.1", 512, 1024, 1)
            yield conv_norm("head.fusion", 512, 1536, 3)
        e = "head.encmodule"
        yield conv_norm(f"{e}.encoding", 512, 512, 1)
        yield {f"{e}.encoding.3.codewords": (32, 512), f"{e}.encoding.3.scale": (32,)} | norm(f"{e}.encoding.4", 32)
        yield {f"{e}.fc.0.weight": (512, 512), f"{e}.fc.0.bias": (512,)}
        if se_loss:
            yield {f"{e}.selayer.weight": (classes, 512), f"{e}.selayer.bias": (classes,)}
        yield classifier("head.conv6.1", classes, 512)
    elif name == "aspp":
        yield conv_norm("head.aspp.b0", 256, 2048, 1)
        for i in (1, 2, 3):
            yield conv_norm(f"head.aspp.b{i}", 256, 2048, 3)
        yield conv_norm("head.aspp.b4.gap", 256, 2048, 1, at=1) | conv_norm("head.aspp.project", 256, 1280, 1)
        yield conv_norm("head.block", 256, 256, 3) | classifier("head.block.4", classes, 256)
    elif name == "psp":
        for i in (1, 2, 3, 4):
            yield conv_norm(f"head.conv5.0.conv{i}", 512, 2048, 1)
        yield conv_norm("head.conv5", 512, 4096, 3, at=1) | classifier("head.conv5.5", classes, 512)
    else:
        yield conv_norm("head.conv5", 512, 2048, 3) | classifier("head.conv5.4", classes, 512)


def fastfcns(depths: tuple[int, ...], up: str, name: str, lateral: bool, se_loss: bool, aux: bool) -> Shapes:
    k = 3 if up == "none" else 1
    parts = [*backbone(depths), *upsampling(up), *head(name, 59, k, lateral, se_loss)]
    if aux:
        parts.append(conv_norm("auxlayer.conv5", 256, 1024, 3) | classifier("auxlayer.conv5.4", 59, 256))
    return {name: shape for part in parts for name, shape in part.items()}


VARIANTS = [
    *((up, h, False, h == "encoding", True) for up, h in product(("none", "jpu", "jpu_x"), HEADS)),
    *((up, "encoding", True, True, True) for up in ("none", "jpu", "jpu_x")),
    ("jpu", "encoding", False, False, True),
    ("jpu", "encoding", False, True, False),
]


@pytest.mark.parametrize(("up", "name", "lateral", "se_loss", "aux"), VARIANTS)
@pytest.mark.parametrize(("depth", "depths"), [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))])
def test_names_and_shapes_are_fastfcns(
    depth: str, depths: tuple[int, ...], up: str, name: str, lateral: bool, se_loss: bool, aux: bool
) -> None:
    with torch.device("meta"):
        model = models.fastfcn(depth, up, name, num_classes=59, lateral=lateral, se_loss=se_loss, aux=aux)
    actual = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    expected = fastfcns(depths, up, name, lateral, se_loss, aux)
    assert actual == expected
    assert list(actual) == list(expected)  # optimizers are restored by order


def test_dilations_and_strides_of_the_dilated_backbone() -> None:
    with torch.device("meta"):
        dilated = models.fastfcn("resnet50", "none", "fcn", num_classes=2).pretrained
        strided = models.fastfcn("resnet50", "jpu", "fcn", num_classes=2).pretrained

    def convs(backbone: Any, layer: str) -> list[tuple[int, int]]:
        return [(b.conv2.stride[0], b.conv2.dilation[0]) for b in getattr(backbone, layer)]

    assert convs(dilated, "layer2") == [(2, 1), (1, 1), (1, 1), (1, 1)]
    assert convs(dilated, "layer3") == [(1, 1), *[(1, 2)] * 5]
    assert convs(dilated, "layer4") == [(1, 2), (1, 4), (1, 4)]
    assert convs(strided, "layer3") == [(2, 1), *[(1, 1)] * 5]
    assert convs(strided, "layer4") == [(2, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize(("up", "strides"), [("none", (4, 8, 8, 8)), ("jpu", (4, 8, 16, 32))])
def test_strides_of_fastfcns_backbone(up: str, strides: tuple[int, ...]) -> None:
    with torch.device("meta"):
        levels = models.fastfcn("resnet50", up, "fcn", num_classes=2).pretrained(torch.empty(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in levels] == [(64 // s, 96 // s) for s in strides]


def test_a_strided_backbone_computes_a_sample_of_the_dilated_one() -> None:
    """FastFCN, Eq. 3, on the whole ResNet's layer3: same weights, every other pixel, away from the padding's reach."""
    dilated = randomise(models.fastfcn("resnet50", "none", "fcn", num_classes=2).pretrained).double().eval()
    strided = models.fastfcn("resnet50", "jpu", "fcn", num_classes=2).pretrained.double().eval()
    strided.load_state_dict(dilated.state_dict())
    x = images(40, 40, dtype=torch.float64)[:1]
    with torch.no_grad():
        fine, coarse = dilated(x)[2], strided(x)[2]
    # The layer's first 3×3 convolution reads the same pixels in both; the dilated ones after it stay within
    # the class (0, 0), so all of the coarse result is in the fine one.
    torch.testing.assert_close(fine[:, :, ::2, ::2], coarse, rtol=0, atol=1e-12 * float(coarse.abs().max()))


# --- every combination, on a small backbone ---


@pytest.mark.parametrize(("up", "h"), [*product(("none", "bilinear", "fpn", "jpu"), HEADS)])
def test_every_combination_trains(up: str, h: str) -> None:
    model = small(up, h).train()
    outputs = model(images(40, 56))
    assert [tuple(y.shape) for y in outputs] == [(2, 5, 40, 56), *[(2, 5)] * (h == "encoding"), (2, 5, 40, 56)]
    sum(y.square().mean() for y in outputs).backward()  # type: ignore[union-attr]
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []


def test_jpu_x_trains() -> None:
    model = models.fastfcn("resnet18", "jpu_x", "fcn", num_classes=5, width=128)
    outputs = model(images(64, 64))
    outputs[0].mean().backward()
    assert outputs[0].shape == (2, 5, 64, 64)
    assert model.jpu.jum_1.conv_h[0].weight.grad is not None  # type: ignore[union-attr]


@pytest.mark.parametrize("up", ["none", "jpu"])
def test_lateral_connections_take_levels_of_any_size(up: str) -> None:
    model = small(up, "encoding", lateral=True)
    model(images(41, 57))[0].mean().backward()
    assert model.head.connect[1][0].weight.grad is not None  # type: ignore[union-attr,index]


@pytest.mark.parametrize("size", [(33, 47), (97, 64), (32, 32)])
@pytest.mark.parametrize("up", ["none", "bilinear", "fpn", "jpu"])
def test_any_size_in_and_the_same_out(up: str, size: tuple[int, int]) -> None:
    assert small(up).eval()(images(*size))[0].shape == (2, 5, *size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtypes_follow_the_model(dtype: torch.dtype) -> None:
    outputs = small(head="encoding").to(dtype).eval()(images(32, 32, dtype=dtype))
    assert {y.dtype for y in outputs} == {dtype}
    assert all(y.isfinite().all() for y in outputs)


def test_channels_last_computes_the_same() -> None:
    model = small(head="psp").double().eval()
    expected = model(images(48, 48, dtype=torch.float64))[0]
    model = model.to(memory_format=torch.channels_last)
    out = model(images(48, 48, dtype=torch.float64).contiguous(memory_format=torch.channels_last))[0]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_without_auxiliary_head_and_presence() -> None:
    assert len(small(head="encoding", aux=False, se_loss=False).eval()(images(32, 32))) == 1


def test_the_twins_share_their_backbones_names() -> None:
    names = [[n for n in small(up).state_dict() if n.startswith("pretrained.")] for up in ("none", "jpu")]
    assert names[0] == names[1]


def test_config_rebuilds_the_model() -> None:
    model = small("fpn", "encoding", lateral=True)
    twin = models.fastfcn(**model.config)
    twin.load_state_dict(model.state_dict(), strict=True)
    assert twin.config == model.config


def test_the_default_is_the_papers_model() -> None:
    with torch.device("meta"):
        model = models.fastfcn(num_classes=59)
    assert isinstance(model.jpu, JPU)
    assert model.jpu.conv3[0].weight.shape == (512, 512, 3, 3)
    assert [tuple(y.shape) for y in model.eval()(torch.empty(1, 3, 64, 64, device="meta"))] == [
        (1, 59, 64, 64),
        (1, 59),
        (1, 59, 64, 64),
    ]


def test_fpn_is_as_the_paper_has_it() -> None:
    """1×1 laterals to 512, top-down sum, 3×3, levels resized and concatenated, 1×1 to 2048."""
    with torch.device("meta"):
        fpn = FPN((256, 512, 1024, 2048), nn.BatchNorm2d)
    shapes = [tuple(m.weight.shape) for m in fpn.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(512, c, 1, 1) for c in (512, 1024, 2048)] + [(512, 512, 3, 3)] * 3 + [(2048, 1536, 1, 1)]


def test_fpn_sums_top_down() -> None:
    fpn = FPN((1, 1, 1), nn.BatchNorm2d, width=4, out_channels=8).eval()
    levels = [torch.rand(1, 1, s, s, requires_grad=True) for s in (8, 4, 2)]
    lateral = fpn.outputs[0]
    seen: list[Tensor] = []
    lateral.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fpn(*levels)
    gradients = torch.autograd.grad(seen[0].sum(), levels, allow_unused=True)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("layer", [nn.SyncBatchNorm, partial(nn.GroupNorm, 4), partial(nn.BatchNorm2d, momentum=0.01)])
def test_norm_layers(layer: Any) -> None:
    model = small(head="encoding", norm_layer=layer).eval()
    assert model(images(32, 32))[0].isfinite().all()
    norm = model.head.encmodule.encoding[4]  # type: ignore[union-attr,index]
    expected = {"SyncBatchNorm": nn.SyncBatchNorm, "GroupNorm": nn.GroupNorm, "BatchNorm2d": nn.BatchNorm1d}
    assert type(norm) is expected[getattr(layer, "func", layer).__name__]
    assert getattr(norm, "momentum", None) == getattr(layer(32), "momentum", None)


# --- timm ---


@pytest.mark.parametrize(
    ("name", "up"),
    [
        ("test_convnext.r160_in1k", "jpu"),
        ("test_efficientnet.r160_in1k", "jpu"),
        ("test_efficientnet.r160_in1k", "none"),
        ("timm/resnet10t", "fpn"),
        ("swin_tiny_patch4_window7_224", "jpu"),
    ],
)
def test_timm_backbones(name: str, up: str) -> None:
    model = models.fastfcn(name, up, "fcn", num_classes=5, width=16).eval()
    with torch.no_grad():
        levels = model.pretrained(images(64, 96))
        assert model(images(64, 96))[0].shape == (2, 5, 64, 96)
    strides = (4, 8, 8, 8) if up == "none" else (4, 8, 16, 32)
    assert [tuple(x.shape[1:]) for x in levels] == [
        (c, 64 // s, 96 // s)
        for c, s in zip(model.pretrained.channels, strides, strict=True)  # type: ignore[arg-type,call-overload]
    ]


def test_timm_prefix_is_timms_own_resnet() -> None:
    with torch.device("meta"):
        model = models.fastfcn("timm/resnet50", num_classes=2)
    assert "pretrained.body.conv1.weight" in model.state_dict()


# --- the encoding layer ---


def naive_encoding(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """EncNet's Eq. 1 with every residual written out."""
    residuals = x.flatten(2).transpose(1, 2)[:, :, None] - codewords  # [N, HW, K, C]
    assignment = (scale * residuals.square().sum(3)).softmax(2)
    return (assignment[..., None] * residuals).sum(1)


def encoding_case(dtype: torch.dtype = torch.float64) -> tuple[Encoding, Tensor]:
    torch.manual_seed(0)
    return Encoding(5, 3).to(dtype), torch.randn(2, 5, 4, 3, dtype=dtype)


def test_encoding_is_the_sum_of_assigned_residuals() -> None:
    layer, x = encoding_case()
    expected = naive_encoding(x, layer.codewords, layer.scale)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


def test_encoding_gradcheck() -> None:
    layer, x = encoding_case()

    def run(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"codewords": codewords, "scale": scale}, (x,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), layer.codewords, layer.scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_encoding_computes_in_float32_at_least(dtype: torch.dtype) -> None:
    layer, x = encoding_case(dtype)
    truth = naive_encoding(x.double(), layer.codewords.double(), layer.scale.double())
    wide = Encoding(5, 3)
    wide.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), wide(x.float()).to(dtype))
    # Cancelling ‖x‖² − 2·x·c + ‖c‖² costs a few roundings of its greatest term in the exponent.
    peak = float(x.double().square().sum(1).max())
    bound = (16 * torch.finfo(torch.float32).eps * peak + torch.finfo(dtype).eps) * float(truth.detach().abs().max())
    assert float((layer(x).double() - truth).detach().abs().max()) <= bound


def test_encoding_is_not_halved_by_autocast() -> None:
    layer, x = encoding_case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x))
        inside = layer(x)
    assert torch.equal(inside, layer(x))


# --- what is refused ---


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"upsampling": "deconv"}, "upsampling: expected one of 'none', .* got 'deconv'"),
        ({"head": "uper"}, "head: expected one of 'encoding', .* got 'uper'"),
        ({"num_classes": 0}, "num_classes: expected a positive integer, got 0"),
        ({"head": "psp", "lateral": True}, "lateral: expected False for head 'psp'"),
        ({"head": "fcn", "se_loss": True}, "se_loss: expected False for head 'fcn'"),
        ({"backbone": "nothing50"}, "backbone: expected 'resnet50', 'resnet101' or a model of timm.*, got 'nothing50'"),
        ({"pretrained": True}, "pretrained: expected False for 'resnet50'.* use 'timm/resnet50'"),
        ({"backbone": "vit_tiny_patch16_224"}, r"expected features of strides \(4, 8, 16, 32\), got \(16, 16"),
        (
            {"backbone": "swin_tiny_patch4_window7_224", "upsampling": "none"},
            "backbone 'swin.*': (timm cannot build it with|expected strides)",
        ),
        ({"width": 96, "upsampling": "jpu_x"}, "width: expected a multiple of 64, got 96"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        models.fastfcn(**{"num_classes": 5, **kwargs})


def test_a_missing_timm_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match="expected timm to be installed"):
        models.fastfcn("resnet18", num_classes=2)


@pytest.mark.parametrize("x", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8)])
def test_wrong_images(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x: expected images \[N, 3, H, W\], got shape"):
        small()(x)

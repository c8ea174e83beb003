"""Heads and upsampling modules against their formulas, written out from the papers in float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers import randomise
from torch import Tensor, nn

from jpu_cuda import models
from jpu_cuda.models.heads import AsppHead, EncHead, FCNHead, PSPHead
from jpu_cuda.models.upsampling import FPN, Bilinear

CLASSES = 3


class Formula:
    """The layers of a state dict as functions: of names and numbers, not of modules."""

    def __init__(self, module: nn.Module) -> None:
        self.state = module.state_dict()

    def conv(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = dilation * (weight.shape[2] // 2)
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=padding, dilation=dilation)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """A norm in evaluation over dimension 1."""
        shape = (1, -1) + (1,) * (x.dim() - 2)
        weight, bias, mean, var = (
            self.state[f"{name}.{n}"].view(shape) for n in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def block(self, x: Tensor, name: str, first: int = 0, dilation: int = 1) -> Tensor:
        """Convolution, norm, ReLU."""
        x = self.conv(x, f"{name}.{first}", dilation)
        return self.norm(x, f"{name}.{first + 1}").clamp_min(0)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def interpolation(old: int, new: int) -> Tensor:
    """[new, old]: the weights of linear interpolation with the ends on the ends."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = i * (old - 1) / (new - 1) if new > 1 else 0.0
        left = min(int(at), old - 1)
        weights[i, left] += 1 - (at - left)
        if at > left:
            weights[i, left + 1] += at - left
    return weights


def resized(x: Tensor, height: int, width: int) -> Tensor:
    rows, columns = interpolation(x.shape[2], height), interpolation(x.shape[3], width)
    return torch.einsum("ih,jw,nchw->ncij", rows, columns, x)


def pooled(x: Tensor, bins: int) -> Tensor:
    """Means over bins × bins regions; region i of n pixels is [⌊i·n/bins⌋, ⌈(i + 1)·n/bins⌉)."""
    height, width = x.shape[2:]

    def region(i: int, n: int) -> slice:
        return slice(i * n // bins, -(-(i + 1) * n // bins))

    rows = [[x[:, :, region(i, height), region(j, width)].mean((2, 3)) for j in range(bins)] for i in range(bins)]
    return torch.stack([torch.stack(row, 2) for row in rows], 2)


def ready(module: nn.Module) -> nn.Module:
    return randomise(module).double().eval()


def features(channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Float64 against float64: far above rounding, far below any change of the formula."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_fcn_head() -> None:
    head, x = ready(FCNHead(8, CLASSES, nn.BatchNorm2d)), features(8, 7, 9)
    f = Formula(head)
    assert_same(head(x), f.conv(f.block(x, "conv5"), "conv5.4"))


def test_psp_head() -> None:
    """PSPNet, section 3.2: bins 1, 2, 3 and 6, each through a 1×1 convolution, beside the features."""
    head, x = ready(PSPHead(8, CLASSES, nn.BatchNorm2d)), features(8, 7, 9)
    f = Formula(head)
    contexts = [
        resized(f.block(pooled(x, bins), f"conv5.0.conv{i}"), 7, 9) for i, bins in enumerate((1, 2, 3, 6), start=1)
    ]
    assert_same(head(x), f.conv(f.block(torch.cat((x, *contexts), 1), "conv5", first=1), "conv5.5"))


def test_aspp_head() -> None:
    """DeepLabV3, section 3.3: 1×1, dilations 12, 24, 36, and the image's mean."""
    head, x = ready(AsppHead(16, CLASSES, nn.BatchNorm2d)), features(16, 39, 41)  # past the largest dilation
    f = Formula(head)
    branches = [f.block(x, "aspp.b0")]
    branches += [f.block(x, f"aspp.b{i}", dilation=d) for i, d in ((1, 12), (2, 24), (3, 36))]
    mean = f.block(x.mean((2, 3), keepdim=True), "aspp.b4.gap", first=1)
    y = f.block(torch.cat((*branches, mean.expand(-1, -1, 39, 41)), 1), "aspp.project")
    assert_same(head(x), f.conv(f.block(y, "block"), "block.4"))


@pytest.mark.parametrize("lateral", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_encoding_head(kernel_size: int, lateral: bool) -> None:
    """EncNet, Eq. 1 and section 3.1: x·(1 + γ), γ the gate of the mean over normalised codes."""
    head = ready(EncHead((4, 6), 8, CLASSES, kernel_size, True, lateral, nn.BatchNorm2d))
    x, c3, c4 = features(8, 6, 7), features(4, 6, 7), features(6, 3, 4)
    f = Formula(head)
    y = f.block(x, "conv5")
    if lateral:
        connected = resized(f.block(c4, "connect.1"), 6, 7)
        y = f.block(torch.cat((y, f.block(c3, "connect.0"), connected), 1), "fusion")
    pixels = f.block(y, "encmodule.encoding").flatten(2).transpose(1, 2)  # [N, HW, C]
    residuals = pixels[:, :, None] - f.state["encmodule.encoding.3.codewords"]  # [N, HW, K, C]
    assigned = (f.state["encmodule.encoding.3.scale"] * residuals.square().sum(3)).softmax(2)
    codes = f.norm((assigned[..., None] * residuals).sum(1), "encmodule.encoding.4").clamp_min(0)
    context = codes.mean(1)
    gate = 1 / (1 + (-f.linear(context, "encmodule.fc.0")).exp())
    logits, presence = head(x, (c3, c4))
    assert_same(logits, f.conv((y + y * gate[:, :, None, None]).clamp_min(0), "conv6.1"))
    assert_same(presence, f.linear(context, "encmodule.selayer"))


SIZES = ((9, 11), (5, 6), (3, 3))


def test_bilinear_upsampling() -> None:
    c3, c4, c5 = (features(4, *size) for size in SIZES)
    assert_same(Bilinear((4, 4, 4))(c3, c4, c5)[-1], resized(c5, 9, 11))


def test_feature_pyramid() -> None:
    """1×1 laterals, coarser levels resized and added on the way down, 3×3, levels resized and concatenated, 1×1."""
    fpn = ready(FPN((4, 5, 6), nn.BatchNorm2d, width=3, out_channels=7))
    levels = [features(c, *size) for c, size in zip((4, 5, 6), SIZES, strict=True)]
    f = Formula(fpn)
    p5 = f.block(levels[2], "laterals.2")
    p4 = f.block(levels[1], "laterals.1") + resized(p5, 5, 6)
    p3 = f.block(levels[0], "laterals.0") + resized(p4, 9, 11)
    outputs = [resized(f.block(p, f"outputs.{i}"), 9, 11) for i, p in enumerate((p3, p4, p5))]
    assert_same(fpn(features(2, 18, 22), *levels)[-1], f.block(torch.cat(outputs, 1), "fusion"))


def test_levels_before_the_coarsest_pass_through() -> None:
    levels = [features(4, *size) for size in ((18, 22), *SIZES)]
    for module in (Bilinear((4, 4, 4, 4)), FPN((4, 4, 4, 4), nn.BatchNorm2d, width=3, out_channels=7).double()):
        assert all(a is b for a, b in zip(module(*levels)[:3], levels[:3], strict=True))


@pytest.mark.parametrize("upsampling", ["none", "bilinear", "fpn", "jpu"])
def test_which_level_each_head_reads(upsampling: str) -> None:
    """The head reads the features, the auxiliary head the third level; both are resized to the image."""
    model = models.fastfcn("test_resnet.r160_in1k", upsampling, "fcn", num_classes=CLASSES, width=16)
    ready(model)
    x = features(3, 41, 57)
    with torch.no_grad():
        levels = model.pretrained(x)
        upsampled = levels[-1] if model.jpu is None else model.jpu(*levels)[-1]
        logits, aux = model(x)
        assert_same(logits, resized(model.head(upsampled), 41, 57))
        assert_same(aux, resized(model.auxlayer(levels[2]), 41, 57))  # type: ignore[misc]


def test_frozen_norms_stay_frozen_over_the_codes() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    class Frozen(nn.BatchNorm2d):
        """As packages freeze norms: a subclass that never trains."""

        def train(self, mode: bool = True) -> "Frozen":
            return super().train(False)

    for layer in (FrozenBatchNorm2d, Frozen):
        model = models.fastfcn("test_resnet.r160_in1k", num_classes=3, width=16, norm_layer=layer).train()
        norm = model.head.encmodule.encoding[4]  # type: ignore[union-attr,index]
        assert type(norm) is layer
        before = norm.running_mean.clone()
        model(torch.rand(2, 3, 32, 32))[0].mean().backward()
        assert torch.equal(norm.running_mean, before)

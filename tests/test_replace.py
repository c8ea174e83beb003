"""replace_jpu: what it finds, what it keeps, and what it leaves alone."""

import copy
from collections.abc import Callable
from typing import Any

import foreign
import pytest
import torch
from helpers import pyramid, randomise
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

from jpu_cuda import JPU, JPU_X, explain, mmseg, replace_jpu
from jpu_cuda.modules.fastfcn import TramacJPU
from jpu_cuda.modules.sssegmentation import SSSegmentationJPU

CHANNELS = (8, 16, 32)
X_CHANNELS = (8, 128, 16)


def up(align_corners: bool = True) -> dict[str, Any]:
    return {"mode": "bilinear", "align_corners": align_corners}


class MMSegNeck(foreign.SSSegNeck):
    """As mmsegmentation's JPU, from the modules of mmcv itself."""

    def __init__(self, in_channels: tuple[int, ...], width: int, **kwargs: Any) -> None:
        cnn = pytest.importorskip("mmcv.cnn")
        super().__init__(in_channels, width, **kwargs)
        norm: dict[str, Any] = {"type": "BN"}
        levels = in_channels[self.start_level :]
        self.in_channels = self.in_channels_list
        del self.in_channels_list
        self.conv_layers = nn.ModuleList(
            nn.Sequential(cnn.ConvModule(c, width, 3, padding=1, norm_cfg=norm)) for c in levels
        )
        channels = len(self.conv_layers) * width
        self.dilation_layers = nn.ModuleList(
            nn.Sequential(
                cnn.DepthwiseSeparableConvModule(
                    channels,
                    width,
                    3,
                    padding=d,
                    dilation=d,
                    dw_norm_cfg=norm,
                    dw_act_cfg=None,
                    pw_norm_cfg=norm,
                )
            )
            for d in (1, 2, 4, 8)
        )


class Model(nn.Module):
    """A model around a JPU: the levels come from three convolutions, the answer from a fourth."""

    def __init__(self, neck: nn.Module, one_sequence: bool = False) -> None:
        super().__init__()
        self.decoder = nn.ModuleDict({"up": neck})
        self.one_sequence = one_sequence

    def forward(self, *levels: Tensor) -> Tensor:
        neck = self.decoder["up"]
        return (neck(levels) if self.one_sequence else neck(*levels))[-1]  # type: ignore[no-any-return]


Case = tuple[Callable[[], Model], str, type[nn.Module]]
CASES: dict[str, Case] = {
    "fastfcn": (lambda: Model(foreign.FastFCNNeck(CHANNELS, 8, up())), "fastfcn", JPU),
    "fastfcn, corners free": (lambda: Model(foreign.FastFCNNeck(CHANNELS, 8, up(False))), "fastfcn", JPU),
    "fastfcn, nearest": (
        lambda: Model(foreign.FastFCNNeck(CHANNELS, 8, {"mode": "nearest"})),
        "fastfcn",
        JPU,
    ),
    "jpu_x": (lambda: Model(foreign.FastFCNPyramidNeck(X_CHANNELS, 64, up())), "fastfcn", JPU_X),
    "tramac": (lambda: Model(foreign.TramacNeck(CHANNELS, 8)), "tramac", TramacJPU),
    "sssegmentation": (
        lambda: Model(foreign.SSSegNeck(CHANNELS, 8), True),
        "sssegmentation",
        SSSegmentationJPU,
    ),
    "sssegmentation, start level": (
        lambda: Model(foreign.SSSegNeck(CHANNELS, 8, True, 1, (1, 3)), True),
        "sssegmentation",
        SSSegmentationJPU,
    ),
    "mmseg": (lambda: Model(MMSegNeck(CHANNELS, 8), True), "mmseg", mmseg.JPU),
    "mmseg, start level": (lambda: Model(MMSegNeck(CHANNELS, 8, start_level=1), True), "mmseg", mmseg.JPU),
}


def levels_for(model: Model, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    if "jum_1" in dict(model.decoder["up"].named_children()):
        return pyramid((5, *X_CHANNELS), ((8, 8), (7, 9), (4, 5), (2, 3)), dtype=dtype)
    return pyramid(CHANNELS, dtype=dtype)


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("train", [False, True])
def test_computes_the_same_bit_for_bit(case: Case, train: bool) -> None:
    make, family, cls = case
    model = randomise(make()).double().train(train)
    levels = levels_for(model)  # type: ignore[arg-type]
    expected = copy.deepcopy(model)(*levels)
    assert replace_jpu(model) == [("decoder.up", family)]
    assert type(model.decoder["up"]) is cls  # type: ignore[index]
    assert torch.equal(model(*levels), expected)


def test_everything_stays_where_it_was(case: Case) -> None:
    make, *_ = case
    model = make().eval().half()
    neck = model.decoder["up"]
    neck.tag = "kept"  # type: ignore[assignment]
    parameters, state = list(model.parameters()), model.state_dict()
    modules = list(model.modules())
    replace_jpu(model)
    assert model.decoder["up"] is neck
    assert neck.tag == "kept"
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert not any(m.training for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float16}


def test_swapping_twice_changes_nothing(case: Case) -> None:
    make, *_ = case
    model = make()
    assert len(replace_jpu(model)) == 1
    before = {name: type(module) for name, module in model.named_modules()}
    assert replace_jpu(model) == []
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_the_result_is_explained_and_checked(case: Case) -> None:
    make, *_ = case
    model = make().double()
    replace_jpu(model)
    levels, neck = levels_for(model), model.decoder["up"]
    inputs: Any = (levels,) if model.one_sequence else levels
    assert explain(neck, *inputs).backend == "reference"
    levels[-1] = levels[-1][:, :-1]
    with pytest.raises(ValueError, match="expected .* channels, got"):
        model(*levels)


# The levels arrive in a list, where PyTorch does not look for inputs that require gradients.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_hooks_are_kept_and_act(case: Case) -> None:
    make, *_ = case
    model = make().double()
    levels = levels_for(model)
    seen: list[str] = []
    neck = model.decoder["up"]
    neck.register_forward_pre_hook(lambda *_: seen.append("before"))
    neck.register_forward_hook(lambda *_: seen.append("after"))
    neck.register_full_backward_hook(lambda *_: seen.append("backward"))
    next(m for m in neck.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(lambda *_: seen.append("conv"))
    replace_jpu(model)
    for level in levels:
        level.requires_grad_()
    model(*levels).sum().backward()
    assert seen == ["before", "conv", "after", "backward"]


def test_an_optimizer_goes_on(case: Case) -> None:
    make, *_ = case
    model = make().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    replace_jpu(model)
    before = [p.detach().clone() for p in model.parameters()]
    model(*levels_for(model)).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True) if b.dim() == 4)


def test_the_model_itself_may_be_a_jpu() -> None:
    neck = foreign.FastFCNNeck(CHANNELS, 8, up())
    assert replace_jpu(neck) == [("", "fastfcn")]
    assert isinstance(neck, JPU)


def test_several_jpus_and_shared_ones_are_found_once_each() -> None:
    neck = foreign.TramacNeck(CHANNELS, 8)
    model = nn.ModuleDict({"a": neck, "b": neck, "c": foreign.SSSegNeck(CHANNELS, 8)})
    assert replace_jpu(model) == [("a", "tramac"), ("c", "sssegmentation")]
    assert model["a"] is model["b"]


def test_frozen_and_group_norms_are_kept() -> None:
    model = Model(foreign.FastFCNNeck(CHANNELS, 8, up())).double()
    neck = model.decoder["up"]
    neck.conv3[1] = FrozenBatchNorm2d(8)  # type: ignore[index,operator]
    neck.dilation1[1] = nn.GroupNorm(4, 8)  # type: ignore[index,operator]
    model.double()
    expected = copy.deepcopy(model)(*pyramid())
    assert len(replace_jpu(model)) == 1
    assert torch.equal(model(*pyramid()), expected)


def test_parametrised_convolutions_are_kept() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    model = Model(foreign.FastFCNNeck(CHANNELS, 8, up())).double()
    parametrize.register_parametrization(model.decoder["up"].dilation1[0].pointwise, "weight", Half())  # type: ignore[index,union-attr]
    expected = copy.deepcopy(model)(*pyramid())
    assert len(replace_jpu(model)) == 1
    assert torch.equal(model(*pyramid()), expected)


def _without(attribute: str) -> nn.Module:
    neck = foreign.SSSegNeck(CHANNELS, 8)
    delattr(neck, attribute)
    return neck


def _changed(change: Callable[[Any], None]) -> nn.Module:
    neck = foreign.FastFCNNeck(CHANNELS, 8, up())
    change(neck)
    return neck


def _set(path: str, module: nn.Module) -> Callable[[nn.Module], None]:
    return lambda neck: neck.set_submodule(path, module)


NOT_A_JPU: dict[str, nn.Module] = {
    "something else": nn.Sequential(nn.Conv2d(3, 3, 3)),
    "a further child": _changed(lambda neck: neck.add_module("extra", nn.Identity())),
    "a missing branch": _changed(lambda neck: delattr(neck, "dilation4")),
    "another kernel": _changed(_set("conv3.0", nn.Conv2d(8, 8, 5, padding=2, bias=False))),
    "a strided stage": _changed(_set("conv4.0", nn.Conv2d(16, 8, 3, stride=2, padding=1, bias=False))),
    "another dilation": _changed(
        _set("dilation4.0.conv1", nn.Conv2d(24, 24, 3, padding=6, dilation=6, groups=24, bias=False))
    ),
    "a dense branch": _changed(_set("dilation1.0.conv1", nn.Conv2d(24, 24, 3, padding=1, bias=False))),
    "reflected padding": _changed(_set("conv3.0", nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect", bias=False))),
    "a stage without a convolution": _changed(_set("conv3.0", nn.Identity())),
}


@pytest.mark.parametrize("neck", NOT_A_JPU.values(), ids=NOT_A_JPU)
def test_leaves_alone_what_is_no_jpu(neck: nn.Module) -> None:
    before = type(neck)
    assert replace_jpu(nn.Sequential(neck)) == []
    assert type(neck) is before


@pytest.mark.parametrize(
    ("neck", "message"),
    [
        (
            _changed(lambda neck: delattr(neck, "up_kwargs")),
            "'1': expected the attribute 'up_kwargs' .* got None; set",
        ),
        (
            _without("align_corners"),
            "'1': expected the attribute 'align_corners' on a JPU of sssegmentation, got none",
        ),
        (_without("start_level"), "expected the attribute 'start_level'"),
    ],
)
def test_unreadable_options_are_refused_before_anything_changes(neck: nn.Module, message: str) -> None:
    model = nn.Sequential(foreign.TramacNeck(CHANNELS, 8), neck)
    with pytest.raises(ValueError, match=message):
        replace_jpu(model)
    assert type(model[0]) is foreign.TramacNeck


def test_refuses_what_is_no_module() -> None:
    with pytest.raises(TypeError, match="expected an nn.Module, got dict"):
        replace_jpu({})  # type: ignore[arg-type]


def test_works_through_a_wrapper_that_compiles() -> None:
    model = Model(foreign.FastFCNNeck(CHANNELS, 8, up())).double().eval()
    expected = model(*pyramid())
    replace_jpu(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*pyramid()), expected, rtol=0, atol=0)


def test_resize_options_beyond_mode_and_corners_are_kept() -> None:
    neck = foreign.FastFCNNeck(CHANNELS, 8, {**up(False), "antialias": True}).double().eval()
    levels = pyramid(sizes=((3, 3), (6, 5), (9, 9)))  # coarser levels that are larger: antialiasing shows
    expected = neck(*levels)[-1]
    replace_jpu(neck)
    assert torch.equal(neck(*levels)[-1], expected)


def test_a_forward_of_the_objects_own_is_refused() -> None:
    neck = foreign.FastFCNNeck(CHANNELS, 8, up())
    neck.forward = neck.forward  # type: ignore[method-assign] # as wrappers do it
    with pytest.raises(ValueError, match="expected the forward of the JPU's class, got one set on the object"):
        replace_jpu(nn.Sequential(neck))
    assert type(neck) is foreign.FastFCNNeck

"""jpu_cuda.mmseg.JPU against mmsegmentation's own code, and against explicit loops."""

import copy
import importlib.util
import sys
import types
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from typing import Any

import pytest
import torch
from helpers import assert_within, pyramid, randomise
from torch import nn

from jpu_cuda import mmseg, replace_jpu
from jpu_cuda.reference import loops


@pytest.fixture(scope="module")
def original() -> Iterator[type[nn.Module]]:
    """The file necks/jpu.py of mmsegmentation, loaded alone: the rest of its models needs mmcv's compiled ops."""
    pytest.importorskip("mmcv")
    try:
        source = next(f for f in files("mmsegmentation") or [] if str(f).endswith("necks/jpu.py"))
    except PackageNotFoundError:
        pytest.skip("needs mmsegmentation")
    package = types.ModuleType("mmseg_alone")
    package.__path__ = []
    utils = types.ModuleType("mmseg_alone.utils")
    utils.resize = torch.nn.functional.interpolate  # type: ignore[attr-defined]
    necks = types.ModuleType("mmseg_alone.necks")
    necks.__path__ = []
    added = {"mmseg_alone": package, "mmseg_alone.utils": utils, "mmseg_alone.necks": necks}
    sys.modules.update(added)
    spec = importlib.util.spec_from_file_location("mmseg_alone.necks.jpu", str(source.locate()))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module.JPU
    for name in added:
        del sys.modules[name]


CHANNELS = (8, 16, 32)
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    "align_corners": {"align_corners": True},
    "sync": {"norm_cfg": {"type": "SyncBN", "requires_grad": True}},
    "frozen": {"norm_cfg": {"type": "BN", "requires_grad": False, "momentum": 0.01}},
    "group": {"norm_cfg": {"type": "GN", "num_groups": 4}},
    "instance": {"norm_cfg": {"type": "IN", "affine": True}},
    "no norm": {"norm_cfg": None},
    "leaky": {"act_cfg": {"type": "LeakyReLU", "negative_slope": 0.2}},
    "no activation": {"act_cfg": None},
    "tanh": {"act_cfg": {"type": "Tanh"}},
    "start level": {"start_level": 1},
    "end level": {"end_level": 2},
    "one dilation": {"dilations": (3,)},
    "eight dilations": {"dilations": (1, 2, 3, 4, 5, 6, 7, 16)},
    "conv": {"conv_cfg": {"type": "Conv2d"}},
    "mmcv conv": {"conv_cfg": {"type": "ConvWS"}},
    "mmcv activation": {"act_cfg": {"type": "HSwish"}},
}


def pair(original: type[nn.Module], config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    arguments = {"in_channels": CHANNELS, "mid_channels": 8, **config}
    torch.manual_seed(3)
    theirs = original(**arguments)
    torch.manual_seed(3)
    ours = mmseg.JPU(**arguments)
    return ours, theirs


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_is_the_originals_twin(original: type[nn.Module], config: dict[str, Any]) -> None:
    """Same keys, same initial values from the same seed, same outputs and gradients, bit for bit."""
    ours, theirs = pair(original, config)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]

    train = config.get("norm_cfg", {}) is None or config.get("norm_cfg", {}).get("type") != "SyncBN"
    results = []
    for module in (randomise(ours), randomise(theirs)):
        levels = pyramid(dtype=torch.float32, requires_grad=True)
        outputs = module.train(train)(levels)
        assert isinstance(outputs, tuple)
        outputs[-1].square().sum().backward()
        results.append((*outputs, *(x.grad for x in levels), *(p.grad for p in module.parameters())))
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("config", ["default", "start level", "group", "eight dilations", "leaky"])
def test_the_original_is_replaced_in_place(original: type[nn.Module], config: str) -> None:
    theirs = randomise(original(in_channels=CHANNELS, mid_channels=8, **CONFIGS[config]))
    levels = pyramid(dtype=torch.float32)
    expected = copy.deepcopy(theirs)(levels)
    assert replace_jpu(theirs) == [("", "mmseg")]
    assert type(theirs) is mmseg.JPU
    for a, b in zip(theirs(levels), expected, strict=True):
        assert torch.equal(a, b)
    theirs.init_weights()


@pytest.mark.parametrize("levels", [1, 2, 3, 8])
@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4, 8), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_any_number_of_levels_and_dilations(levels: int, dilations: tuple[int, ...]) -> None:
    channels = tuple(range(3, 3 + levels))
    inputs = pyramid(channels, tuple((7 - i // 2, 5 - i // 2) for i in range(levels)), batch=1)
    jpu = randomise(mmseg.JPU(channels, 8, dilations=dilations)).double().eval()
    out = jpu(inputs)[-1]
    assert out.shape == (1, 8 * len(dilations), 7, 5)
    assert_within(out, loops.evaluate(jpu, inputs, torch.float64))  # type: ignore[arg-type]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("config", ["default", "align_corners", "group", "no norm"])
def test_values(config: str, train: bool) -> None:
    jpu = randomise(mmseg.JPU(CHANNELS, 8, **CONFIGS[config])).double().train(train)
    levels = pyramid()
    assert_within(jpu(levels)[-1], loops.evaluate(jpu, levels, torch.float64))  # type: ignore[arg-type]


def test_default_arguments_are_mmsegmentations() -> None:
    with torch.device("meta"):
        jpu = mmseg.JPU()
    assert jpu.level_channels == (512, 1024, 2048)
    assert jpu.dilation_layers[3][0].depthwise_conv.conv.weight.shape == (1536, 1, 3, 3)
    assert jpu.up_kwargs == {"mode": "bilinear", "align_corners": False}


def test_is_built_from_a_config_of_mmsegmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS = pytest.importorskip("mmseg.registry").MODELS
    # Its own models need mmcv's compiled operators, which mmcv-lite has not; leave them unimported.
    monkeypatch.setattr(MODELS, "_imported", True)
    before = dict(MODELS.module_dict)
    neck = MODELS.build({"type": "jpu_cuda.JPU", "in_channels": CHANNELS, "mid_channels": 8})
    assert type(neck) is mmseg.JPU
    assert MODELS.module_dict == before


def test_overrides_nothing_in_mmengine() -> None:
    MODELS = pytest.importorskip("mmengine.registry").MODELS
    import jpu_cuda.registry

    assert "JPU" not in MODELS.module_dict
    assert MODELS.get("jpu_cuda.JPU") is mmseg.JPU
    assert jpu_cuda.registry.MODELS.scope == "jpu_cuda"


def test_init_cfg_is_applied_by_init_weights() -> None:
    pytest.importorskip("mmengine")
    jpu = mmseg.JPU(CHANNELS, 8, init_cfg={"type": "Constant", "layer": "Conv2d", "val": 0.5})
    jpu.init_weights()
    assert (jpu.conv_layers[0][0].conv.weight == 0.5).all()


def test_init_cfg_without_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmengine.model", None)
    with pytest.raises(ImportError, match="init_cfg: expected mmengine to be installed"):
        mmseg.JPU(CHANNELS, 8, init_cfg={"type": "Constant", "layer": "Conv2d", "val": 0.5})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"in_channels": ()}, r"in_channels: expected one or more positive integers, got \(\)"),
        ({"mid_channels": 0}, "mid_channels: expected a positive integer, got 0"),
        ({"dilations": ()}, "dilations: expected one or more integers >= 1"),
        ({"dilations": (1, 0)}, "dilations: expected one or more integers >= 1"),
        ({"end_level": 4}, "expected 0 <= start_level < end_level <= 3 .* got 0, 4"),
        ({"start_level": 3}, "got 3, -1"),
        ({"norm_cfg": {"type": "Nothing"}}, "norm_cfg: expected a type among BN, .* got 'Nothing'"),
        ({"norm_cfg": {"type": "GN"}}, "norm_cfg: expected num_groups for a GroupNorm"),
        ({"norm_cfg": {}}, "norm_cfg: expected a dict with the key 'type'"),
        ({"act_cfg": {"type": "Nothing"}}, "act_cfg: expected a type among ReLU, .* got 'Nothing'"),
        ({"conv_cfg": {"type": "Nothing"}}, "conv_cfg: expected a type among Conv2d, .* got 'Nothing'"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmseg.JPU(**{"in_channels": CHANNELS, "mid_channels": 8, **kwargs})


def test_unknown_type_without_mmengine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv.cnn", None)
    with pytest.raises(ValueError, match="got 'ConvWS'"):
        mmseg.JPU(CHANNELS, 8, conv_cfg={"type": "ConvWS"})


def test_wrong_inputs() -> None:
    jpu, levels = mmseg.JPU(CHANNELS, 8), pyramid(dtype=torch.float32)
    with pytest.raises(ValueError, match="expected 3 levels as in_channels, got 2"):
        jpu(levels[:2])
    with pytest.raises(TypeError, match="expected one sequence of feature maps, got Tensor"):
        jpu(levels[0])
    with pytest.raises(ValueError, match=r"inputs\[0:3\]\[2\]: expected 32 channels, got 16"):
        jpu([levels[0], levels[1], levels[1]])

"""jpu_cuda.JPU: FastFCN's contract, and its values against explicit loops."""

import copy
import io
from functools import partial

import pytest
import torch
from helpers import assert_relative_l2, assert_within, pyramid, randomise
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from jpu_cuda import JPU
from jpu_cuda.reference import loops

CHANNELS = (8, 16, 32)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make(dtype: torch.dtype = torch.float64, train: bool = False, **kwargs: object) -> JPU:
    jpu = JPU(CHANNELS, **{"width": 8, **kwargs})  # type: ignore[arg-type]
    return randomise(jpu).to(dtype).train(train)  # type: ignore[return-value]


class SubclassedBatchNorm(nn.BatchNorm2d):
    """Stands for the batch norms that packages derive."""


NORMS = {
    "batch": nn.BatchNorm2d,
    "subclass": SubclassedBatchNorm,
    "sync": nn.SyncBatchNorm,
    "group": partial(nn.GroupNorm, 4),
    "frozen": FrozenBatchNorm2d,
    "untracked": partial(nn.BatchNorm2d, track_running_stats=False),
    "not affine": partial(nn.BatchNorm2d, affine=False),
}


def test_default_arguments_are_fastfcns() -> None:
    with torch.device("meta"):
        jpu = JPU([512, 1024, 2048])
    assert jpu.conv5[0].weight.shape == (512, 2048, 3, 3)
    assert jpu.up_kwargs == {"mode": "bilinear", "align_corners": True}
    assert isinstance(jpu.conv3[1], nn.BatchNorm2d)


def test_state_dict_is_fastfcns() -> None:
    width, norm = 8, ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected: dict[str, tuple[int, ...]] = {}
    for name, channels in (("conv5", 32), ("conv4", 16), ("conv3", 8)):
        expected[f"{name}.0.weight"] = (width, channels, 3, 3)
        expected |= {f"{name}.1.{n}": () if n == norm[-1] else (width,) for n in norm}
    for i in (1, 2, 3, 4):
        expected[f"dilation{i}.0.conv1.weight"] = (3 * width, 1, 3, 3)
        expected |= {f"dilation{i}.0.bn.{n}": () if n == norm[-1] else (3 * width,) for n in norm}
        expected[f"dilation{i}.0.pointwise.weight"] = (width, 3 * width, 1, 1)
        expected |= {f"dilation{i}.1.{n}": () if n == norm[-1] else (width,) for n in norm}
    actual = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    assert actual == expected
    assert list(actual) == list(expected)  # optimizers are restored by order


def test_values_from_literal_keys() -> None:
    """The loops read by FastFCN's names here, so that a part found under a wrong name shows."""
    jpu, levels = make(), pyramid()
    state = {name: value.double().numpy() for name, value in jpu.state_dict().items()}

    def norm(key: str) -> loops.Norm:
        weight, bias, mean, var = (state[f"{key}.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
        return loops.Norm(weight, bias, 1e-5, mean, var)

    stages = [loops.Stage(loops.Conv(state[f"conv{i}.0.weight"]), norm(f"conv{i}.1")) for i in (3, 4, 5)]
    branches = [
        loops.Branch(
            loops.Conv(state[f"dilation{i}.0.conv1.weight"], dilation=2 ** (i - 1), groups=24),
            norm(f"dilation{i}.0.bn"),
            loops.Conv(state[f"dilation{i}.0.pointwise.weight"]),
            norm(f"dilation{i}.1"),
        )
        for i in (1, 2, 3, 4)
    ]
    expected = loops.joint_pyramid(
        levels,
        stages,
        branches,
        align_corners=True,
        coarsest_first=True,
        arithmetic=loops.Arithmetic.of(torch.float64),
    )
    assert_within(jpu(*levels)[-1], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_eval_within_the_rounding_bound(dtype: torch.dtype) -> None:
    jpu, levels = make(dtype), pyramid(dtype=dtype)
    out = jpu(*levels)[-1]
    assert out.dtype == dtype
    assert_within(out, loops.evaluate(jpu, levels, dtype))


# SyncBatchNorm trains on GPUs only: PyTorch refuses it on a CPU.
@pytest.mark.parametrize(("norm", "train"), [(n, t) for n in NORMS for t in (False, True) if (n, t) != ("sync", True)])
def test_norms_in_float64(norm: str, train: bool) -> None:
    jpu, levels = make(train=train, norm_layer=NORMS[norm]), pyramid()
    expected = loops.evaluate(jpu, levels, torch.float64)
    assert_within(jpu(*levels)[-1], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu(dtype: torch.dtype, train: bool) -> None:
    jpu, levels = make(dtype, train, norm_layer=nn.SyncBatchNorm), pyramid(dtype=dtype)
    expected = loops.evaluate(jpu, levels, torch.float64)
    with torch.backends.cudnn.flags(allow_tf32=False):
        out = jpu.cuda()(*(x.cuda() for x in levels))[-1]
    assert_relative_l2(out.cpu(), torch.from_numpy(expected.value), roundings=7)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_training_agrees_with_float64(dtype: torch.dtype) -> None:
    jpu, levels = make(dtype, train=True), pyramid(dtype=dtype)
    expected = loops.evaluate(jpu, levels, torch.float64)
    # conv, norm, resize, depthwise, norm, pointwise, norm
    assert_relative_l2(jpu(*levels)[-1], torch.from_numpy(expected.value), roundings=7)


def test_training_updates_running_statistics() -> None:
    jpu, levels = make(train=True), pyramid()
    before = jpu.dilation4[0].bn.running_mean.clone()
    jpu(*levels)
    assert not torch.equal(before, jpu.dilation4[0].bn.running_mean)
    assert int(jpu.conv3[1].num_batches_tracked) == 1


@pytest.mark.parametrize("train", [False, True])
def test_gradcheck(train: bool) -> None:
    # Width and sizes as small as they can be: gradcheck perturbs every entry.
    jpu = randomise(JPU((2, 3, 2), width=2)).double().train(train)
    levels = pyramid((2, 3, 2), ((3, 4), (2, 2), (1, 1)), requires_grad=True)
    parameters = tuple(jpu.parameters())

    def run(*tensors: Tensor) -> Tensor:
        values = dict(zip((n for n, _ in jpu.named_parameters()), tensors[3:], strict=True))
        return torch.func.functional_call(jpu, values, tensors[:3])[-1]  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (*levels, *parameters))


@pytest.mark.parametrize(
    "sizes",
    [
        ((1, 1), (1, 1), (1, 1)),
        ((5, 3), (1, 1), (1, 1)),
        ((11, 13), (7, 5), (3, 2)),
        ((4, 4), (4, 4), (4, 4)),
        ((3, 3), (6, 5), (9, 9)),
        ((17, 1), (1, 9), (5, 5)),
    ],
)
def test_levels_of_any_size(sizes: tuple[tuple[int, int], ...]) -> None:
    jpu, levels = make(), pyramid(sizes=sizes)
    assert_within(jpu(*levels)[-1], loops.evaluate(jpu, levels, torch.float64))


@pytest.mark.parametrize("width", [8, 9, 64])
def test_widths(width: int) -> None:
    jpu, levels = make(width=width), pyramid(batch=1)
    out = jpu(*levels)[-1]
    assert out.shape == (1, 4 * width, 7, 9)
    assert_within(out, loops.evaluate(jpu, levels, torch.float64))


def test_align_corners_follows_up_kwargs() -> None:
    levels = pyramid()
    jpu = make(up_kwargs={"mode": "bilinear", "align_corners": False})
    out = jpu(*levels)[-1]
    assert_within(out, loops.evaluate(jpu, levels, torch.float64))
    other = make()
    other.load_state_dict(jpu.state_dict())
    assert (other(*levels)[-1] - out).abs().max() > 1e-2


def test_other_modes_of_interpolation() -> None:
    jpu, levels = make(up_kwargs={"mode": "nearest"}), pyramid(sizes=((4, 4), (2, 2), (1, 1)))
    same = make()
    same.load_state_dict(jpu.state_dict())
    # Nearest from integer factors repeats pixels; feeding the repeated stages' outputs shows the same.
    repeated = [
        levels[0],
        *(jpu.stage(i)(levels[i]).repeat_interleave(2**i, 2).repeat_interleave(2**i, 3) for i in (1, 2)),
    ]
    u = torch.cat((repeated[2], repeated[1], jpu.stage(0)(levels[0])), 1)
    expected = torch.cat([jpu.branch(i)(u) for i in range(4)], 1)
    torch.testing.assert_close(jpu(*levels)[-1], expected, rtol=0, atol=0)


def test_returns_the_first_three_inputs_and_uses_the_last_three() -> None:
    jpu, levels = make(), pyramid()
    first = torch.randn(2, 5, 14, 18, dtype=torch.float64)
    outputs = jpu(first, *levels)
    assert len(outputs) == 4
    assert outputs[0] is first
    assert outputs[1] is levels[0]
    assert outputs[2] is levels[1]
    assert torch.equal(outputs[3], jpu(*levels)[-1])


def test_in_channels_may_list_more_than_three_levels() -> None:
    assert JPU((4, *CHANNELS), width=8).conv3[0].in_channels == CHANNELS[0]


def test_empty_batch() -> None:
    jpu, levels = make(), pyramid(batch=0, requires_grad=True)
    out = jpu(*levels)[-1]
    assert out.shape == (0, 32, 7, 9)
    out.sum().backward()
    assert levels[0].grad is not None
    assert levels[0].grad.shape == levels[0].shape


def test_non_contiguous_levels() -> None:
    jpu, levels = make(), pyramid()
    strided = [torch.stack((x, x), -1).flatten(-2)[..., ::2] for x in levels]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(jpu(*strided)[-1], jpu(*levels)[-1])


@pytest.mark.parametrize("train", [False, True])
def test_channels_last_is_kept_and_agrees(train: bool) -> None:
    jpu, levels = make(train=train), pyramid()
    expected = loops.evaluate(jpu, levels, torch.float64)
    jpu = jpu.to(memory_format=torch.channels_last)
    out = jpu(*(x.contiguous(memory_format=torch.channels_last) for x in levels))[-1]
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_within(out, expected)


@pytest.mark.parametrize("train", [False, True])
def test_autocast_takes_float32_and_mixed_levels(train: bool) -> None:
    jpu, levels = make(torch.float32, train), pyramid(dtype=torch.float32)
    expected = loops.evaluate(jpu, levels, torch.float64)
    levels[1] = levels[1].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = jpu(*levels)[-1]
    out.float().sum().backward()
    assert jpu.conv3[0].weight.grad.dtype == torch.float32
    # The seven of half precision, and those of the levels and of both weights on the way.
    assert_relative_l2(out.bfloat16(), torch.from_numpy(expected.value), roundings=10)


@pytest.mark.parametrize("train", [False, True])
def test_compiles_as_one_graph(train: bool) -> None:
    jpu, levels = make(train=train), pyramid()
    expected = copy.deepcopy(jpu)(*levels)[-1]
    compiled = torch.compile(jpu, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*levels)[-1], expected, rtol=0, atol=0)


def test_exports() -> None:
    jpu, levels = make(), pyramid()
    exported = torch.export.export(jpu, tuple(levels))
    torch.testing.assert_close(exported.module()(*levels)[-1], jpu(*levels)[-1], rtol=0, atol=0)


def test_copies_and_pickles() -> None:
    jpu, levels = make(), pyramid()
    buffer = io.BytesIO()
    torch.save(jpu, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(jpu), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(*levels)[-1], jpu(*levels)[-1])


def test_hooks_and_replaced_layers_act() -> None:
    jpu, levels = make(), pyramid()
    seen: list[str] = []
    jpu.dilation2[0].conv1.register_forward_hook(lambda *_: seen.append("depthwise"))
    jpu.conv4[1] = nn.Identity()
    jpu(*levels)
    assert seen == ["depthwise"]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"in_channels": (8, 16)}, ValueError, "expected at least 3 levels, got 2"),
        ({"in_channels": (8, 16, 0)}, ValueError, r"expected positive integers, got \[8, 16, 0\]"),
        ({"width": 0}, ValueError, "width: expected a positive integer, got 0"),
        ({"norm_layer": None}, TypeError, "norm_layer: expected a callable"),
        ({"up_kwargs": True}, TypeError, "up_kwargs: expected keyword arguments"),
    ],
)
def test_wrong_arguments(kwargs: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        JPU(**{"in_channels": CHANNELS, "width": 8, **kwargs})


def _replaced(index: int, value: object) -> list:
    levels: list = pyramid()
    levels[index] = value
    return levels


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (pyramid()[:2], ValueError, "expected at least 3 levels, got 2"),
        (_replaced(0, torch.zeros(2, 9, 7, 9).double()), ValueError, r"\[0\]: expected 8 channels, got 9"),
        (
            _replaced(1, torch.zeros(3, 16, 4, 5).double()),
            ValueError,
            r"\[1\]: expected batch size 2 .* got 3",
        ),
        (
            _replaced(1, torch.zeros(2, 16, 4, 5)),
            ValueError,
            r"expected dtype torch.float64 .* got torch.float32",
        ),
        (
            _replaced(2, torch.zeros(2, 32, 2, 3, device="meta").double()),
            ValueError,
            "expected device cpu .* got meta",
        ),
        (
            _replaced(2, torch.zeros(32, 2, 3).double()),
            ValueError,
            r"expected 4 dimensions .* got shape \(32, 2, 3\)",
        ),
        (
            _replaced(0, torch.zeros(2, 8, 0, 9).double()),
            ValueError,
            "expected height and width of at least 1",
        ),
        (
            _replaced(0, torch.zeros(2, 8, 7, 9).long()),
            TypeError,
            "expected a floating-point dtype, got torch.int64",
        ),
        (_replaced(0, None), TypeError, "expected a Tensor, got NoneType"),
    ],
)
def test_wrong_inputs(inputs: list, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()(*inputs)


@pytest.mark.parametrize(
    ("dtype", "device", "message"),
    [
        (torch.float32, "cpu", "expected dtype torch.float64 as the module, got torch.float32"),
        (torch.float64, "meta", "expected device cpu as the module, got meta"),
    ],
)
def test_levels_unlike_the_module(dtype: torch.dtype, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(*(x.to(device) for x in pyramid(dtype=dtype)))


def test_autocast_does_not_cast_float64() -> None:
    levels = pyramid(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="expected dtype torch.float32 as the module, got torch.float64"):
            make(torch.float32)(*(x.double() for x in levels))
        with pytest.raises(ValueError, match=r"\[1\]: expected dtype torch.float32 .* got torch.float64"):
            make(torch.float32)(levels[0], levels[1].double(), levels[2])


def test_in_channels_that_are_no_sequence() -> None:
    with pytest.raises(TypeError, match="in_channels: expected a sequence of integers, got 8"):
        JPU(8, width=8)  # type: ignore[arg-type]

"""The kernels of upsample_concat on a GPU: what host execution cannot show."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from gpu import captured, needs_memory, on_cuda, one_at_a_time
from hypothesis import given, settings
from strategies import DTYPES, LAYOUTS, PATHS, Case, cases, check_backward, check_forward, needs_host, plain
from torch import Tensor

from jpu_cuda import functional, host, use_backend

pytestmark = pytest.mark.gpu

ops = torch.ops.jpu_cuda
SIZES = ((40, 72), (20, 36), (10, 18))


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    with on_cuda():
        yield


def levels_of(
    dtype: torch.dtype = torch.float32, layout: str = "contiguous", seed: int = 0, device: str = "cuda"
) -> list[Tensor]:
    return plain((8, 16, 8), SIZES, batch=2, layout=layout, dtype=dtype).levels(seed, device)


def by_torch(levels: list[Tensor]) -> Tensor:
    with use_backend("reference"):
        return functional.upsample_concat(levels, False, reverse=True)


def run(levels: list[Tensor]) -> Tensor:
    return functional.upsample_concat(levels, False, reverse=True)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Up to the roundings of both: float32 coordinates of an axis of 72, and the output's."""
    eps = max(torch.finfo(actual.dtype).eps, 72 * torch.finfo(torch.float32).eps)
    torch.testing.assert_close(actual, expected, rtol=0, atol=4 * eps * float(expected.detach().abs().max()))


# --- values ------------------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None, max_examples=100)
@given(cases())
def test_resizing_and_gradients_are_as_exact_as_pytorchs(case: Case) -> None:
    check_forward(case, "cuda")
    check_backward(case, "cuda")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_as_exact_as_pytorchs(path: str, align_corners: bool, dtype: torch.dtype) -> None:
    case = PATHS[path]
    case = Case(2, case.channels, case.sizes, case.layouts, dtype, align_corners, reverse=True)
    check_forward(case, "cuda")
    check_backward(case, "cuda")


@needs_host
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_the_gpu_and_host_execution_agree_bit_for_bit(path: str, dtype: torch.dtype) -> None:
    """All arithmetic of the kernels is explicit, so what holds for one holds for the other."""
    host.load()
    case = PATHS[path]
    case = Case(2, case.channels, case.sizes, case.layouts, dtype, False, False)
    heights, widths = zip(*case.sizes, strict=True)
    # Values that are drawn once, and laid out on either device.
    pairs = []
    for device in ("cpu", "cuda"):
        out = ops.upsample_concat(case.levels(device=device), False, False)
        gradients = ops.upsample_backward(case.gradients(device=device), heights, widths, False)
        pairs.append([x.cpu() for x in (out, *gradients)])
    for on_host, on_gpu in zip(*pairs, strict=True):
        assert torch.equal(on_host, on_gpu)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_bit_for_bit_the_same_on_every_run(layout: str) -> None:
    levels = [x.detach().requires_grad_() for x in levels_of(layout=layout)]

    def results() -> list[Tensor]:
        out = run(levels)
        return [out, *torch.autograd.grad(out, levels, torch.ones_like(out))]

    expected = results()
    for _ in range(20):
        assert all(map(torch.equal, results(), expected))


@pytest.mark.parametrize("name", ["upsample", "upsample_backward", "upsample_concat"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_opcheck(name: str, layout: str) -> None:
    case = plain((8, 16), ((5, 8), (3, 4)), batch=2, layout=layout)
    tensors = case.gradients(device="cuda") if name == "upsample_backward" else case.levels(device="cuda")
    rest = {"upsample": (5, 8, True), "upsample_backward": ([5, 3], [8, 4], False), "upsample_concat": (False, True)}
    arguments = ([x.detach().requires_grad_() for x in tensors], *rest[name])
    torch.library.opcheck(getattr(ops, name).default, arguments)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_gives_the_dtypes_of_the_reference(low: torch.dtype) -> None:
    first, *others = levels_of()
    levels = [first, *(x.to(low) for x in others)]
    with torch.autocast("cuda", low):
        out, expected = run(levels), by_torch(levels)
        resized = functional.upsample(levels, False)
    assert out.dtype == expected.dtype == torch.float32
    assert [x.dtype for x in resized] == [torch.float32, low, low]
    # PyTorch rounds the resized level to its own dtype before it is cast.
    atol = 4 * torch.finfo(low).eps * float(expected.abs().max())
    torch.testing.assert_close(out, expected, rtol=0, atol=atol)


# --- streams, devices, graphs ------------------------------------------------------------------------


def test_kernels_run_on_the_current_stream() -> None:
    """The producer of the levels is late, on a side stream: kernels on another stream would read its zeros."""
    values = levels_of()
    expected = by_torch(values)
    levels = [torch.zeros_like(x).requires_grad_() for x in values]
    gradient = torch.zeros_like(expected)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles: about a tenth of a second
        with torch.no_grad():
            for level, value in zip(levels, values, strict=True):
                level.copy_(value)
        out = run(levels)
        torch.cuda._sleep(200_000_000)
        gradient.fill_(1)
        results = torch.autograd.grad(out, levels, gradient)
    side.synchronize()
    assert_close(out, expected)
    inputs = [x.detach().requires_grad_() for x in values]
    for a, b in zip(results, torch.autograd.grad(by_torch(inputs), inputs, torch.ones_like(expected)), strict=True):
        assert_close(a, b)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one_are_served_there() -> None:
    with torch.cuda.device(0):
        levels = [x.requires_grad_() for x in levels_of(device="cuda:1")]
        out = run(levels)
        results = torch.autograd.grad(out.sum(), levels)
        assert torch.cuda.current_device() == 0
    assert {x.device.index for x in (out, *results)} == {1}
    assert_close(out, by_torch(levels))


def test_a_captured_graph_replays_with_new_inputs() -> None:
    levels = [x.requires_grad_() for x in levels_of()]
    gradient = torch.ones_like(run(levels))

    def step() -> list[Tensor]:
        out = run(levels)
        return [out, *torch.autograd.grad(out, levels, gradient)]

    graph, results = captured(step)
    for seed in (1, 2):
        with torch.no_grad():
            for level, value in zip(levels, levels_of(seed=seed), strict=True):
                level.copy_(value)
            gradient.normal_()
        graph.replay()
        got = [x.clone() for x in results]
        assert all(map(torch.equal, got, step()))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_by_inductor_equals_eager(layout: str, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    levels = [x.requires_grad_() for x in levels_of(layout=layout)]

    def doubled(*x: Tensor) -> Tensor:
        return 2 * functional.upsample_concat(x, False, reverse=True)

    compiled = torch.compile(doubled, fullgraph=True, dynamic=dynamic)
    out, expected = compiled(*levels), doubled(*levels)
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()
    gradients = torch.autograd.grad(out.square().sum(), levels), torch.autograd.grad(expected.square().sum(), levels)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# --- reach -------------------------------------------------------------------------------------------


HEIGHT, WIDTH = 2**14, 2**13 + 16  # of 16 channels: a little more than 2^31 elements


def numbered(channels: int, height: int, width: int, memory_format: torch.memory_format) -> Tensor:
    """Half-precision images that hold the number of their channel: any resize keeps them, to the bit."""
    values = torch.arange(channels, device="cuda", dtype=torch.float16).view(1, -1, 1, 1)
    result = torch.empty(1, channels, height, width, device="cuda", dtype=torch.float16, memory_format=memory_format)
    return result.copy_(values)


def assert_numbered(x: Tensor, factor: float = 1) -> None:
    for c in range(x.shape[1]):  # one by one, for the memory's sake
        assert bool((x[:, c] == c * factor).all())


FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)


@one_at_a_time
@FORMATS
def test_outputs_of_more_than_2_to_31_elements(memory_format: torch.memory_format) -> None:
    needs_memory(10)
    first = numbered(8, HEIGHT, WIDTH, memory_format)
    out = ops.upsample_concat([first, numbered(8, 5, 7, memory_format)], False, False)
    assert out.numel() > 2**31
    assert_numbered(out[:, :8])
    assert_numbered(out[:, 8:])


@one_at_a_time
@FORMATS
def test_gradients_of_more_than_2_to_31_elements(memory_format: torch.memory_format) -> None:
    """By halves and doublings each pixel collects weights that sum to 4 and to 1/4, borders included."""
    needs_memory(10)
    large = numbered(16, HEIGHT, WIDTH, memory_format)
    assert large.numel() > 2**31
    (halved,) = ops.upsample_backward([large], [HEIGHT // 2], [WIDTH // 2], False)
    assert_numbered(halved, 4)
    del large
    (doubled,) = ops.upsample_backward([halved], [HEIGHT], [WIDTH], False)
    assert doubled.numel() > 2**31
    assert_numbered(doubled, 1)


@one_at_a_time
@FORMATS
def test_levels_may_be_spread_over_more_than_2_to_31_elements(memory_format: torch.memory_format) -> None:
    needs_memory(6)
    value = torch.randn(2, 8, 6, 8, device="cuda").half()
    strides = torch.empty(value.shape).contiguous(memory_format=memory_format).stride()
    buffer = torch.empty(2**31 + 16 + value[0].numel(), device="cuda", dtype=torch.float16)
    spread = buffer.as_strided(value.shape, (2**31 + 16, *strides[1:])).copy_(value)
    compact = value.contiguous(memory_format=memory_format)
    assert torch.equal(ops.upsample([spread], 12, 16, True)[0], ops.upsample([compact], 12, 16, True)[0])
    for a, b in zip(
        ops.upsample_backward([spread], [3], [4], True), ops.upsample_backward([compact], [3], [4], True), strict=True
    ):
        assert torch.equal(a, b)


# --- errors ------------------------------------------------------------------------------------------


def test_a_mix_of_devices_is_refused() -> None:
    levels = levels_of()
    mixed = [levels[0], levels[1].cpu()]
    with pytest.raises(RuntimeError, match=r"levels\[1\]: expected the device of levels\[0\], .* got "):
        ops.upsample_concat(mixed, True, False)
    with pytest.raises(ValueError, match=r"levels\[1\]: expected device cuda:0 as levels\[0\], got cpu"):
        functional.upsample_concat(mixed, True)
    assert_close(run(levels), by_torch(levels))


def test_the_baseline_of_these_tests_is_pytorch() -> None:
    first, second, third = levels_of()
    resized = [F.interpolate(x, SIZES[0], mode="bilinear", align_corners=False) for x in (third, second)]
    assert torch.equal(by_torch([first, second, third]), torch.cat([*resized, first], 1))

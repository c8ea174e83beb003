"""norm_relu on a GPU, and the stages that it serves: what host execution cannot show."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu import captured, needs_memory, on_a_late_stream, on_cuda, one_at_a_time, requested_bytes
from helpers import assert_relative_l2, pyramid, randomise
from norm_cases import CASES, Norms, check, run
from strategies import DTYPES, needs_host
from torch import Tensor, nn

from jpu_cuda import JPU, explain, host, mmseg, use_backend

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    with on_cuda(), torch.no_grad():
        yield


EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LARGE = Norms(
    (512, 64, 33), ((40, 72), (20, 36), (13, 11)), ("channels_last", "contiguous", "contiguous"), device="cuda"
)

# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [True, False], ids=["norms in sums' type", "norms in levels' type"])
@EVERY_DTYPE
@pytest.mark.parametrize("name", CASES)
def test_each_entry_is_within_its_bound_and_no_worse_than_pytorchs(name: str, dtype: torch.dtype, wide: bool) -> None:
    check(replace(CASES[name], dtype=dtype, wide=wide, device="cuda"))


@EVERY_DTYPE
def test_large_levels_too(dtype: torch.dtype) -> None:
    check(replace(LARGE, dtype=dtype))


@needs_host
@EVERY_DTYPE
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_and_host_execution_agree_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """All arithmetic of the kernel is explicit, so what holds for one holds for the other."""
    host.load()
    case = replace(CASES[name], dtype=dtype)
    on_gpu = run(replace(case, device="cuda").arguments())
    for gpu, cpu in zip(on_gpu, run(case.arguments()), strict=True):
        assert gpu.stride() == cpu.stride()
        assert torch.equal(gpu.cpu(), cpu)


def test_results_are_bit_for_bit_the_same_on_every_run() -> None:
    arguments = LARGE.arguments()
    expected = run(arguments)
    for _ in range(20):
        assert all(map(torch.equal, run(arguments), expected))


def test_opcheck() -> None:
    torch.library.opcheck(
        torch.ops.jpu_cuda.norm_relu.default, replace(CASES["mixed formats"], device="cuda").arguments()
    )


# --- streams, devices, graphs ---------------------------------------------------------------------------


def tensors_of(arguments: tuple[Any, ...]) -> list[Tensor]:
    return [tensor for part in arguments[:5] for tensor in part]


def test_kernels_run_on_the_current_stream() -> None:
    arguments = LARGE.arguments()
    expected = run(arguments)
    late, values = tensors_of(arguments), [x.clone() for x in tensors_of(arguments)]
    torch._foreach_mul_(late, 0.5)
    results = on_a_late_stream(lambda: torch._foreach_copy_(late, values), lambda: run(arguments))
    assert all(map(torch.equal, results, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one_are_served_there() -> None:
    with torch.cuda.device(0):
        results = run(replace(LARGE, device="cuda:1").arguments())
        assert torch.cuda.current_device() == 0
    assert {x.device.index for x in results} == {1}
    for got, expected in zip(results, run(LARGE.arguments()), strict=True):
        assert torch.equal(got.cpu(), expected.cpu())


def test_a_captured_graph_replays_with_new_values_of_everything() -> None:
    arguments = LARGE.arguments()
    graph, results = captured(lambda: run(arguments))
    for seed in (1, 2):
        torch._foreach_copy_(tensors_of(arguments), tensors_of(LARGE.arguments(seed)))
        graph.replay()
        assert all(map(torch.equal, [x.clone() for x in results], run(arguments)))


def test_it_asks_for_no_memory_but_its_results() -> None:
    arguments = LARGE.arguments()
    assert requested_bytes(lambda: run(arguments)) == (sum(x.nbytes for x in arguments[0]), 0)


def test_a_mix_of_devices_is_refused() -> None:
    levels, weight, bias, mean, var, eps = LARGE.arguments()
    with pytest.raises(RuntimeError, match=r"levels\[1\]: expected the device of levels\[0\], .* got "):
        run(([levels[0], levels[1].cpu(), levels[2]], weight, bias, mean, var, eps))
    with pytest.raises(RuntimeError, match=r"mean\[2\]: expected the device of levels\[0\], .* got "):
        run((levels, weight, bias, [*mean[:2], mean[2].cpu()], var, eps))


# --- reach ----------------------------------------------------------------------------------------------


@one_at_a_time
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("width", [2**13 + 16, 2**13 + 17], ids=["vectors", "odd"])
def test_levels_and_results_of_more_than_2_to_31_elements(memory_format: torch.memory_format, width: int) -> None:
    """Each channel holds its number, and has another added to it."""
    needs_memory(10)
    numbers = torch.arange(16, device="cuda", dtype=torch.float16)
    level = torch.empty(1, 16, 2**14, width, device="cuda", dtype=torch.float16, memory_format=memory_format)
    level.copy_(numbers.view(1, -1, 1, 1))
    assert level.numel() > 2**31
    ones, zeros = torch.ones(16, device="cuda"), torch.zeros(16, device="cuda")
    (result,) = run(([level], [ones], [numbers.float()], [zeros], [ones], [0.0]))
    assert result.is_contiguous(memory_format=memory_format)
    del level
    for c in range(16):  # one by one, for the memory's sake
        assert bool((result[:, c] == 2 * c).all())


# --- stages ---------------------------------------------------------------------------------------------


CHANNELS = (8, 16, 32)
MODULES = {"JPU": lambda: JPU(CHANNELS, width=16), "mmseg.JPU": lambda: mmseg.JPU(CHANNELS, 16)}
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)


def module_of(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return randomise(MODULES[name](), seed).to("cuda", dtype).eval()


def levels_of(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    return pyramid(CHANNELS, dtype=dtype, seed=seed, device="cuda")


def output_of(module: nn.Module, levels: list[Tensor]) -> Tensor:
    return (module(levels) if isinstance(module, mmseg.JPU) else module(*levels))[-1]


def is_served(module: nn.Module, levels: list[Tensor]) -> bool:
    reason = explain(module, *([levels] if isinstance(module, mmseg.JPU) else levels)).reason
    return "one launch does all their norms and ReLUs" in reason


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@EVERY_DTYPE
@EVERY_MODULE
def test_stages_are_no_worse_than_pytorchs(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    module = module_of(name, dtype).to(memory_format=layout)
    levels = [x.contiguous(memory_format=layout) for x in levels_of(dtype)]
    assert is_served(module, levels)
    features = module._features(levels)
    with use_backend("reference"):
        expected = module._features(levels)
        truths = copy.deepcopy(module).double()._features([x.double() for x in levels])
    for got, torchs, truth in zip(features, expected, truths, strict=True):
        assert (got.dtype, got.stride()) == (torchs.dtype, torchs.stride())
        errors = [float((x.double() - truth).abs().max()) for x in (got, torchs)]
        assert errors[0] <= 1.25 * errors[1] + torch.finfo(dtype).eps / 2 * float(truth.abs().max())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@EVERY_MODULE
def test_stages_are_served_under_autocast(name: str, low: torch.dtype) -> None:
    module, levels = module_of(name), levels_of()
    truth = output_of(copy.deepcopy(module).double(), [x.double() for x in levels])
    with torch.autocast("cuda", low):
        assert is_served(module, levels)
        out = output_of(module, levels)
    # Levels and weights are rounded on the way; then conv, norm, resize, depthwise, norm, pointwise, norm.
    assert out.dtype == low
    assert_relative_l2(out, truth, roundings=10)


@pytest.mark.parametrize("part", ["running_mean", "running_var", "weight", "bias"])
def test_each_part_of_a_stages_norm_is_read_in_every_replay(part: str) -> None:
    module, levels = module_of("JPU"), levels_of()
    graph, (out,) = captured(lambda: [output_of(module, levels)])
    for i in range(3):
        graph.replay()
        before = out.clone()
        getattr(module.stage(i)[1], part).data.add_(0.5)
        graph.replay()
        assert not torch.equal(out, before)
        assert torch.equal(out, output_of(module, levels))


@pytest.mark.parametrize("dynamic", [None, True])
def test_compilers_get_the_layers_themselves(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    module, levels = module_of("JPU", torch.float64), levels_of(torch.float64)
    out = torch.compile(module, fullgraph=True, dynamic=dynamic)(*levels)[-1]
    assert_relative_l2(out, output_of(module, levels), roundings=2 * 9 * max(CHANNELS))

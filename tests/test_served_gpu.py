"""Modules whose norms have fixed statistics, served by the kernels on a GPU."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gpu import captured, on_a_late_stream, on_cuda, requested_bytes
from helpers import assert_relative_l2, assert_within, pyramid, randomise
from served import check_lower_precision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from jpu_cuda import JPU, explain, mmseg, use_backend
from jpu_cuda.modules.core import JointPyramid
from jpu_cuda.reference import loops

pytestmark = pytest.mark.gpu

CHANNELS = (8, 16, 32)
MODULES: dict[str, Callable[[], JointPyramid]] = {
    "JPU": lambda: JPU(CHANNELS, width=16),
    "frozen norms": lambda: JPU(CHANNELS, width=16, norm_layer=FrozenBatchNorm2d),
    "mmseg.JPU": lambda: mmseg.JPU(CHANNELS, 16, dilations=(1, 3, 16)),
}
EVERY_MODULE = pytest.mark.parametrize("name", MODULES)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    with on_cuda():
        yield


def module_of(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return randomise(MODULES[name](), seed).to("cuda", dtype).eval()


def levels_of(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    return pyramid(CHANNELS, dtype=dtype, seed=seed, device="cuda", requires_grad=True)


def output_of(module: nn.Module, levels: list[Tensor]) -> Tensor:
    return (module(levels) if isinstance(module, mmseg.JPU) else module(*levels))[-1]


def results_of(module: nn.Module, levels: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of all levels and parameters, that of the output being itself.

    Where rounding decides what passes a ReLU, the gradient is next to 0.
    """
    out = output_of(module, levels)
    return [out.detach(), *torch.autograd.grad(out, [*levels, *module.parameters()], out.detach())]


def is_fused(module: nn.Module, levels: list[Tensor]) -> bool:
    return (
        "all branches in one launch" in explain(module, *([levels] if isinstance(module, mmseg.JPU) else levels)).reason
    )


# --- values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@EVERY_MODULE
def test_outputs_are_within_the_rounding_bound(name: str, dtype: torch.dtype) -> None:
    module, levels = module_of(name, dtype), levels_of(dtype)
    assert is_fused(module, levels)
    expected = loops.evaluate(copy.deepcopy(module).cpu(), [level.cpu() for level in levels], dtype)
    assert_within(output_of(module, levels), expected)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "frozen"])
@EVERY_MODULE
def test_outputs_and_all_gradients_agree_with_pytorch_in_float64(name: str, training: bool) -> None:
    """Frozen: in training mode, the norms of the branches in eval mode."""
    module, levels = module_of(name, torch.float64).train(training), levels_of(torch.float64)
    for i in range(module.num_branches):
        module.branch(i).eval()
    assert is_fused(module, levels)
    served = results_of(module, levels)
    with use_backend("reference"):
        expected = results_of(module, levels)
    # Float64 throughout: only the order of additions differs, in sums of no more terms than these, one each way in
    # stages, depthwise and pointwise convolutions.
    terms = 2 * (9 * max(CHANNELS) + 9 + 3 * 16) + 4 * served[0].shape[0] * served[0][0, 0].numel()
    for got, right in zip(served, expected, strict=True):
        assert_relative_l2(got, right, roundings=terms)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("wide_norms", [False, True], ids=["norms alike", "norms in float32"])
def test_lower_precision_is_no_worse_than_pytorchs(dtype: torch.dtype, wide_norms: bool) -> None:
    check_lower_precision(dtype, wide_norms, "cuda")


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["JPU", "mmseg.JPU"])  # of frozen norms in float32 PyTorch makes float32
def test_under_autocast_all_gradients_are_there(name: str, low: torch.dtype) -> None:
    module, levels = module_of(name), levels_of()
    expected = loops.evaluate(copy.deepcopy(module).cpu(), [level.cpu() for level in levels], torch.float64)
    with torch.autocast("cuda", low):
        assert is_fused(module, levels)
        out = output_of(module, levels)
        gradients = torch.autograd.grad(out.float().square().mean(), [*levels, *module.parameters()])
    # Levels and weights are rounded on the way; then conv, norm, resize, depthwise, norm, pointwise, norm.
    assert out.dtype == low
    assert_relative_l2(out.cpu(), torch.from_numpy(expected.value), roundings=10)
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(bool(g.isfinite().all() and g.any()) for g in gradients)


@pytest.mark.parametrize("training", [False, True])
@EVERY_MODULE
def test_an_empty_batch_has_an_empty_output_and_gradients_of_zero(name: str, training: bool) -> None:
    module = module_of(name).requires_grad_(training)
    levels = [level.detach()[:0].requires_grad_() for level in levels_of()]
    out = output_of(module, levels)
    assert out.shape == (0, 16 * module.num_branches, *levels[0].shape[2:])
    parameters = [p for p in module.parameters() if p.requires_grad]
    assert not any(bool(g.any()) for g in torch.autograd.grad(out.sum(), [*levels, *parameters]))


@pytest.mark.parametrize("dynamic", [None, True])
@EVERY_MODULE
def test_compiled_equals_eager(name: str, dynamic: bool | None) -> None:
    """The stages run as they stand, since Inductor may have other algorithms for them."""
    torch._dynamo.reset()
    module = module_of(name)
    levels = [x.detach().requires_grad_() for x in (module.stage(i)(x) for i, x in enumerate(levels_of()))]
    needing = [p for i in range(module.num_branches) for p in module.branch(i).parameters()]
    for i in range(3):
        path = module.layout.stage(i)
        module.get_submodule(path.rpartition(".")[0]).register_module(path.rpartition(".")[2], nn.Identity())
    results = []
    for run in (module.pyramid, torch.compile(module.pyramid, fullgraph=True, dynamic=dynamic)):
        out = run(levels)
        results.append([out.detach(), *torch.autograd.grad(out, [*levels, *needing], out.detach())])
    assert all(map(torch.equal, *results))


# --- streams, devices, graphs, memory -------------------------------------------------------------------


def tensors_of(module: nn.Module, levels: list[Tensor]) -> list[Tensor]:
    return [x.detach() for x in (*module.parameters(), *module.buffers(), *levels) if x.is_floating_point()]


@EVERY_MODULE
def test_kernels_run_on_the_current_stream(name: str) -> None:
    module, levels = module_of(name), levels_of()
    expected = results_of(module, levels)
    values = tensors_of(copy.deepcopy(module), [x.clone() for x in levels])
    late = tensors_of(module, levels)
    torch._foreach_mul_(late, 0.5)
    assert not torch.equal(output_of(module, levels), expected[0])
    results = on_a_late_stream(lambda: torch._foreach_copy_(late, values), lambda: results_of(module, levels))
    assert all(map(torch.equal, results, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@EVERY_MODULE
def test_a_module_on_another_device_than_the_current_one_is_served_there(name: str) -> None:
    module, levels = module_of(name), levels_of()
    expected = results_of(module, levels)
    with torch.cuda.device(0):
        results = results_of(module.to("cuda:1"), [x.detach().to("cuda:1").requires_grad_() for x in levels])
        assert torch.cuda.current_device() == 0
    assert {x.device.index for x in results} == {1}
    for got, right in zip(results, expected, strict=True):  # cuDNN may take other algorithms there
        assert_relative_l2(got.cpu(), right.cpu(), roundings=2 * 9 * max(CHANNELS))


@EVERY_MODULE
def test_a_captured_graph_replays_with_new_values_of_everything(name: str) -> None:
    """Levels, weights and statistics are written in place between replays, which run nothing on the CPU."""
    module, levels = module_of(name), levels_of()
    graph, results = captured(lambda: results_of(module, levels))
    graph.replay()
    before = [x.clone() for x in results]
    for seed in (1, 2):
        torch._foreach_copy_(tensors_of(module, levels), tensors_of(module_of(name, seed=seed), levels_of(seed=seed)))
        graph.replay()
        replayed = [x.clone() for x in results]
        assert all(map(torch.equal, replayed, results_of(module, levels)))
        assert not any(map(torch.equal, replayed, before))


@pytest.mark.parametrize("part", ["running_mean", "running_var", "weight", "bias"])
def test_each_part_of_a_norm_is_read_in_every_replay(part: str) -> None:
    module, levels = module_of("JPU"), levels_of()
    graph, (out,) = captured(lambda: [output_of(module, levels).detach()])
    for i in range(module.num_branches):
        for norm in (x for x in module.branch(i).modules() if isinstance(x, nn.BatchNorm2d)):
            graph.replay()
            before = out.clone()
            getattr(norm, part).data.add_(0.5)
            graph.replay()
            assert not torch.equal(out, before)
            assert torch.equal(out, output_of(module, levels))


@EVERY_MODULE
def test_nothing_stays_allocated(name: str) -> None:
    module, levels = module_of(name), levels_of()
    assert requested_bytes(lambda: results_of(module, levels))[1] == 0


def test_the_branches_ask_for_no_memory_but_what_the_launches_write() -> None:
    module = module_of("JPU")
    features = [module.stage(i)(x).detach() for i, x in enumerate(levels_of())]
    with torch.no_grad():
        branches = module.fused_branches(features[0], features[0].shape)
        out = module._fused(features, branches)
        asked = requested_bytes(lambda: module._fused(features, branches))
    resized, terms = 2 * features[0].nbytes, 2 * sum(mean.nbytes for mean in branches.mean)
    assert asked == (resized + terms + out.nbytes, 0)

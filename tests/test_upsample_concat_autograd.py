"""upsample_concat in PyTorch's machinery: derivatives, autocast, compilation, export. By host execution."""

import copy
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import pyramid
from strategies import DTYPES, LAYOUTS, needs_host, plain
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from jpu_cuda import functional, host, use_backend

pytestmark = needs_host

ops = torch.ops.jpu_cuda
SIZES = ((4, 5), (2, 3), (7, 1))
BOTH = pytest.mark.parametrize("align_corners", [False, True])


@pytest.fixture(autouse=True)
def _on_host() -> Iterator[None]:
    with use_backend("host"):
        yield


def levels_of(dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> list[Tensor]:
    return pyramid((2, 1, 3), SIZES, dtype=dtype, requires_grad=requires_grad)


# --- derivatives -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_upsample_concat_check(align_corners: bool, reverse: bool) -> None:
    def run(*x: Tensor) -> Tensor:
        return functional.upsample_concat(x, align_corners, reverse)

    inputs = tuple(levels_of())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@BOTH
def test_gradients_of_upsample_check(align_corners: bool) -> None:
    def run(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(functional.upsample(x, align_corners))

    inputs = tuple(levels_of())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@BOTH
def test_gradients_of_the_adjoint_check(align_corners: bool) -> None:
    def run(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.upsample_backward(x, [2, 9], [3, 1], align_corners))

    inputs = tuple(pyramid((2, 1), ((4, 5), (4, 5)), requires_grad=True))
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_a_second_derivative_equals_the_references() -> None:
    def second(levels: list[Tensor]) -> list[Tensor]:
        out = functional.upsample_concat(levels, False)
        first = torch.autograd.grad(out.pow(3).sum(), levels, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), levels))

    got = second(levels_of())
    with use_backend("reference"):
        expected = second(levels_of())
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2), ()])
@pytest.mark.parametrize("reverse", [False, True])
def test_only_levels_that_need_a_gradient_cost_one(needed: tuple[int, ...], reverse: bool) -> None:
    levels = [x.requires_grad_(i in needed) for i, x in enumerate(levels_of(requires_grad=False))]
    out = functional.upsample_concat(levels, True, reverse)
    assert out.requires_grad == bool(needed)
    if not needed:
        return
    gradient = torch.randn_like(out)
    with host.record() as launches:
        results = torch.autograd.grad(out, [levels[i] for i in needed], gradient)
    computed = [i for i in needed if i != 0]
    assert len(launches) == bool(computed)
    # Levels this small are one block a sample.
    assert sum(launch.blocks for launch in launches) == 2 * len(computed)

    with use_backend("reference"):
        expected = torch.autograd.grad(
            functional.upsample_concat(levels, True, reverse), [levels[i] for i in needed], gradient
        )
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_gradient_of_the_first_level_is_a_view(reverse: bool) -> None:
    levels = levels_of()
    out = functional.upsample_concat(levels, True, reverse)
    gradient = torch.randn_like(out)
    result = torch.autograd.grad(out, levels[0], gradient)[0]
    assert result.untyped_storage().data_ptr() == gradient.untyped_storage().data_ptr()
    assert torch.equal(result, gradient[:, 4:] if reverse else gradient[:, :2])


def test_unused_outputs_of_upsample_get_no_gradient() -> None:
    levels = levels_of()
    resized = functional.upsample(levels, False)
    assert resized[0] is levels[0]
    with host.record() as launches:
        results = torch.autograd.grad(resized[2].sum(), levels, allow_unused=True)
    assert [r is None for r in results] == [True, True, False]
    assert [launch.blocks for launch in launches] == [2]


def test_gradients_may_be_expanded_or_not_contiguous() -> None:
    for gradient in (torch.ones(()).double().expand(2, 6, 4, 5), torch.randn(5, 4, 6, 2).double().permute(3, 2, 1, 0)):
        levels = levels_of()
        results = torch.autograd.grad(functional.upsample_concat(levels, False), levels, gradient)
        with use_backend("reference"):
            expected = torch.autograd.grad(functional.upsample_concat(levels, False), levels, gradient)
        for a, b in zip(results, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_backward_of_a_sum_runs_from_another_thread() -> None:
    levels = levels_of()
    loss = functional.upsample_concat(levels, False).sum()
    with host.record() as launches:
        thread = threading.Thread(target=loss.backward)  # where no backend was asked for
        thread.start()
        thread.join()
    assert [launch.kernel for launch in launches] == ["upsample_concat backward"]
    for level in levels:
        assert level.grad is not None
        # Weights of a pixel sum to one, so each sample and channel collects the 20 ones of its output.
        torch.testing.assert_close(level.grad.sum((2, 3)), torch.full(level.shape[:2], 20.0).double())


def test_threads_do_not_disturb_each_other() -> None:
    levels = levels_of(requires_grad=False)
    expected = functional.upsample_concat(levels, False)
    results: list[Tensor] = []

    def work() -> None:
        with use_backend("host"):
            results.extend(functional.upsample_concat(levels, False) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_recorded_where_gradients_are_off(mode: Callable[[], Any]) -> None:
    levels = levels_of()
    with mode():
        out = functional.upsample_concat(levels, False)
        resized = functional.upsample(levels, False)
    assert not out.requires_grad
    assert not resized[1].requires_grad
    assert torch.equal(torch.cat(resized, 1), out)


def test_inference_tensors_are_taken() -> None:
    with torch.inference_mode():
        levels = levels_of(requires_grad=False)
    assert torch.equal(functional.upsample_concat(levels, False)[:, :2], levels[0])


def test_transforms_of_torch_func_are_served_by_the_reference() -> None:
    """PyTorch has none of them for operators of others; direct calls say so."""
    levels = levels_of(requires_grad=False)

    def run(*x: Tensor) -> Tensor:
        return functional.upsample_concat(x, False).square().sum()

    gradients = torch.func.grad(run, argnums=(0, 1, 2))(*levels)
    inputs = levels_of()
    for a, b in zip(gradients, torch.autograd.grad(run(*inputs), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    tangent = torch.func.jvp(lambda *x: functional.upsample_concat(x, False), tuple(levels), tuple(levels))[1]
    torch.testing.assert_close(tangent, functional.upsample_concat(levels, False), rtol=1e-13, atol=1e-13)
    stacked = [torch.stack([x, 2 * x]) for x in levels]
    mapped = torch.vmap(lambda *x: functional.upsample_concat(x, False))(*stacked)
    torch.testing.assert_close(mapped[1], 2 * functional.upsample_concat(levels, False), rtol=1e-13, atol=1e-13)

    with pytest.raises(RuntimeError, match="Batching rule not implemented for jpu_cuda::upsample_concat"):
        torch.vmap(lambda x: ops.upsample_concat([x], False, False))(stacked[0])
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: ops.upsample_concat([x], False, False).sum())(levels[0])


def test_batched_gradients_equal_single_ones() -> None:
    inputs = levels_of()
    out = functional.upsample_concat(inputs, False)
    vectors = torch.randn(2, *out.shape).double()
    batched = torch.autograd.grad(out, inputs, vectors, is_grads_batched=True, retain_graph=True)
    for i in range(2):
        for got, expected in zip(batched, torch.autograd.grad(out, inputs, vectors[i], retain_graph=True), strict=True):
            torch.testing.assert_close(got[i], expected, rtol=1e-13, atol=1e-13)
    jacobian = torch.autograd.functional.jacobian
    level = inputs[1].detach()

    def resized(x: Tensor) -> Tensor:
        return functional.upsample([inputs[0].detach(), x], True)[1]

    torch.testing.assert_close(jacobian(resized, level, vectorize=True), jacobian(resized, level), rtol=1e-13, atol=0)


@BOTH
@pytest.mark.parametrize("name", ["upsample_concat", "upsample", "upsample_backward"])
def test_forward_mode_gradients_check(name: str, align_corners: bool) -> None:
    runs: dict[str, Callable[..., Any]] = {
        "upsample_concat": lambda *x: functional.upsample_concat(x, align_corners, reverse=True),
        "upsample": lambda *x: tuple(functional.upsample(x, align_corners)),
        "upsample_backward": lambda *x: tuple(ops.upsample_backward(x, [2, 9], [3, 1], align_corners)),
    }
    sizes = ((4, 5), (4, 5)) if name == "upsample_backward" else SIZES
    inputs = tuple(pyramid((2, 1, 3)[: len(sizes)], sizes, requires_grad=True))
    with host.record() as launches:
        assert torch.autograd.gradcheck(runs[name], inputs, check_forward_ad=True, check_batched_grad=True)
    assert launches


def test_a_tangent_of_one_level_leaves_the_others_alone() -> None:
    levels = levels_of(requires_grad=False)
    tangent = torch.randn_like(levels[1])
    with forward_ad.dual_level():
        out = functional.upsample_concat([levels[0], forward_ad.make_dual(levels[1], tangent), levels[2]], False)
        moved = forward_ad.unpack_dual(out).tangent
    zeros = [torch.zeros_like(x) for x in levels]
    assert torch.equal(moved, functional.upsample_concat([zeros[0], tangent, zeros[2]], False))


# --- operators ---------------------------------------------------------------------------------------


def arguments_of(name: str, layout: str, dtype: torch.dtype, requires_grad: bool) -> tuple[Any, ...]:
    case = plain((8, 16), ((5, 8), (3, 4)), batch=2, layout=layout, dtype=dtype)
    tensors = case.gradients() if name == "upsample_backward" else case.levels()
    tensors = [x.detach().requires_grad_(requires_grad) for x in tensors]
    rest = {
        "upsample": (5, 8, True),
        "upsample_backward": ([5, 3], [8, 4], False),
        "upsample_concat": (False, True),
    }
    return tensors, *rest[name]


NAMES = pytest.mark.parametrize("name", ["upsample", "upsample_backward", "upsample_concat"])


@NAMES
@pytest.mark.parametrize(
    ("layout", "dtype", "requires_grad"),
    [
        ("contiguous", torch.float64, True),
        ("channels_last", torch.float32, True),
        ("channels_last", torch.bfloat16, False),
        ("sliced", torch.float16, True),
        ("transposed", torch.float32, False),
        ("expanded_batch", torch.float32, False),
    ],
)
def test_opcheck(name: str, layout: str, dtype: torch.dtype, requires_grad: bool) -> None:
    torch.library.opcheck(getattr(ops, name).default, arguments_of(name, layout, dtype, requires_grad))


@NAMES
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 8, 5, 8), (2, 1, 5, 8), (1, 8, 1, 1), (1, 1, 1, 1), (2, 3, 1, 4), (0, 3, 2, 2)])
def test_fake_tensors_have_the_strides_of_real_ones(name: str, layout: str, shape: tuple[int, ...]) -> None:
    def run(tensors: list[Tensor]) -> list[Tensor]:
        if name == "upsample_concat":
            return [ops.upsample_concat(tensors, False, False)]
        rest = (4, 7) if name == "upsample" else ([4, 1], [7, 3])
        return getattr(ops, name)(tensors, *rest, False)

    image = LAYOUTS[layout](torch.randn(shape))
    with FakeTensorMode() as mode:
        fake = run([mode.from_tensor(image), mode.from_tensor(image)])
    real = run([image, image])
    assert [(x.shape, x.stride(), x.dtype) for x in fake] == [(x.shape, x.stride(), x.dtype) for x in real]


def test_the_output_is_channels_last_where_all_levels_are() -> None:
    channels_last, contiguous = (plain((8,), ((4, 5),), layout=x).levels()[0] for x in ("channels_last", "contiguous"))
    for levels, expected in (
        ([channels_last, channels_last], True),
        ([channels_last, contiguous], False),
        ([contiguous, contiguous], False),
    ):
        out = functional.upsample_concat(levels, False)
        assert out.is_contiguous(memory_format=torch.channels_last) == expected


# --- autocast ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kinds", ["www", "wlw", "lwl", "lll", "ddd"])
def test_autocast_gives_the_dtypes_of_the_reference(kinds: str, low: torch.dtype) -> None:
    """Wide, low and double levels; PyTorch refuses to concatenate other mixtures under autocast."""
    dtypes = [{"w": torch.float32, "l": low, "d": torch.float64}[kind] for kind in kinds]
    levels = [x.detach().to(d).requires_grad_() for x, d in zip(levels_of(), dtypes, strict=True)]

    def run() -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
        with torch.autocast("cpu", low):
            out = functional.upsample_concat(levels, False)
            resized = functional.upsample(levels, False)
        return out, resized, torch.autograd.grad(out.double().square().sum(), levels)

    got = run()
    with use_backend("reference"):
        expected = run()
    eps = max(torch.finfo(d).eps for d in dtypes)
    for a, b in zip((got[0], *got[1], *got[2]), (expected[0], *expected[1], *expected[2]), strict=True):
        assert a.dtype == b.dtype
        # Either is off by a few roundings of what the levels hold.
        torch.testing.assert_close(
            a.double(), b.double(), rtol=0, atol=8 * eps * float(b.detach().double().abs().max())
        )


# --- compilation and export --------------------------------------------------------------------------


class Resize(nn.Module):
    def forward(self, *levels: Tensor) -> Tensor:
        return functional.upsample_concat(levels, False, reverse=True)


def results_and_gradients(function: Callable[..., Any], levels: list[Tensor]) -> list[Tensor]:
    levels = [x.detach().clone().requires_grad_() for x in levels]
    outputs = function(*levels)
    return [*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), levels)]


@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", None), ("aot_eager", True), ("inductor", None)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_equals_eager(backend: str, dynamic: bool | None, layout: str) -> None:
    torch._dynamo.reset()

    def run(*levels: Tensor) -> tuple[Tensor, ...]:
        out = functional.upsample_concat(levels, False, reverse=True)
        return 2 * out, functional.upsample(levels, True)[2]

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend=backend)
    for sizes in (SIZES, ((6, 5), (3, 3), (8, 2))):  # the second: a new shape, or a recompilation
        levels = plain((2, 1, 3), sizes, batch=2, layout=layout).levels()
        expected = results_and_gradients(run, levels)
        with host.record() as launches:
            got = results_and_gradients(compiled, levels)
        assert len(launches) == 4
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def targets_of(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_holds_the_operator_or_plain_ones(strict: bool) -> None:
    levels = tuple(levels_of(torch.float32, requires_grad=False))
    program = torch.export.export(Resize(), levels, strict=strict)
    assert targets_of(program) == {"jpu_cuda.upsample_concat.default"}
    assert torch.equal(program.module()(*levels), Resize()(*levels))
    with use_backend("reference"):
        plain_program = torch.export.export(Resize(), levels, strict=strict)
    assert {target.split(".")[0] for target in targets_of(plain_program)} == {"aten"}


def test_an_exported_program_survives_a_file() -> None:
    levels = tuple(levels_of(torch.float32, requires_grad=False))
    file = io.BytesIO()
    torch.export.save(torch.export.export(Resize(), levels), file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(*levels), Resize()(*levels))


@pytest.mark.parametrize("call", ["torch.export.load(sys.argv[1]).module()(*x)", "ops.upsample_concat(x, False, True)"])
def test_operators_work_in_a_process_that_loaded_no_kernels(call: str, tmp_path: Path) -> None:
    levels = tuple(levels_of(torch.float32, requires_grad=False))
    torch.export.save(torch.export.export(Resize(), levels), tmp_path / "program.pt2")
    torch.save((levels, Resize()(*levels)), tmp_path / "expected.pt")
    code = f"""
import sys, torch, jpu_cuda
ops = torch.ops.jpu_cuda
x, expected = torch.load(sys.argv[2])
out = {call}
torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
for level in x:
    level.requires_grad_()
ops.upsample_concat(list(x), False, False).sum().backward()
assert all(level.grad is not None for level in x)
"""
    files = [str(tmp_path / "program.pt2"), str(tmp_path / "expected.pt")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)


def test_the_package_can_be_imported_again() -> None:
    code = """
import sys, torch, jpu_cuda
for name in [name for name in sys.modules if name.startswith("jpu_cuda")]:
    del sys.modules[name]
import gc; gc.collect()
import jpu_cuda
with jpu_cuda.use_backend("host"):
    print(jpu_cuda.functional.upsample_concat([torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)], False).sum())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "tensor(8.)" in done.stdout


def test_onnx_gets_plain_operators() -> None:
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(Resize().eval(), tuple(levels_of(torch.float32, requires_grad=False)), dynamo=True)
    assert program is not None
    assert {node.op_type for node in program.model_proto.graph.node} == {"Resize", "Concat"}


def test_results_and_modules_are_copied_and_pickled() -> None:
    levels = levels_of(requires_grad=False)
    out = functional.upsample_concat(levels, False, reverse=True)
    assert torch.equal(copy.deepcopy(out), out)
    assert torch.equal(pickle.loads(pickle.dumps(out)), out)
    for module in (copy.deepcopy(Resize()), pickle.loads(pickle.dumps(Resize()))):
        assert torch.equal(module(*levels), out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_have_the_dtype_of_their_level(dtype: torch.dtype) -> None:
    levels = levels_of(dtype)
    for gradient in torch.autograd.grad(functional.upsample_concat(levels, False).sum(), levels):
        assert gradient.dtype == dtype

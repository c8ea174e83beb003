"""The kernels of separable_pyramid, executed on the CPU, against the truth and against PyTorch's own path."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from pyramids import (
    CASES,
    DTYPES,
    Pyramid,
    by_kernels,
    check_backward,
    check_forward,
    gradients_by_kernels,
    pyramids,
    stacked,
    tensors_of,
)
from strategies import needs_host
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jpu_cuda import functional, host, use_backend

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


bounded = settings(deadline=None, max_examples=25, derandomize=True)
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def of(name: str, dtype: torch.dtype) -> Pyramid:
    return replace(CASES[name], dtype=dtype)


@ALL_DTYPES
@pytest.mark.parametrize("name", CASES)
def test_forward(name: str, dtype: torch.dtype) -> None:
    check_forward(of(name, dtype))


@ALL_DTYPES
@pytest.mark.parametrize("name", CASES)
def test_backward(name: str, dtype: torch.dtype) -> None:
    check_backward(of(name, dtype))


def test_gradients_of_weights_where_a_block_has_several_tiles() -> None:
    """72 squares leave each 4 blocks, for 6 tiles; in float64 alone, whose squares are the smallest."""
    check_backward(Pyramid(1, (40, 48), 72, (9, 34), (1, 2) * 4, torch.float64, "channels_last", terms="none"))


@bounded
@given(pyramids())
def test_forward_of_any_shape(case: Pyramid) -> None:
    check_forward(case)


@bounded
@given(pyramids())
def test_backward_of_any_shape(case: Pyramid) -> None:
    check_backward(case)


@pytest.mark.parametrize("name", ["packed classes, several levels", "odd channels, channels last", "several chunks"])
def test_results_are_bit_for_bit_the_same_in_every_schedule(name: str) -> None:
    case = of(name, torch.float32)
    arguments, gradient = case.arguments(), case.gradient()
    out, gradients = gradients_by_kernels(case, arguments, gradient)
    for seed, late in ((1, True), (2, False)):
        with host.schedule(seed, late=late):
            again, others = gradients_by_kernels(case, arguments, gradient)
        assert torch.equal(out, again)
        assert all(map(torch.equal, gradients, others))


def test_one_launch_forward_and_four_backward() -> None:
    case = CASES["packed classes, several levels"]
    with host.record() as launches:
        out = by_kernels(case, case.arguments())
    assert [launch.kernel for launch in launches] == ["separable_pyramid forward"]
    with host.record() as launches:
        gradients_by_kernels(case, case.arguments(), torch.ones_like(out))
    names = [launch.kernel.removeprefix("separable_pyramid ") for launch in launches]
    assert names == ["forward", "weight gradient", "input gradient", "level gradient", "reduce"]


@pytest.mark.parametrize(("size", "most"), [((60, 60), 1.15), ((64, 64), 1.15), ((65, 65), 1.65)])
def test_tiles_waste_few_slots(size: tuple[int, int], most: float) -> None:
    """Averaged over FastFCN's dilations. A tile has 128 slots, and all classes get as many tiles as the largest."""
    case = Pyramid(1, (1,), 1, size, (1, 2, 4, 8), terms="none")
    with host.record() as launches:
        by_kernels(case, case.arguments())
    slots = launches[0].blocks * 128 / (4 * size[0] * size[1])
    assert slots <= most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 4, 8])
def test_channels_last_is_read_and_written_by_vectors_without_much_conflict(dilation: int, dtype: torch.dtype) -> None:
    case = Pyramid(1, (32, 16), 32, (16, 16), (dilation,), dtype, "channels_last")
    with host.record() as launches:
        by_kernels(case, case.arguments())
    counters = launches[0].counters
    size = torch.finfo(dtype).bits // 8
    assert counters["global_writes"] == {16: 256 * 32 * size // 16}
    # Beside the patches, only weights and terms are read by elements.
    patches = counters["global_reads"][16] * 16 - 32 * 48 * size * launches[0].blocks
    assert patches <= 2.2 * 256 * 48 * size, "a patch is at most 2.1 times its tile"
    assert counters["bank_conflicts"] <= 0.06 * counters["shared_accesses"]


@pytest.mark.parametrize(
    ("needed", "launches"),
    [
        (["levels"], ["input gradient", "level gradient"]),
        (["depthwise"], ["input gradient", "reduce"]),
        (["pointwise"], ["weight gradient", "reduce"]),
        (["shift"], ["input gradient", "reduce"]),
        (["out_shift"], ["weight gradient", "reduce"]),
    ],
)
def test_only_what_is_needed_is_computed(needed: list[str], launches: list[str]) -> None:
    case = CASES["packed classes, several levels"]
    arguments = case.arguments()
    arguments.update(zip(("scale", "shift", "out_scale", "out_shift"), arguments.pop("terms"), strict=True))
    wanted = []
    for name, value in arguments.items():
        for tensor in value if isinstance(value, list) else [value]:
            tensor.requires_grad_(name in needed)
            wanted += [tensor] if name in needed else []
    lists = [arguments[name] for name in ("levels", "depthwise", "pointwise")]
    terms = [arguments[name] for name in ("scale", "shift", "out_scale", "out_shift")]
    out = torch.ops.jpu_cuda.separable_pyramid(*lists, list(case.dilations), *terms, case.relu)
    with host.record() as recorded:
        gradients = torch.autograd.grad(out, wanted, torch.ones_like(out))
    assert [launch.kernel.removeprefix("separable_pyramid ") for launch in recorded] == launches
    _, every = gradients_by_kernels(case, case.arguments(), torch.ones_like(out))
    names = [n for n, v in arguments.items() for _ in (v if isinstance(v, list) else [v])]
    order = ["levels", "depthwise", "pointwise", "scale", "shift", "out_scale", "out_shift"]
    expected = [g for g, n in zip(every, sorted(names, key=order.index), strict=True) if n in needed]
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize("terms", ["none", "channels", "images"])
@pytest.mark.parametrize("relu", [False, True])
def test_gradients_check(terms: str, relu: bool) -> None:
    """Of every input, in float64."""
    case = Pyramid(1, (2, 1), 2, (3, 4), (1, 2), torch.float64, terms=terms, relu=relu)
    inputs = [t.requires_grad_() for t in tensors_of(case.arguments()) if t is not None]

    def run(*tensors: Tensor) -> Tensor:
        values = [*tensors, *[None] * 4] if terms == "none" else tensors
        lists = values[:2], values[2:4], values[4:6]
        return torch.ops.jpu_cuda.separable_pyramid(*map(list, lists), [1, 2], *values[6:], relu)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("dependent", ["levels", "levels of one another", "terms of one another", "weights"])
def test_a_graph_of_the_gradients_leaves_them_what_they_are(dependent: str) -> None:
    """Also where inputs depend on each other, which gradgradcheck cannot see: both of its sides are then wrong."""
    case = Pyramid(1, (2, 2), 3, (4, 5), (1, 2), torch.float64, relu=False)
    a = case.arguments()
    x, w, m = a["levels"][0], a["depthwise"][0], a["terms"][0]
    leaves = [t.requires_grad_() for t in (x, w, m)]
    levels = {"levels": [x, x], "levels of one another": [x, x.tanh()]}.get(dependent, a["levels"])
    depthwise = [w, w] if dependent == "weights" else a["depthwise"]
    shift = -2 * m.sin() if dependent == "terms of one another" else a["terms"][1]
    terms = [m, shift, *a["terms"][2:]]
    out = torch.ops.jpu_cuda.separable_pyramid(levels, depthwise, a["pointwise"], [1, 2], *terms, False)
    plain = torch.autograd.grad(out, leaves, case.gradient(), retain_graph=True)
    with_graph = torch.autograd.grad(out, leaves, case.gradient(), create_graph=True)
    for got, expected in zip(with_graph, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_autocast_around_a_second_derivative_changes_nothing() -> None:
    case = SMALL
    a = case.arguments()
    level = a["levels"][0].requires_grad_()
    out = by_kernels(case, a)
    expected = torch.autograd.grad(out, level, torch.ones_like(out), create_graph=True)[0]
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(out, level, torch.ones_like(out), create_graph=True)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("mode", ["no_grad", "enable_grad", "inference_mode"])
def test_without_kernels_the_operators_are_the_references(mode: str, tmp_path: Path) -> None:
    case = Pyramid(1, (3, 2), 4, (5, 6), (1, 2), torch.float64)
    a = case.arguments()
    out = by_kernels(case, a)
    lists = [a[name] for name in ("levels", "depthwise", "pointwise")]
    every = (*lists, [1, 2], *a["terms"])
    expected = torch.ops.jpu_cuda.separable_pyramid_backward(*every, case.gradient(), out, [1] * 8)
    torch.save((every, case.gradient(), out, expected), tmp_path / "tensors.pt")
    code = f"""
import sys, torch, jpu_cuda
every, gradient, out, expected = torch.load(sys.argv[1])
with torch.{mode}():
    got = torch.ops.jpu_cuda.separable_pyramid(*every, True)
    torch.testing.assert_close(got, out, rtol=1e-12, atol=1e-12)
    found = torch.ops.jpu_cuda.separable_pyramid_backward(*every, gradient, out, [1] * 8)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tensors.pt")], check=True)


def test_every_entry_of_the_gradients_checks() -> None:
    case = Pyramid(1, (1, 1), 1, (2, 2), (1,), torch.float64, relu=False)
    inputs = [t.requires_grad_() for t in tensors_of(case.arguments()) if t is not None]
    assert torch.autograd.gradcheck(
        lambda a, b, w, p, *terms: torch.ops.jpu_cuda.separable_pyramid([a, b], [w], [p], [1], *terms, False), inputs
    )


def test_an_empty_batch_has_an_empty_result_and_gradients_of_zero() -> None:
    case = Pyramid(0, (3, 2), 4, (5, 6), (1, 2))
    out, gradients = gradients_by_kernels(case, case.arguments(), case.gradient())
    assert out.shape == (0, 8, 5, 6)
    assert all(not g.any() for g in gradients)


def test_nan_and_infinity_stay_where_they_belong() -> None:
    case = Pyramid(1, (1,), 1, (9, 9), (2,), terms="none")
    arguments = case.arguments()
    arguments["levels"][0].zero_()[0, 0, 4, 4] = torch.nan
    out = by_kernels(case, arguments)[0, 0]
    spoilt = torch.zeros(9, 9, dtype=torch.bool)
    spoilt[2:7:2, 2:7:2] = True
    assert torch.equal(out.isnan(), spoilt)


SMALL = Pyramid(1, (2, 1), 3, (4, 5), (1, 2))


def call(**changes: Any) -> Callable[[], Tensor]:
    """A call of the operator with some arguments replaced."""
    a = SMALL.arguments()
    names = ("levels", "depthwise", "pointwise", "dilations", "scale", "shift", "out_scale", "out_shift", "relu")
    values = [a["levels"], a["depthwise"], a["pointwise"], [1, 2], *a["terms"], True]
    arguments = {**dict(zip(names, values, strict=True)), **changes}
    return lambda: torch.ops.jpu_cuda.separable_pyramid(*arguments.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [torch.zeros(1, 1, 4, 5)] * 9}, "levels: expected 1 to 8, got 9"),
        ({"levels": [torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 4, 6)]}, r"levels\[1\]: expected batch size and size"),
        ({"levels": [torch.zeros(2, 4, 5)]}, r"levels\[0\]: expected 4 dimensions \[N, C, H, W\], got 3"),
        ({"levels": [torch.zeros(1, 3, 4, 5).int()]}, "expected dtype Int, got Float"),
        (
            {"levels": [torch.zeros(1, 4, 4, 5)]},
            r"depthwise_weight\[0\]: expected shape \[4, 1, 3, 3\], got \[3, 1, 3, 3\]",
        ),
        ({"levels": [torch.zeros(1, 0, 4, 5)]}, "channels: expected 1 to .* got 0 and 3"),
        ({"dilations": [1, 17]}, r"dilations\[1\]: expected 1 to 16, got 17"),
        ({"dilations": [0, 1]}, r"dilations\[0\]: expected 1 to 16, got 0"),
        ({"dilations": [1]}, "weights: expected one of each a dilation, 1, got 2 and 2"),
        (
            {
                "dilations": [1] * 9,
                "depthwise": [torch.zeros(3, 1, 3, 3)] * 9,
                "pointwise": [torch.zeros(3, 3, 1, 1)] * 9,
            },
            "dilations: expected 1 to 8, got 9",
        ),
        ({"scale": torch.zeros(2, 4)}, r"scale: expected shape \[2, 3\], got \[2, 4\]"),
        ({"scale": torch.zeros(2, 2, 3)}, r"scale: expected shape \[1, 2, 3\], got \[2, 2, 3\]"),
        ({"shift": torch.zeros(2, 3).double()}, "shift: expected dtype Float, got Double"),
        ({"out_scale": torch.zeros(3, 2).t()}, "out_scale: expected a contiguous tensor"),
    ],
)
def test_the_operator_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call(**changes)()
    assert call()().shape == (1, 6, 4, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [(1, 2, 4, 5), (1, 1, 4, 6)]}, r"levels\[1\]: expected batch size and size of levels\[0\]"),
        (
            {"depthwise": [(3, 1, 3, 3), (4, 1, 3, 3)]},
            r"depthwise_weight\[1\]: expected shape \(3, 1, 3, 3\), got \(4, 1",
        ),
        ({"levels": [(1, 3, 4, 5)] * 9}, "levels: expected 1 to 8, got 9"),
        ({"depthwise": [], "pointwise": []}, "weights: expected one of each a dilation, 2, got 0 and 0"),
        (
            {"pointwise": [(3, 3, 1, 1), (2, 3, 1, 1)]},
            r"pointwise_weight\[1\]: expected shape \(3, 3, 1, 1\), got \(2, 3",
        ),
    ],
)
def test_the_fake_kernel_says_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {
        "levels": [(1, 2, 4, 5), (1, 1, 4, 5)],
        "depthwise": [(3, 1, 3, 3)] * 2,
        "pointwise": [(3, 3, 1, 1)] * 2,
        **changes,
    }
    lists = [[torch.empty(shape, device="meta") for shape in value] for value in shapes.values()]
    with pytest.raises(ValueError, match=message):
        torch.ops.jpu_cuda.separable_pyramid(*lists, [1, 2], None, None, None, None, True)


def test_the_derivative_refuses_to_be_differentiated_by_itself() -> None:
    a = SMALL.arguments()
    out = call()()
    lists = [[t.requires_grad_() for t in a["levels"]], a["depthwise"], a["pointwise"]]
    with pytest.raises(RuntimeError, match="differentiate separable_pyramid twice, which works"):
        torch.ops.jpu_cuda.separable_pyramid_backward(*lists, [1, 2], *a["terms"], out, out, [1] * 8)


# --- PyTorch's machinery -----------------------------------------------------------------------------------


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_opcheck(layout: str, requires_grad: bool) -> None:
    case = replace(CASES["odd channels and sizes"], layout=layout, terms="images")
    a = case.arguments()
    lists = [[t.requires_grad_(requires_grad) for t in a[name]] for name in ("levels", "depthwise", "pointwise")]
    torch.library.opcheck(torch.ops.jpu_cuda.separable_pyramid, (*lists, [1, 2], *a["terms"], True))
    if not requires_grad:
        out = by_kernels(case, a)
        arguments = (*lists, [1, 2], *a["terms"], case.gradient(), out, [1, 0, 1, 1, 0, 1, 1, 1])
        torch.library.opcheck(torch.ops.jpu_cuda.separable_pyramid_backward, arguments)


class Branches(torch.nn.Module):
    def __init__(self, case: Pyramid) -> None:
        super().__init__()
        self.case = case
        a = case.arguments()
        self.depthwise, self.pointwise = map(torch.nn.Parameter, stacked(a))

    def forward(self, *levels: Tensor) -> Tensor:
        return functional.separable_pyramid(levels, self.depthwise, self.pointwise, self.case.dilations)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend: str) -> None:
    case = CASES["odd channels, channels last"]
    module, levels = Branches(case), case.arguments()["levels"]
    with use_backend("host"):
        expected = module(*levels)
        wanted = torch.autograd.grad(expected, [*module.parameters()], case.gradient())
        with host.record() as launches:
            out = torch.compile(module, fullgraph=True, backend=backend)(*levels)
        got = torch.autograd.grad(out, [*module.parameters()], case.gradient())
    assert [launch.kernel for launch in launches] == ["separable_pyramid forward"]
    assert out.stride() == expected.stride()
    assert torch.equal(out, expected)
    assert all(map(torch.equal, got, wanted))


def test_an_export_holds_the_operator_or_plain_ones() -> None:
    case = CASES["odd channels and sizes"]
    module, levels = Branches(case), tuple(case.arguments()["levels"])
    for backend, expected in (("host", True), ("reference", False)):
        with use_backend(backend):
            program = torch.export.export(module, levels)
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert ("jpu_cuda.separable_pyramid.default" in names) == expected
        torch.testing.assert_close(program.module()(*levels), module(*levels), rtol=1e-5, atol=1e-5)


def test_multiply_adds_are_counted() -> None:
    case = Pyramid(2, (3, 5), 4, (6, 7), (1, 2), terms="none")
    with FlopCounterMode(display=False) as counter:
        gradients_by_kernels(case, case.arguments(), case.gradient())
    with FlopCounterMode(display=False) as once:
        by_kernels(case, case.arguments())
    forward = 2 * (9 * 8 + 8 * 4) * 2 * 2 * 6 * 7
    assert once.get_total_flops() == forward
    # The operand is computed anew for the weights' gradient; levels and taps have a depthwise pass each.
    assert counter.get_total_flops() == 2 * forward + 2 * (2 * 9 * 8 + 8 * 4) * 2 * 2 * 6 * 7


# --- the function of this package ------------------------------------------------------------------------


def by_function(case: Pyramid, arguments: dict[str, Any]) -> Tensor:
    a = arguments
    names = ("scale", "shift", "out_scale", "out_shift")
    return functional.separable_pyramid(
        a["levels"],
        *stacked(a),
        case.dilations,
        **dict(zip(names, a["terms"], strict=True)),
        relu=case.relu,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_function_is_served_by_the_kernel(dtype: torch.dtype) -> None:
    case = of("odd channels, channels last", dtype)
    with use_backend("host"), host.record() as launches:
        out = by_function(case, case.arguments())
    assert [launch.kernel for launch in launches] == ["separable_pyramid forward"]
    assert torch.equal(out, by_kernels(case, case.arguments()))


def test_terms_of_the_levels_dtype_are_taken() -> None:
    case = of("odd channels and sizes", torch.float16)
    arguments = case.arguments()
    arguments["terms"] = [term.half() for term in arguments["terms"]]
    with use_backend("host"):
        out = by_function(case, arguments)
    arguments["terms"] = [term.float() for term in arguments["terms"]]
    assert torch.equal(out, by_kernels(case, arguments))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"relu": 0.5}, TypeError, "relu: expected a bool, got 0.5"),
        ({"dilations": (True, 2)}, ValueError, "dilations: expected one or more integers >= 1"),
        ({"pointwise_weight": torch.zeros(2, 0, 3)}, ValueError, "at least one channel and one output, got 3 and 0"),
    ],
)
@pytest.mark.parametrize("backend", ["host", "reference"])
def test_the_function_says_what_is_wrong(
    change: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    a = SMALL.arguments()
    arguments = {
        "levels": a["levels"],
        "depthwise_weight": stacked(a)[0],
        "pointwise_weight": stacked(a)[1],
        "dilations": (1, 2),
    }
    with use_backend(backend), pytest.raises(error, match=message):
        functional.separable_pyramid(**{**arguments, **change})


def test_under_autocast_it_has_the_dtype_of_a_convolution() -> None:
    case = of("odd channels and sizes", torch.float32)
    low = of("odd channels and sizes", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), use_backend("host"):
        out = by_function(case, case.arguments())
    arguments = low.arguments()
    assert torch.equal(out, by_kernels(low, arguments))

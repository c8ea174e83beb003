"""The kernels of separable_pyramid and upsample_fold on a GPU: what host execution cannot show."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from folds import Fold, check_gradients, check_terms, fold
from gpu import captured, needs_memory, on_a_late_stream, on_cuda, one_at_a_time, requested_bytes
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

from jpu_cuda import functional, host, use_backend

pytestmark = pytest.mark.gpu

ops = torch.ops.jpu_cuda
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Several tiles, chunks, vectors and images.
LARGE = Pyramid(3, (32, 24, 16), 72, (30, 33), (1, 2, 4, 8), torch.float32, "channels_last", device="cuda")
MORE_CASES = {
    **CASES,
    "large": LARGE,
    "large, contiguous": replace(LARGE, layout="contiguous", terms="images"),
    # Fewer blocks for each square of the weights' gradient than there are tiles.
    "several tiles a block": Pyramid(1, (40, 48), 72, (25, 17), (1, 2) * 4, layout="channels_last", terms="none"),
    "the size that models have": Pyramid(2, (128, 128, 128), 128, (60, 60), (1, 2, 4, 8), layout="channels_last"),
}
FOLDS = {
    "two branches": Fold(),
    "eight branches": Fold(8, (1536, 512), without=("weight",)),
    "without biases": Fold(3, (700, 257), without=("bias",)),
    "one level": Fold(1, (1, 1), sizes=((4, 5),)),
    "an empty batch": Fold(3, (300, 5), batch=0),
}


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    with on_cuda():
        yield


def results_of(case: Pyramid, arguments: dict[str, Any], gradient: Tensor) -> list[Tensor]:
    out, gradients = gradients_by_kernels(case, arguments, gradient)
    return [out, *gradients]


def backward_arguments(case: Pyramid) -> tuple[Any, ...]:
    """Those of separable_pyramid_backward, for every gradient."""
    a = case.arguments()
    needed = [1] * (len(case.channels) + 2) + [int(term is not None) for term in a["terms"]]
    lists = a["levels"], a["depthwise"], a["pointwise"]
    return (*lists, list(case.dilations), *a["terms"], case.gradient(), by_kernels(case, a), needed)


def fold_results(case: Fold) -> list[Tensor]:
    """Resized levels and terms, and the gradients of all that has one, each result's gradient being itself."""
    levels, align, weight, bias, *rest = case.arguments()
    needing = [t.requires_grad_() for t in (*levels[1:], *weight, *bias) if t is not None]
    out = fold([levels, align, weight, bias, *rest])
    return [*out, *torch.autograd.grad(out, needing, [x.detach() for x in out])]


# --- values ---------------------------------------------------------------------------------------------


@ALL_DTYPES
@pytest.mark.parametrize("name", MORE_CASES)
def test_every_path_is_as_exact_as_pytorchs(name: str, dtype: torch.dtype) -> None:
    case = replace(MORE_CASES[name], dtype=dtype, device="cuda")
    check_forward(case)
    check_backward(case)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(pyramids())
def test_any_shape_is_as_exact_as_pytorchs(case: Pyramid) -> None:
    case = replace(case, device="cuda")
    check_forward(case)
    check_backward(case)


@ALL_DTYPES
@pytest.mark.parametrize("wide", [True, False], ids=["norms in sums' type", "norms in levels' type"])
@pytest.mark.parametrize("name", FOLDS)
def test_norms_are_folded(name: str, wide: bool, dtype: torch.dtype) -> None:
    case = replace(FOLDS[name], dtype=dtype, wide=wide, device="cuda")
    check_terms(case)
    check_gradients(case)


@needs_host
@ALL_DTYPES
@pytest.mark.parametrize("name", CASES)
def test_the_gpu_and_host_execution_agree_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    """All arithmetic of the kernels is explicit, so what holds for one holds for the other."""
    host.load()
    cases = [replace(CASES[name], dtype=dtype, device=device) for device in ("cpu", "cuda")]
    pairs = [results_of(case, case.arguments(), case.gradient()) for case in cases]
    for on_host, on_gpu in zip(*pairs, strict=True):
        assert torch.equal(on_host, on_gpu.cpu())


@needs_host
@ALL_DTYPES
@pytest.mark.parametrize("name", FOLDS)
def test_folded_norms_agree_with_host_execution_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    host.load()
    pairs = [fold_results(replace(FOLDS[name], dtype=dtype, device=device)) for device in ("cpu", "cuda")]
    for on_host, on_gpu in zip(*pairs, strict=True):
        assert torch.equal(on_host, on_gpu.cpu())


@ALL_DTYPES
@pytest.mark.parametrize("name", ["large", "large, contiguous", "several tiles a block"])
def test_results_are_bit_for_bit_the_same_on_every_run(name: str, dtype: torch.dtype) -> None:
    case = replace(MORE_CASES[name], dtype=dtype, device="cuda")
    arguments, gradient = case.arguments(), case.gradient()
    expected = results_of(case, arguments, gradient)
    for _ in range(20):
        assert all(map(torch.equal, results_of(case, arguments, gradient), expected))


@pytest.mark.parametrize("images", [1, 2], ids=["one by one", "two and one"])
def test_groups_of_images_give_the_same_gradients(images: int) -> None:
    every = backward_arguments(LARGE)
    kept = len(LARGE.dilations) * sum(level[0].nbytes for level in every[0])  # of an image
    together = ops.separable_pyramid_backward(*every)
    assert all(map(torch.equal, ops.separable_pyramid_backward(*every, images * kept), together))


@pytest.mark.parametrize("terms", ["none", "channels", "images"])
def test_an_empty_batch_has_an_empty_result_and_gradients_of_zero(terms: str) -> None:
    case = Pyramid(0, (3, 2), 4, (5, 6), (1, 2), terms=terms, device="cuda")
    out, *gradients = results_of(case, case.arguments(), case.gradient())
    assert out.shape == (0, 8, 5, 6)
    assert not any(bool(g.any()) for g in gradients)


# --- PyTorch's machinery --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_opcheck(layout: str) -> None:
    case = Pyramid(2, (8, 3), 5, (6, 7), (1, 2), layout=layout, terms="images", device="cuda")
    a = case.arguments()
    torch.library.opcheck(ops.separable_pyramid_backward, backward_arguments(case))
    lists = [[t.requires_grad_() for t in a[name]] for name in ("levels", "depthwise", "pointwise")]
    torch.library.opcheck(ops.separable_pyramid, (*lists, [1, 2], *a["terms"], True))


def test_opcheck_of_folded_norms() -> None:
    case = Fold(without=("weight",), device="cuda")
    arguments = case.arguments()
    torch.library.opcheck(ops.upsample_fold, arguments)
    given = (fold(arguments)[:2], [3, 2], [4, 5], True, [None, *case.term_gradients()[1:]], *arguments[4:], [0, 1] * 4)
    torch.library.opcheck(ops.upsample_fold_backward, given)


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_under_autocast_it_has_the_dtype_of_a_convolution(low: torch.dtype) -> None:
    case = replace(LARGE, terms="none", policy="auto")
    a = case.arguments()
    with torch.autocast("cuda", low):
        out = functional.separable_pyramid(a["levels"], *stacked(a), case.dilations)
    cast = {name: [t.to(low) for t in a[name]] for name in ("levels", "depthwise", "pointwise")}
    assert torch.equal(out, by_kernels(case, {**a, **cast}))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_by_inductor_equals_eager(layout: str) -> None:
    torch._dynamo.reset()
    case = replace(LARGE, layout=layout)
    arguments, gradient = case.arguments(), case.gradient()

    def step(arguments: dict[str, Any]) -> Tensor:
        return by_kernels(case, arguments)

    inputs = [t.requires_grad_() for t in tensors_of(arguments) if t is not None]
    out, expected = torch.compile(step, fullgraph=True)(arguments), step(arguments)
    assert out.stride() == expected.stride()
    assert torch.equal(out, expected)
    pairs = zip(*(torch.autograd.grad(x, inputs, gradient) for x in (out, expected)), strict=True)
    assert all(torch.equal(got, wanted) for got, wanted in pairs)


# --- streams, devices, graphs, memory -------------------------------------------------------------------


def fill(arguments: dict[str, Any], values: dict[str, Any]) -> None:
    for name, tensors in arguments.items():
        torch._foreach_copy_(tensors, values[name])


def test_kernels_run_on_the_current_stream() -> None:
    values = {**LARGE.arguments(), "gradient": [LARGE.gradient()]}
    late = {name: [torch.zeros_like(t) for t in tensors] for name, tensors in values.items()}
    expected, results = (
        on_a_late_stream(lambda a=a: fill(a, values), lambda a=a: results_of(LARGE, a, *a["gradient"]))
        for a in (values, late)
    )
    assert all(map(torch.equal, results, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one_are_served_there() -> None:
    for make, case in (
        (lambda c: results_of(c, c.arguments(), c.gradient()), LARGE),
        (fold_results, Fold(device="cuda")),
    ):
        expected = make(case)
        with torch.cuda.device(0):
            results = make(replace(case, device="cuda:1"))
            assert torch.cuda.current_device() == 0
        assert {x.device.index for x in results} == {1}
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(results, expected, strict=True))


def test_a_captured_graph_replays_with_new_values_of_every_input() -> None:
    arguments, gradient = LARGE.arguments(), LARGE.gradient()
    graph, results = captured(lambda: results_of(LARGE, arguments, gradient))
    graph.replay()
    before = [x.clone() for x in results]
    for seed in (1, 2):
        fill(arguments, LARGE.arguments(seed))
        gradient.copy_(LARGE.gradient(seed))
        graph.replay()
        replayed = [x.clone() for x in results]
        assert all(map(torch.equal, replayed, results_of(LARGE, arguments, gradient)))
        assert not any(map(torch.equal, replayed, before))


def test_the_forward_pass_asks_for_no_memory_but_its_output() -> None:
    arguments = LARGE.arguments()
    out = by_kernels(LARGE, arguments)
    assert requested_bytes(lambda: by_kernels(LARGE, arguments)) == (out.nbytes, 0)


def test_what_the_gradients_keep_is_bounded() -> None:
    """Beside the rest, which is the same for any groups, they keep D·C channels of a group's images."""
    every = backward_arguments(LARGE)
    kept = len(LARGE.dilations) * sum(level[0].nbytes for level in every[0])
    one, two, all_three = (
        requested_bytes(lambda n=n: ops.separable_pyramid_backward(*every, n * kept)) for n in (1, 2, 3)
    )
    assert one[1] == two[1] == all_three[1] == 0
    assert (two[0] - one[0], all_three[0] - one[0]) == (kept, 2 * kept)


def test_nothing_stays_allocated() -> None:
    arguments, gradient = LARGE.arguments(), LARGE.gradient()
    for step in (lambda: results_of(LARGE, arguments, gradient), lambda: fold_results(Fold(device="cuda"))):
        assert requested_bytes(step)[1] == 0


# --- reach ----------------------------------------------------------------------------------------------

FORMATS = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
HEIGHT, WIDTH = 2**14, 2**13 + 16  # of 16 channels: a little more than 2^31 elements
NO_TERMS = (None,) * 4


def rows(channels: int, memory_format: torch.memory_format) -> Tensor:
    """Half-precision images whose rows hold small numbers, of which none is that of a row at another place."""
    image = torch.empty(1, channels, HEIGHT, WIDTH, device="cuda", dtype=torch.float16, memory_format=memory_format)
    return image.copy_((torch.arange(HEIGHT, device="cuda") % 61).half().view(1, 1, -1, 1))


def weights_of(channels: int, outputs: int, values: tuple[float, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Of each branch a centre tap alone, and one pointwise weight: half precision holds every result."""
    taps = torch.zeros(channels, 1, 3, 3, device="cuda", dtype=torch.float16)
    taps[..., 1, 1] = 1
    pointwise = [torch.full((outputs, channels, 1, 1), v, device="cuda", dtype=torch.float16) for v in values]
    return [taps] * len(values), pointwise


@one_at_a_time
@FORMATS
def test_outputs_and_their_gradients_of_more_than_2_to_31_elements(memory_format: torch.memory_format) -> None:
    needs_memory(24)
    level = rows(8, memory_format)
    lists = ([level], *weights_of(8, 8, (0.125, 0.25)), [1, 16], *NO_TERMS)
    out = ops.separable_pyramid(*lists, True)
    assert out.numel() > 2**31
    for c in range(16):  # one by one, for the memory's sake
        assert bool((out[:, c] == level[:, 0] * (1 if c < 8 else 2)).all())
    # Eight outputs of each branch, weighed by 1/8 and by 1/4 of twice as much.
    (found,) = ops.separable_pyramid_backward(*lists, out, out, [1, *[0] * 6])
    for c in range(8):
        assert bool((found[:, c] == level[:, 0] * 5).all())
    del found
    # All but the last pixels of the last channel count for nothing.
    out.zero_()[:, -1, -1, -3:] = 1
    depthwise, pointwise = ops.separable_pyramid_backward(*lists, out, None, [0, 1, 1, *[0] * 4])
    value = (HEIGHT - 1) % 61
    expected = torch.zeros_like(pointwise)
    expected[1, -1] = 3 * value
    assert torch.equal(pointwise, expected)
    # Of the taps 16 away, those above and below are outside of the image or in another row, and so to the right.
    above = (HEIGHT - 17) % 61
    taps = torch.tensor([[3 * above, 3 * above, 0], [3 * value, 3 * value, 0], [0, 0, 0]], device="cuda") / 4
    assert not depthwise[0].any()
    assert torch.equal(depthwise[1], taps.half().expand(8, 1, 3, 3))


@one_at_a_time
@FORMATS
def test_levels_and_their_gradients_of_more_than_2_to_31_elements(memory_format: torch.memory_format) -> None:
    needs_memory(24)
    level = rows(16, memory_format)
    assert level.numel() > 2**31
    lists = ([level], *weights_of(16, 1, (0.25,)), [3], *NO_TERMS)
    out = ops.separable_pyramid(*lists, True)
    assert bool((out[:, 0] == level[:, -1] * 4).all())
    (found,) = ops.separable_pyramid_backward(*lists, out, out, [1, *[0] * 6])
    for c in range(16):
        assert bool((found[:, c] == level[:, c]).all())


@one_at_a_time
@FORMATS
def test_tensors_may_be_spread_over_more_than_2_to_31_elements(memory_format: torch.memory_format) -> None:
    needs_memory(20)
    layout = "channels_last" if memory_format == torch.channels_last else "contiguous"
    case = Pyramid(2, (8,), 8, (6, 8), (1, 2), torch.float16, layout, device="cuda")
    every = backward_arguments(case)

    def spread(value: Tensor) -> Tensor:
        buffer = torch.empty(2**31 + 16 + value[0].numel(), device="cuda", dtype=torch.float16)
        return buffer.as_strided(value.shape, (2**31 + 16, *value.stride()[1:])).copy_(value)

    (level,), *between, gradient, out, needed = every
    far = spread(level)
    assert torch.equal(ops.separable_pyramid([far], *between, True), out)
    results = ops.separable_pyramid_backward([far], *between, spread(gradient), spread(out), needed)
    assert all(map(torch.equal, results, ops.separable_pyramid_backward(*every)))


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index", "message"),
    [
        ("levels", 1, r"levels\[1\]: expected the device of levels\[0\], .* got "),
        ("pointwise", 0, r"pointwise_weight\[0\]: expected the device of levels\[0\], .* got "),
        ("terms", 2, r"out_scale: expected the device of levels\[0\], .* got "),
    ],
)
def test_a_mix_of_devices_is_refused(name: str, index: int, message: str) -> None:
    arguments = LARGE.arguments()
    arguments[name][index] = arguments[name][index].cpu()
    with pytest.raises(RuntimeError, match=message):
        by_kernels(LARGE, arguments)
    assert by_kernels(LARGE, LARGE.arguments()).is_cuda


def test_the_baseline_of_these_tests_is_pytorch() -> None:
    a = replace(LARGE, terms="none").arguments()
    with use_backend("reference"):
        out = functional.separable_pyramid(a["levels"], *stacked(a), LARGE.dilations)
    u = torch.cat(a["levels"], 1)
    for i, d in enumerate(LARGE.dilations):
        z = torch.nn.functional.conv2d(u, a["depthwise"][i], padding=d, dilation=d, groups=u.shape[1])
        expected = torch.nn.functional.conv2d(z, a["pointwise"][i]).relu()
        assert torch.equal(out[:, 72 * i : 72 * (i + 1)], expected)

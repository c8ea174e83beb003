"""training_statistics, training_coefficients and training_pointwise_gradient, executed on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import DTYPES, needs_host
from torch import Tensor
from training_norm_cases import (
    Coefficients,
    Pointwise,
    Statistics,
    check_coefficients,
    check_pointwise,
    check_statistics,
    run_coefficients,
    run_pointwise,
    run_statistics,
)

from jpu_cuda import host
from jpu_cuda.ops._library import sum_dtype

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# --- statistics -----------------------------------------------------------------------------------------

STATISTICS = {
    "some norms fixed": Statistics(),
    "all norms fixed": Statistics(fixed=(True, True), channels=37),
    "no norms fixed": Statistics(fixed=(False,) * 8, channels=16),
    "one part of one image": Statistics(images=1, parts=1, channels=5, fixed=(False,)),
    "more parts than a walk": Statistics(images=3, parts=67, channels=3, most=3),
    "as many parts as rows": Statistics(images=1, parts=16, channels=33),
    "parts of one pixel": Statistics(images=2, parts=9, channels=17, most=1),
    "no weights, no biases": Statistics(without=tuple((name, i) for name in ("weight", "bias") for i in range(3))),
    "groups": Statistics(fixed=(False, False), channels=24, groups=4),
    "groups of many channels": Statistics(images=1, parts=2, fixed=(False,), channels=600, groups=2),
    "groups of every channel": Statistics(images=3, parts=19, fixed=(False,), channels=18, groups=18),
    "one group": Statistics(images=2, parts=35, fixed=(False, False), channels=40, groups=1, most=3),
    "far from 0": Statistics(images=3, parts=40, channels=9, mean=1e4),
    "groups far from 0": Statistics(images=2, parts=40, channels=36, fixed=(False,), groups=3, mean=1e4),
}


@EVERY_DTYPE
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_those_of_all_values(name: str, dtype: torch.dtype) -> None:
    check_statistics(replace(STATISTICS[name], dtype=dtype))


@pytest.mark.parametrize("groups", [0, 4], ids=["batch", "groups"])
def test_a_large_mean_takes_little_from_the_variance(groups: int) -> None:
    """At 10000 deviations, float32's E[x²] − E[x]² would have no digit of it."""
    case = Statistics(images=4, parts=64, channels=4, fixed=(False,), mean=1e4, empty=False, groups=groups, most=20)
    arguments, values = case.arguments()
    result = run_statistics(arguments).numpy().astype(np.longdouble)
    axes, sets = ((1, 2, 3), 4) if groups else ((0, 1, 2, 3), 1)
    for row, expected, bound in (
        (0, np.nanmean(values, axes), 3 * 2.0**-24),  # an ulp and a half
        # Means of some ten pixels are off by 2^-10 at most, a 300th of their deviation. What lies between parts is a
        # tenth of the variance, of which that is twice a 300th; merges round half as much again.
        (1, np.nanvar(values, axes), 1e-3),
    ):
        assert (np.abs(result[:, row, 0] / expected.reshape(sets, 4) - 1) <= bound).all()


def test_statistics_are_pytorchs() -> None:
    """Of float64, through one part an image row, for all three kinds of norms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 12, 5, 7, generator=generator, dtype=torch.float64) + 2
    w, b = torch.rand(2, 12, generator=generator, dtype=torch.float64).unbind()
    m, v = torch.rand(2, 12, generator=generator, dtype=torch.float64).unbind()
    moments = torch.stack([x.mean(3), x.var(3, correction=0) * 7], 1).permute(0, 3, 1, 2)[:, :, None].contiguous()
    counts = torch.full((5, 1), 7, dtype=torch.int32)

    def check(statistics: Tensor, expected: Tensor) -> None:
        scale, shift = (statistics[:, row, 0, :, None, None] for row in (3, 4))
        torch.testing.assert_close(scale * x + shift, expected, rtol=1e-12, atol=1e-12)

    check(
        run_statistics((moments, counts, [w], [b], [None], [None], [1e-3], 0)),
        F.batch_norm(x, None, None, w, b, True, 0, 1e-3),
    )
    check(run_statistics((moments, counts, [w], [b], [m], [v], [1e-3], 0)), F.batch_norm(x, m, v, w, b, False, 0, 1e-3))
    check(run_statistics((moments, counts, [w], [b], [None], [None], [1e-3], 3)), F.group_norm(x, 3, w, b, 1e-3))


def test_fixed_norms_need_no_moments() -> None:
    case = Statistics(fixed=(True, True))
    (_, _, *norms), _ = case.arguments()
    expected = run_statistics(case.arguments()[0])
    for shape in ((0,), (0, 0, 2, 2, 20)):
        result = run_statistics((torch.empty(shape), torch.empty(0, dtype=torch.int32), *norms))
        assert torch.equal(result, expected)


def test_statistics_of_nothing() -> None:
    counts = torch.ones(2, 1, dtype=torch.int32)
    none: list[list[Any]] = [[None]] * 4
    assert run_statistics((torch.empty(0, 2, 1, 2, 6), counts, *none, [0.0], 2)).shape == (0, 5, 1, 6)
    result = run_statistics((torch.empty(0, 2, 1, 2, 6), counts, *none, [0.0], 0))
    assert (result[0, 0] == 0).all()
    assert result[0, 1].isnan().all()


@pytest.mark.parametrize("groups", [0, 2], ids=["batch", "groups"])
def test_what_is_not_finite_stays_in_its_set(groups: int) -> None:
    case = Statistics(images=2, parts=5, channels=8, fixed=(False,), groups=groups)
    arguments, _ = case.arguments()
    moments = arguments[0].clone()
    moments[1, 3, 0, :, 5] = torch.tensor([torch.inf, torch.nan])
    result, expected = run_statistics((moments, *arguments[1:])), run_statistics(arguments)
    hit = torch.zeros_like(expected, dtype=torch.bool)
    hit[-1, :, 0, slice(4, 8) if groups else 5] = True
    assert torch.equal(result[~hit], expected[~hit])
    assert not result[hit].isfinite().any()


# --- coefficients ---------------------------------------------------------------------------------------

COEFFICIENTS = {
    "batch and fixed": Coefficients(),
    "one part": Coefficients(parts=1, channels=33),
    "one part of one image": Coefficients(images=1, parts=1, channels=5),
    "more images than rows": Coefficients(images=37, parts=2, channels=7),
    "more parts than rows": Coefficients(images=2, parts=21, channels=24),
    "all fixed": Coefficients(batch=(0, 0), channels=16, without=(0,)),
    "eight branches": Coefficients(batch=(1,) * 8, channels=3, without=()),
    "groups": Coefficients(groups=5, without=(1,)),
    "groups of every channel": Coefficients(images=2, parts=1, groups=20),
    "groups of many channels": Coefficients(images=2, parts=3, channels=600, batch=(1,), groups=2, without=()),
    "a group of many channels": Coefficients(images=1, parts=1, channels=531, batch=(1, 1), groups=1, without=(0,)),
    "more pixels than float32 counts": Coefficients(pixels=2**24 + 1),
}


@EVERY_DTYPE
@pytest.mark.parametrize("name", COEFFICIENTS)
def test_coefficients_are_within_their_bounds(name: str, dtype: torch.dtype) -> None:
    check_coefficients(replace(COEFFICIENTS[name], dtype=dtype))


@pytest.mark.parametrize("kind", ["batch", "fixed", "groups"])
def test_coefficients_give_autograds_gradient(kind: str) -> None:
    """Of float64: dx = k · dy − a − b · x̂ is PyTorch's, as are the gradients of weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 3, 12, 5, 7, generator=generator, dtype=torch.float64)
    parameters = torch.rand(4, 12, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    w, b = (parameters[i].clone().requires_grad_() for i in (0, 1))
    groups, eps = 3 if kind == "groups" else 0, 1e-3
    shape = (3, groups, -1) if groups else (1, 12, 0)
    if kind == "groups":
        y = F.group_norm(x, 3, w, b, eps)
        mean = x.reshape(shape).mean(2).repeat_interleave(4, 1)
        var = x.reshape(shape).var(2, correction=0).repeat_interleave(4, 1)
    elif kind == "batch":
        y = F.batch_norm(x, None, None, w, b, True, 0, eps)
        mean, var = x.mean((0, 2, 3))[None], x.var((0, 2, 3), correction=0)[None]
    else:
        mean, var = parameters[2:3], parameters[3:4]
        y = F.batch_norm(x, mean[0], var[0], w, b, False, 0, eps)
    dx, dw, db = torch.autograd.grad(y, (x, w, b), dy)

    with torch.no_grad():
        inverse = 1 / (var + eps).sqrt()
        hat = (x - mean[..., None, None]) * inverse[..., None, None]
        rows = [part.sum(3).permute(0, 2, 1) for part in (dy, dy * hat, hat)]
        sums = torch.stack(rows, 2)[:, :, :, None].contiguous()
        statistics = torch.stack([mean, var, inverse, inverse, inverse], 1)[:, :, None].contiguous()
        results = run_coefficients((sums, statistics, [w.detach()], [kind == "batch"], groups, 35))
        (k, a, b_), totals, gradients = results[0][:, :, 0, :, None, None].unbind(1), *results[1:]
    torch.testing.assert_close(k * dy - a - b_ * hat, dx, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(totals[:, 0], dx.sum((2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[:, 0], torch.stack([dw, db]), rtol=1e-12, atol=1e-12)


def test_fixed_statistics_leave_normalised_values_out() -> None:
    """Where these are infinite, as a level of infinite values makes them, the total is that of k · dy."""
    arguments = Coefficients(batch=(0, 1), without=()).arguments()
    expected = run_coefficients(arguments)[1]
    arguments[0][:, :, 1:] = torch.inf
    result = run_coefficients(arguments)[1]
    assert torch.equal(result[:, 0], expected[:, 0])
    assert not result[:, 1].isfinite().any()


# --- the pointwise gradient -----------------------------------------------------------------------------

POINTWISE = {
    "vectors": Pointwise(),
    "elements": Pointwise(channels=37),
    "one image": Pointwise(images=1, channels=24),
    "by image": Pointwise(by_image=True),
    "by image, elements": Pointwise(by_image=True, channels=21, outputs=5),
    "some branches": Pointwise(branches=5, first=2, some=2),
    "some branches of one image": Pointwise(branches=4, first=3, some=1, images=1),
    "some branches by image": Pointwise(branches=4, first=1, some=3, by_image=True),
    "more tiles": Pointwise(outputs=70, channels=264, branches=1, some=1, images=2),
    "more tiles of elements": Pointwise(outputs=35, channels=67, branches=1, some=1),
    "one channel of one output": Pointwise(outputs=1, channels=1),
    "many images": Pointwise(images=19, outputs=9, channels=16, branches=2, some=2),
    "weights that begin off": Pointwise(offset=1),
    "no weights, no biases": Pointwise(without=tuple((name, i) for name in ("weight", "bias") for i in range(3))),
}


@pytest.mark.parametrize("wide", [True, False], ids=["norms in sums' type", "norms in weights' type"])
@EVERY_DTYPE
@pytest.mark.parametrize("name", POINTWISE)
def test_the_pointwise_gradient_is_within_its_bounds(name: str, dtype: torch.dtype, wide: bool) -> None:
    check_pointwise(replace(POINTWISE[name], dtype=dtype, wide=wide))


@pytest.mark.parametrize("by_image", [False, True], ids=["one set", "a set an image"])
def test_the_pointwise_gradient_is_autograds(by_image: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hat, dq = (torch.randn(3, 35, c, generator=generator, dtype=torch.float64) for c in (12, 7))
    p = torch.randn(7, 12, 1, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    w, b = (torch.randn(12, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    q = (w * hat + b) @ p[:, :, 0, 0].t()
    dp, dw, db = torch.autograd.grad(q, (p, w, b), dq)
    with torch.no_grad():
        products = dq.transpose(1, 2) @ hat if by_image else (dq.reshape(-1, 7).t() @ hat.reshape(-1, 12))[None]
        lists = ([x.detach()] for x in (w, b))
        gradient, sums = run_pointwise((products[None], [p.detach()], dq.sum(1)[:, None], *lists, 0, 1))
    torch.testing.assert_close(gradient[0], dp[:, :, 0, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums[:, 0, 0, 0].sum(0), db, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums[:, 0, 1, 0].sum(0), dw, rtol=1e-12, atol=1e-12)


@EVERY_DTYPE
def test_a_product_that_is_not_finite_stays_in_its_place(dtype: torch.dtype) -> None:
    arguments = Pointwise(dtype=dtype, without=()).arguments()
    arguments[0][1, 0, 5, 7] = torch.nan
    gradient, sums = run_pointwise(arguments)
    expected = [torch.zeros_like(x, dtype=torch.bool) for x in (gradient, sums)]
    expected[0][1, 5, 7] = expected[1][0, 0, 1, 1, 7] = True
    assert torch.equal(gradient.isnan(), expected[0])
    assert torch.equal(sums.isnan(), expected[1])


# --- of any size ----------------------------------------------------------------------------------------


@st.composite
def shapes(draw: Any) -> dict[str, Any]:
    """Images, parts, branches and channels, in groups or not."""
    groups = draw(st.integers(0, 5))
    channels = draw(st.integers(1, 40)) * max(groups, 1)
    parts = draw(st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 33]))
    sizes = {"images": draw(st.integers(1, 5)), "parts": parts, "channels": channels, "groups": groups}
    return {**sizes, "dtype": draw(st.sampled_from(DTYPES))}


ANY = settings(deadline=None, max_examples=40, derandomize=True)


@ANY
@given(shapes(), st.lists(st.booleans(), min_size=1, max_size=4), st.sampled_from([0, 1, 300]), st.integers(1, 9))
def test_statistics_of_any_size(shape: dict[str, Any], fixed: list[bool], mean: float, most: int) -> None:
    fixed = [x and not shape["groups"] for x in fixed]
    check_statistics(Statistics(**shape, fixed=tuple(fixed), mean=mean, most=most))


@ANY
@given(shapes(), st.lists(st.integers(0, 1), min_size=1, max_size=4), st.integers(1, 5000))
def test_coefficients_of_any_size(shape: dict[str, Any], batch: list[int], pixels: int) -> None:
    check_coefficients(Coefficients(**shape, batch=tuple(batch), pixels=pixels, without=(len(batch) - 1,)))


@ANY
@given(shapes(), st.integers(1, 40), st.integers(1, 4), st.booleans())
def test_the_pointwise_gradient_of_any_size(shape: dict[str, Any], outputs: int, branches: int, wide: bool) -> None:
    sizes = {name: shape[name] for name in ("images", "channels", "dtype")}
    some = {"branches": branches, "first": branches // 2, "some": branches - branches // 2}
    check_pointwise(Pointwise(**sizes, **some, outputs=outputs, by_image=shape["groups"] > 0, wide=wide))


# --- launches -------------------------------------------------------------------------------------------

RUNS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "statistics": (lambda x: [run_statistics(x)], lambda: Statistics(images=3, parts=20).arguments()[0]),
    "statistics of groups": (
        lambda x: [run_statistics(x)],
        lambda: Statistics(fixed=(False,), channels=40, groups=2).arguments()[0],
    ),
    "coefficients": (run_coefficients, lambda: Coefficients(images=18, parts=9).arguments()),
    "coefficients of groups": (run_coefficients, lambda: Coefficients(channels=600, groups=2).arguments()),
    "pointwise gradient": (run_pointwise, lambda: Pointwise(dtype=torch.float16, outputs=70).arguments()),
    "by elements": (run_pointwise, lambda: Pointwise(channels=37, by_image=True).arguments()),
}


@pytest.mark.parametrize("name", RUNS)
def test_any_schedule_gives_the_same(name: str) -> None:
    run, make = RUNS[name]
    arguments = make()
    expected = run(arguments)
    for seed in (1, 2, 3):
        with host.schedule(seed):
            for x, y in zip(run(arguments), expected, strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def recorded(run: Callable[[Any], Any], arguments: Any) -> list[host.Launch]:
    with host.record() as launches:
        run(arguments)
    return launches


@pytest.mark.parametrize("groups", [0, 4], ids=["batch", "groups"])
def test_moments_are_read_once(groups: int) -> None:
    case = Statistics(images=4, parts=16, channels=64, fixed=(False,) * 2, groups=groups, without=(), empty=False)
    arguments, _ = case.arguments()
    (launch,) = recorded(run_statistics, arguments)
    counters, moments = launch.counters, arguments[0].numel() * 4
    assert launch.blocks == 2 * (4 * 4 if groups else 4)
    assert counters["distinct_read_bytes"] >= moments
    norms = 2 * 2 * 64 * 4 * (4 if groups else 1)
    counts = 4 * 16 * 2 * 64 * 4  # each thread its own, lanes of a row the same
    assert counters["global_read_bytes"] == moments + counts + norms
    # Sectors of counts are shared by all of a row's lanes.
    assert counters["global_read_sectors"] * 32 <= 1.6 * (moments + norms)
    assert counters["bank_conflicts"] == 0
    assert counters["barriers"] == launch.blocks * (2 if groups else 1)


def test_sums_are_folded_before_coefficients_where_there_are_several_parts() -> None:
    names = ["norm_statistics fold", "norm_statistics coefficients"]
    case = Coefficients(images=2, parts=16, channels=64, without=())
    for parts, expected in ((16, names), (1, names[1:])):
        arguments = replace(case, parts=parts).arguments()
        launches = recorded(run_coefficients, arguments)
        assert [launch.kernel for launch in launches] == expected
        first = launches[0].counters
        if parts > 1:
            assert first["global_read_bytes"] == first["distinct_read_bytes"] == arguments[0].numel() * 4
            assert first["global_read_sectors"] * 32 == first["global_read_bytes"]
            assert first["bank_conflicts"] == launches[1].counters["bank_conflicts"] == 0


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 16), (torch.float16, 16), (torch.float16, 2)])
def test_products_are_read_twice_by_16_bytes(dtype: torch.dtype, width: int) -> None:
    """Once for the gradient, once for sums; by elements where a vector would not be whole."""
    case = Pointwise(images=1, outputs=64, channels=256 if width == 16 else 255, branches=2, some=2, dtype=dtype)
    arguments = case.arguments()
    (launch,) = recorded(run_pointwise, arguments)
    counters, products = launch.counters, arguments[0].numel() * 4
    size = arguments[0].numel() * dtype.itemsize
    assert counters["global_reads"].keys() == {4, width}
    assert counters["global_reads"][width] == (size + (2 * products if width == 16 else 0)) // width
    assert counters["global_writes"][width] == size // width
    if width == 16:
        # Of half precision's products, a thread's two vectors share a sector, which comes from the cache next time.
        assert counters["global_read_sectors"] * 32 <= 1.25 * (size + 2 * products * products // size)
    assert counters["bank_conflicts"] <= 0.5 * counters["shared_accesses"]
    assert counters["barriers"] == launch.blocks


def test_totals_of_several_images_are_folded_first() -> None:
    for case, expected in (
        (Pointwise(), ["fold", "pointwise gradient"]),
        (Pointwise(by_image=True), ["fold", "pointwise gradient"]),
        (Pointwise(images=1), ["pointwise gradient"]),
    ):
        launches = recorded(run_pointwise, case.arguments())
        assert [launch.kernel for launch in launches] == [f"norm_statistics {name}" for name in expected]


def test_a_batch_of_none() -> None:
    products, pointwise, _, *rest = Pointwise().arguments()
    gradient, sums = run_pointwise((torch.zeros_like(products), pointwise, torch.empty(0, 3, 37), *rest))
    assert not gradient.any()
    assert not sums.any()
    none = torch.empty(3, 0, 37, 40)
    gradient, sums = run_pointwise((none, pointwise, torch.empty(0, 3, 37), *rest))
    assert not gradient.any()
    assert sums.shape == (0, 1, 3, 3, 40)


def test_half_precision_norms_have_float32_sums() -> None:
    for dtype in DTYPES:
        arguments, _ = Statistics(dtype=dtype).arguments()
        assert run_statistics(arguments).dtype == sum_dtype(dtype)

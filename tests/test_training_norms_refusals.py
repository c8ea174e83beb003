"""What the operators of training's norms refuse, beyond which kernels would read other memory or divide by 0."""

from collections.abc import Callable
from typing import Any

import pytest
from strategies import needs_host
from training_norm_cases import Coefficients, Pointwise, Statistics, run_coefficients, run_pointwise, run_statistics

from jpu_cuda import host

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


def changed(run: Callable[[Any], Any], make: Callable[[], Any], index: int, change: Any) -> Callable[[], Any]:
    def call() -> Any:
        arguments = list(make())
        arguments[index] = change(arguments[index]) if callable(change) else change
        return run(tuple(arguments))

    return call


def statistics(index: int, change: Any, **case: Any) -> Callable[[], Any]:
    return changed(run_statistics, lambda: Statistics(**case).arguments()[0], index, change)


def coefficients(index: int, change: Any, **case: Any) -> Callable[[], Any]:
    return changed(run_coefficients, lambda: Coefficients(**case).arguments(), index, change)


def pointwise(index: int, change: Any, **case: Any) -> Callable[[], Any]:
    return changed(run_pointwise, lambda: Pointwise(**case).arguments(), index, change)


REFUSED = [
    (statistics(6, []), "branches: expected 1 to 8, got 0"),
    (statistics(6, [1.0] * 9), "branches: expected 1 to 8, got 9"),
    (statistics(2, lambda x: x[1:]), "weight: expected one a branch, 3, got 2"),
    (statistics(3, lambda x: x[1:]), "bias: expected one a branch, 3, got 2"),
    (statistics(4, lambda x: x[1:]), "mean: expected one a branch, 3, got 2"),
    (statistics(5, lambda x: x[1:]), "var: expected one a branch, 3, got 2"),
    (statistics(5, [None] * 3), r"var\[1\]: expected a variance with a mean, and none without"),
    (statistics(7, 2), r"mean\[1\]: expected none with groups, got one"),
    (statistics(7, 3, fixed=(False,) * 3), "groups: expected 0 or a divisor of channels, 20, got 3"),
    (statistics(7, -1, fixed=(False,) * 3), "groups: expected 0 or a divisor of channels, 20, got -1"),
    (statistics(0, lambda x: x.half()), "moments: expected dtype Float or Double, got Half"),
    (statistics(0, lambda x: x[0]), "moments: expected 5 dimensions, got 4"),
    (statistics(0, lambda x: x[..., ::2]), "moments: expected a contiguous tensor"),
    (
        statistics(0, lambda x: x[:, :, :2].clone()),
        r"moments: expected shape \[2, 3, 3, 2, 20\], got \[2, 3, 2, 2, 20\]",
    ),
    (statistics(0, lambda x: x[:, :0]), r"counts: expected shape \[0, 3\], got \[3, 3\]"),
    (statistics(0, lambda x: x[..., :0]), "channels: expected 1 to 268435456, .*got 0 and 2"),
    (statistics(0, lambda x: x.double()), "norms: expected a dtype whose sums are Double, got Float"),
    (statistics(1, lambda x: x.long()), "counts: expected dtype Int, got Long"),
    (statistics(1, lambda x: x[1:]), r"counts: expected shape \[3, 3\], got \[2, 3\]"),
    (statistics(3, lambda x: [x[0].double(), *x[1:]]), r"bias\[0\]: expected dtype Float, got Double"),
    (statistics(2, lambda x: [x[0], x[1][1:], x[2]]), r"weight\[1\]: expected shape \[20\], got \[19\]"),
    (statistics(4, lambda x: [x[0], x[1][:1].expand(20), x[2]]), r"mean\[1\]: expected a contiguous tensor"),
    (coefficients(0, lambda x: x.half()), "sums: expected dtype Float or Double, got Half"),
    (coefficients(0, lambda x: x[0]), "sums: expected 5 dimensions, got 4"),
    (
        coefficients(0, lambda x: x[:, :, :2].clone()),
        r"sums: expected shape \[3, 5, 3, 3, 20\], got \[3, 5, 2, 3, 20\]",
    ),
    (coefficients(1, lambda x: x.double()), "statistics: expected dtype Float, got Double"),
    (coefficients(1, lambda x: x[:, 1:]), r"statistics: expected shape \[1, 5, 3, 20\], got \[1, 4, 3, 20\]"),
    (coefficients(1, lambda x: x.expand(3, -1, -1, -1)), r"statistics: expected shape \[1, 5, 3, 20\]"),
    (coefficients(4, 4), r"statistics: expected shape \[3, 5, 3, 20\], got \[1, 5, 3, 20\]"),
    (coefficients(4, 3), "groups: expected 0 or a divisor of channels, 20, got 3"),
    (coefficients(2, lambda x: x[1:]), "weight: expected one a branch, 3, got 2"),
    (coefficients(3, [1, 1]), "batch: expected one a branch, 3, got 2"),
    (coefficients(5, 0), "pixels: expected at least one, and no more than fit, got 0"),
    (coefficients(5, 2**40), "pixels: expected at least one, and no more than fit, got 1099511627776"),
    (coefficients(2, lambda x: [y if y is None else y.double() for y in x]), "norms: expected a dtype whose sums are"),
    (coefficients(2, lambda x: [x[0], x[1].half(), x[2]]), r"weight\[1\]: expected dtype Float, got Half"),
    (pointwise(0, lambda x: x[0]), "products and totals: expected 4 and 3 dimensions, got 3 and 3"),
    (pointwise(2, lambda x: x[0]), "products and totals: expected 4 and 3 dimensions, got 4 and 2"),
    (
        pointwise(0, lambda x: x.expand(-1, 2, -1, -1)),
        "products: expected 1 to 268435456 outputs, of 1 set or 3, got 37 and 2",
    ),
    (pointwise(0, lambda x: x[:2]), r"products: expected shape \[3, 1, 37, 40\], got \[2, 1, 37, 40\]"),
    (pointwise(0, lambda x: x.half()), "products: expected dtype Float, got Half"),
    (pointwise(0, lambda x: x[..., ::2]), "products: expected a contiguous tensor"),
    (pointwise(1, lambda x: x[1:]), "pointwise: expected one a branch, 3, got 2"),
    (pointwise(3, lambda x: x[1:]), "weight: expected one a branch, 3, got 2"),
    (pointwise(4, lambda x: x[1:]), "bias: expected one a branch, 3, got 2"),
    (pointwise(1, lambda x: [x[0], x[1].half(), x[2]]), r"pointwise\[1\]: expected dtype Float, got Half"),
    (pointwise(1, lambda x: [x[0], x[1], x[2][1:]]), r"pointwise\[2\]: expected shape \[37, 40, 1, 1\]"),
    (pointwise(2, lambda x: x.double()), "totals: expected dtype Float, got Double"),
    (pointwise(2, lambda x: x[..., 1:].clone()), r"totals: expected shape \[3, 3, 37\], got \[3, 3, 36\]"),
    (
        pointwise(3, lambda x: [y if y is None else y.half() for y in x]),
        "norms: expected dtype Float or that of pointwise weights",
    ),
    (pointwise(4, lambda x: [x[0].half(), *x[1:]]), r"bias\[0\]: expected dtype Float, got Half"),
    (pointwise(4, lambda x: [x[0][1:], *x[1:]]), r"bias\[0\]: expected shape \[40\], got \[39\]"),
    (pointwise(5, -1), "branches: expected some of 3, got 3 from -1"),
    (pointwise(5, 1), "branches: expected some of 3, got 3 from 1"),
    (pointwise(6, 0), "branches: expected some of 3, got 0 from 0"),
]


def test_no_parts_are_refused() -> None:
    moments, counts, *rest = Statistics().arguments()[0]
    with pytest.raises(RuntimeError, match="moments: expected 1 to 1073741824 parts, got 0 of each of 2 images"):
        run_statistics((moments[:, :0], counts[:0], *rest))


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()

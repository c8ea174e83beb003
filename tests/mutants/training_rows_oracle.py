"""The oracle's checks of training's rows: each path in extended precision, what moves, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers import assert_refused
from row_cases import (
    CASES,
    Rows,
    check,
    check_gradient,
    check_rounds_of_gradient,
    check_rounds_of_output,
    check_runs_of_sums,
    check_sums,
    results,
    rows_of,
)

from jpu_cuda import host
from jpu_cuda.ops._library import DTYPES, sum_dtype


def rows_are_right() -> None:
    for name, case in CASES.items():
        for dtype in DTYPES if name != "many parts" else (torch.float16,):
            check(replace(case, dtype=dtype))


def rows_are_right_whatever_the_order_of_threads() -> None:
    for case in (Rows(2, 2, 16, (9, 8), torch.float16), Rows(2, 1, 131, (5, 7), by_image=True)):
        expected = results(case)
        for seed in (1, 2):
            with host.schedule(seed):
                assert all(map(torch.equal, results(case), expected)), "expected the same in any order"


def _plain(values: list[float], dtype: torch.dtype, scale: float) -> tuple[torch.Tensor, ...]:
    """Gradient 1, q of these pixels, a norm that scales, and coefficients that leave the gradient as it is."""
    q = rows_of(torch.tensor(values, dtype=torch.float64).to(dtype).view(1, 1, 1, -1).repeat(1, 8, 1, 1))
    terms = (
        torch.tensor(x, dtype=sum_dtype(dtype)).view(1, -1, 1, 1).repeat(1, 1, 1, 8)
        for x in ([0, 1, 1, scale, 0], [1, 0, 0])
    )
    return rows_of(torch.ones_like(q)), q, *terms


def what_a_relu_stops_is_what_was_stored() -> None:
    op = torch.ops.jpu_cuda
    for dtype in DTYPES:
        least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        for values, scale, expected in (
            ([1, -1, torch.nan, torch.inf, -torch.inf, 0], 1.0, [1, 0, 1, 1, 0, 0]),
            ([least, 2 * least, 3 * least, 4 * least], 0.25, [0, 0, 1, 1]),
            ([2 * least], 0.25 * (1 + 2**-10), [1]),
        ):
            gradient, q, statistics, coefficients = _plain(values, dtype, scale)
            found = op.training_output_gradient(gradient, q, statistics, coefficients, 0, 1)[0, :, 3].tolist()
            assert found == expected, f"expected {expected} to pass, got {found}"
            total = op.training_output_sums(gradient, q, statistics)[0, :, 0, 0, 3].sum().item()
            assert total == sum(expected), f"expected {sum(expected)} to pass, got {total}"
        gradient, q, statistics, _ = _plain([1, torch.nan, -1], dtype, 1.0)
        out = op.training_output(q, statistics)[0, 5, 0]
        torch.testing.assert_close(out, torch.tensor([1, torch.nan, 0], dtype=dtype), rtol=0, atol=0, equal_nan=True)
        gradient[..., 2] = torch.nan
        assert (
            not op.training_output_sums(
                gradient, q[..., [0, 2, 2]].contiguous(memory_format=torch.channels_last), statistics
            )
            .isnan()
            .any()
        )


def rows_are_centred_first() -> None:
    for dtype in DTYPES:
        gradient, q, statistics, coefficients = Rows(1, 1, 8, (8, 9), dtype).arguments()
        q += 1024
        statistics[:, 0] += 1024
        statistics[:, 4] -= 1024 * statistics[:, 3]
        check_sums(gradient, q, statistics)
        check_gradient(gradient, q, statistics, coefficients, 0, 1)


def rows_go_by_vectors_in_few_blocks() -> None:
    op = torch.ops.jpu_cuda
    gradient, q, statistics, coefficients = Rows(2, 2, 256, (8, 16), torch.float16).arguments()
    with host.record() as launches:
        op.training_output(q, statistics)
        sums = op.training_output_sums(gradient, q, statistics)
        op.training_output_gradient(gradient, q, statistics, coefficients, 0, 1)
    blocks = [launch.blocks for launch in launches]
    assert blocks == [2 * 4, 2 * 2 * 2, 8], f"expected 8 blocks of each, got {blocks}"
    assert sums.shape[1] == 2, f"expected 2 parts, got {sums.shape[1]}"
    if host._CHECK != "address":  # which counts nothing
        widths = [set(launch.counters["global_reads"]) for launch in launches]
        assert widths == [{16}] * 3, f"expected reads of 16 bytes, got {widths}"
        conflicts = launches[1].counters["bank_conflicts"]
        assert conflicts == 0, f"expected no bank conflicts, got {conflicts}"


def one_channel_or_image_lies_anywhere() -> None:
    gradient, q, statistics, _ = Rows(1, 1, 1, (3, 4)).arguments()
    odd = [x.as_strided(x.shape, (5, 7, 4, 1)) for x in (gradient, q)]
    expected = torch.ops.jpu_cuda.training_output_sums(gradient, q, statistics)
    assert torch.equal(torch.ops.jpu_cuda.training_output_sums(*odd, statistics), expected), "expected the same sums"


def wrong_rows_are_refused() -> None:
    gradient, q, statistics, coefficients = Rows().arguments()
    sound: dict[str, Any] = {
        **{"gradient": gradient, "q": q, "statistics": statistics, "coefficients": coefficients},
        **{"first": 0, "branches": 1},
    }

    def call(**changes: Any) -> Callable[[], object]:
        return lambda: torch.ops.jpu_cuda.training_output_gradient(*{**sound, **changes}.values())

    pixels = q[:1, :1, :1, :1].expand(1, 1, 2**16, 2**15)
    of_terms = statistics.transpose(2, 3)
    assert_refused(
        [
            ("q: expected 4 dimensions", call(q=q[0])),
            ("q: expected a dense channels_last image", call(q=q.contiguous())),
            ("q: expected 1 to 2147483647 pixels", call(q=q[..., :0])),
            ("q: expected 1 to 2147483647 pixels", call(q=pixels)),
            ("gradient: expected dtype Float, got Half", call(gradient=gradient.half())),
            ("gradient: expected shape", call(gradient=gradient[:1])),
            ("gradient: expected a dense channels_last image", call(gradient=gradient.contiguous())),
            ("statistics: expected dtype Float, got Half", call(statistics=statistics.half())),
            ("statistics: expected shape [1 or 2, 5, D, O]", call(statistics=statistics[:, :4].contiguous())),
            ("statistics: expected shape [1 or 2, 5, D, O]", call(statistics=statistics.repeat(3, 1, 1, 1))),
            ("statistics: expected terms of 15 channels", call(statistics=statistics[:, :, :2].contiguous())),
            ("statistics: expected a contiguous tensor", call(statistics=of_terms)),
            ("coefficients: expected shape [1, 3, 3, 5]", call(coefficients=coefficients.repeat(2, 1, 1, 1))),
            ("coefficients: expected shape [1, 3, 3, 5]", call(coefficients=coefficients.view(1, 3, 5, 3))),
            ("branches: expected 1 or more of 3, got 1 from -1", call(first=-1)),
            ("branches: expected 1 or more of 3, got 2 from 2", call(first=2, branches=2)),
            ("branches: expected 1 or more of 3, got 0 from 0", call(branches=0)),
        ]
    )


CHECKS = {
    function.__name__: function
    for function in (
        rows_are_right,
        rows_are_right_whatever_the_order_of_threads,
        what_a_relu_stops_is_what_was_stored,
        rows_are_centred_first,
        rows_go_by_vectors_in_few_blocks,
        one_channel_or_image_lies_anywhere,
        wrong_rows_are_refused,
        check_rounds_of_output,
        check_runs_of_sums,
        check_rounds_of_gradient,
    )
}

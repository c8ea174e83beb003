"""The oracle's checks of training_products: q, moments in extended precision, what moves, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from helpers import assert_refused
from products import by_inference, check, number_of_tiles, off_centre, run
from pyramids import Pyramid

from jpu_cuda import host

HALF, BRAIN, FULL, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
_LAST = {"layout": "channels_last"}

# Dilations beyond the image, packed classes, branches of more tiles and fewer; vectors and elements; blocks of outputs,
# the last not full.
CASES = (
    Pyramid(2, (8,), 8, (5, 7), (8, 1), terms="images", **_LAST),
    Pyramid(2, (5, 3), 7, (9, 11), (1, 4), **_LAST),
    Pyramid(1, (16,), 72, (9, 34), (2, 1), terms="images", **_LAST),
    Pyramid(1, (10,), 259, (7, 8), (1,), **_LAST),
)
WAYS = (
    ("fma", BRAIN),
    ("fma", FULL),
    ("fma", DOUBLE),
    ("mma", HALF),
    ("mma", FULL),
    ("two-pass", BRAIN),
    ("two-pass", FULL),
)


def products_of_any_shape() -> None:
    for case in CASES:
        for policy, dtype in WAYS:
            check(replace(case, policy=policy, dtype=dtype))
    rounds = replace(CASES[2], policy="two-pass", dtype=BRAIN, workspace=2 * 128 * 64)
    check(rounds)


def products_in_any_order() -> None:
    for policy, dtype in (("fma", BRAIN), ("mma", HALF), ("two-pass", FULL)):
        case = replace(CASES[0], policy=policy, dtype=dtype)
        arguments = case.arguments()
        expected = run(case, arguments)
        there = expected[2].bool()
        with host.schedule(1, late=True):
            found = run(case, arguments)
        found[1], expected[1] = found[1][:, there], expected[1][:, there]
        assert all(map(torch.equal, found, expected)), f"{policy}: expected one result in every order"


def products_far_from_zero() -> None:
    for policy, dtype in (("fma", FULL), ("fma", DOUBLE), ("mma", FULL), ("mma", BRAIN)):
        case = Pyramid(1, (8,), 8, (9, 14), (1,), dtype, policy=policy, **_LAST)
        check(case, off_centre(case, 1e4))


def products_leave_by_vectors_and_without_conflicts() -> None:
    for policy, dtype in WAYS:
        case = Pyramid(1, (32,), 64, (8, 18), (1, 4), dtype, policy=policy, **_LAST)
        arguments = case.arguments()
        with host.record() as launches:
            run(case, arguments)
        with host.record() as inference:
            by_inference(case, arguments)
        if host._CHECK == "address":  # which counts nothing
            continue
        got, without = launches[-1].counters, inference[-1].counters
        tiles = [number_of_tiles(d, case.size) for d in case.dilations]
        size = 8 if dtype == DOUBLE else 4
        writes = {16: 2 * 64 * 8 * 18 * dtype.itemsize // 16}
        for width, number in ((size, sum(tiles) * 2 * 64), (4, 2 * max(tiles))):
            writes[width] = writes.get(width, 0) + number
        assert got["global_writes"] == writes, f"{policy}: expected writes {writes}, got {got['global_writes']}"
        conflicts = got["bank_conflicts"] - without["bank_conflicts"]
        assert conflicts == 0, f"{policy} {dtype}: expected no bank conflicts more, got {conflicts}"


def terms_of_images_lie_anywhere() -> None:
    case = Pyramid(3, (8,), 8, (5, 7), (1, 2), BRAIN, terms="images", policy="mma", **_LAST)
    a = case.arguments()
    lists = a["levels"], a["depthwise"], list(case.dilations), a["pointwise"]
    expected = by_inference(case, a)
    for which in range(2):
        terms = a["terms"][:2]
        far = torch.zeros(3, 17).copy_(torch.cat([terms[which].flatten(1), terms[which][:, 0, :1]], dim=1))
        terms[which] = far.as_strided((3, 2, 8), (17, 8, 1))
        found = torch.ops.jpu_cuda.training_products(*lists, *terms, *case.options)[0]
        assert torch.equal(found, expected), "expected each image's terms"


def wrong_products_are_refused() -> None:
    case = Pyramid(2, (8,), 8, (3, 4), (1, 2), terms="images", **_LAST)
    a = case.arguments()
    scale, shift = a["terms"][:2]

    def call(**parts: Any) -> Callable[[], object]:
        given = {
            **{"levels": a["levels"], "depthwise": a["depthwise"], "dilations": [1, 2], "pointwise": a["pointwise"]},
            **{"scale": scale, "shift": shift, "options": (False, 0, "fma", 0), **parts},
        }
        *rest, options = given.values()
        return lambda: torch.ops.jpu_cuda.training_products(*rest, *options)

    assert_refused(
        [
            ("levels[0]: expected a dense channels_last image", call(levels=[a["levels"][0].contiguous()])),
            ("levels: expected at least one image", call(levels=[a["levels"][0][:0]], scale=scale[0], shift=shift[0])),
            ("scale: expected shape [2, 2, 8], got [1, 2, 8]", call(scale=scale[:1])),
            ("scale: expected dtype Float", call(scale=scale.double())),
            ("shift: expected channels and branches", call(shift=shift.repeat(1, 1, 2)[:, :, ::2])),
            ("shift: expected channels and branches", call(shift=shift.repeat(1, 2, 1)[:, ::2])),
            ("workspace_bytes: expected 0 or more", call(options=(False, 0, "fma", -1))),
        ]
    )
    small = Pyramid(1, (1,), 2, (1, 3), (1,), **_LAST)
    arguments = small.arguments()
    arguments["levels"] = [level.as_strided((1, 1, 1, 3), (5, 7, 11, 1)) for level in arguments["levels"]]
    check(small, arguments)


CHECKS = {
    function.__name__: function
    for function in (
        products_of_any_shape,
        products_in_any_order,
        products_far_from_zero,
        products_leave_by_vectors_and_without_conflicts,
        terms_of_images_lie_anywhere,
        wrong_products_are_refused,
    )
}

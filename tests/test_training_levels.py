"""How the levels' gradients are cut into strips of pixels, executed on the CPU."""

from __future__ import annotations

import pytest
import torch
from strategies import needs_host
from training_depthwise_cases import DTYPES, Case, check_levels, ops

from jpu_cuda import host

pytestmark = needs_host


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


# Whole strips of four pixels a dilation apart and ends of one, two and three; classes that lack the last strip, or that
# the image has not at all; maps of one row or column; maps wider than a block's strips.
STRIPS = [
    *(((height, 5), dilation) for height in (1, 2, 3, 4, 5, 6, 7, 8, 9) for dilation in (1, 2)),
    *(((height, 3), dilation) for height in (15, 16, 17, 33) for dilation in (3, 4, 16)),
    *(((height, 4), dilation) for height in (7, 8, 9) for dilation in (7, 8, 9)),
    ((1, 70), 1),
    ((1, 9), 5),
    ((70, 1), 1),
    ((70, 1), 8),
    ((9, 130), 2),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "dilation"), STRIPS, ids=str)
def test_strips_of_the_levels_end_where_the_image_does(
    size: tuple[int, int], dilation: int, dtype: torch.dtype
) -> None:
    check_levels(Case(2, (8, 3), size, (dilation,), dtype=dtype), 0, 1, add=False)
    check_levels(Case(1, (8, 72), size, (dilation,), dtype=dtype), 0, 1, add=True)
    check_levels(Case(1, (8,), size, (1, dilation), dtype=dtype), 0, 2, add=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 9])
def test_levels_are_summed_in_one_order_by_vectors_elements_and_strips(dilation: int, dtype: torch.dtype) -> None:
    case = Case(2, (16,), (9, 11), (dilation, 2), dtype=dtype)
    dz, (weight, none) = case.rows(2), case.depthwise()
    none.zero_()
    found = []
    for branches in (1, 2):  # of which the second one adds nothing
        for layout in (torch.channels_last, torch.contiguous_format):
            image = case.levels()[0].contiguous(memory_format=layout)
            given = dz[:branches].contiguous(), [weight, none], list(case.dilations)
            ops.training_level_gradient(*given, [image], case.channels, False, 0, branches)
            found.append(image)
    for image in found[1:]:
        assert torch.equal(image, found[0])


@pytest.mark.parametrize(
    ("size", "dilations", "rows", "slots"),
    [
        # Strips of four pixels load six rows, but for those beyond the edges.
        ((32, 32), (1,), 8 * 6 - 2, 32),
        ((32, 32), (8,), 8 * 4, 32),
        # Of the first class the second strip has one pixel, of others none.
        ((33, 32), (8,), 5 + 2 + 7 * 4, 36),
        # Where all would be like that, strips are of two neighbours with three rows each, one of them below the image.
        ((9, 32), (8,), 9 + 2 + 1, 10),
        # As are those of several branches.
        ((32, 32), (1, 1), 2 * (3 * 32 - 2), 2 * 32),
    ],
    ids=str,
)
def test_strips_load_a_row_once_and_weights_without_conflict(
    size: tuple[int, int], dilations: tuple[int, ...], rows: int, slots: int
) -> None:
    if host._CHECK == "address":
        pytest.skip("which counts nothing")
    with host.record() as launches:
        check_levels(Case(1, (64,), size, dilations, dtype=torch.bfloat16), 0, len(dilations), add=False)
    (launch,) = launches
    columns = 3 * size[1] - 2 * dilations[0]
    assert launch.counters["global_reads"][16] == rows * columns * 64 * 2 // 16
    assert launch.counters["global_writes"] == {16: size[0] * size[1] * 64 * 2 // 16}
    assert launch.counters["multiply_adds"] == slots * 3 * columns * 64
    assert launch.counters["bank_conflicts"] <= 0.05 * launch.counters["shared_accesses"]

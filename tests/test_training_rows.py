"""Training's kernels of rows, executed on the CPU: output, its sums, and the gradient of what its norm takes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from row_cases import (
    CASES,
    Rows,
    check,
    check_gradient,
    check_output,
    check_rounds_of_gradient,
    check_rounds_of_output,
    check_runs_of_sums,
    check_sums,
    results,
    rows_of,
)
from strategies import DTYPES, needs_host
from torch import Tensor

from jpu_cuda import host

pytestmark = needs_host

op = torch.ops.jpu_cuda


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    """So that the operators are those of the kernels, for CPU tensors too."""
    host.load()


EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# --- values ---------------------------------------------------------------------------------------------


@EVERY_DTYPE
@pytest.mark.parametrize("name", CASES)
def test_each_entry_is_within_its_bound(name: str, dtype: torch.dtype) -> None:
    check(replace(CASES[name], dtype=dtype))


@st.composite
def cases(draw: Any) -> Rows:
    return Rows(
        draw(st.integers(0, 3)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([st.integers(1, 20), st.sampled_from([8, 16, 24, 136])]).flatmap(lambda x: x)),
        draw(st.tuples(*[st.sampled_from([1, 2, 3, 5, 7, 8, 9, 16, 17])] * 2)),
        draw(st.sampled_from(DTYPES)),
        draw(st.booleans()),
        draw(st.sampled_from([0, 0, 1, 8])),
    )


@settings(deadline=None, max_examples=40, derandomize=True)
@given(cases(), st.integers(0, 9))
def test_rows_of_any_number_size_and_start(case: Rows, seed: int) -> None:
    check(case, seed)


@pytest.mark.parametrize("walk", [check_rounds_of_output, check_runs_of_sums, check_rounds_of_gradient])
def test_a_thread_walks_on_where_blocks_are_enough(walk: Callable[[], None]) -> None:
    walk()


@EVERY_DTYPE
def test_any_schedule_gives_the_same(dtype: torch.dtype) -> None:
    for case in (Rows(2, 2, 16, (9, 8), dtype), Rows(2, 1, 131, (5, 7), dtype, by_image=True)):
        expected = results(case)
        for seed in (1, 2, 3):
            with host.schedule(seed):
                assert all(map(torch.equal, results(case), expected))


@EVERY_DTYPE
def test_wherever_rows_begin_sums_are_cut_alike(dtype: torch.dtype) -> None:
    """By elements then, which are added up by other threads."""
    aligned, shifted = (results(Rows(1, 1, 64, (16, 33), dtype, offset=offset)) for offset in (0, 1))
    assert torch.equal(aligned[0], shifted[0])
    assert torch.equal(aligned[2], shifted[2])
    assert aligned[1].shape == shifted[1].shape
    assert aligned[1].shape[1] > 1


# --- against autograd -----------------------------------------------------------------------------------


def _by_autograd(q: Tensor, gradient: Tensor, norm: Callable[..., Tensor]) -> list[Tensor]:
    """Output, and gradients of q, weight and bias."""
    generator = torch.Generator().manual_seed(5)
    weight, bias = (torch.randn(q.shape[1], generator=generator, dtype=q.dtype).requires_grad_() for _ in range(2))
    leaf = q.detach().requires_grad_()
    out = F.relu(norm(leaf, weight, bias))
    return [out.detach(), *torch.autograd.grad(out, (leaf, weight, bias), gradient), weight.detach(), bias.detach()]


def _statistics(values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """[R, 5, C] of [R, C, values], whose group's or channel's moments they are."""
    mean, var = values.mean(-1), values.var(-1, unbiased=False)
    rstd = (var + eps).rsqrt()
    return torch.stack([mean, var, rstd, weight * rstd, bias - mean * weight * rstd], 1)


@pytest.mark.parametrize("frozen", [False, True], ids=["batch's statistics", "fixed statistics"])
@pytest.mark.parametrize("width", [8, 5])
def test_they_are_what_batch_norm_needs(width: int, frozen: bool) -> None:
    case = Rows(3, 2, width, (6, 5), torch.float64)
    gradient, q, given_statistics, _ = case.arguments()
    mean, var = given_statistics[0, 0].flatten(), given_statistics[0, 1].flatten()
    norm = (
        (lambda x, w, b: F.batch_norm(x, mean, var, w, b, eps=1e-3))
        if frozen
        else (lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=1e-3))
    )
    out, dq, dweight, dbias, weight, bias = _by_autograd(q, gradient, norm)
    values = q.transpose(0, 1).flatten(1)[None]
    statistics = _statistics(values, weight, bias, 1e-3)
    if frozen:
        rstd = (var + 1e-3).rsqrt()
        statistics = torch.stack([mean, var, rstd, weight * rstd, bias - mean * weight * rstd])[None]
    statistics = statistics.view(1, 5, 2, width)

    torch.testing.assert_close(op.training_output(q, statistics), out, rtol=1e-12, atol=1e-12)
    sums = op.training_output_sums(gradient, q, statistics).sum((0, 1)).flatten(1)
    torch.testing.assert_close(sums[0], dbias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums[1], dweight, rtol=1e-12, atol=1e-12)
    if not frozen:
        torch.testing.assert_close(sums[2], torch.zeros_like(sums[2]), rtol=0, atol=1e-12)
    k = statistics[0, 3].flatten()
    share = 0.0 if frozen else 1 / values.shape[-1]
    coefficients = torch.stack([k, k * sums[0] * share, k * sums[1] * share]).view(1, 3, 2, width)
    found = op.training_output_gradient(gradient, q, statistics, coefficients, 0, 2)
    rows = dq.permute(0, 2, 3, 1).reshape(-1, 2, width).transpose(0, 1)
    torch.testing.assert_close(found, rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [8, 6])
def test_they_are_what_group_norm_needs(width: int) -> None:
    """Statistics and coefficients are each image's, and those of a group's channels have its weights in them."""
    groups, n = 2, 3
    gradient, q, *_ = Rows(n, 1, width, (6, 5), torch.float64).arguments()
    out, dq, dweight, dbias, weight, bias = _by_autograd(
        q, gradient, lambda x, w, b: F.group_norm(x, groups, w, b, 1e-3)
    )
    values = q.reshape(n, groups, -1).repeat_interleave(width // groups, 1)
    statistics = _statistics(values, weight, bias, 1e-3).view(n, 5, 1, width)

    torch.testing.assert_close(op.training_output(q, statistics), out, rtol=1e-12, atol=1e-12)
    sums = op.training_output_sums(gradient, q, statistics).sum(1).squeeze(2)  # [N, 3, O]
    torch.testing.assert_close(sums[:, 0].sum(0), dbias, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sums[:, 1].sum(0), dweight, rtol=1e-12, atol=1e-12)
    rstd = statistics[:, 2, 0]
    means = [
        (weight * sums[:, i]).view(n, groups, -1).sum(-1).repeat_interleave(width // groups, 1) / values.shape[-1]
        for i in (0, 1)
    ]
    coefficients = torch.stack([weight * rstd, *(rstd * mean for mean in means)], 1)[:, :, None]
    found = op.training_output_gradient(gradient, q, statistics, coefficients, 0, 1)
    torch.testing.assert_close(found[0], dq.permute(0, 2, 3, 1).reshape(-1, width), rtol=1e-12, atol=1e-12)


# --- what is not finite, and what rounds to zero ----------------------------------------------------------


def _plain(q: list[float], dtype: torch.dtype, copies: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient 3, q of these pixels in ``copies`` channels, statistics of mean 0 and variance 1."""
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    image = rows_of(torch.tensor(q, dtype=torch.float64).to(dtype).view(1, 1, 1, -1).expand(1, copies, 1, len(q)))
    statistics = torch.tensor([0, 1, 1, scale, 0], dtype=kind).view(1, 5, 1, 1).repeat(1, 1, 1, copies)
    return rows_of(torch.full_like(image, 3)), image, statistics


@EVERY_DTYPE
@pytest.mark.parametrize("copies", [3, 8], ids=["elements", "vectors"])
def test_nan_passes_the_relu_both_ways(copies: int, dtype: torch.dtype) -> None:
    gradient, q, statistics = _plain([1, -1, torch.nan, torch.inf, -torch.inf, 0], dtype, copies)
    out = op.training_output(q, statistics)
    torch.testing.assert_close(out, F.relu(q), rtol=0, atol=0, equal_nan=True)
    # Of fixed statistics: the gradient is what PyTorch's ReLU gives.
    coefficients = torch.tensor([1, 0, 0]).to(statistics).view(1, 3, 1, 1).repeat(1, 1, 1, copies)
    leaf = q.detach().requires_grad_()
    (expected,) = torch.autograd.grad(F.relu(leaf), leaf, gradient)
    found = op.training_output_gradient(gradient, q, statistics, coefficients, 0, 1)
    assert torch.equal(found, expected.permute(0, 2, 3, 1).reshape(1, -1, copies))
    # And of the batch's, whatever has a part of a NaN is one.
    coefficients[:, 2] = 1
    found = op.training_output_gradient(gradient, q, statistics, coefficients, 0, 1)
    assert found[0, :, 0].isnan().tolist() == [False, False, True, False, False, False]
    sums = op.training_output_sums(gradient, q, statistics)
    assert torch.equal(sums[0, 0, 0, 0], torch.full_like(sums[0, 0, 0, 0], 3 + 3 + 3))
    assert sums[0, 0, 1:].isnan().all()


@EVERY_DTYPE
@pytest.mark.parametrize("copies", [3, 8], ids=["elements", "vectors"])
def test_what_the_relu_stops_is_left_out_even_if_it_is_not_finite(copies: int, dtype: torch.dtype) -> None:
    gradient, q, statistics = _plain([1, -1, -2], dtype, copies)
    gradient[..., 1:] = torch.tensor([torch.nan, torch.inf])
    sums = op.training_output_sums(gradient, q, statistics)[0, 0]
    assert sums[:, 0, 0].tolist() == [3, 3, -2]


@EVERY_DTYPE
@pytest.mark.parametrize("copies", [3, 8], ids=["elements", "vectors"])
def test_an_output_that_rounds_to_zero_stops_the_gradient(copies: int, dtype: torch.dtype) -> None:
    """As autograd has it, which knows the output that was stored, not what it was before."""
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest above 0
    for scale, expected in ((0.25, [0, 0, 1, 1]), (0.25 * (1 + 2**-10), [0, 1, 1, 1])):
        gradient, image, statistics = _plain([x * least for x in (1, 2, 3, 4)], dtype, copies, scale)
        out = op.training_output(image, statistics)
        assert out[0, 0, 0].tolist() == [x * least for x in expected]
        coefficients = torch.tensor([1, 0, 0]).to(statistics).view(1, 3, 1, 1).repeat(1, 1, 1, copies)
        found = op.training_output_gradient(gradient, image, statistics, coefficients, 0, 1)
        assert found[0, :, 0].tolist() == [3 * x for x in expected]
        sums = op.training_output_sums(gradient, image, statistics)
        assert sums[0, :, 0].sum().item() == 3 * sum(expected) * copies


@EVERY_DTYPE
def test_sums_are_centred_before_they_are_scaled(dtype: torch.dtype) -> None:
    """Of a mean 2¹⁰ times the deviation; scale · q + shift would lose ten bits of each term."""
    case = Rows(1, 1, 8, (16, 16), dtype)
    gradient, q, statistics, coefficients = case.arguments()
    q += 1024
    statistics[:, 0] += 1024
    statistics[:, 4] -= 1024 * statistics[:, 3]
    check_sums(gradient, q, statistics)
    check_gradient(gradient, q, statistics, coefficients, 0, 1)
    check_output(q, statistics)


# --- launches -------------------------------------------------------------------------------------------


def launched(call: Callable[..., object], *arguments: Any) -> host.Launch:
    with host.record() as launches:
        call(*arguments)
    (launch,) = launches
    return launch


def of_case(case: Rows, first: int = 0, branches: int = 1) -> dict[str, host.Launch]:
    gradient, q, statistics, coefficients = case.arguments()
    rest = (gradient, q, statistics, coefficients, first, branches)
    return {
        "output": launched(op.training_output, q, statistics),
        "output_sums": launched(op.training_output_sums, gradient, q, statistics),
        "output_gradient": launched(op.training_output_gradient, *rest),
    }


def test_no_images_cost_nothing() -> None:
    with host.record() as launches:
        assert [x.shape for x in results(Rows(0))] == [(0, 15, 4, 7), (0, 1, 3, 3, 5), (1, 0, 5)]
    assert launches == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_are_read_once_by_16_bytes(dtype: torch.dtype) -> None:
    """Of whole tiles, as the branches of a JPU have them."""
    case = Rows(2, 2, 256, (8, 16), dtype)
    launches = of_case(case, 1, 1)
    vector = 128 // torch.finfo(dtype).bits
    elements = 2 * 512 * 8 * 16
    tile, sizes = 32 * vector, elements // vector
    for name, images, share, terms in (
        ("output", 1, 1.0, 2),
        ("output_sums", 2, 1.0, 4),
        ("output_gradient", 2, 0.5, 7),
    ):
        launch = launches[name]
        assert launch.kernel == f"norm_relu {name}".replace("_", " ").replace("norm relu", "norm_relu")
        counters = launch.counters
        assert counters["global_reads"].keys() == {16}
        # A thread loads its channels' terms once, which neighbours below it share.
        of_terms = launch.blocks * 256 * terms * vector // 4
        assert counters["global_reads"][16] == images * share * sizes + of_terms
        distinct = images * share * sizes * 16 + launch.blocks * terms * tile * 4
        assert counters["distinct_read_bytes"] == distinct
        # A lane's terms of halves are two vectors, of which neighbours load every second one.
        assert counters["global_read_sectors"] * 32 == images * share * sizes * 16 + of_terms * 4 * vector
        if name != "output_sums":
            assert counters["global_writes"] == {16: share * sizes}
            assert counters["global_write_sectors"] * 32 == share * sizes * 16
    sums = launches["output_sums"]
    assert sums.counters["barriers"] == sums.blocks
    assert sums.counters["global_writes"] == {4: sums.blocks * 3 * tile}
    assert sums.counters["bank_conflicts"] == 0


def test_rows_of_a_branch_are_served_by_elements_where_they_begin_within_a_vector() -> None:
    launches = of_case(Rows(2, 8, 3, (3, 4), torch.float16))
    assert launches["output"].counters["global_writes"] == {16: 2 * 12 * 24 // 8}
    assert launches["output_sums"].counters["global_reads"].keys() == {16}
    assert launches["output_gradient"].counters["global_writes"] == {2: 2 * 12 * 3}
    assert 16 not in launches["output_gradient"].counters["global_reads"]


@pytest.mark.parametrize("offset", [0, 8, 1])
def test_rows_that_begin_within_a_vector_are_served_by_elements(offset: int) -> None:
    for launch in of_case(Rows(1, 2, 16, (3, 4), torch.float16, offset=offset)).values():
        assert (16 in launch.counters["global_reads"]) == (offset % 8 == 0)


def test_images_that_share_statistics_share_blocks() -> None:
    shared, own = (of_case(Rows(16, 1, 64, (1, 2), torch.float16, by_image=x)) for x in (False, True))
    assert [shared[name].blocks for name in ("output", "output_gradient")] == [1, 1]
    assert [own[name].blocks for name in ("output", "output_gradient")] == [16, 16]


@pytest.mark.parametrize(("size", "parts"), [((60, 60), 56), ((7, 9), 1), ((8, 16), 2)], ids=str)
def test_parts_fill_a_gpu_where_there_is_work_for_it(size: tuple[int, int], parts: int) -> None:
    """Of one image, in bfloat16: 64 pixels a part or more, eight for each thread of a column."""
    q = torch.zeros((1, 2048, *size), dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    assert op.training_output_sums(q, q, torch.zeros(1, 5, 4, 512)).shape[1] == parts


def test_offsets_may_pass_2_to_31_elements() -> None:
    """Of one branch among very many; what lies between its rows is reserved and never touched."""
    branches, width, pixels = 2**25, 8, 12
    near = Rows(1, 1, width, (3, 4), torch.float16).arguments()
    gradient, q = (
        torch.empty(pixels * branches * width, dtype=torch.float16).as_strided(
            (1, branches * width, 3, 4), (pixels * branches * width, 1, 4 * branches * width, branches * width)
        )
        for _ in range(2)
    )
    statistics, coefficients = (torch.empty(1, n, branches, width) for n in (5, 3))
    for whole, part in ((gradient, near[0]), (q, near[1])):
        whole[:, -width:] = part
    for whole, part in ((statistics, near[2]), (coefficients, near[3])):
        whole[:, :, -1:] = part
    found = op.training_output_gradient(gradient, q, statistics, coefficients, branches - 1, 1)
    assert torch.equal(found, op.training_output_gradient(*near, 0, 1))


def test_strides_of_extents_of_one_say_nothing() -> None:
    """One channel of a contiguous image is a row as well, and one image may lie anywhere."""
    gradient, q, statistics, coefficients = Rows(1, 1, 1, (3, 4)).arguments()
    expected = results(Rows(1, 1, 1, (3, 4)))
    odd = [x.as_strided(x.shape, (5, 7, 4, 1)) for x in (gradient, q)]
    assert torch.equal(op.training_output(odd[1], statistics), expected[0])
    assert torch.equal(op.training_output_sums(*odd, statistics), expected[1])
    assert torch.equal(op.training_output_gradient(*odd, statistics, coefficients, 0, 1), expected[2])


# --- refusals -------------------------------------------------------------------------------------------


def call(name: str, **changes: Callable[[Any], Any]) -> Callable[[], object]:
    """An operator, with some arguments changed."""
    names = {
        "output": ("q", "statistics"),
        "output_sums": ("gradient", "q", "statistics"),
        "output_gradient": ("gradient", "q", "statistics", "coefficients", "first", "branches"),
    }[name]

    def run() -> object:
        given = dict(zip(("gradient", "q", "statistics", "coefficients"), Rows().arguments(), strict=True))
        arguments = {**given, "first": 0, "branches": 1}
        for key, change in changes.items():
            arguments[key] = change(arguments[key])
        return getattr(op, f"training_{name}")(*(arguments[key] for key in names))

    return run


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (call("output", q=lambda x: x[0]), r"q: expected 4 dimensions \[N, C, H, W\], got 3"),
        (call("output", q=lambda x: x.contiguous()), "q: expected a dense channels_last image"),
        (call("output", q=lambda x: x[..., ::2]), "q: expected a dense channels_last image"),
        (call("output", q=lambda x: x[..., ::2, :]), "q: expected a dense channels_last image"),
        (call("output", q=lambda x: x[:1].expand(2, -1, -1, -1)), "q: expected a dense channels_last image"),
        (call("output", q=lambda x: x[..., :0]), "q: expected 1 to 2147483647 pixels, got 4 and 0 a side"),
        (call("output", q=lambda x: x[..., :0, :]), "q: expected 1 to 2147483647 pixels, got 0 and 7 a side"),
        (
            call("output", q=lambda x: x[:1, :1, :1, :1].expand(1, 1, 2**16, 2**15)),
            "q: expected 1 to 2147483647 pixels, got 65536 and 32768 a side",
        ),
        (
            call("output", q=lambda x: x[:1, :1, :1, :1].expand(2**31, 1, 1, 1)),
            "q: expected at most 2147483647 samples and channels",
        ),
        (call("output", statistics=lambda x: x.double()), "statistics: expected dtype Float, got Double"),
        (call("output", statistics=lambda x: x[0]), r"statistics: expected shape \[1 or 2, 5, D, O\], got \[5, 3, 5\]"),
        (call("output", statistics=lambda x: x[:, :4]), r"statistics: expected shape \[1 or 2, 5, D, O\], got"),
        (call("output", statistics=lambda x: x.repeat(3, 1, 1, 1)), r"statistics: expected shape \[1 or 2, 5, D, O\]"),
        (
            call("output", statistics=lambda x: x[:, :, :2].contiguous()),
            "statistics: expected terms of 15 channels, got 2 branches of 5",
        ),
        (
            call("output", statistics=lambda x: x.transpose(2, 3)),
            "statistics: expected a contiguous tensor, got one of other strides",
        ),
        (call("output_sums", gradient=lambda x: x.half()), "gradient: expected dtype Float, got Half"),
        (
            call("output_sums", gradient=lambda x: x[:1]),
            r"gradient: expected shape \[2, 15, 4, 7\], got \[1, 15, 4, 7\]",
        ),
        (call("output_sums", gradient=lambda x: x.contiguous()), "gradient: expected a dense channels_last image"),
        (
            call("output_gradient", coefficients=lambda x: x[:, :2].contiguous()),
            r"coefficients: expected shape \[1 or 2, 3, D, O\], got \[1, 2, 3, 5\]",
        ),
        (
            call("output_gradient", coefficients=lambda x: x.repeat(2, 1, 1, 1)),
            r"coefficients: expected shape \[1, 3, 3, 5\], got \[2, 3, 3, 5\]",
        ),
        (
            call("output_gradient", coefficients=lambda x: x.view(1, 3, 5, 3)),
            r"coefficients: expected shape \[1, 3, 3, 5\], got \[1, 3, 5, 3\]",
        ),
        (call("output_gradient", first=lambda _: 3), "branches: expected 1 or more of 3, got 1 from 3"),
        (call("output_gradient", first=lambda _: -1), "branches: expected 1 or more of 3, got 1 from -1"),
        (call("output_gradient", branches=lambda _: 0), "branches: expected 1 or more of 3, got 0 from 0"),
        (call("output_gradient", branches=lambda _: 4), "branches: expected 1 or more of 3, got 4 from 0"),
    ],
)
def test_the_operators_say_what_is_wrong(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        wrong()


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="expected float64, float32, float16 or bfloat16, got Int"):
        call("output", q=lambda x: x.int())()

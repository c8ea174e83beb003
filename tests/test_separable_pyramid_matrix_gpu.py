"""The tensor cores' policies of separable_pyramid on a GPU: what host execution cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu import captured, needs_memory, on_a_late_stream, on_cuda, one_at_a_time, requested_bytes
from hypothesis import given, settings
from pyramids import CASES, MATRIX_CASES, Pyramid, by_kernels, check_forward, pyramids
from torch import Tensor

from jpu_cuda import functional

pytestmark = pytest.mark.gpu

POLICIES = pytest.mark.parametrize("policy", ["mma", "two-pass"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
# Several tiles, chunks, blocks of outputs and images.
LARGE = Pyramid(3, (96, 72, 40), 272, (30, 33), (1, 2, 4, 8), torch.bfloat16, "channels_last", device="cuda")
EVERY_CASE = {
    **CASES,
    **MATRIX_CASES,
    "large": LARGE,
    "large, contiguous": replace(LARGE, layout="contiguous", terms="images"),
    "the size that models have": Pyramid(2, (512,) * 3, 512, (60, 60), (1, 2, 4, 8), layout="channels_last"),
}


@pytest.fixture(autouse=True)
def _on_cuda() -> Iterator[None]:
    with on_cuda():
        yield


@DTYPES
@POLICIES
@pytest.mark.parametrize("name", EVERY_CASE)
def test_every_path_is_as_exact_as_pytorchs(name: str, policy: str, dtype: torch.dtype) -> None:
    check_forward(replace(EVERY_CASE[name], dtype=dtype, policy=policy, device="cuda"))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(pyramids())
def test_any_shape_is_as_exact_as_pytorchs_and_the_same_by_both(case: Pyramid) -> None:
    outputs = [check_forward(replace(case, device="cuda", policy=policy)) for policy in ("mma", "two-pass")]
    assert torch.equal(*outputs)


@DTYPES
@POLICIES
def test_results_are_bit_for_bit_the_same_on_every_run(policy: str, dtype: torch.dtype) -> None:
    case = replace(LARGE, dtype=dtype, policy=policy)
    arguments = case.arguments()
    expected = by_kernels(case, arguments)
    for _ in range(20):
        assert torch.equal(by_kernels(case, arguments), expected)


def test_rounds_of_the_two_passes_change_nothing() -> None:
    case = replace(LARGE, policy="two-pass")
    arguments = case.arguments()
    expected = by_kernels(case, arguments)
    for workspace in (1, 1 << 20, 1 << 24):
        assert torch.equal(by_kernels(replace(case, workspace=workspace), arguments), expected)


def fill(arguments: dict[str, Any], values: dict[str, Any]) -> None:
    for name, tensors in arguments.items():
        torch._foreach_copy_(tensors, values[name])


@POLICIES
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_kernels_and_copies_run_on_the_current_stream(layout: str, policy: str) -> None:
    case = replace(LARGE, policy=policy, layout=layout)
    values = case.arguments()
    late = {name: [torch.zeros_like(t) for t in tensors] for name, tensors in values.items()}
    expected, results = (
        on_a_late_stream(lambda a=a: fill(a, values), lambda a=a: [by_kernels(case, a)]) for a in (values, late)
    )
    assert torch.equal(results[0], expected[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@POLICIES
def test_tensors_of_another_device_than_the_current_one_are_served_there(policy: str) -> None:
    case = replace(LARGE, policy=policy)
    expected = by_kernels(case, case.arguments())
    other = replace(case, device="cuda:1")
    with torch.cuda.device(0):
        out = by_kernels(other, other.arguments())
        assert torch.cuda.current_device() == 0
    assert out.device.index == 1
    assert torch.equal(out.cpu(), expected.cpu())


@POLICIES
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_captured_graph_replays_with_new_values_of_every_input(layout: str, policy: str) -> None:
    case = replace(LARGE, policy=policy, layout=layout)
    arguments = case.arguments()
    graph, (out,) = captured(lambda: [by_kernels(case, arguments)])
    for seed in (1, 2):
        fill(arguments, case.arguments(seed))
        graph.replay()
        assert torch.equal(out.clone(), by_kernels(case, arguments))


def test_one_launch_asks_for_no_memory_but_its_output_and_two_for_their_workspace() -> None:
    arguments = LARGE.arguments()
    out = by_kernels(LARGE, arguments)
    assert requested_bytes(lambda: by_kernels(replace(LARGE, policy="mma"), arguments)) == (out.nbytes, 0)
    tile_bytes = 128 * 64 * (3 + 3 + 2)  # pixels, bytes and number of chunks
    case = replace(LARGE, policy="two-pass", workspace=5 * tile_bytes)
    assert requested_bytes(lambda: by_kernels(case, arguments)) == (out.nbytes + 5 * tile_bytes, 0)


@pytest.mark.parametrize("tf32", [True, False])
def test_float32_is_tf32_where_pytorchs_convolutions_may(tf32: bool) -> None:
    case = replace(LARGE, dtype=torch.float32, terms="none")
    a = case.arguments()
    weights = torch.stack(a["depthwise"]).flatten(1, 2), torch.stack(a["pointwise"]).flatten(2)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
        out = functional.separable_pyramid(a["levels"], *weights, case.dilations)
    assert torch.equal(out, by_kernels(replace(case, policy="mma" if tf32 else "fma"), a))


@one_at_a_time
@POLICIES
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_levels_and_outputs_of_more_than_2_to_31_elements(memory_format: torch.memory_format, policy: str) -> None:
    """A centre tap alone, and a pointwise weight: half precision holds every result."""
    needs_memory(40)
    channels, height, width = 64, 2**13, 2**12 + 16
    level = torch.empty(1, channels, height, width, device="cuda", dtype=torch.float16, memory_format=memory_format)
    level.copy_((torch.arange(height, device="cuda") % 61).half().view(1, 1, -1, 1))
    assert level.numel() > 2**31
    taps = torch.zeros(channels, 1, 3, 3, device="cuda", dtype=torch.float16)
    taps[..., 1, 1] = 1
    pointwise = torch.full((channels, channels, 1, 1), 1 / 64, device="cuda", dtype=torch.float16)
    options = (False, 0, policy, 0)
    out: Tensor = torch.ops.jpu_cuda.separable_pyramid([level], [taps], [pointwise], [3], *[None] * 4, True, *options)
    for c in range(channels):  # one by one, for the memory's sake
        assert bool((out[:, c] == level[:, 0]).all())

"""The oracle's checks of separable_pyramid: PyTorch in float64, over shapes that reach every path and tail."""

from __future__ import annotations

from dataclasses import replace

import torch
from pyramids import Pyramid, by_kernels, check_backward, check_forward, gradients_by_kernels

from jpu_cuda import host

# Each beyond a tile, a chunk or a vector on some axis, and not a multiple of it.
CASES = (
    Pyramid(2, (20, 8), 72, (9, 18), (1, 3), layout="channels_last", terms="images"),
    Pyramid(1, (5, 9), 7, (11, 9), (2, 4), terms="channels"),
    Pyramid(1, (72,), 16, (5, 6), (2,), layout="channels_last", terms="none", relu=False),
    Pyramid(2, (3,), 5, (33, 18), (8,), layout="transposed"),
    Pyramid(1, (9,), 3, (6, 40), (1, 16), layout="channels_last", terms="images"),
)
# Several tiles for each block of the weights' gradient; chunks that are not full; vectors that are not aligned.
BACKWARD_CASES = (
    Pyramid(1, (40, 48), 72, (9, 34), (1, 2) * 4, torch.float64, layout="channels_last", terms="none"),
    Pyramid(1, (9, 9, 9), 5, (4, 5), (1,), torch.float64),
    Pyramid(1, (8, 16), 8, (3, 8), (1,), torch.bfloat16, layout="channels of more"),
)


def pyramids_run_forward() -> None:
    for case, dtype in zip(
        CASES, (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32), strict=True
    ):
        check_forward(replace(case, dtype=dtype))


def pyramids_run_backward() -> None:
    for case, dtype in zip(
        CASES, (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float32), strict=True
    ):
        check_backward(replace(case, dtype=dtype))
    for case in BACKWARD_CASES:
        check_backward(case)


def pyramids_in_groups_of_images_are_the_same() -> None:
    case = replace(CASES[0], batch=3, dtype=torch.float16)
    arguments, gradient = case.arguments(), case.gradient()
    lists = [arguments[name] for name in ("levels", "depthwise", "pointwise")]
    every = (*lists, list(case.dilations), *arguments["terms"], gradient, by_kernels(case, arguments), [1] * 8)
    together = torch.ops.jpu_cuda.separable_pyramid_backward(*every)
    for workspace_bytes in (1, together[0].nbytes):  # one image at a time, and no more than that either
        one_by_one = torch.ops.jpu_cuda.separable_pyramid_backward(*every, workspace_bytes)
        assert all(map(torch.equal, one_by_one, together))


def pyramids_sum_in_two_levels() -> None:
    """A sum that grows would swallow what is added last: 2^24 + 1 + ... + 1 in float32, chunk by chunk."""
    case = Pyramid(1, (48,), 1, (1, 1), (1,), terms="none", relu=False, layout="channels_last")
    arguments = case.arguments()
    level, (depthwise,), (pointwise,) = arguments["levels"][0], arguments["depthwise"], arguments["pointwise"]
    level.fill_(1)[0, 0] = 2.0**24
    depthwise.zero_()[..., 1, 1] = 1
    pointwise.fill_(1)
    out = float(by_kernels(case, arguments))
    # The first chunk's 15 ones are lost one by one; the others come as 16 each.
    assert out == 2.0**24 + 32, f"expected 2^24 + 32, got 2^24 + {out - 2.0**24}"


def pyramids_round_the_operand() -> None:
    """1 + 2^-10 has more digits than bfloat16: the operand is 1, and 1 - 1 shows it."""
    image = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    taps = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
    taps[..., 1, 1] = 1
    scale, out_shift = torch.full((1, 1), 1 + 2.0**-10), torch.full((1, 1), -1.0)
    out = torch.ops.jpu_cuda.separable_pyramid([image], [taps], [image], [1], scale, None, None, out_shift, False)
    assert float(out) == 0, f"expected 0, got {float(out)}"


def pyramids_pass_nan() -> None:
    case = Pyramid(1, (1,), 2, (3, 3), (1,), terms="none")
    arguments = case.arguments()
    arguments["levels"][0].fill_(torch.nan)
    assert by_kernels(case, arguments).isnan().all(), "expected NaN to pass the ReLU"


def pyramids_are_read_by_vectors() -> None:
    if host._CHECK == "address":  # which counts nothing
        return
    case = Pyramid(1, (32, 16), 32, (8, 16), (2,), torch.bfloat16, "channels_last")
    with host.record() as launches:
        gradients_by_kernels(case, case.arguments(), case.gradient())
    forward, weight, inputs, level, _ = (launch.counters for launch in launches)
    assert forward["global_writes"] == {16: 128 * 32 * 2 // 16}, forward["global_writes"]
    assert set(level["global_writes"]) == {16}, level["global_writes"]
    for counters in (forward, weight, inputs):
        assert counters["global_reads"].get(16, 0) > 0
        assert counters["bank_conflicts"] <= 0.08 * counters["shared_accesses"], counters
    # Pointwise weights, gradients and outputs come by vectors alone: what is left are taps and terms.
    assert set(inputs["global_reads"]) <= {4, 16}, inputs["global_reads"]


CHECKS = {
    function.__name__: function
    for function in (
        pyramids_run_forward,
        pyramids_run_backward,
        pyramids_in_groups_of_images_are_the_same,
        pyramids_sum_in_two_levels,
        pyramids_round_the_operand,
        pyramids_pass_nan,
        pyramids_are_read_by_vectors,
    )
}

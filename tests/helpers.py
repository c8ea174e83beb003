"""What tests share: inputs, and the one place that states tolerances.

Three ways of holding a result against the truth, each derived:

* :func:`assert_within` — entry by entry, against a value with an a-priori rounding bound
  (:mod:`jpu_cuda.reference.loops`). For eval mode in every dtype, and training in float64.
* :func:`assert_relative_l2` — over the whole tensor, where a worst-case bound says nothing (batch
  statistics in half precision).
* :func:`assert_no_worse` — at most 1.25 times the error of PyTorch's own path in the same dtype, plus
  the rounding of the output.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from jpu_cuda.ops._library import sum_dtype
from jpu_cuda.reference.loops import Bounded

SIZES = ((7, 9), (4, 5), (2, 3))  # no multiples of each other


def pyramid(
    channels: Sequence[int] = (8, 16, 32),
    sizes: Sequence[tuple[int, int]] = SIZES,
    *,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    requires_grad: bool = False,
    device: str = "cpu",
) -> list[Tensor]:
    """Levels [batch, C_i, H_i, W_i] of normal random numbers, rounded to dtype."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, c, *size, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_(requires_grad)
        for c, size in zip(channels, sizes, strict=True)
    ]


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives norms weights, biases and statistics that are not 1 and 0, so that mixing them up shows."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                uniform(parameter, *((0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                uniform(buffer, -0.5, 0.5)
            elif name.endswith("running_var"):
                uniform(buffer, 0.5, 2.0)
    return module


def assert_refused(calls: Iterable[tuple[str, Callable[[], object]]]) -> None:
    """Asserts that each call raises a RuntimeError that says this."""
    for message, call in calls:
        try:
            call()
            got = "no error"
        except RuntimeError as error:
            got = str(error)
        assert message in got, f"expected {message!r}, got {got[:200]!r}"


def to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def assert_within(actual: Tensor, expected: Bounded) -> None:
    """Asserts that every entry lies within its bound of the truth."""
    got = to_numpy(actual)
    assert got.shape == expected.value.shape, f"expected shape {expected.value.shape}, got {got.shape}"
    assert np.isfinite(got).all(), "expected finite entries"
    excess = np.abs(got - expected.value) - expected.error
    worst = np.unravel_index(int(excess.argmax()), excess.shape)
    assert excess[worst] <= 0, (
        f"at {tuple(map(int, worst))}: expected {expected.value[worst]} ± {expected.error[worst]}, got {got[worst]}"
    )


def assert_relative_l2(actual: Tensor, expected: Tensor, roundings: int) -> None:
    """Asserts ‖actual − expected‖₂ ≤ roundings · eps · ‖expected‖₂.

    Args:
        actual: the result in the dtype under test.
        expected: the truth, from float64.
        roundings: how many results are rounded to that dtype one after the other on the way; each
            rounding is at most eps/2, the other half is left to cancellation in the norms.
    """
    assert actual.shape == expected.shape, f"expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    error = float((actual.detach().double() - expected.detach().double()).norm())
    bound = roundings * torch.finfo(actual.dtype).eps * float(expected.detach().double().norm())
    assert error <= bound, f"expected a relative error of at most {bound:.3e}, got {error:.3e}"


def assert_no_worse(actual: Tensor, baseline: Tensor, truth: Tensor, factor: float = 1.25) -> None:
    """Asserts max|actual − truth| ≤ factor · max|baseline − truth| + eps/2 · max|truth|.

    Args:
        actual: the result under test.
        baseline: PyTorch's own result, in the same dtype.
        truth: float64 arithmetic on the same rounded inputs and weights.
        factor: how much larger the error may be.
    """
    assert actual.dtype == baseline.dtype, f"expected dtype {baseline.dtype}, got {actual.dtype}"
    truth = truth.detach().double()
    error = float((actual.detach().double() - truth).abs().max())
    allowed = factor * float((baseline.detach().double() - truth).abs().max())
    allowed += torch.finfo(actual.dtype).eps / 2 * float(truth.abs().max())
    assert error <= allowed, f"expected an error of at most {allowed:.3e}, got {error:.3e}"


def assert_rounded(actual: Tensor, truth: np.ndarray, magnitude: np.ndarray, steps: int) -> None:
    """Asserts that each entry is the truth but for the output's own rounding and ``steps`` of the sum's type.

    Args:
        actual: the result under test.
        truth: extended precision on the same rounded inputs.
        magnitude: the sum of the terms' absolute values, entry by entry.
        steps: how many results are rounded one after the other on the way to an entry, in float64 for float64 and
            float32 for all else.
    """
    out = torch.finfo(actual.dtype)
    sums = torch.finfo(sum_dtype(actual.dtype))
    exceeded = np.abs(actual.detach().double().cpu().numpy().astype(np.longdouble) - truth)
    bound = out.eps / 2 * np.abs(truth) + out.smallest_normal * out.eps / 2  # normal or subnormal
    # Half an ulp each; what is rounded to half precision last may be off by that, and land on the other neighbour.
    exceeded -= bound + steps * sums.eps / 2 * (1 + out.eps) * magnitude
    worst = np.unravel_index(int(exceeded.argmax()), exceeded.shape)
    assert exceeded[worst] <= 0, f"at {tuple(map(int, worst))}: expected {truth[worst]}, got {actual[worst]}"


def max_error(actual: Tensor, truth: np.ndarray) -> float:
    """The largest difference from a truth of extended precision, which float64 differences would round away."""
    assert actual.shape == truth.shape, f"expected shape {truth.shape}, got {tuple(actual.shape)}"
    if actual.numel() == 0:
        return 0.0
    return float(np.abs(actual.detach().double().cpu().numpy().astype(np.longdouble) - truth).max())


def assert_no_worse_than(actual: Tensor, truth: np.ndarray, baseline_errors: Sequence[float]) -> None:
    """Asserts max|actual − truth| ≤ 1.25 · max(baseline_errors) + eps/2 · max|truth|.

    As :func:`assert_no_worse`, but PyTorch's error is the largest over several random draws of the same
    shapes. In float32 and float64 a small tensor makes the comparison of two maxima a lottery: which of
    two correct results is nearer to the truth is chance there, and over one draw PyTorch's may happen to
    be exact. How far PyTorch's path may be off for these shapes and this layout is what is asked.

    Args:
        actual: the result under test.
        truth: extended precision on the same rounded inputs.
        baseline_errors: :func:`max_error` of PyTorch's own result in the same dtype, one a draw.
    """
    error = max_error(actual, truth)
    peak = float(np.abs(truth).max(initial=0))
    allowed = 1.25 * max(baseline_errors) + torch.finfo(actual.dtype).eps / 2 * peak
    assert error <= allowed, f"expected an error of at most {allowed:.3e}, got {error:.3e}"

"""The reach of separable_pyramid: offsets past 2³¹, most levels, branches and dilations, and what lies beyond."""

from dataclasses import replace

import pytest
import torch
from pyramids import Pyramid, by_kernels, check_backward, check_forward, gradients_by_kernels
from strategies import needs_host
from torch import Tensor

from jpu_cuda import BackendUnavailableError, functional, host, use_backend
from jpu_cuda.backend import Explanation

pytestmark = needs_host

FAR = 2**31 + 24  # a multiple of 8, so that vectors stay aligned


@pytest.fixture(autouse=True, scope="module")
def _loaded() -> None:
    host.load()


def spread(tensor: Tensor, axis: int) -> Tensor:
    """The same values, from one index of ``axis`` to the next more than 2³¹ elements apart.

    The memory between them is reserved and never touched.
    """
    strides = [*tensor.stride()]
    strides[axis] = FAR
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    return torch.empty(reach, dtype=tensor.dtype).as_strided(tensor.shape, strides).copy_(tensor)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3], ids=["images", "channels", "rows", "columns"])
def test_levels_and_gradients_may_reach_past_2_to_31_elements(axis: int, layout: str) -> None:
    case = Pyramid(2, (2,), 2, (2, 3), (1, 2), torch.float16, layout)
    arguments, gradient = case.arguments(), case.gradient()
    (level,) = arguments["levels"]
    near = gradients_by_kernels(case, arguments, gradient)
    far = gradients_by_kernels(case, {**arguments, "levels": [spread(level, axis)]}, spread(gradient, axis))
    assert torch.equal(near[0], far[0])
    assert all(map(torch.equal, near[1], far[1]))


def test_all_limits_at_once() -> None:
    """8 levels, 8 branches, dilation 16, on an image that it reaches over."""
    case = Pyramid(1, (1, 2, 1, 1, 3, 1, 1, 2), 3, (3, 18), (16, 1, 1, 2, 1, 3, 1, 5), torch.float64)
    check_forward(case)
    check_backward(case)
    more = replace(case, channels=(*case.channels, 1))
    with pytest.raises(RuntimeError, match="levels: expected 1 to 8, got 9"):
        by_kernels(more, more.arguments())


@pytest.mark.parametrize(("size", "dilation"), [((1, 40), 16), ((40, 1), 16), ((2, 2), 16), ((1, 1), 1)], ids=str)
def test_images_smaller_than_the_dilation(size: tuple[int, int], dilation: int) -> None:
    case = Pyramid(2, (3,), 2, size, (dilation,), torch.float64)
    check_forward(case)
    check_backward(case)


def test_an_image_of_too_many_pixels_is_refused() -> None:
    level = torch.empty(1, dtype=torch.float16).expand(1, 1, 2**16, 2**15)
    weights = torch.zeros(1, 1, 3, 3).half(), torch.zeros(1, 1, 1, 1).half()
    with pytest.raises(RuntimeError, match=r"levels: expected 1 to 2147483647 pixels, got \[1, 1, 65536, 32768\]"):
        torch.ops.jpu_cuda.separable_pyramid([level], [weights[0]], [weights[1]], [1], None, None, None, None, True)


def test_too_many_channels_are_refused() -> None:
    level = torch.empty(1, dtype=torch.float16).expand(1, 2**28 + 1, 1, 1)
    weight = torch.empty(1, dtype=torch.float16).expand(1, 2**28 + 1, 1, 1)
    with pytest.raises(RuntimeError, match="channels: expected 1 to 268435456 of inputs and outputs, got 268435457"):
        torch.ops.jpu_cuda.separable_pyramid([level], [weight], [weight], [1], None, None, None, None, True)


@pytest.mark.parametrize("arguments", [{"levels": 9}, {"dilations": (17,)}, {"dilations": (1,) * 9}], ids=str)
def test_beyond_the_limits_the_function_is_the_references_or_says_so(
    arguments: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, dilations = arguments.get("levels", 1), arguments.get("dilations", (1,))
    levels = [torch.randn(1, 1, 3, 4) for _ in range(count)]
    weights = torch.randn(len(dilations), count, 3, 3), torch.randn(len(dilations), 2, count)
    with use_backend("reference"):
        expected = functional.separable_pyramid(levels, *weights, dilations)
    with use_backend("host"), pytest.raises(BackendUnavailableError, match="expected at most 8 levels and 8 dilations"):
        functional.separable_pyramid(levels, *weights, dilations)
    # As where "auto" chooses the kernels, which on the CPU it never does.
    monkeypatch.setattr(functional, "choose", lambda level: Explanation("cuda", "fma", ""))
    with host.record() as launches:
        assert torch.equal(functional.separable_pyramid(levels, *weights, dilations), expected)
    assert launches == []

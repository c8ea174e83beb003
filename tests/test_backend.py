"""use_backend and explain."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import pyramid

import jpu_cuda
from jpu_cuda import JPU, JPU_X, BackendUnavailableError, explain, mmseg, use_backend
from jpu_cuda.backend import requested_backend


@pytest.fixture(autouse=True)
def _restored() -> object:
    with use_backend("auto"):
        yield


def test_a_call_holds_until_the_next() -> None:
    use_backend("reference")
    assert requested_backend() == "reference"
    use_backend("auto")
    assert requested_backend() == "auto"


def test_a_block_restores_what_was_there() -> None:
    use_backend("reference")
    with use_backend("auto"):
        assert requested_backend() == "auto"
        with use_backend("reference"):
            assert requested_backend() == "reference"
        assert requested_backend() == "auto"
    assert requested_backend() == "reference"


def test_a_block_restores_after_an_error() -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert requested_backend() == "auto"


def test_a_block_is_entered_once() -> None:
    choice = use_backend("reference")
    with choice:
        pass
    with pytest.raises(RuntimeError, match="expected a fresh use_backend"), choice:
        pass


def test_threads_do_not_disturb_each_other() -> None:
    ready = threading.Barrier(2)

    def other() -> str:
        before = requested_backend()
        use_backend("reference")
        ready.wait(10)
        return before

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(other)
        ready.wait(10)
        assert requested_backend() == "auto"
        assert future.result() == "auto"


def test_a_backward_follows_its_forward() -> None:
    levels = pyramid(requires_grad=True)
    jpu = JPU((8, 16, 32), width=8).double()
    with use_backend("reference"):
        out = jpu(*levels)[-1]
    out.sum().backward()
    inside = [x.grad for x in levels]
    for x in levels:
        x.grad = None
    with use_backend("reference"):
        jpu(*levels)[-1].sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(inside, levels, strict=True) if a is not None)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="expected one of 'auto', 'cuda', 'host', 'reference', got 'gpu'"):
        use_backend("gpu")


@pytest.mark.parametrize("name", ["cuda", "host"])
def test_an_unavailable_backend_raises_and_changes_nothing(name: str) -> None:
    use_backend("reference")
    with pytest.raises(BackendUnavailableError, match=f"'{name}' is not available: .* expected one of 'auto', 'ref"):
        use_backend(name)
    assert requested_backend() == "reference"


def test_explain_says_why_auto_serves_the_reference() -> None:
    answer = explain(JPU((8, 16, 32), width=8), *pyramid(dtype=torch.float32))
    assert (answer.backend, answer.policy) == ("reference", "torch")
    assert "no compiled CUDA kernels" in answer.reason
    assert str(answer) == f"backend reference, policy torch: {answer.reason}"


def test_explain_says_that_the_reference_was_asked_for() -> None:
    with use_backend("reference"):
        answer = explain(JPU((8, 16, 32), width=8), *pyramid(dtype=torch.float32))
    assert "asked for" in answer.reason


def test_explain_takes_what_each_module_takes() -> None:
    levels = pyramid(dtype=torch.float32)
    assert explain(mmseg.JPU((8, 16, 32), 8), levels).backend == "reference"
    x_levels = pyramid((5, 8, 128, 16), ((8, 8), (4, 4), (2, 2), (1, 1)), dtype=torch.float32)
    assert explain(JPU_X((8, 128, 16), width=64), *x_levels).backend == "reference"


def test_explain_makes_no_call() -> None:
    jpu = JPU((8, 16, 32), width=8)
    explain(jpu, *pyramid(dtype=torch.float32))
    assert int(jpu.conv3[1].num_batches_tracked) == 0


@pytest.mark.parametrize("inputs", [pyramid()[:2], [*pyramid()[:2], torch.zeros(2, 9, 2, 3).double()]])
def test_explain_refuses_what_forward_refuses(inputs: list[torch.Tensor]) -> None:
    jpu = JPU((8, 16, 32), width=8)
    with pytest.raises(ValueError, match="expected") as refused:
        explain(jpu, *inputs)
    with pytest.raises(ValueError, match="expected") as forward:
        jpu(*inputs)
    assert str(refused.value) == str(forward.value)


def test_explain_refuses_other_modules() -> None:
    with pytest.raises(TypeError, match="expected a JPU of jpu_cuda .* got Linear"):
        explain(torch.nn.Linear(1, 1), torch.zeros(1, 1))


def test_public_names() -> None:
    for name in jpu_cuda.__all__:
        assert getattr(jpu_cuda, name) is not None


def test_a_block_is_not_entered_inside_itself() -> None:
    choice = use_backend("reference")
    with choice:
        with pytest.raises(RuntimeError, match="expected a fresh use_backend"), choice:
            pass
        assert requested_backend() == "reference"
    assert requested_backend() == "auto"

"""use_backend and explain."""

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import pyramid
from strategies import needs_host
from torch._subclasses.fake_tensor import FakeTensorMode

import jpu_cuda
from jpu_cuda import (
    JPU,
    JPU_X,
    BackendUnavailableError,
    _extension,
    backend,
    explain,
    functional,
    host,
    mmseg,
    use_backend,
)
from jpu_cuda.backend import matrix_options, requested_backend


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


@needs_host
def test_a_compiled_function_follows_the_choice() -> None:
    levels = pyramid()
    torch._dynamo.reset()
    compiled = torch.compile(lambda: functional.upsample_concat(levels, False), backend="aot_eager", fullgraph=True)
    served = []
    for name, arch in (("reference", None), ("host", None), ("auto", None), ("host", None), ("host", 80)):
        with use_backend(name, arch=arch), host.record() as launches:
            compiled()
        served.append(bool(launches))
    assert served == [False, True, False, True, True]
    with use_backend("host"):
        with use_backend("reference"), host.record() as within:
            compiled()
        with host.record() as after:
            compiled()
    with host.record() as last:
        compiled()
    assert [bool(launches) for launches in (within, after, last)] == [False, True, False]


@needs_host
@pytest.mark.parametrize("forward", ["host", "reference"])
def test_a_backward_follows_its_forward(forward: str) -> None:
    levels = pyramid(requires_grad=True)
    jpu = JPU((8, 16, 32), width=8).double()
    with use_backend(forward):
        out = jpu(*levels)[-1]
    other = "reference" if forward == "host" else "host"
    with use_backend(other), host.record() as recorded:
        out.sum().backward()
    assert bool(recorded) == (forward == "host")


class _Nested(torch.autograd.Function):
    """Calls backward() in its own backward pass, again and again, and a function in the innermost."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, depth: int, call: Callable[[], None]) -> torch.Tensor:
        ctx.depth, ctx.call = depth, call
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        if ctx.depth == 0:
            ctx.call()
        else:
            with torch.enable_grad():
                _Nested.apply(torch.ones(1, requires_grad=True), ctx.depth - 1, ctx.call).backward()
        return gradient, None, None


# Beyond 60 PyTorch goes on in a thread of its own, as it does for CUDA tensors at once.
@pytest.mark.parametrize("depth", [0, 70])
def test_autograds_threads_have_the_choice_of_where_the_backward_pass_was_called(depth: int) -> None:
    found: list[tuple[str, str, str]] = []

    def note() -> None:
        found.append((requested_backend(), matrix_options().policy, threading.current_thread().name))

    out = _Nested.apply(torch.ones(1, requires_grad=True), depth, note)
    with use_backend("reference"):
        out.backward(retain_graph=True)
    with use_backend("auto", policy="fma"):
        out.backward(retain_graph=True)
    out.backward()
    assert [choice[:2] for choice in found] == [("reference", "auto"), ("auto", "fma"), ("auto", "auto")]
    assert {choice[2] == threading.current_thread().name for choice in found} == {depth == 0}


def test_a_choice_made_earlier_holds_in_its_block() -> None:
    earlier = use_backend("reference")
    use_backend("auto")
    with earlier:
        assert requested_backend() == "reference"
    assert requested_backend() == "auto"


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="expected one of 'auto', 'cuda', 'host', 'reference', got 'gpu'"):
        use_backend("gpu")


@pytest.mark.parametrize("name", ["cuda", "host"])
def test_an_unavailable_backend_raises_and_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise host.HostBuildError("no compiler")

    monkeypatch.setattr(host, "load", fail)
    monkeypatch.setattr(_extension, "load", lambda: _extension.Status(False, "no binary"))
    use_backend("reference")
    with pytest.raises(BackendUnavailableError, match=f"'{name}' is not available: no (binary|compiler)"):
        use_backend(name)
    assert requested_backend() == "reference"


def test_cuda_asked_for_does_not_take_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extension, "load", lambda: _extension.Status(True, "loaded"))
    with use_backend("cuda"), pytest.raises(BackendUnavailableError, match="expected tensors on cuda, got cpu"):
        functional.upsample_concat(pyramid(), align_corners=False)


def test_kernels_asked_for_do_not_take_other_dtypes() -> None:
    level = torch.zeros(1, 1, 2, 2).to(torch.float8_e4m3fn)
    with use_backend("host"), pytest.raises(BackendUnavailableError, match="expected torch.float64, .* got torch.flo"):
        functional.upsample_concat([level], align_corners=False)


@pytest.fixture
def cuda_levels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """CUDA tensors that hold nothing, which needs no GPU, and a binary without code for it."""
    monkeypatch.setattr(_extension, "supports", lambda index: "no code for the device")
    backend._warn_once.cache_clear()
    with FakeTensorMode():
        yield [torch.empty(1, 1, size, size, device="cuda:0") for size in (4, 2)]
    backend._warn_once.cache_clear()


def test_auto_warns_once_that_pytorch_serves_cuda_tensors(cuda_levels: list[torch.Tensor]) -> None:
    with pytest.warns(UserWarning, match="PyTorch serves CUDA tensors, since no code for the device") as caught:
        functional.upsample_concat(cuda_levels, align_corners=False)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.upsample_concat(cuda_levels, align_corners=False)
        functional.upsample(cuda_levels, align_corners=False)


def test_asking_for_cuda_by_name_does_not_use_up_the_warning(
    cuda_levels: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_extension, "load", lambda: _extension.Status(True, "loaded"))
    with use_backend("cuda"), pytest.raises(BackendUnavailableError, match="no code for the device"):
        functional.upsample_concat(cuda_levels, align_corners=False)
    with pytest.warns(UserWarning, match="no code for the device"):
        functional.upsample_concat(cuda_levels, align_corners=False)


@pytest.mark.gpu
def test_auto_serves_cuda_tensors_with_kernels() -> None:
    answer = backend.choose(torch.zeros(1, device="cuda"))
    assert answer.backend == "cuda", answer.reason


def test_explain_says_why_auto_serves_the_reference() -> None:
    answer = explain(JPU((8, 16, 32), width=8), *pyramid(dtype=torch.float32))
    assert (answer.backend, answer.policy) == ("reference", "torch")
    assert "kernels serve CUDA tensors; got cpu" in answer.reason
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


def test_explain_refuses_the_dtype_that_jpu_x_refuses() -> None:
    jpu = JPU_X((8, 128, 16), width=64)
    levels = pyramid((5, 8, 128, 16), ((8, 8), (4, 4), (2, 2), (1, 1)))
    for call in (lambda: explain(jpu, *levels), lambda: jpu(*levels)):
        with pytest.raises(ValueError, match="expected dtype torch.float32 as the module, got torch.float64"):
            call()


@needs_host
def test_explain_takes_tensors_without_data() -> None:
    jpu = JPU((8, 16, 32), width=8).eval()
    with use_backend("host", arch=80), FakeTensorMode(allow_non_fake_inputs=True):
        answer = explain(jpu, *pyramid(dtype=torch.float32))
    assert answer.policy == "auto"
    assert "decided where there are tensors" in answer.reason


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("host",), {"policy": "tensor"}, "policy: expected one of 'auto', 'fma', 'mma', 'two-pass', got 'tensor'"),
        (("reference",), {"policy": "mma"}, "policy: expected 'auto' for backend 'reference', which has no kernels"),
        (("auto",), {"arch": 80}, "arch: expected None for backend 'auto', since only 'host' has no device, got 80"),
        (("host",), {"arch": 8.0}, "arch: expected a compute capability such as 80 for 8.0, or None, got 8.0"),
        (("host",), {"arch": True}, "arch: expected a compute capability such as 80 for 8.0, or None, got True"),
        (("host",), {"arch": 8}, "arch: expected a compute capability such as 80 for 8.0, or None, got 8"),
    ],
)
def test_options_that_a_backend_does_not_have_are_refused(
    arguments: tuple[str], options: dict[str, object], message: str
) -> None:
    before = matrix_options()
    with pytest.raises(ValueError, match=message):
        use_backend(*arguments, **options)
    assert matrix_options() == before


@needs_host
def test_options_end_with_their_block() -> None:
    before = matrix_options()
    with use_backend("host", arch=80, policy="two-pass"):
        assert matrix_options()[1:] == (80, "two-pass")
        with use_backend("auto", policy="fma"):
            assert matrix_options()[1:] == (0, "fma")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(matrix_options).result()[1:] == (0, "auto"), "threads start anew"
        assert matrix_options()[1:] == (80, "two-pass")
    assert matrix_options() == before


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

"""Clock, counts and memory of the benchmarks, on work whose figures are known."""

import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks import measure
from benchmarks.memory import PeakMemory, SavedMemory

CPU = torch.device("cpu")


def _multiply_adds(module: nn.Module, *shape: int) -> float:
    return measure.multiply_adds(module, torch.zeros(shape))


def test_multiply_adds_of_a_dense_convolution():
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    # Every one of 2·16·10·6 outputs sums 8·9 products.
    assert _multiply_adds(conv, 2, 8, 20, 12) == pytest.approx(2 * 16 * 10 * 6 * 8 * 9 / 1e9)


def test_multiply_adds_of_a_dilated_depthwise_convolution():
    conv = nn.Conv2d(12, 12, 3, padding=4, dilation=4, groups=12, bias=False)
    assert _multiply_adds(conv, 1, 12, 7, 9) == pytest.approx(12 * 7 * 9 * 9 / 1e9)


def test_multiply_adds_of_a_linear_layer():
    assert _multiply_adds(nn.Linear(5, 7), 3, 5) == pytest.approx(3 * 5 * 7 / 1e9)


def test_multiply_adds_add_up_and_leave_norms_out():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 1)).eval()
    assert _multiply_adds(model, 1, 2, 4, 4) == pytest.approx((2 * 3 + 3 * 5) * 16 / 1e9)


def test_multiply_adds_are_counted_without_computing():
    model = nn.Linear(3, 3)
    model.register_forward_hook(lambda _module, _inputs, output: seen.append(type(output)))
    seen: list[type] = []
    _multiply_adds(model, 1, 3)
    assert seen == [FakeTensor]
    assert type(model.weight) is nn.Parameter


def test_parameters_count_weights_and_not_buffers():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    assert measure.parameters(model) == 4 * 2 * 9 + 4 + 4 + 4


def test_time_calls_measures_what_a_call_takes():
    samples = measure.time_calls(lambda: time.sleep(0.02), CPU, 0.3)
    # A loaded machine may sleep longer, never shorter.
    assert min(samples) >= 20
    assert min(samples) < 40


class _Clock:
    """A clock that only work moves, so that a budget can be held to the call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.calls = 0
        monkeypatch.setattr(measure, "perf_counter", lambda: self.now)

    def work(self) -> None:
        self.now += 0.125
        self.calls += 1


def test_time_calls_repeats_three_times_after_a_warm_up_whatever_the_budget(monkeypatch):
    clock = _Clock(monkeypatch)
    assert measure.time_calls(clock.work, CPU, 1e-6) == [125.0] * 3
    assert clock.calls == 4


def test_time_calls_keeps_to_its_budget(monkeypatch):
    clock = _Clock(monkeypatch)
    # 2 s: 0.5 s of warm-up, the first sum of calls beyond a fifth; the last call must end before 2 s.
    samples = measure.time_calls(clock.work, CPU, 2.0)
    assert clock.calls - len(samples) == 4
    assert clock.now == 100 + 2.0 - 0.125


def test_time_calls_tells_its_progress(monkeypatch):
    told = []
    measure.time_calls(_Clock(monkeypatch).work, CPU, 0.5, told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_quantiles_of_known_samples():
    assert measure.quantiles(list(range(101))) == {"p5": 5, "p25": 25, "p75": 75, "p95": 95}


class _Temporary(nn.Module):
    """Holds 32 MiB of weights and needs 64 MiB more, in one piece, while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8 * 2**20))

    def forward(self) -> torch.Tensor:
        return self.weight.repeat(2).sum()


def _peak(work, device: torch.device) -> float | None:
    with PeakMemory(device) as memory:
        kept = work()
        memory.reset()
        kept()
        return memory.mib()


def test_peak_memory_has_weights_and_temporaries():
    peak = _peak(_Temporary, CPU)
    if peak is None:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    # A process has other pages to touch as well: 4 MiB for them.
    assert peak == pytest.approx(96, abs=4)


def test_peak_memory_forgets_what_came_before_the_reset():
    def work():
        torch.ones(32 * 2**20).sum()  # 128 MiB, gone before the reset
        return lambda: torch.ones(4 * 2**20).sum()

    peak = _peak(work, CPU)
    if peak is None:
        pytest.skip("needs Linux's /proc/self/clear_refs")
    assert peak == pytest.approx(16, abs=4)


def test_peak_memory_is_none_where_the_system_has_no_figure(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.memory._STATUS", tmp_path / "absent")
    assert _peak(_Temporary, CPU) is None


def test_peak_memory_is_none_where_the_mark_cannot_be_reset(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.memory._CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    assert _peak(_Temporary, CPU) is None


@pytest.mark.gpu
def test_peak_memory_on_a_gpu_has_weights_and_temporaries():
    device = torch.device("cuda")
    assert _peak(lambda: _Temporary().to(device), device) == pytest.approx(96, abs=1)


@pytest.mark.gpu
def test_time_calls_waits_for_the_gpu():
    device = torch.device("cuda")
    a = torch.randn(8192, 8192, device=device)
    # 1.1 TFLOP: no GPU of today does this within 0.2 ms, which is far more than a launch takes.
    assert min(measure.time_calls(lambda: a @ a, device, 0.5)) > 0.2


def test_stages_end_one_after_the_other():
    order = []
    stages = [lambda: (order.append("first"), time.sleep(0.01)), lambda: (order.append("second"), time.sleep(0.02))]
    samples = measure.time_stages(stages, CPU, 0.1)
    assert order == ["first", "second"] * (len(order) // 2)
    assert all(first >= 10 and second >= first + 20 for first, second in samples)


# --- memory saved for a backward pass --------------------------------------------------------------------


def _saved(function, *inputs) -> tuple[int, int]:
    with SavedMemory(inputs) as memory:
        result = function(*inputs)
        found = memory.mib(), memory.inputs_mib()
    assert result.requires_grad
    return tuple(round(mib * 2**20) for mib in found)


def test_saved_memory_is_by_storage_and_apart_from_inputs():
    x = torch.randn(100, requires_grad=True)
    assert _saved(lambda x: x + 1, x) == (0, 0)
    assert _saved(lambda x: x * x, x) == (0, 400)
    assert _saved(lambda x: x[:3].sin(), x) == (0, 400)  # a view keeps all of it
    assert _saved(lambda x: x.exp(), x) == (400, 0)
    assert _saved(lambda x: (y := x.exp()) * y, x) == (400, 0)
    assert _saved(lambda x: torch.relu(x.detach()[:10] * x[:10]), x) == (40, 400)


def test_what_was_saved_and_let_go_does_not_count():
    x = torch.randn(100, requires_grad=True)

    def function(x):
        x.exp().exp()
        return x.sin()

    assert _saved(function, x) == (0, 400)


def test_a_backward_pass_goes_on_after_its_memory_was_counted():
    x = torch.randn(5, requires_grad=True)
    with SavedMemory([x]) as memory:
        y = x.exp()
    assert memory.mib() > 0
    y.sum().backward()
    assert x.grad.equal(x.exp())
    del y
    assert memory.mib() == 0

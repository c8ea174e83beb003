"""The benchmark of training: order, rows, what is compared, and that every provider is verified before it is timed."""

import copy
import io
import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import measure, passes, results, training, training_workloads
from benchmarks.__main__ import main
from benchmarks.passes import Pass
from benchmarks.providers import PROVIDERS, TRAINING, TRAINING_DEFAULT, Provider
from benchmarks.training_workloads import TrainingWorkload, select
from benchmarks.verify import WrongResultError
from jpu_cuda.backend import BackendUnavailableError
from jpu_cuda.modules.core import JointPyramid

CPU = torch.device("cpu")
SMALL = TrainingWorkload("branches", 5, 6, 2, "float32", channels=4)
STEP = replace(SMALL, part="step", height=4)


def _run(folder, selected=(SMALL,), names=("reference", "cuda"), **changes):
    file = io.StringIO()
    arguments = {"device": CPU, "seconds": 1e-3, "budget": 1e3, "output": folder / "rows.jsonl", **changes}
    return training.run(selected, names, console=Console(file=file, width=150), **arguments), file.getvalue()


def _timed(rows):
    return [(row.provider, row.case["memory_format"]) for row in rows if row.metric == "latency"]


@pytest.fixture(scope="module")
def prepared():
    return training_workloads.prepare(SMALL, CPU)


# --- order -----------------------------------------------------------------------------------------------


def test_the_first_workload_is_compiled_before_others_are_begun():
    selected = select(["branches", "jpu", "step", "dilated"], [(60, 60)], [16, 2], ["bfloat16"], ["batch", "frozen"])
    assert [(x.part, x.norms) for x in selected[:5]] == [
        *(("branches", "batch"), ("branches", "frozen"), ("jpu", "batch"), ("step", "batch"), ("dilated", "batch"))
    ]
    assert [x.batch for x in selected] == [16] * 5 + [2] * 5
    jobs = training.jobs_in_order(selected, TRAINING_DEFAULT)
    assert jobs[0] == (selected[0], "reference")
    first = [job for job in jobs if job[0].in_any_format == selected[0]]
    assert jobs[: len(first)] == first
    assert TRAINING[first[-1][1]].compiled
    compiled = [TRAINING[name].compiled for _, name in jobs[len(first) :]]
    assert compiled == sorted(compiled)
    assert len(set(jobs)) == len(jobs)


def test_the_dilated_twin_has_no_jpu_for_kernels_to_serve():
    jobs = training.jobs_in_order([replace(SMALL, part="dilated")], TRAINING_DEFAULT)
    assert {TRAINING[name].backend for _, name in jobs} == {"reference"}


def test_every_way_that_a_user_would_try_is_there():
    eager = ["reference", "depthwise-cudnn", "depthwise-native"]
    ours = ["cuda", "cuda-mma", "cuda-two-pass", "cuda-fma"]
    compiled = ["compiled-default", "compiled", "cuda-compiled-default", "cuda-compiled"]
    assert sorted(TRAINING_DEFAULT) == sorted([*eager, *ours, *compiled])
    assert {TRAINING[name].mode for name in compiled} == {"default", "max-autotune"}
    assert all(TRAINING[name] == PROVIDERS[name] for name in TRAINING if name in PROVIDERS)
    assert not any(provider.frozen or provider.folded or provider.graphed for provider in TRAINING.values())


def test_default_sizes_are_those_of_the_crop():
    assert [(8 * h, 8 * w) for h, w in training_workloads.SHAPES] == [(480, 480)]
    assert training_workloads.BATCHES == {"cuda": (16, 2), "cpu": (2,)}


# --- rows ------------------------------------------------------------------------------------------------


def test_rows_are_made_as_each_is_finished(tmp_path):
    outcome, output = _run(tmp_path)
    rows = results.read(tmp_path / "rows.jsonl")
    assert outcome.rows == rows
    assert outcome.failures == []
    assert _timed(rows) == [("reference", "contiguous"), ("reference", "channels_last")]
    assert {reason for _, reason in outcome.skipped} == {"backend 'cuda' needs tensors on cuda, got cpu"}
    assert output.splitlines()[0].startswith("branches 5×6, batch 2, float32, contiguous · reference: ")
    found = {row.metric: row for row in rows if row.case["memory_format"] == "contiguous"}
    assert TrainingWorkload.from_dict(found["latency"].case) == SMALL
    assert {metric: row.unit for metric, row in found.items() if metric != "peak_memory"} == {
        "latency": "ms",
        "fps": "1/s",
        "forward_latency": "ms",
        "saved_memory": "MiB",
        "saved_inputs": "MiB",
    }
    assert found["fps"].value == pytest.approx(2 / (found["latency"].value / 1e3))
    assert 0 < found["forward_latency"].value < found["latency"].value


def test_the_forward_pass_is_the_first_part_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "time_stages", lambda *_: [[1.0, 4.0], [2.0, 5.0], [1.5, 9.0]])
    outcome, _ = _run(tmp_path, names=["reference"])
    found = {row.metric: row.value for row in outcome.rows}
    assert (found["forward_latency"], found["latency"], found["fps"]) == (1.5, 5.0, 400.0)


@pytest.mark.parametrize("dtype", training_workloads.TRAINED_DTYPES)
@pytest.mark.parametrize("part", ["branches", "jpu"])
def test_pytorch_is_no_worse_than_itself(tmp_path, part, dtype):
    # At 16×16, where a gradient is a sum of many terms: whether a ReLU let one pass is a matter of rounding.
    selected = select([part], [(16, 16)], [2], [dtype], ["batch", "frozen"], 8)
    outcome, _ = _run(tmp_path, selected, ["reference"])
    assert outcome.failures == []
    assert len(_timed(outcome.rows)) == 2 * len(selected)


def test_saved_memory_is_what_pytorchs_operators_keep(tmp_path):
    """Frozen norms: of each branch the input of norm, pointwise convolution and norm, and the ReLU's result."""
    outcome, _ = _run(tmp_path, [replace(SMALL, norms="frozen")], ["reference"])
    found = {row.metric: row.value * 2**20 for row in outcome.rows if row.case["memory_format"] == "contiguous"}
    pixels, channels = 2 * 5 * 6, 4
    concatenated = 3 * channels
    activations = concatenated + 4 * (2 * concatenated + 2 * channels)
    assert found["saved_memory"] == pytest.approx(4 * pixels * activations, rel=0.1)
    weights = 4 * (9 * concatenated + concatenated * channels + 3 * (concatenated + channels))
    assert found["saved_inputs"] == 4 * weights


def test_memory_of_the_compilers_graphs_is_not_that_of_a_pass():
    has_graphs = {name for name, provider in TRAINING.items() if training._has_graphs(provider)}
    assert has_graphs == {"compiled", "cuda-compiled"}


def _in_one_format(monkeypatch, name):
    monkeypatch.setitem(TRAINING, name, replace(TRAINING[name], formats=("channels_last",)))


@pytest.mark.parametrize("part", training_workloads.STEPS)
def test_a_step_is_verified_and_timed(tmp_path, monkeypatch, part):
    _in_one_format(monkeypatch, "reference")
    outcome, _ = _run(tmp_path, [replace(STEP, part=part)], ["reference"])
    assert outcome.failures == []
    assert _timed(outcome.rows) == [("reference", "channels_last")]


# --- what a workload is ----------------------------------------------------------------------------------


def test_results_are_output_gradients_and_statistics(prepared):
    names = set(prepared.truth)
    parameters, buffers = (dict(getattr(prepared.model, f"named_{kind}")()) for kind in ("parameters", "buffers"))
    gradients = {f"gradient of {name}" for name in [*parameters, *(f"input {i}" for i in range(3))]}
    assert names == {"output"} | gradients | set(buffers)
    assert len(buffers) == 4 * 2 * 3
    assert prepared.truth["output"].value.shape == (2, 16, 5, 6)


@pytest.mark.parametrize(("norms", "moves"), [("batch", True), ("frozen", False)])
def test_statistics_move_where_they_are_the_batchs(norms, moves):
    prepared = training_workloads.prepare(replace(SMALL, norms=norms), CPU)
    for name, buffer in prepared.model.named_buffers():
        assert prepared.truth[name].value.equal(buffer.double()) != moves
    assert len(list(prepared.model.buffers())) == 24


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("tf32", torch.float32)])
def test_weights_are_float32_and_features_what_the_dtype_says(dtype, expected):
    prepared = training_workloads.prepare(replace(SMALL, dtype=dtype), CPU)
    assert {x.dtype for x in prepared.model.parameters()} == {torch.float32}
    assert {x.dtype for x in prepared.inputs} == {expected}
    assert {prepared.truth[name].dtype for name in ("output", "gradient of input 0")} == {expected}
    assert prepared.truth["gradient of jpu.dilation1.0.conv1.weight"].dtype == torch.float32
    eps = torch.finfo(expected).eps if dtype == "bfloat16" else 2**-10
    assert eps / 100 < prepared.truth["output"].error < 100 * eps


def test_a_step_has_the_loss_of_both_heads_and_one_truth_for_each_part():
    model, (images, masks), _ = training_workloads._build_step(STEP, CPU)
    logits, auxiliary = copy.deepcopy(model).model(images)
    losses = [nn.functional.cross_entropy(x, masks) for x in (logits, auxiliary)]
    torch.testing.assert_close(copy.deepcopy(model)(images, masks), losses[0] + 0.4 * losses[1])
    assert images.shape == (2, 3, 32, 48)
    assert not images[0].equal(images[1])
    assert isinstance(model.model.jpu, JointPyramid)
    found = training_workloads._compared(STEP, Pass(model, [images, masks], None, None).results())
    parts = ("pretrained", "jpu", "head", "auxlayer")
    assert set(found) == {"output", *(f"{kind} of {part}" for part in parts for kind in ("gradient", "statistics"))}
    count = sum(x.numel() for x in model.model.jpu.parameters())
    assert found["gradient of jpu"].shape == (count,)


def test_where_rounding_may_decide_a_relu_the_gradient_is_zero(prepared):
    output, gradient = prepared.truth["output"].value, prepared.gradient
    undecided = gradient == 0
    assert 0 < undecided.double().mean() < 0.1
    least = output[~undecided & (output > 0)].min()
    assert least > 0.01
    assert output[undecided].max() <= least


@pytest.mark.parametrize(("part", "dtype"), [("branches", "bfloat16"), ("jpu", "tf32")])
def test_the_truth_is_that_of_float64(part, dtype):
    """Seen by the gradient of the output norms' biases, a sum."""
    prepared = training_workloads.prepare(replace(SMALL, part=part, dtype=dtype), CPU)
    passes = prepared.truth["output"].value > 0
    expected = (prepared.gradient.double() * passes).sum((0, 2, 3))
    for i, bias in enumerate(expected.chunk(4), start=1):
        truth = prepared.truth[f"gradient of jpu.dilation{i}.1.bias"].value
        torch.testing.assert_close(truth, bias, rtol=1e-12, atol=1e-12)


def test_a_relu_within_may_be_of_another_mind_in_float32():
    """Gradients of a whole JPU are held to TF32's error, its output and the gradients of branches are not."""
    branches, jpu = (training_workloads.prepare(replace(SMALL, part=part), CPU).truth for part in ("branches", "jpu"))
    assert jpu["output"].error < 1e-5
    assert branches["gradient of input 0"].root_mean_square < 1e-5
    assert jpu["gradient of input 0"].root_mean_square > 1e-5


def test_the_dilated_twin_has_no_jpu():
    model, *_ = training_workloads._build_step(replace(STEP, part="dilated"), CPU)
    assert model.model.jpu is None


def test_a_pass_starts_from_the_same_statistics_and_leaves_no_gradients(prepared):
    model, inputs, gradient = prepared.in_format("contiguous")
    step = Pass(model, inputs, gradient, None)
    first = step.results()
    step.forward()
    step.backward()
    again = step.results()
    assert first.keys() == again.keys()
    assert all(again[name].equal(value) for name, value in first.items())
    assert all(x.grad is None for x in [*inputs, *model.parameters()])


def test_a_pass_of_a_step_moves_the_weights_and_its_results_do_not():
    layer = nn.Conv2d(3, 2, 1)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    step = Pass(layer, [torch.randn(1, 3, 4, 4)], torch.ones(1, 2, 4, 4), None, optimizer=optimizer)
    step.results()
    assert layer.weight.equal(before)
    step.forward()
    step.backward()
    assert not layer.weight.equal(before)


# --- verification ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["output", "gradient of input 2", "gradient of jpu.dilation3.0.bn.weight", "jpu.dilation4.1.running_var"]
)
def test_each_result_is_held_to_the_truth(prepared, name):
    model, inputs, gradient = prepared.in_format("channels_last")
    found = Pass(model, inputs, gradient, None).results()
    prepared.assert_right(found)
    with pytest.raises(WrongResultError, match=f"^{name}: error: expected at most"):
        prepared.assert_right({**found, name: found[name] * 1.001})
    del found[name]
    with pytest.raises(WrongResultError, match=f"results: expected the truth's, which differ in {name}"):
        prepared.assert_right(found)


def test_a_wrong_provider_is_not_timed(tmp_path, monkeypatch):
    @contextmanager
    def wrongly(provider, model, *arguments):
        with torch.no_grad():
            model.jpu.dilation4[1].weight.mul_(1.01)
        with passes_serve(provider, model, *arguments) as step:
            yield step

    passes_serve = passes.serve
    monkeypatch.setattr(passes, "serve", wrongly)
    outcome, output = _run(tmp_path, names=["reference"])
    assert outcome.rows == []
    assert all(reason.startswith("WrongResultError: output: error: ") for _, reason in outcome.failures)
    assert outcome.code == 1
    assert "· reference: failed, WrongResultError" in output


# --- kernels ---------------------------------------------------------------------------------------------


def test_kernels_that_do_not_take_the_branches_are_skipped_with_the_reason(tmp_path, monkeypatch):
    def hooked(workload, device):
        prepared = training_workloads.prepare(workload, device)
        prepared.model.jpu.dilation2.register_forward_hook(lambda *_: None)
        return prepared

    monkeypatch.setattr(training, "prepare", hooked)
    outcome, _ = _run(tmp_path, [replace(SMALL, norms="frozen")], ["host"])
    ((_, reason),) = outcome.skipped
    assert "PyTorch serves the branches (dilation2 has hooks)" in reason
    assert outcome.failures == []


def test_a_policy_that_another_serves_is_not_timed_as_itself():
    model, inputs, gradient = training_workloads.prepare(replace(SMALL, norms="frozen"), CPU).in_format("channels_last")
    message = "policy 'mma' does not take this, 'fma' does: "
    with (
        pytest.raises(BackendUnavailableError, match=message),
        passes.serve(Provider("host", policy="mma", arch=80), model, inputs, gradient, tf32=False),
    ):
        pass


def test_kernels_are_verified_and_timed(tmp_path):
    outcome, _ = _run(tmp_path, [replace(SMALL, norms="frozen")], ["reference", "host"])
    assert outcome.failures == []
    assert _timed(outcome.rows)[-1] == ("host", "channels_last")
    saved = {row.provider: row.value for row in outcome.rows if row.metric == "saved_memory"}
    assert saved["host"] < saved["reference"]


def test_who_serves_the_jpu_of_a_whole_network_is_found_out_without_changing_it():
    model, inputs, _ = training_workloads._build_step(STEP, CPU)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert passes._explanation(model, inputs).reason == "auto, and kernels serve CUDA tensors; got cpu"
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not model.model.jpu._forward_pre_hooks


def test_the_compiler_gets_its_mode_and_inputs_that_stay(prepared, monkeypatch):
    found = []

    def compile(model, mode, dynamic):
        found.append((mode, dynamic))
        return model

    monkeypatch.setattr(torch, "compile", compile)
    for name in ("compiled-default", "compiled"):
        with passes.serve(TRAINING[name], *prepared.in_format("channels_last")) as step:
            assert all(x._dynamo_static_input_type == "unguarded" for x in step._inputs)
            prepared.assert_right(step.results())
    assert found == [("default", False), ("max-autotune", False)]


def test_compiled_code_is_verified_timed_and_weighed(tmp_path, monkeypatch):
    _in_one_format(monkeypatch, "compiled-default")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, the compiler's code sums in another order, and is less exact than eager
    try:
        outcome, _ = _run(tmp_path, [SMALL], ["compiled-default"])
    finally:
        torch.set_num_threads(threads)
    assert outcome.failures == []
    assert _timed(outcome.rows) == [("compiled-default", "channels_last")]
    assert all(row.value > 0 for row in outcome.rows if row.metric == "saved_memory")


# --- runs and the command --------------------------------------------------------------------------------

COMMAND = ["training", "--device", "cpu", "--parts", "branches", "--channels", "4", "--seconds", "0.001"]
COMMAND += ["--shapes", "5x6", "--providers", "reference", "cuda", "--dtypes", "float32"]


def test_a_run_that_was_cut_goes_on(tmp_path):
    _run(tmp_path)
    path = tmp_path / "rows.jsonl"
    lines = path.read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["case"]["memory_format"] == "contiguous"]
    path.write_text("\n".join(kept) + "\n")
    outcome, output = _run(tmp_path, resume=True)
    assert _timed(outcome.rows) == [("reference", "contiguous"), ("reference", "channels_last")]
    assert len(results.runs(results.read(path))) == 1
    assert len(output.splitlines()) == 1


def test_the_command_makes_rows_table_and_chart(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    assert main([*COMMAND, "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert {(row.case["norms"], row.case["batch"]) for row in results.read(path)} == {("batch", 2), ("frozen", 2)}
    assert "branches, frozen" in printed
    assert "skipped 4: backend 'cuda' needs tensors on cuda, got cpu" in printed
    assert f"chart: {path.with_suffix('.png')}" in printed
    assert path.with_suffix(".png").exists()


def test_without_eager_mode_the_command_says_why_there_is_no_chart(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.jsonl"
    arguments = [*COMMAND, "--norms", "frozen", "--output", str(path)]
    arguments[arguments.index("reference")] = "host"
    assert main(arguments) == 0
    assert "chart: none (expected rows of PyTorch, eager, got none)" in capsys.readouterr().out
    assert not path.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "fastfcn"], "invalid choice: 'fastfcn'"),
        (["--dtypes", "float16"], "invalid choice: 'float16'"),
        (["--norms", "group"], "invalid choice: 'group'"),
        (["--providers", "gemm"], "invalid choice: 'gemm'"),
        (["--batches", "0"], "argument --batches: expected a whole number >= 1, got '0'"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["training", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err

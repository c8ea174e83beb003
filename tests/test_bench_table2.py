"""Measuring the paper's table: every case checked, then measured; failures reported, rows kept."""

import io
import json

import pytest
import torch
from rich.console import Console
from strategies import needs_host
from torch import nn

from benchmarks import cases, measure, providers, results, systems, table2, verify
from benchmarks.__main__ import main
from benchmarks.cases import Case
from jpu_cuda import JPU

CPU = torch.device("cpu")
# The least of timm's, for tests that any backbone serves.
BACKBONE = "test_resnet.r160_in1k"
SMALL = {"size": 64, "num_classes": 5}


class _Tiny(nn.Module):
    """Stands in for a FastFCN where a test is about what is done with a model."""

    def __init__(self, scale: float = 1.0, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1, stride=stride)
        self.scale = scale

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.conv(images) * self.scale,)


class _WithJpu(nn.Module):
    """Likewise, where the network has a JPU for kernels to serve."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.ModuleDict({"jpu": JPU([3, 3, 3], width=4)})
        self.head = nn.Conv2d(16, 5, 1)
        self.eval()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        levels = [nn.functional.avg_pool2d(images, stride) for stride in (8, 16, 32)]
        logits = self.head(self.neck["jpu"](images, *levels)[-1])
        return (nn.functional.interpolate(logits, images.shape[2:]),)


@pytest.fixture
def tiny(monkeypatch):
    """Makes every case a tiny model, or what the test assigns to a (backbone, head, upsampling)."""
    replies: dict[tuple[str, str, str], object] = {}

    def build(case: Case, device: torch.device) -> nn.Module:
        reply = replies.get(case.system, _Tiny())
        if isinstance(reply, BaseException):
            raise reply
        return reply

    monkeypatch.setattr(systems, "build_model", build)
    return replies


SELECTED = cases.select(["resnet50"], ["encoding"], ["none", "bilinear", "jpu"], **SMALL)


def _run(tmp_path, **changes):
    console = Console(file=io.StringIO(), width=120, force_terminal=changes.pop("terminal", False))
    arguments = {
        "selected": SELECTED,
        "names": ["reference"],
        "device": CPU,
        "seconds": 0.01,
        "output": tmp_path / "rows.jsonl",
        "console": console,
        **changes,
    }
    return table2.run(**arguments), console.file.getvalue()


def test_every_case_has_every_metric(tmp_path, tiny):
    outcome, _ = _run(tmp_path)
    found = {(row.case["upsampling"], row.metric) for row in outcome.rows}
    # Peak memory is there too where the system has a figure; its own tests hold it to account.
    wanted = ("latency", "fps", "parameters", "multiply_adds")
    assert found >= {(case.upsampling, metric) for case in SELECTED for metric in wanted}


def test_rows_are_in_the_file(tmp_path, tiny):
    outcome, _ = _run(tmp_path)
    assert results.read(tmp_path / "rows.jsonl") == outcome.rows


def test_frames_per_second_follow_from_the_latency(tmp_path, tiny):
    (case,) = cases.select(["resnet50"], ["psp"], ["jpu"], batch=3, **SMALL)
    outcome, _ = _run(tmp_path, selected=[case])
    latency, fps = outcome.rows[:2]
    assert fps.value == pytest.approx(3000 / latency.value)
    assert fps.quantiles["p5"] == pytest.approx(3000 / latency.quantiles["p95"])
    assert fps.quantiles["p75"] == pytest.approx(3000 / latency.quantiles["p25"])
    assert fps.quantiles["p5"] <= fps.value <= fps.quantiles["p95"]


def test_a_failed_case_does_not_cost_the_others(tmp_path, tiny):
    tiny["resnet50", "encoding", "bilinear"] = torch.OutOfMemoryError("no more\nstack")
    outcome, output = _run(tmp_path)
    assert outcome.failures == [("ResNet-50 · Encoding · Bilinear", "OutOfMemoryError: no more")]
    assert "Bilinear: failed, OutOfMemoryError: no more" in output
    assert [row.case["upsampling"] for row in results.read(tmp_path / "rows.jsonl") if row.metric == "fps"] == [
        "none",
        "jpu",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Tiny(scale=float("nan")), "logits: expected finite values, got 20480 of 20480 that are not"),
        (_Tiny(stride=2), "logits: expected shape (1, 5, 64, 64), got (1, 5, 32, 32)"),
    ],
    ids=["nan", "shape"],
)
def test_a_wrong_output_is_not_timed(tmp_path, tiny, monkeypatch, model, message):
    timed = []
    monkeypatch.setattr(measure, "time_calls", lambda *_: timed.append(1))
    tiny["resnet50", "encoding", "none"] = model
    outcome, _ = _run(tmp_path, selected=SELECTED[:1])
    assert outcome.failures == [("ResNet-50 · Encoding · Dilated", f"ValueError: {message}")]
    assert timed == []
    assert not (tmp_path / "rows.jsonl").exists()


def test_an_interrupt_keeps_what_was_measured(tmp_path, tiny):
    tiny["resnet50", "encoding", "bilinear"] = KeyboardInterrupt()
    outcome, output = _run(tmp_path)
    assert outcome.interrupted
    assert {row.case["upsampling"] for row in results.read(tmp_path / "rows.jsonl")} == {"none"}
    assert "interrupted; what was measured is kept" in output


def test_cases_can_be_left_out_on_the_way(tmp_path, tiny):
    outcome, _ = _run(tmp_path, more=lambda case: case.upsampling == "jpu")
    assert {row.case["upsampling"] for row in outcome.rows} == {"jpu"}


def test_what_a_provider_cannot_serve_here_is_skipped(tmp_path, tiny):
    outcome, _ = _run(tmp_path, names=["reference", "cuda", "reference-graph"], selected=SELECTED[2:])
    assert {row.provider for row in outcome.rows} == {"reference"}
    assert outcome.failures == []
    (first, no_kernels), (second, no_graph) = outcome.skipped
    assert (first, second) == tuple(f"ResNet-50 · Encoding · JPU · {name}" for name in ("cuda", "reference-graph"))
    assert no_kernels.startswith("backend 'cuda' ")
    assert no_graph == "CUDA graphs need a CUDA device, got cpu"


def test_the_first_heads_come_first_what_is_compiled_last_and_only_a_jpu_is_served_in_several_ways():
    selected = [
        case
        for batch in (1, 16)
        for case in cases.select(["resnet50"], ["encoding", "psp"], ["fpn", "jpu"], batch=batch, **SMALL)
    ]
    names = ["reference", "reference-graph", "cuda", "compiled-jpu-graph"]
    jobs = [(case.head, case.batch, case.upsampling, name) for case, name in table2.jobs_in_order(selected, names)]
    assert jobs == [
        (head, batch, upsampling, name)
        for head in ("encoding", "psp")
        for batch in (1, 16)
        for upsampling, served in (("fpn", names[:2]), ("jpu", names[:3]))
        for name in served
    ] + [(head, batch, "jpu", names[3]) for head in ("encoding", "psp") for batch in (1, 16)]


def test_a_budget_ends_a_run_that_another_goes_on_with(tmp_path, tiny):
    first, _ = _run(tmp_path, selected=SELECTED[:1])
    cut, _ = _run(tmp_path, budget=1e-9, resume=True)
    assert cut.skipped == [(case.label, "the budget of 1e-09 s is spent") for case in SELECTED[1:]]
    assert cut.rows == first.rows
    whole, _ = _run(tmp_path, resume=True)
    assert whole.rows[: len(first.rows)] == first.rows
    assert [row.case["upsampling"] for row in whole.rows if row.metric == "fps"] == ["none", "bilinear", "jpu"]
    assert len({row.run for row in whole.rows}) == 1
    assert results.read(tmp_path / "rows.jsonl") == whole.rows


@needs_host
def test_kernels_serve_a_networks_jpu_and_are_held_to_the_truth(tmp_path, tiny, monkeypatch):
    (case,) = SELECTED[2:]
    tiny[case.system] = _WithJpu()
    outcome, _ = _run(tmp_path, names=["reference", "host"], selected=[case])
    assert (outcome.failures, outcome.skipped) == ([], [])
    assert {row.provider for row in outcome.rows if row.metric == "peak_memory"} <= {"reference", "host"}

    def wrong(*_: object, **__: object) -> None:
        raise verify.WrongResultError("error: expected at most 0, got 1")

    monkeypatch.setattr(verify, "assert_no_worse", wrong)
    outcome, _ = _run(tmp_path, names=["reference", "host"], selected=[case])
    assert {row.provider for row in outcome.rows} == {"reference"}
    assert outcome.failures[0][0].endswith(" · JPU · host")


def test_the_compiler_may_have_the_jpu_alone(tmp_path, monkeypatch):
    compiled = []

    class Compiled(nn.Module):
        def __init__(self, module: nn.Module, **options: object) -> None:
            super().__init__()
            self.module = module
            compiled.append((module, options))

        def forward(self, *levels: torch.Tensor) -> object:
            return self.module(*levels)

    monkeypatch.setattr(torch, "compile", Compiled)
    model = _WithJpu()
    own = model.neck["jpu"]
    images = torch.ones(1, 3, 64, 64)
    with providers.serve(providers.PROVIDERS["compiled-jpu"], model, [images]) as call:
        assert isinstance(model.neck["jpu"], Compiled)
        assert call()[0].shape == (1, 5, 64, 64)
    assert model.neck["jpu"] is own
    assert compiled == [(own, {"mode": "max-autotune-no-cudagraphs", "dynamic": False})]
    unserved = providers.serve(providers.PROVIDERS["compiled-jpu"], _Tiny(), [images])
    with pytest.raises(ValueError, match="expected a network with a JPU in it, got _Tiny"), unserved:
        pass


def test_without_a_terminal_each_case_is_a_line(tmp_path, tiny):
    _, output = _run(tmp_path)
    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == [case.label for case in SELECTED]
    assert "\x1b" not in output


def test_on_a_terminal_there_is_a_bar(tmp_path, tiny):
    _, output = _run(tmp_path, terminal=True)
    assert "━" in output


def test_the_image_is_the_photograph_normalised():
    images = systems.build_input(Case("resnet50", "psp", "jpu", size=64, batch=2), CPU)
    assert images.shape == (2, 3, 64, 64)
    assert images[0].equal(images[1])
    # A photograph under ImageNet's statistics: no constant, nor noise of one standard deviation.
    assert abs(images.mean()) < 1.5
    assert 0.5 < images.std() < 1.5
    assert (images[..., 1:] - images[..., :-1]).abs().mean() < 0.5 * images.std()


@pytest.mark.parametrize("memory_format", cases.MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_input_and_model_have_the_cases_dtype_and_layout(dtype, memory_format):
    case = Case(BACKBONE, "fcn", "jpu", dtype=dtype, memory_format=memory_format, batch=2, **SMALL)
    layout = systems.memory_format(case)
    images, model = systems.build_input(case, CPU), systems.build_model(case, CPU)
    assert images.is_contiguous(memory_format=layout)
    weights = [p for p in model.parameters() if p.dim() == 4]
    assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
    assert {p.dtype for p in (images, *weights)} == {getattr(torch, dtype)}


def test_a_deep_models_activations_are_far_from_float16s_limit():
    case = Case("resnet101", "encoding", "jpu", **SMALL)
    model = systems.build_model(case, CPU)
    largest: list[float] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda _module, _inputs, out: largest.append(out.abs().max().item()))
    with torch.inference_mode():
        model(systems.build_input(case, CPU))
    # 65,504; with the statistics that norms start from it is passed in layer 4.
    assert max(largest) < torch.finfo(torch.float16).max / 100


def test_norms_are_in_eval_mode_with_their_own_momentum():
    model = systems.build_model(Case(BACKBONE, "encoding", "jpu", **SMALL), CPU)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not any(module.training for module in model.modules())
    assert {norm.momentum for norm in norms} == {nn.BatchNorm2d(1).momentum}


def test_the_command_measures_a_dilated_backbone_against_jpu(tmp_path, capsys):
    output = tmp_path / "rows.jsonl"
    filters = ["--backbones", "resnet50", "--heads", "encoding", "--upsamplings", "none", "jpu"]
    code = main([*filters, "--size", "64", "--seconds", "0.01", "--output", str(output)])
    assert code == 0
    values = {}
    for line in output.read_text().splitlines():
        row = json.loads(line)
        values[row["case"]["upsampling"], row["metric"]] = row["value"]
    # Dilation keeps layers 3 and 4 at stride 8: more work in fewer parameters.
    assert values["none", "multiply_adds"] > 1.5 * values["jpu", "multiply_adds"]
    assert values["none", "parameters"] < values["jpu", "parameters"]
    assert output.with_suffix(".png").exists()
    printed = capsys.readouterr().out
    assert "ResNet-50" in printed
    assert "1.00×" in printed


def test_the_command_fails_where_a_case_failed(tmp_path, tiny, capsys):
    tiny["resnet50", "fcn", "jpu"] = RuntimeError("broken")
    arguments = ["table2", "--backbones", "resnet50", "--heads", "fcn", "--size", "64", "--seconds", "0.01"]
    # The tiny model has five classes and the command asks for 59, so the other case fails its check.
    code = main([*arguments, "--output", str(tmp_path / "rows.jsonl")])
    assert code == 1
    errors = capsys.readouterr().err.splitlines()
    assert "failed: ResNet-50 · FCN · JPU: RuntimeError: broken" in errors
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "unet"], "invalid choice: 'unet'"),
        (["--upsamplings", "deconv"], "invalid choice: 'deconv'"),
        (["--providers", "fast"], "invalid choice: 'fast'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--size", "0"], "argument --size: expected a whole number >= 1, got '0'"),
        (["--batches", "two"], "argument --batches: expected a whole number >= 1, got 'two'"),
        (["--seconds", "-1"], "argument --seconds: expected a number > 0, got '-1'"),
        (["--seconds", "soon"], "argument --seconds: expected a number > 0, got 'soon'"),
        (["--device", "abacus"], "argument --device: expected auto, cpu or cuda, got 'abacus'"),
        (["--device", "cuda:99"], "argument --device: expected a device among "),
        (["measure"], "invalid choice: 'measure'"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_source_hash_is_printed(capsys):
    assert main(["source-hash"]) == 0
    assert len(bytes.fromhex(capsys.readouterr().out.strip())) == 32

"""The benchmark of training on a GPU: every provider that can serve there is right."""

import io

import pytest
import torch
from rich.console import Console

from benchmarks import training, training_workloads
from benchmarks.providers import TRAINING, TRAINING_DEFAULT
from benchmarks.training_workloads import TrainingWorkload

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
# The compiler takes minutes; the benchmark itself, which a check on a GPU runs too, has it.
LAUNCHED = [name for name in TRAINING_DEFAULT if not TRAINING[name].compiled]


@pytest.mark.parametrize("dtype", training_workloads.TRAINED_DTYPES)
@pytest.mark.parametrize(
    ("part", "norms"), [("branches", "batch"), ("branches", "frozen"), ("jpu", "batch"), ("step", "batch")]
)
def test_every_provider_is_right_or_says_why_it_does_not_serve(tmp_path, part, norms, dtype):
    workload = TrainingWorkload(part, 32, 24, 4, dtype, channels=64, norms=norms)
    path, console = tmp_path / "rows.jsonl", Console(file=io.StringIO())
    outcome = training.run([workload], LAUNCHED, CUDA, 0.01, 1e3, path, console)
    # cuDNN may sum otherwise: less exact than eager, some settings may be.
    ours = [pair for pair in outcome.failures if pair[0].split(" · ")[1].startswith("cuda")]
    assert ours == []
    names = {row.provider for row in outcome.rows}
    assert "reference" in names
    if norms == "frozen":
        assert {"cuda", "cuda-fma"} <= names
    peaks = [row.value for row in outcome.rows if row.metric == "peak_memory"]
    assert len(peaks) == sum(row.metric == "latency" for row in outcome.rows)
    saved = [row.value for row in outcome.rows if row.metric == "saved_memory"]
    # What is kept for the backward pass is part of the peak.
    assert all(0 < kept < peak for kept, peak in zip(saved, peaks, strict=True))

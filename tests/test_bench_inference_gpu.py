"""The benchmark of inference on a GPU: every provider that can serve there is right, and captured graphs are live."""

import pytest
import torch
from inference_runs import run, timed

from benchmarks import workloads
from benchmarks.providers import DEFAULT, PROVIDERS, serve
from benchmarks.workloads import Workload

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
# The compiler takes minutes; the benchmark itself, which a check on a GPU runs too, begins it last.
LAUNCHED = [name for name in DEFAULT if not PROVIDERS[name].compiled]


@pytest.mark.parametrize("dtype", workloads.DTYPES)
@pytest.mark.parametrize("part", ["branches", "jpu"])
def test_every_provider_is_right_or_says_why_it_does_not_serve(tmp_path, part, dtype):
    workload = Workload(part, 20, 12, 3, dtype, channels=64)
    outcome, _ = run(tmp_path, [workload], LAUNCHED, device=CUDA, seconds=0.01)
    # Folding rounds weights anew, and cuDNN may sum otherwise: less exact than eager, some may be.
    assert [pair for pair in outcome.failures if "cuda" in pair[0].split(" · ")[1]] == []
    names = {name for name, _ in timed(outcome.rows)}
    assert {"reference", "cuda", "cuda-graph", "cuda-fma", "cuda-fma-graph"} <= names
    assert any(name.endswith("-graph") for name in names if not name.startswith("cuda"))
    if dtype in ("bfloat16", "float16"):
        assert {"cuda-mma", "cuda-two-pass"} <= names
    shares = [row.value for row in outcome.rows if row.metric == "of_ceiling"]
    assert all(0 < share < 110 for share in shares)


@pytest.mark.parametrize("name", ["reference-graph", "folded-graph", "cuda-graph"])
def test_a_graph_computes_anew_from_what_stands_in_its_inputs(name):
    prepared = workloads.prepare(Workload("branches", 12, 8, 1, "float32", channels=64), PROVIDERS["reference"], CUDA)
    model, inputs = prepared.in_format("channels_last")
    with serve(PROVIDERS[name], model, inputs, tf32=False) as call:
        before = call().clone()
        for level in inputs:
            level.mul_(2)
        after = call().clone()
    assert not after.equal(before)
    with serve(PROVIDERS["reference"], model, inputs, tf32=False) as call:
        torch.testing.assert_close(after, call(), rtol=1e-4, atol=1e-4)

"""The demo and the equivalence check that it begins with."""

import io

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from benchmarks import cases, demo, equivalence, learning, results, systems
from benchmarks.equivalence import Check
from benchmarks.scenes import CLASSES
from jpu_cuda import JPU, models


def test_the_modules_agree_with_the_loops():
    checks = equivalence.check_all()
    assert {(check.name, check.dtype) for check in checks} == {
        (name, dtype) for name in ("jpu_cuda.JPU", "jpu_cuda.mmseg.JPU") for dtype in (torch.float64, torch.float32)
    }
    assert all(check.holds for check in checks)


class _OffBy(JPU):
    """A JPU whose output is wrong by a constant."""

    offset = 0.0

    def pyramid(self, levels):
        return super().pyramid(levels) + self.offset


@pytest.mark.parametrize("offset", [1e-9, float("nan")])
def test_a_module_that_is_off_is_caught(offset):
    module = _OffBy((4, 4, 4), width=8).double().eval()
    levels = [torch.randn(1, 4, size, size, dtype=torch.float64) for size in (8, 4, 2)]
    assert equivalence.check("JPU", module, levels).holds
    module.offset = offset
    assert not equivalence.check("JPU", module, levels).holds


def _printed(table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(("holds", "word"), [(True, "yes"), (False, "NO")])
def test_the_table_says_whether_a_check_holds(holds, word):
    assert word in _printed(equivalence.render([Check("JPU", torch.float32, 1e-3, 1e-6, holds)]))


class _Pixelwise(nn.Module):
    """Stands in for the systems, which take too long for a test."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, images):
        return (self.conv(images),)


@pytest.fixture
def quick(monkeypatch):
    """Makes the demo small: one step of training, two unseen scenes, two heads on a quickly computed model."""
    monkeypatch.setattr(systems, "build_model", lambda case, device: _Pixelwise())
    monkeypatch.setattr(demo, "_TRAINING_STEPS", 1)
    monkeypatch.setattr(learning, "UNSEEN", 2)
    monkeypatch.setattr(demo, "_SECONDS", 0.01)
    selected = cases.select(["resnet50"], ["encoding", "psp"], ["none", "jpu"], size=64, num_classes=5)
    monkeypatch.setattr(demo, "_cases", lambda: selected)


def _run(folder, budget: float) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    return demo.run(folder, console, budget), console.file.getvalue()


def test_the_demo_makes_rows_table_chart_weights_and_masks(tmp_path, quick):
    code, printed = _run(tmp_path / "out", budget=1000)
    assert code == 0
    rows = results.read(tmp_path / "out" / "table2.jsonl")
    assert {(row.case["head"], row.case["upsampling"]) for row in rows} == {
        (head, upsampling) for head in ("encoding", "psp") for upsampling in ("none", "jpu")
    }
    assert "| ResNet-50 | PSP | JPU |" in (tmp_path / "out" / "table2.md").read_text(encoding="utf-8")
    assert models.load(tmp_path / "out" / "scenes.pth").config["num_classes"] == len(CLASSES)
    for name in ("table2", "photograph_mask", "photograph_overlay", "scene_mask", "scene_overlay"):
        path = tmp_path / "out" / f"{name}.png"
        assert min(Image.open(path).size) >= 96
        assert f"wrote {path}" in printed


def test_the_demo_says_what_its_masks_are_worth(tmp_path, quick):
    _, printed = _run(tmp_path, budget=1000)
    assert "on generated scenes" in printed
    assert "nothing of photographs" in printed


def test_the_demo_leaves_out_what_its_budget_does_not_allow(tmp_path, quick):
    code, _ = _run(tmp_path, budget=0.001)
    assert code == 0
    assert {row.case["head"] for row in results.read(tmp_path / "table2.jsonl")} == {"encoding"}


def test_the_demo_times_nothing_if_a_check_does_not_hold(tmp_path, quick, monkeypatch):
    wrong = Check("JPU", torch.float64, 1e-3, 1e-12, holds=False)
    monkeypatch.setattr(equivalence, "check_all", lambda: [wrong])
    code, printed = _run(tmp_path, budget=1000)
    assert code == 1
    assert "nothing was timed" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_demo_fails_with_a_case(tmp_path, quick, monkeypatch):
    def build(case, device):
        if case.upsampling == "jpu":
            raise RuntimeError("broken")
        return _Pixelwise()

    monkeypatch.setattr(systems, "build_model", build)
    code, printed = _run(tmp_path, budget=1000)
    assert code == 1
    assert "failed: ResNet-50 · PSP · JPU: RuntimeError: broken" in printed
    assert (tmp_path / "table2.png").exists()

"""``make demo``: checks the modules, times dilated backbones against JPU, trains a small model, shows it all."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from jpu_cuda import explain, models
from jpu_cuda.segment import mask_image, overlay, segment_image

from . import cases, chart, equivalence, learning, report, systems, table2
from .cases import Case
from .scenes import CLASSES, Scenes

# Seconds for timing each case: 3 repetitions at least where a frame takes longer.
_SECONDS = 4.0
_TRAINING_STEPS = learning.STEPS


def run(output: Path, console: Console, budget: float) -> int:
    """Runs the demo.

    Args:
        output: folder for rows, table, chart, weights and pictures.
        console: where progress and tables are shown.
        budget: seconds in which the last case should end; those of the Encoding head are run anyway.

    Returns:
        0; 1 where a check did not hold or a case failed; 130 after Ctrl-C.
    """
    start = perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    console.rule("1. Do the modules compute what a JPU is?")
    checks = equivalence.check_all()
    console.print(equivalence.render(checks))
    jpu, levels = _small_jpu()
    console.print(f"A call of the JPU is served by {explain(jpu, *levels)}", highlight=False)
    if not all(check.holds for check in checks):
        console.print("[bold red]They do not; nothing was timed.")
        return 1

    console.rule("2. A small FastFCN learns generated scenes")
    trained = _train(console)
    console.print(learning.render({"jpu": trained}))

    console.rule("3. Dilated backbone against JPU, on a photograph")
    selected = _cases()
    begun = [perf_counter() - start]

    def more(case: Case) -> bool:
        """Whether the case is wanted, or fits if it takes as long as the longest one so far."""
        begun.append(perf_counter() - start)
        longest = max(after - before for before, after in pairwise(begun))
        return case.head == "encoding" or begun[-1] + longest < budget

    outcome = table2.run(
        selected,
        ["reference"],
        torch.device("cpu"),
        _SECONDS,
        output / "table2.jsonl",
        console,
        more=more,
    )
    for label, reason in outcome.failures:
        console.print(f"[red]failed: {label}: {reason}")
    if outcome.interrupted:
        return 130
    if not outcome.rows:
        return 1

    console.rule("4. Results")
    table = report.table2(outcome.rows)
    console.print(table.to_rich())
    (output / "table2.md").write_text(table.to_markdown(), encoding="utf-8")
    chart.draw(outcome.rows, output / "table2.png")
    models.save_weights(trained.model, output / "scenes.pth")
    _show(trained, output)
    console.print(
        f"The masks are by a model trained for {trained.seconds:.0f} s on generated scenes of "
        f"{', '.join(CLASSES[1:])}: it knows these shapes and nothing of photographs."
    )
    for path in sorted(output.iterdir()):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    console.print(f"{perf_counter() - start:.0f} s in all")
    return 1 if outcome.failures else 0


def _cases() -> list[Case]:
    """Dilated and JPU for every backbone and head of the table, those of the Encoding head first."""
    selected = cases.select(upsamplings=("none", "jpu"))
    return sorted(selected, key=lambda case: case.head != "encoding")


def _small_jpu() -> tuple[torch.nn.Module, list[torch.Tensor]]:
    model = learning.build("jpu").eval()
    assert model.jpu is not None
    return model.jpu, model.pretrained(torch.zeros(1, 3, 64, 64))


def _train(console: Console) -> learning.Trained:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small are slower on more
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("training", total=1.0)
            return learning.train(
                "jpu",
                steps=_TRAINING_STEPS,
                tick=lambda done, loss: progress.update(task, completed=done, description=f"training, loss {loss:.2f}"),
            )
    finally:
        torch.set_num_threads(threads)


def _show(trained: learning.Trained, output: Path) -> None:
    """Mask and overlay of an unseen scene, where the model is at home, and of the photograph."""
    pixels, _ = Scenes(1, learning.SIZE, split="unseen")[0]
    scene = Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())
    for name, image, size, factor in (
        ("scene", scene, None, 4),  # shown enlarged
        ("photograph", systems.photograph(512), 4 * learning.SIZE, 1),
    ):
        mask = segment_image(trained.model, image, size)
        for kind, picture in (
            ("input", image),
            ("mask", mask_image(mask, len(CLASSES))),
            ("overlay", overlay(image, mask)),
        ):
            shown = picture.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
            shown.save(output / f"{name}_{kind}.png")

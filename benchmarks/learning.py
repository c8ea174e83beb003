"""Proof that the models learn: ``python -m benchmarks.learning`` trains a small FastFCN on generated scenes.

Each system sees every training scene once and is scored on scenes that it never sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from jpu_cuda import models
from jpu_cuda.models import FastFCN
from jpu_cuda.segment import MEAN, STD

from .scenes import CLASSES, Scenes

BACKBONE = "test_resnet.r160_in1k"
WIDTH = 64
SIZE = 64
STEPS = 450
BATCH = 8
UNSEEN = 64

# AdamW with one cycle: SGD, which the paper trains with for days, is far from converged after seconds.
_LEARNING_RATE = 4e-3
_WARM_UP = 0.2
# Weight of the auxiliary loss (FastFCN's encoding/nn/customize.py).
_AUX_WEIGHT = 0.4

# Told (share done from 0 to 1, loss) after every step.
Tick = Callable[[float, float], None]


@dataclass(frozen=True)
class Scores:
    """How well masks were predicted; all from 0 to 1 and over all pixels of all scenes together.

    Attributes:
        miou: mean over the classes of intersection over union.
        pixel_accuracy: share of pixels that got the right class.
        per_class_iou: class → intersection over union.
    """

    miou: float
    pixel_accuracy: float
    per_class_iou: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """A trained model, in eval mode, and what it reached on unseen scenes.

    Attributes:
        model: expects what :func:`to_input` makes of an image.
        scores: on :data:`UNSEEN` scenes of the other split.
        steps: of the optimizer.
        seconds: of training alone.
    """

    model: FastFCN
    scores: Scores
    steps: int
    seconds: float


def build(upsampling: str) -> FastFCN:
    """A small FastFCN on a timm ResNet with random weights, drawn from torch's global generator.

    Args:
        upsampling: as in :func:`jpu_cuda.models.fastfcn`; ``"none"`` is the dilated twin.
    """
    return models.fastfcn(BACKBONE, upsampling, "fcn", num_classes=len(CLASSES), width=WIDTH, classes=CLASSES)


def loss_of(logits: Tensor, auxiliary: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, plus 0.4 times that of the auxiliary head."""
    return F.cross_entropy(logits, targets) + _AUX_WEIGHT * F.cross_entropy(auxiliary, targets)


def to_input(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] from 0 to 1, normalised as ``python -m jpu_cuda segment`` does it."""
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def train(
    upsampling: str,
    *,
    steps: int = STEPS,
    seed: int = 0,
    shuffle_masks: bool = False,
    tick: Tick = lambda done, loss: None,
) -> Trained:
    """Trains on ``steps`` batches of scenes, each seen once, and scores on unseen ones.

    The loss is :func:`loss_of`. The same seed, steps and number of threads give the same model.

    Args:
        upsampling: as in :func:`jpu_cuda.models.fastfcn`; ``"none"`` is the dilated twin.
        steps: of the optimizer; scenes are drawn for as many batches of 8.
        seed: of the weights and the training scenes; the unseen ones are always the same.
        shuffle_masks: gives every image another one's mask, from which nothing can be learned: a control.
        tick: told how far it is, and the loss.

    Raises:
        ValueError: ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    torch.manual_seed(seed)
    model = build(upsampling).train()
    loader = DataLoader(Scenes(steps * BATCH, SIZE, seed=seed), BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), _LEARNING_RATE)
    # OneCycleLR divides by the steps of its warm-up less one.
    total_steps = max(steps, 10)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=total_steps, pct_start=_WARM_UP, cycle_momentum=False
    )
    start = perf_counter()
    for step, (images, masks) in enumerate(loader, start=1):
        targets = masks.roll(1, 0) if shuffle_masks else masks
        logits, auxiliary = model(to_input(images))
        loss = loss_of(logits, auxiliary, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        tick(step / steps, loss.item())
    seconds = perf_counter() - start
    return Trained(model.eval(), score(lambda x: model(to_input(x))[0].argmax(1)), steps, seconds)


def score(predict: Callable[[Tensor], Tensor]) -> Scores:
    """Scores masks on the unseen scenes.

    Args:
        predict: images [N, 3, H, W] from 0 to 1 → classes [N, H, W].
    """
    iou = MulticlassJaccardIndex(len(CLASSES), average="none")
    accuracy = MulticlassAccuracy(len(CLASSES), average="micro")
    with torch.inference_mode():
        for images, masks in DataLoader(Scenes(UNSEEN, SIZE, split="unseen"), BATCH):
            predicted = predict(images)
            iou.update(predicted, masks)
            accuracy.update(predicted, masks)
    per_class = dict(zip(CLASSES, iou.compute().tolist(), strict=True))
    return Scores(sum(per_class.values()) / len(per_class), float(accuracy.compute()), per_class)


def nearest_colour_predictor() -> Callable[[Tensor], Tensor]:
    """The best that colour alone can do: each of 8×8×8 colours gets the class it has most in training."""
    votes = torch.zeros(8**3, len(CLASSES), dtype=torch.long)
    for image, mask in DataLoader(Scenes(500, SIZE), batch_size=None):
        cells = _colour_cell(image[None]).flatten()
        votes.view(-1).index_add_(0, cells * len(CLASSES) + mask.flatten(), torch.ones_like(cells))
    best = votes.argmax(1)
    return lambda images: best[_colour_cell(images)]


def _colour_cell(images: Tensor) -> Tensor:
    """[N, 3, H, W] from 0 to 1 → index of the colour's cell [N, H, W]."""
    levels = (images * 8).long().clamp_max(7)
    return (levels[:, 0] * 8 + levels[:, 1]) * 8 + levels[:, 2]


def render(results: dict[str, Trained]) -> Table:
    """A column for each system, a line for each class."""
    table = Table("", title=f"IoU on {UNSEEN} unseen scenes of {SIZE}×{SIZE}")
    for name, trained in results.items():
        table.add_column(f"{name}\n{trained.steps} steps\n{trained.seconds:.0f} s", justify="right")
    scores = [trained.scores for trained in results.values()]
    for name in CLASSES:
        table.add_row(name, *(f"{s.per_class_iou[name]:.3f}" for s in scores))
    table.add_section()
    table.add_row("mean", *(f"{s.miou:.3f}" for s in scores))
    table.add_row("pixel accuracy", *(f"{s.pixel_accuracy:.3f}" for s in scores))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the systems that the command line names and prints their scores."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("--upsamplings", nargs="+", default=["jpu", "none"], metavar="NAME")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the optimizer (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    results = {}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for upsampling in options.upsamplings:
            task = progress.add_task(upsampling, total=1.0)

            def tick(done: float, loss: float, task: int = task, name: str = upsampling) -> None:
                progress.update(task, completed=done, description=f"{name}: loss {loss:.3f}")  # type: ignore[arg-type]

            try:
                results[upsampling] = train(upsampling, steps=options.steps, seed=options.seed, tick=tick)
            except ValueError as error:
                parser.error(str(error))
    console.print(render(results))


if __name__ == "__main__":
    main()

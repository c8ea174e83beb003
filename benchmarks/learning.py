"""Proof that the models learn: ``python -m benchmarks.learning`` trains a small FastFCN on generated scenes.

Each system sees every training scene once and is scored on scenes that it never sees.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from jpu_cuda import models

from .scenes import CLASSES, Scenes

BACKBONE = "test_resnet.r160_in1k"
WIDTH = 64
SIZE = 96
STEPS = 200
BATCH = 8
UNSEEN = 64

_LEARNING_RATE = 3e-3
_WARM_UP = 0.1
# Weights of the auxiliary and the SE loss, as in FastFCN's DeepLab script and options.
_AUX_WEIGHT = 0.4
_SE_WEIGHT = 0.2

# Told (share done from 0 to 1, loss) after every step.
Progress_ = Callable[[float, float], None]


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
    """A trained model, in eval mode, and what it reached on unseen scenes."""

    model: nn.Module
    scores: Scores
    steps: int
    seconds: float


def build(upsampling: str) -> nn.Module:
    """A small FastFCN on a timm ResNet with random weights, drawn from torch's global generator.

    Args:
        upsampling: as in :func:`jpu_cuda.models.fastfcn`; ``"none"`` is the dilated twin.
    """
    return models.fastfcn(BACKBONE, upsampling, "encoding", num_classes=len(CLASSES), width=WIDTH)

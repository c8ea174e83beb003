"""From a case to something that runs: the model, set up as a trained one would be, and a real image."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from jpu_cuda import models
from jpu_cuda.segment import to_input

from .cases import Case

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def photograph(width: int, height: int | None = None) -> Image.Image:
    """The photograph that matplotlib ships (Grace Hopper, public domain) in this size; a square without a height."""
    image = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    return ImageOps.fit(image, (width, width if height is None else height))


def build_input(case: Case, device: torch.device) -> Tensor:
    """The photograph ``case.batch`` times, [N, 3, H, W], normalised by ImageNet's mean and deviation."""
    images = to_input(photograph(case.size)).expand(case.batch, -1, -1, -1)
    return images.to(device, dtype(case), memory_format=memory_format(case), copy=True)


def build_model(case: Case, device: torch.device) -> nn.Module:
    """The case's system with random weights, in eval mode.

    Norms get the statistics of their input, as training would give them: with those that a norm starts
    from, activations grow with every block and ResNet-101 leaves float16's range.
    """
    torch.manual_seed(0)
    with device:
        model = models.fastfcn(
            backbone=case.backbone,
            upsampling=case.upsampling,
            head=case.head,
            num_classes=case.num_classes,
            aux=True,
        )
    model.eval()
    _set_statistics(model, device)
    return model.to(dtype(case)).to(memory_format=memory_format(case))


def _set_statistics(model: nn.Module, device: torch.device) -> None:
    image = to_input(photograph(256))
    # Several images, since a norm after global pooling sees one value of each.
    crops = torch.cat(image.split(128, dim=2)).to(device)
    crops = torch.cat(crops.split(128, dim=3))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # running statistics become those of this batch
    with torch.no_grad():
        model(crops)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def check_output(output: tuple[Tensor, ...], case: Case) -> None:
    """Raises ValueError unless a model's output starts with finite logits of the input's size."""
    expected = (case.batch, case.num_classes, case.size, case.size)
    logits = output[0]
    if tuple(logits.shape) != expected:
        raise ValueError(f"logits: expected shape {expected}, got {tuple(logits.shape)}")
    wrong = logits.numel() - int(torch.isfinite(logits).sum())
    if wrong:
        raise ValueError(f"logits: expected finite values, got {wrong} of {logits.numel()} that are not")


def dtype(case: Case) -> torch.dtype:
    """The torch dtype of a case's name for it."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[case.dtype]


def memory_format(case: Case) -> torch.memory_format:
    """The torch memory format of a case's name for it."""
    return FORMATS[case.memory_format]

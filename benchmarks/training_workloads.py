"""What training is measured on: forward and backward of a JPU's branches and of a whole JPU, a step of FastFCN."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from jpu_cuda import models, use_backend

from . import learning
from .passes import GRADIENT, Pass
from .providers import settings
from .scenes import Scenes
from .systems import FORMATS
from .verify import Truth, WrongResultError, assert_no_worse, root_mean_square, with_tf32_operands
from .workloads import CHANNELS, DTYPES, Pyramid, Workload, build_pyramid

PARTS = {
    "branches": "branches",
    "jpu": "JPU",
    "step": "step of FastFCN (ResNet-50, Encoding)",
    "dilated": "step of its dilated twin",
}
STEPS = ("step", "dilated")
NORMS = ("batch", "frozen")
# At stride 8: those of a crop of 480×480 pixels, with which FastFCN is trained.
SHAPES = ((60, 60),)
# The other is for small machines.
BATCHES = {"cuda": (16, 2), "cpu": (2,)}
# bfloat16 is autocast, with weights in float32; tf32 and float32 have no autocast.
TRAINED_DTYPES = ("bfloat16", "tf32", "float32")
# Classes of Pascal Context, as in the paper.
_CLASSES = 59
# Share of the root mean square of what a branch's ReLU takes, below which rounding may decide whether it passes.
_UNDECIDED = 2**-5
# A result is one chain of roundings and PyTorch's another: gradients, sums over all pixels, scatter by more than the
# outputs of inference do.
_FACTOR = 2.0


@dataclass(frozen=True)
class TrainingWorkload(Workload):
    """One pass.

    Attributes:
        part: a key of :data:`PARTS`.
        norms: ``"batch"`` for statistics of the batch, ``"frozen"`` for fixed ones in a model that is trained.
    """

    norms: str = NORMS[0]

    @property
    def label(self) -> str:
        return super().label + ("" if self.norms == NORMS[0] else f", {self.norms} norms")

    @property
    def autocast(self) -> torch.dtype | None:
        dtype = DTYPES[self.dtype]
        return None if dtype == torch.float32 else dtype


def select(
    parts: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    dtypes: Sequence[str],
    norms: Sequence[str],
    channels: int = CHANNELS,
) -> list[TrainingWorkload]:
    """All combinations, what stands first in each first: dtype by dtype, batch by batch, part by part.

    Norms other than the first are of the branches only.
    """
    found = []
    for dtype, batch, part, kind, shape in product(dtypes, batches, parts, norms, shapes):
        if kind == NORMS[0] or part == "branches":
            found.append(TrainingWorkload(part, *shape, batch, dtype, channels=channels, norms=kind))
    return found


class _Trained(nn.Module):
    """A network and its loss, in one module so that a compiler sees both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        logits, auxiliary = self.model(images)
        return learning.loss_of(logits, auxiliary, targets)


@dataclass
class Prepared:
    """A workload's model and inputs, for any memory format, and what its results should be.

    Attributes:
        workload: in any format.
        model: in training mode, with float32 weights.
        inputs: of the model; features need a gradient, images do not.
        gradient: of the result; None for a loss.
        truth: of each of the results that :meth:`compared` leaves.
    """

    workload: TrainingWorkload
    model: nn.Module
    inputs: list[Tensor]
    gradient: Tensor | None
    truth: dict[str, Truth]

    def in_format(self, memory_format: str) -> tuple[nn.Module, list[Tensor], Tensor | None]:
        """Model, inputs and gradient; they are copied where they lie otherwise, and weights in any case."""
        return _in_format(self.model, self.inputs, self.gradient, memory_format)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer | None:
        """Of a whole step: that of the paper, which goes slowly enough to make the same step again and again."""
        if self.workload.part not in STEPS:
            return None
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)

    def assert_right(self, results: dict[str, Tensor]) -> None:
        """Raises WrongResultError where results of a pass are further from the truth than they may be."""
        found = _compared(self.workload, results)
        if found.keys() != self.truth.keys():
            differing = ", ".join(sorted(found.keys() ^ self.truth.keys()))
            raise WrongResultError(f"results: expected the truth's, which differ in {differing}")
        for name, truth in self.truth.items():
            try:
                assert_no_worse(found[name], truth, deep=True, factor=_FACTOR)
            except WrongResultError as error:
                raise WrongResultError(f"{name}: {error}") from None


def prepare(workload: TrainingWorkload, device: torch.device) -> Prepared:
    """Makes model and inputs, and computes what output, gradients and statistics should be, of all images."""
    torch.manual_seed(0)
    model, inputs, gradient = _build_step(workload, device) if workload.part in STEPS else _build(workload, device)
    return Prepared(workload, model, inputs, gradient, _find_truth(workload, model, inputs, gradient))


def _build(workload: TrainingWorkload, device: torch.device) -> tuple[nn.Module, list[Tensor], Tensor]:
    model, levels = build_pyramid(workload, device)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train(workload.norms == "batch")
    generator = torch.Generator(device).manual_seed(2)
    decided = _decided(model, levels)
    gradient = torch.randn(decided.shape, generator=generator, device=device, dtype=DTYPES[workload.dtype])
    return model, [level.requires_grad_() for level in levels], gradient * decided


def _decided(model: Pyramid, levels: Sequence[Tensor]) -> Tensor:
    """Where the branches' ReLUs let pass or not whatever the rounding; 0 elsewhere.

    There the output's gradient is 0: a ReLU of the other mind is no error, but outweighs those of a thousand sums.
    """
    twin, taken = copy.deepcopy(model).double(), []
    for i in range(twin.jpu.num_branches):
        relu = twin.jpu.branch(i)[-1]  # type: ignore[index]  # a Sequential
        relu.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].clone()))
    with torch.no_grad(), use_backend("reference"), settings(benchmark=False):
        twin(*(level.double() for level in levels))
    found = torch.cat(taken, dim=1)
    return found.abs() > _UNDECIDED * root_mean_square(found)


def _build_step(workload: TrainingWorkload, device: torch.device) -> tuple[nn.Module, list[Tensor], None]:
    upsampling = "jpu" if workload.part == "step" else "none"
    with device:
        # One loss for the logits and one for the auxiliary head's; no third for the presence of classes.
        model = models.fastfcn(
            upsampling=upsampling, num_classes=_CLASSES, width=workload.channels, aux=True, se_loss=False
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # what is random cannot be compared
    # Images that differ, which a norm over one value of each, as the Encoding head has, needs.
    scenes = Scenes(workload.batch, (8 * workload.height, 8 * workload.width))
    images, masks = (torch.stack(tensors) for tensors in zip(*(scenes[i] for i in range(len(scenes))), strict=True))
    return _Trained(model), [learning.to_input(images).to(device), masks.to(device)], None


def _find_truth(
    workload: TrainingWorkload, model: nn.Module, inputs: list[Tensor], gradient: Tensor | None
) -> dict[str, Truth]:
    """What the results should be, and PyTorch's own errors, as in :func:`benchmarks.verify.find_truth`."""

    def results(model: nn.Module, inputs: list[Tensor], gradient: Tensor | None, cast: bool) -> dict[str, Tensor]:
        return _compared(workload, Pass(model, inputs, gradient, workload.autocast if cast else None).results())

    tf32 = workload.dtype == "tf32"
    # Of a whole network in float64 a GPU cannot hold what a batch of 16 saves; to bfloat16 and TF32 float32 is exact.
    exactly = torch.float32 if workload.part in STEPS and workload.dtype != "float32" else torch.float64
    with use_backend("reference"), settings(tf32):
        with settings(False, benchmark=False):
            exact = [_like(x, x.to(exactly)) if x.is_floating_point() else x for x in inputs]
            like = None if gradient is None else gradient.to(exactly)
            truth = results(copy.deepcopy(model).to(exactly), exact, like, cast=False)
        found = [results(*_in_format(model, inputs, gradient, layout), cast=True) for layout in FORMATS]
        # Where there are ReLUs within, whose minds rounding may change, float32's is too little for a bound that holds:
        # one in a million, of which some way of PyTorch's may have none. Gradients of branches alone are held to it.
        short = {}
        if tf32 or (workload.autocast is None and workload.part != "branches"):
            short = results(with_tf32_operands(model), inputs, gradient, cast=True)
    truths = {}
    for name, value in truth.items():
        own = [one[name] for one in found]
        if short and (tf32 or name.startswith(GRADIENT)):
            own.append(short[name])
        truths[name] = Truth.of(value.double(), own)
    return truths


def _in_format(
    model: nn.Module, inputs: list[Tensor], gradient: Tensor | None, memory_format: str
) -> tuple[nn.Module, list[Tensor], Tensor | None]:
    layout = FORMATS[memory_format]
    model = copy.deepcopy(model).to(memory_format=layout)
    images = [_like(x, x.contiguous(memory_format=layout)) if x.dim() == 4 else x for x in inputs]
    return model, images, None if gradient is None else gradient.contiguous(memory_format=layout)


def _like(old: Tensor, new: Tensor) -> Tensor:
    """A leaf that needs a gradient where the old one does."""
    return new.detach().requires_grad_(old.requires_grad)


def _compared(workload: TrainingWorkload, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results that are held to the truth: each by itself; of a whole network, those of each of its parts as one.

    There a rounding at the end is an error everywhere before it: tensors of few entries err as they happen to.
    """
    if workload.part not in STEPS:
        return results
    parts: dict[str, list[Tensor]] = {}
    for name, value in results.items():
        path = name.removeprefix(GRADIENT)
        if "." in path:  # of the module that has network and loss
            kind = GRADIENT if path != name else "statistics of "
            name = kind + path.split(".")[1]
        parts.setdefault(name, []).append(value)
    return {name: torch.cat([value.flatten() for value in values]) for name, values in parts.items()}

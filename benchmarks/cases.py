"""What is measured: the systems of the paper's Table 2, and the figures that the paper gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

PAPER = "FastFCN, arXiv 1903.11816, Table 2 (Titan Xp)"

# Frames per second for a 512×512 image, batch 1, average of 100 runs on a Titan Xp (source: PAPER).
PAPER_FPS: dict[tuple[str, str, str], float] = {
    ("resnet50", "encoding", "none"): 18.77,
    ("resnet50", "encoding", "bilinear"): 45.67,
    ("resnet50", "encoding", "fpn"): 37.87,
    ("resnet50", "encoding", "jpu"): 37.56,
    ("resnet50", "aspp", "none"): 15.99,
    ("resnet50", "aspp", "jpu"): 20.67,
    ("resnet50", "psp", "none"): 18.08,
    ("resnet50", "psp", "jpu"): 28.48,
    ("resnet101", "encoding", "none"): 10.51,
    ("resnet101", "encoding", "bilinear"): 35.20,
    ("resnet101", "encoding", "fpn"): 32.40,
    ("resnet101", "encoding", "jpu"): 32.02,
    ("resnet101", "aspp", "none"): 10.46,
    ("resnet101", "aspp", "jpu"): 18.08,
    ("resnet101", "psp", "none"): 11.36,
    ("resnet101", "psp", "jpu"): 23.87,
}

BACKBONES = ("resnet50", "resnet101")
HEADS = {"encoding": "Encoding", "aspp": "ASPP", "psp": "PSP", "fcn": "FCN"}
UPSAMPLINGS = {"none": "Dilated", "bilinear": "Bilinear", "fpn": "FPN", "jpu": "JPU", "jpu_x": "JPU_X"}
DTYPES = ("float32", "float16", "bfloat16")
MEMORY_FORMATS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Case:
    """One system at one input.

    Attributes:
        backbone: as :func:`jpu_cuda.models.fastfcn` names it.
        head: likewise.
        upsampling: likewise; ``"none"`` is the dilated backbone that the paper replaces.
        size: height and width of the image.
        batch: images at once.
        dtype: of weights and input.
        memory_format: ``"contiguous"`` (NCHW) or ``"channels_last"``.
        num_classes: 59 in the paper (Pascal Context).
    """

    backbone: str
    head: str
    upsampling: str
    size: int = 512
    batch: int = 1
    dtype: str = "float32"
    memory_format: str = "contiguous"
    num_classes: int = 59

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Case:
        """The inverse of :meth:`as_dict`; ValueError where the keys are not those of a case."""
        expected = [field.name for field in fields(Case)]
        if sorted(values) != sorted(expected):
            raise ValueError(f"case: expected the keys {', '.join(expected)}, got {', '.join(values) or 'none'}")
        return Case(**values)

    @property
    def system(self) -> tuple[str, str, str]:
        """(backbone, head, upsampling), the key of :data:`PAPER_FPS`."""
        return self.backbone, self.head, self.upsampling

    @property
    def input(self) -> str:
        """Size, batch, dtype and layout in words."""
        text = f"{self.size}×{self.size}, batch {self.batch}, {self.dtype}"
        return text if self.memory_format == "contiguous" else f"{text}, {self.memory_format}"

    @property
    def label(self) -> str:
        return f"{backbone_name(self.backbone)} · {HEADS[self.head]} · {UPSAMPLINGS[self.upsampling]}"


def backbone_name(backbone: str) -> str:
    """``resnet50`` as the paper writes it; any other name unchanged."""
    depth = backbone.removeprefix("resnet")
    return f"ResNet-{depth}" if depth.isdigit() else backbone


def paper_fps(case: Case) -> float | None:
    """The paper's frames per second; None where it has no such system, or for another input."""
    return PAPER_FPS.get(case.system) if (case.size, case.batch) == (512, 1) else None


def paper_speed_up(case: Case) -> float | None:
    """The paper's frames per second over those of the dilated twin; None where it gives no figure."""
    fps, dilated = paper_fps(case), paper_fps(dilated_twin(case))
    return fps / dilated if fps is not None and dilated is not None else None


def has_jpu(case: Case) -> bool:
    """Whether there is anything in the network for this package's kernels to serve."""
    return case.upsampling in ("jpu", "jpu_x")


def dilated_twin(case: Case) -> Case:
    """The system that the case is held against: the same head on the dilated backbone."""
    return replace(case, upsampling="none")


def select(
    backbones: Sequence[str] | None = None,
    heads: Sequence[str] | None = None,
    upsamplings: Sequence[str] | None = None,
    **common: Any,
) -> list[Case]:
    """Makes the cases of a run, in the table's order.

    Args:
        backbones: those to run; the table's if None.
        heads: those to run; the table's if None.
        upsamplings: those to run with every head; if None, those that the table has for each head, and
            ``none`` and ``jpu`` for a head that it does not have.
        common: the further attributes of every :class:`Case`.
    """
    cases = []
    for backbone in backbones or BACKBONES:
        for head in heads or ("encoding", "aspp", "psp"):
            in_table = [u for b, h, u in PAPER_FPS if (b, h) == ("resnet50", head)]
            for upsampling in upsamplings or in_table or ("none", "jpu"):
                cases.append(Case(backbone, head, upsampling, **common))
    return cases

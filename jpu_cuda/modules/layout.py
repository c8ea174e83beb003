"""Where each public JPU family keeps its parts, and in which order it concatenates.

One table serves the modules (which find their parts by it), the conversion of checkpoints and the
recognition of JPUs in live models. The names are those of the families' published code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    """Paths of a JPU's parts below the JPU itself. Level 0 is the finest (stride 8).

    A *stage* is the dense 3×3 convolution, norm and ReLU of one level; a *branch* is the separable
    convolution of one dilation with its norms and ReLU.

    Attributes:
        family: the name that :func:`jpu_cuda.convert_state_dict` and :func:`jpu_cuda.replace_jpu` use.
        attribute: the attribute under which the family's models hold their JPU.
        coarsest_first: whether the concatenated input is (c5, c4, c3) rather than (c3, c4, c5).
        stage: level → path of its stage.
        stage_parts: paths of ``conv`` and ``norm`` below a stage.
        branch: index of the dilation → path of its branch.
        branch_parts: paths of ``depthwise``, ``norm``, ``pointwise`` and ``out_norm`` below a branch.
            ``{norm}`` stands for the name that mmcv gives a norm by its kind (bn, gn, in).
        levels: the number of levels, where the family fixes it.
        dilations: the dilations, where the family fixes them.
    """

    family: str
    attribute: str
    coarsest_first: bool
    stage: Callable[[int], str] = field(repr=False)
    stage_parts: dict[str, str]
    branch: Callable[[int], str] = field(repr=False)
    branch_parts: dict[str, str]
    levels: int | None = None
    dilations: tuple[int, ...] | None = None

    def stage_path(self, level: int, part: str, norm: str = "bn") -> str:
        """Path of ``part`` of the stage of ``level``."""
        return f"{self.stage(level)}.{self.stage_parts[part]}".format(norm=norm)

    def branch_path(self, index: int, part: str, norm: str = "bn") -> str:
        """Path of ``part`` of the branch of the dilation at ``index``."""
        return f"{self.branch(index)}.{self.branch_parts[part]}".format(norm=norm)


def _fastfcn_like(family: str, depthwise: str) -> Layout:
    return Layout(
        family=family,
        attribute="jpu",
        coarsest_first=True,
        stage=lambda level: f"conv{level + 3}",
        stage_parts={"conv": "0", "norm": "1"},
        branch=lambda index: f"dilation{index + 1}",
        branch_parts={
            "depthwise": f"0.{depthwise}",
            "norm": "0.bn",
            "pointwise": "0.pointwise",
            "out_norm": "1",
        },
        levels=3,
        dilations=(1, 2, 4, 8),
    )


FASTFCN = _fastfcn_like("fastfcn", depthwise="conv1")
TRAMAC = _fastfcn_like("tramac", depthwise="conv")

MMSEG = Layout(
    family="mmseg",
    attribute="neck",
    coarsest_first=False,
    stage=lambda level: f"conv_layers.{level}",
    stage_parts={"conv": "0.conv", "norm": "0.{norm}"},
    branch=lambda index: f"dilation_layers.{index}",
    branch_parts={
        "depthwise": "0.depthwise_conv.conv",
        "norm": "0.depthwise_conv.{norm}",
        "pointwise": "0.pointwise_conv.conv",
        "out_norm": "0.pointwise_conv.{norm}",
    },
)

SSSEGMENTATION = Layout(
    family="sssegmentation",
    attribute="jpu_neck",
    coarsest_first=False,
    stage=lambda level: f"conv_layers.{level}",
    stage_parts={"conv": "0", "norm": "1"},
    branch=lambda index: f"dilation_layers.{index}",
    branch_parts={
        "depthwise": "depthwise_conv",
        "norm": "depthwise_bn",
        "pointwise": "pointwise_conv",
        "out_norm": "pointwise_bn",
    },
)

# FastFCN's JUM, of which JPU_X has two. Its dilations are d, 2d and 4d for its own d.
JUM = Layout(
    family="fastfcn",
    attribute="jum",
    coarsest_first=True,
    stage=("conv_h", "conv_l").__getitem__,
    stage_parts={"conv": "0", "norm": "1"},
    branch=lambda index: f"dilation{index + 1}",
    branch_parts=FASTFCN.branch_parts,
    levels=2,
)

# The families that convert_state_dict and replace_jpu know, by name.
FAMILIES = {layout.family: layout for layout in (FASTFCN, TRAMAC, MMSEG, SSSEGMENTATION)}

"""mmsegmentation's JPU neck, without needing mmsegmentation.

Where mmengine is installed, configs name it ``type='jpu_cuda.JPU'`` (see :mod:`jpu_cuda.registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .modules.core import JointPyramid
from .modules.layout import MMSEG
from .modules.parts import runs_children_in_order

__all__ = ["JPU"]

_NORMS: dict[str, type[nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "BN2d": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": nn.GroupNorm,
    "IN": nn.InstanceNorm2d,
    "IN2d": nn.InstanceNorm2d,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "ReLU": nn.ReLU,
    "LeakyReLU": nn.LeakyReLU,
    "PReLU": nn.PReLU,
    "ReLU6": nn.ReLU6,
    "ELU": nn.ELU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
}
# Those that take no `inplace`; mmcv sets it on every other.
_NOT_INPLACE = ("Tanh", "PReLU", "Sigmoid", "HSigmoid", "Swish", "GELU")


def _resolve(kind: Any, known: dict[str, type[nn.Module]], what: str) -> type[nn.Module]:
    """The class behind a config's ``type``: a class, a name known here, or one that mmengine knows."""
    if isinstance(kind, type):
        return kind
    if kind in known:
        return known[kind]
    try:
        import mmcv.cnn  # noqa: F401 - registers mmcv's layers
        from mmengine.registry import MODELS
    except ImportError:
        found = None
    else:
        found = MODELS.get(kind)
    if found is None:
        raise ValueError(
            f"{what}: expected a type among {', '.join(known)} or one registered in mmengine, got {kind!r}"
        )
    return found


def _norm_name(kind: type[nn.Module]) -> str:
    """The attribute under which mmcv keeps a norm: by base class, else by the class's name."""
    if hasattr(kind, "_abbr_"):
        return str(kind._abbr_)
    bases = {
        "in": nn.modules.instancenorm._InstanceNorm,
        "bn": nn.modules.batchnorm._BatchNorm,
        "gn": nn.GroupNorm,
        "ln": nn.LayerNorm,
    }
    for name, base in bases.items():
        if issubclass(kind, base):
            return name
    words = {"batch": "bn", "group": "gn", "layer": "ln", "instance": "in"}
    return next((name for word, name in words.items() if word in kind.__name__.lower()), "norm_layer")


def _make_norm(norm_cfg: dict[str, Any], channels: int) -> tuple[str, nn.Module]:
    options = dict(norm_cfg)
    kind = _resolve(options.pop("type"), _NORMS, "norm_cfg")
    requires_grad = options.pop("requires_grad", True)
    options.setdefault("eps", 1e-5)
    if issubclass(kind, nn.GroupNorm):
        if "num_groups" not in options:
            raise ValueError(f"norm_cfg: expected num_groups for a GroupNorm, got {norm_cfg}")
        norm: nn.Module = kind(num_channels=channels, **options)
    else:
        norm = kind(channels, **options)
    for parameter in norm.parameters():
        parameter.requires_grad = requires_grad
    return _norm_name(kind), norm


@runs_children_in_order
class ConvModule(nn.Module):
    """Convolution, norm and activation under mmcv's names: ``conv``, ``bn`` (or ``gn``, …), ``activate``.

    As in mmcv, a convolution without a norm has a bias, and weights start from He's normal
    initialisation over the fan-out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        conv_cfg: dict[str, Any] | None = None,
        norm_cfg: dict[str, Any] | None = None,
        act_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        options = dict(conv_cfg or {"type": "Conv2d"})
        kind = _resolve(options.pop("type"), {"Conv2d": nn.Conv2d, "Conv": nn.Conv2d}, "conv_cfg")
        self.conv: Any = kind(
            in_channels,
            out_channels,
            kernel_size,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=norm_cfg is None,
            **options,
        )
        self._initialise(act_cfg)
        self.norm_name: str | None = None
        if norm_cfg is not None:
            self.norm_name, norm = _make_norm(norm_cfg, out_channels)
            self.add_module(self.norm_name, norm)
        if act_cfg is not None:
            options = dict(act_cfg)
            name = options.pop("type")
            if name not in _NOT_INPLACE:
                options.setdefault("inplace", True)
            self.activate = _resolve(name, _ACTIVATIONS, "act_cfg")(**options)

    def _initialise(self, act_cfg: dict[str, Any] | None) -> None:
        if hasattr(self.conv, "init_weights"):  # a layer of mmcv's that starts itself
            return
        leaky = act_cfg is not None and act_cfg["type"] == "LeakyReLU"
        slope = act_cfg.get("negative_slope", 0.01) if leaky and act_cfg is not None else 0.0
        nn.init.kaiming_normal_(
            self.conv.weight, a=slope, mode="fan_out", nonlinearity="leaky_relu" if leaky else "relu"
        )
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, out_channels, H, W]."""
        x = self.conv(x)
        if self.norm_name is not None:
            x = self.get_submodule(self.norm_name)(x)
        activate: Callable[[Tensor], Tensor] | None = getattr(self, "activate", None)
        return x if activate is None else activate(x)


@runs_children_in_order
class DepthwiseSeparableConvModule(nn.Module):
    """Depthwise 3×3 convolution and norm, then pointwise convolution, norm and activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilation: int,
        norm_cfg: dict[str, Any] | None,
        act_cfg: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.depthwise_conv = ConvModule(
            in_channels,
            in_channels,
            3,
            padding=dilation,
            dilation=dilation,
            groups=in_channels,
            norm_cfg=norm_cfg,
        )
        self.pointwise_conv = ConvModule(in_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, out_channels, H, W]."""
        return self.pointwise_conv(self.depthwise_conv(x))


class LevelledJPU(JointPyramid):
    """What the necks of mmsegmentation and sssegmentation share: levels chosen from one sequence."""

    in_channels: tuple[int, ...]
    start_level: int
    backbone_end_level: int

    def _configure_levels(
        self,
        in_channels: Sequence[int],
        mid_channels: int,
        start_level: int,
        end_level: int,
        dilations: Sequence[int],
        align_corners: bool,
    ) -> None:
        """Checks the arguments and sets the attributes that both originals have."""
        for name, value in (("in_channels", in_channels), ("dilations", dilations)):
            if not isinstance(value, Sequence):
                raise TypeError(f"{name}: expected a sequence of integers, got {value!r}")
        in_channels, dilations = tuple(in_channels), tuple(dilations)
        if not in_channels or not all(isinstance(c, int) and c >= 1 for c in in_channels):
            raise ValueError(f"in_channels: expected one or more positive integers, got {in_channels}")
        if not isinstance(mid_channels, int) or mid_channels < 1:
            raise ValueError(f"mid_channels: expected a positive integer, got {mid_channels!r}")
        if not dilations or not all(isinstance(d, int) and d >= 1 for d in dilations):
            raise ValueError(f"dilations: expected one or more integers >= 1, got {dilations}")
        end = len(in_channels) if end_level == -1 else end_level
        if not 0 <= start_level < end <= len(in_channels):
            raise ValueError(
                f"start_level, end_level: expected 0 <= start_level < end_level <= {len(in_channels)} "
                f"(or end_level -1), got {start_level}, {end_level}"
            )
        self.in_channels = in_channels
        self.num_ins = len(in_channels)
        self.mid_channels = mid_channels
        self.start_level = start_level
        self.backbone_end_level = end
        self.dilations = dilations
        self.align_corners = align_corners
        up_kwargs = {"mode": "bilinear", "align_corners": align_corners}
        self.configure(in_channels[start_level:end], len(dilations), up_kwargs)

    def levels_of(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels ``start_level`` to ``end_level``, checked."""
        if isinstance(inputs, Tensor) or not isinstance(inputs, Sequence):
            raise TypeError(f"inputs: expected one sequence of feature maps, got {type(inputs).__name__}")
        if len(inputs) != self.num_ins:
            raise ValueError(f"inputs: expected {self.num_ins} levels as in_channels, got {len(inputs)}")
        start, end = self.start_level, self.backbone_end_level
        levels = tuple(inputs[start:end])
        self.check(levels, name=f"inputs[{start}:{end}]")
        return levels

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Upsamples levels ``start_level`` to ``end_level`` jointly.

        Args:
            inputs: one feature map [N, C_i, H_i, W_i] for each of ``in_channels``, finest first.

        Returns:
            The used levels but for the last, unchanged, and the result [N, D·mid_channels, H, W] in
            the size of level ``start_level``.
        """
        levels = self.levels_of(inputs)
        return (*levels[:-1], self.pyramid(levels))


class JPU(LevelledJPU):
    """Joint Pyramid Upsampling, a drop-in for mmsegmentation's ``JPU`` neck.

    Arguments, input, return value, state_dict keys and initialisation are the original's: every norm
    follows ``norm_cfg`` and there is no activation after the depthwise convolution.

    Args:
        in_channels: channels of the backbone's levels, finest first.
        mid_channels: width of each stage and each branch.
        start_level: first level used; its size is the result's.
        end_level: one past the last level used; -1 for all.
        dilations: one branch each.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        conv_cfg: type and options of the stages' convolutions; ``nn.Conv2d`` if None.
        norm_cfg: type (``BN``, ``SyncBN``, ``GN``, ``IN``, a class, or what mmengine knows) and options
            of every norm; None for none, and convolutions with a bias.
        act_cfg: type and options of the activation; None for none.
        init_cfg: mmengine's initialisation config, applied by :meth:`init_weights`.

    Raises:
        ValueError: arguments that do not fit; the message says expected and got.
        ImportError: ``init_cfg`` without mmengine.
    """

    layout = MMSEG

    def __init__(
        self,
        in_channels: Sequence[int] = (512, 1024, 2048),
        mid_channels: int = 512,
        start_level: int = 0,
        end_level: int = -1,
        dilations: Sequence[int] = (1, 2, 4, 8),
        align_corners: bool = False,
        conv_cfg: dict[str, Any] | None = None,
        norm_cfg: dict[str, Any] | None = {"type": "BN"},  # noqa: B006 - never written to
        act_cfg: dict[str, Any] | None = {"type": "ReLU"},  # noqa: B006
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        for name, cfg in (("conv_cfg", conv_cfg), ("norm_cfg", norm_cfg), ("act_cfg", act_cfg)):
            if cfg is not None and "type" not in cfg:
                raise ValueError(f"{name}: expected a dict with the key 'type', got {cfg!r}")
        self._configure_levels(in_channels, mid_channels, start_level, end_level, dilations, align_corners)
        self.conv_layers = nn.ModuleList(
            nn.Sequential(
                ConvModule(c, mid_channels, 3, padding=1, conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
            )
            for c in self.level_channels
        )
        channels = self.num_levels * mid_channels
        self.dilation_layers = nn.ModuleList(
            nn.Sequential(DepthwiseSeparableConvModule(channels, mid_channels, d, norm_cfg, act_cfg))
            for d in self.dilations
        )
        self.init_cfg = init_cfg
        if init_cfg is not None:
            _mmengine_initialize()  # fail here rather than at init_weights()

    def init_weights(self) -> None:
        """Applies ``init_cfg``; mmengine calls this when it initialises a model."""
        if self.init_cfg is not None:
            _mmengine_initialize()(self, self.init_cfg)


def _mmengine_initialize() -> Callable[..., None]:
    try:
        from mmengine.model import initialize
    except ImportError as error:
        raise ImportError("init_cfg: expected mmengine to be installed, since it defines init_cfg") from error
    return initialize

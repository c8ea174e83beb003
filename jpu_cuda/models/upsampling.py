"""What FastFCN compares the JPU with (Table 1 and 2): bilinear upsampling and a feature pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .. import functional
from .heads import resize


class Bilinear(nn.Module):
    """The coarsest level resized to the size of stride 8.

    Inputs and outputs are those of the JPU: levels of strides 4, 8, 16 and 32 in, the first three and the
    features out.
    """

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = in_channels[-1]

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        """(c2, c3, c4, c5) → (c2, c3, c4, [N, C_5, H_3, W_3])."""
        return (*levels[:-1], resize(levels[-1], levels[-3].shape[2:]))


class FPN(nn.Module):
    """A feature pyramid (arXiv 1612.03144) whose levels are resized to stride 8 and concatenated.

    Args:
        in_channels: channels of strides 8, 16 and 32.
        norm_layer: makes a norm from its number of channels.
        width: channels of each level.
        out_channels: channels of the features; 2048 as a JPU of width 512 has.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        norm_layer: Callable[[int], nn.Module],
        width: int = 512,
        out_channels: int = 2048,
    ) -> None:
        super().__init__()

        def conv(channels: int, outputs: int, kernel_size: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, outputs, kernel_size, padding=kernel_size // 2, bias=False),
                norm_layer(outputs),
                nn.ReLU(inplace=True),
            )

        self.out_channels = out_channels
        self.laterals = nn.ModuleList(conv(c, width, 1) for c in in_channels[-3:])
        self.outputs = nn.ModuleList(conv(width, width, 3) for _ in in_channels[-3:])
        self.fusion = conv(3 * width, out_channels, 1)

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        """(c2, c3, c4, c5) → (c2, c3, c4, [N, out_channels, H_3, W_3])."""
        pyramid = [lateral(x) for lateral, x in zip(self.laterals, levels[-3:], strict=True)]
        for i in (1, 0):  # top-down
            pyramid[i] = pyramid[i] + resize(pyramid[i + 1], pyramid[i].shape[2:])
        pyramid = [output(x) for output, x in zip(self.outputs, pyramid, strict=True)]
        return (*levels[:-1], self.fusion(functional.upsample_concat(pyramid, align_corners=True)))

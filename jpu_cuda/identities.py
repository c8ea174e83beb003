"""The identities that Joint Pyramid Upsampling rests on (FastFCN, arXiv 1903.11816, section 3.3).

A *residue class* (i, j) of dilation d holds the pixels whose row is i and whose column is j modulo d.
The taps of a d-dilated convolution are d pixels apart, so they never leave a pixel's own class: with S
for split, C for a plain convolution, M for merge and R for reduce,

* a dilated convolution is S C M, and a strided one is C R (Figure 3);
* M followed by S is nothing, hence S C M · S C M · … = S C C … M: a chain of n dilated convolutions
  needs one split and one merge (Eq. 2);
* a strided convolution and n plain ones compute class (0, 0) of that chain and none of the others
  (Eq. 3). The missing classes are what the JPU has to recover.

The first identity also says how to tile a dilated convolution: a tile of one residue class has the
halo of a plain convolution (one pixel a side for 3×3) whatever the dilation, where a tile of adjacent
pixels needs d a side.

Convolutions here are "same"-sized: zero padding of half the (odd) kernel, no bias. Height and width
may be any number of pixels, since classes are not padded to one size. Everything is differentiable and
works in any floating-point dtype on any device.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dilated_chain", "dilated_conv", "merge", "reduce", "split", "strided_chain", "strided_conv"]


def split(x: Tensor, dilation: int) -> list[Tensor]:
    """Splits an image into its residue classes: S.

    Args:
        x: [N, C, H, W], any dtype.
        dilation: d ≥ 1.

    Returns:
        d² views of x, class (i, j) at index i·d + j, of shape [N, C, ⌈(H−i)/d⌉, ⌈(W−j)/d⌉]; classes
        beyond the image's edge (i ≥ H or j ≥ W) are empty.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """
    _check_image(x, "x")
    _check_factor(dilation, "dilation")
    return [x[:, :, i::dilation, j::dilation] for i in range(dilation) for j in range(dilation)]


def merge(parts: Sequence[Tensor], dilation: int, size: tuple[int, int]) -> Tensor:
    """Interlaces residue classes to an image: M, the inverse of :func:`split`.

    Args:
        parts: d² tensors of one batch size, number of channels, dtype and device, ordered and sized as
            :func:`split` returns them.
        dilation: d ≥ 1.
        size: (H, W) of the image.

    Returns:
        [N, C, H, W].

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """
    _check_factor(dilation, "dilation")
    if len(parts) != dilation**2:
        raise ValueError(f"parts: expected dilation² = {dilation**2} residue classes, got {len(parts)}")
    if len(size) != 2 or min(size) < 0:
        raise ValueError(f"size: expected (height, width) of at least 0, got {size}")
    for k, part in enumerate(parts):
        _check_image(part, f"parts[{k}]")
        if part.dtype != parts[0].dtype or part.device != parts[0].device:
            raise ValueError(
                f"parts[{k}]: expected {parts[0].dtype} on {parts[0].device} as parts[0], "
                f"got {part.dtype} on {part.device}"
            )
    image = parts[0].new_empty(*parts[0].shape[:2], *size)
    for k, part in enumerate(parts):
        i, j = divmod(k, dilation)
        # Not from split(image): autograd wants each view taken after the last write to its base.
        target = image[:, :, i::dilation, j::dilation]
        if part.shape != target.shape:
            raise ValueError(
                f"parts[{k}]: expected shape {tuple(target.shape)} in an image of size {tuple(size)}, "
                f"got {tuple(part.shape)}"
            )
        target.copy_(part)
    return image


def reduce(x: Tensor, stride: int) -> Tensor:
    """Keeps the pixels whose row and column are multiples of the stride: R, or class (0, 0) of :func:`split`.

    Args:
        x: [N, C, H, W], any dtype.
        stride: s ≥ 1.

    Returns:
        A view of x, [N, C, ⌈H/s⌉, ⌈W/s⌉].

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """
    _check_image(x, "x")
    _check_factor(stride, "stride")
    return x[:, :, ::stride, ::stride]


def dilated_conv(x: Tensor, weight: Tensor, dilation: int, groups: int = 1) -> Tensor:
    """A dilated convolution as split, convolve, merge (Figure 3).

    Args:
        x: [N, C, H, W], floating-point.
        weight: [O, C/groups, kh, kw] with odd kh and kw, in the dtype of x.
        dilation: d ≥ 1.
        groups: as in :func:`torch.nn.functional.conv2d`; C for a depthwise convolution.

    Returns:
        [N, O, H, W]: ``conv2d`` of x with this dilation and "same" zero padding.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """
    return dilated_chain(x, [weight], dilation, groups)


def strided_conv(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """A strided convolution as convolve, reduce (Figure 3).

    Args:
        x: [N, C, H, W], floating-point.
        weight: [O, C/groups, kh, kw] with odd kh and kw, in the dtype of x.
        stride: s ≥ 1.
        groups: as in :func:`torch.nn.functional.conv2d`; C for a depthwise convolution.

    Returns:
        [N, O, ⌈H/s⌉, ⌈W/s⌉]: ``conv2d`` of x with this stride and zero padding of half the kernel.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """
    return reduce(_conv(x, weight, groups), stride)


def dilated_chain(x: Tensor, weights: Sequence[Tensor], dilation: int, groups: int = 1) -> Tensor:
    """A chain of n dilated convolutions as one split, n plain convolutions and one merge (Eq. 2).

    Args:
        x: [N, C, H, W], floating-point.
        weights: n of [C_{k+1}, C_k/groups, kh, kw] with odd kh and kw, in the dtype of x; the first is
            applied first.
        dilation: d ≥ 1, the same for all.
        groups: as in :func:`torch.nn.functional.conv2d`, the same for all.

    Returns:
        [N, C_n, H, W]; x itself in other storage if there are no weights.

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """
    parts = [_chain(part, weights, groups) for part in split(x, dilation)]
    return merge(parts, dilation, (x.shape[2], x.shape[3]))


def strided_chain(x: Tensor, weight: Tensor, weights: Sequence[Tensor], stride: int, groups: int = 1) -> Tensor:
    """A strided convolution followed by n plain ones, as convolve, reduce, convolve n times (Eq. 3).

    It equals class (0, 0) of the convolution with ``weight`` followed by :func:`dilated_chain` of
    ``weights`` and this stride as dilation: the backbone of stride s computes 1/s² of what its dilated
    twin computes, and exactly that.

    Args:
        x: [N, C, H, W], floating-point.
        weight: [C_0, C/groups, kh, kw] with odd kh and kw, in the dtype of x; of the strided convolution.
        weights: as for :func:`dilated_chain`; of the plain ones.
        stride: s ≥ 1.
        groups: as in :func:`torch.nn.functional.conv2d`, the same for all.

    Returns:
        [N, C_n, ⌈H/s⌉, ⌈W/s⌉].

    Raises:
        TypeError, ValueError: arguments that do not fit; the message says expected and got.
    """
    return _chain(strided_conv(x, weight, stride, groups), weights, groups)


def _chain(x: Tensor, weights: Sequence[Tensor], groups: int) -> Tensor:
    for weight in weights:
        x = _conv(x, weight, groups)
    return x


def _conv(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Plain convolution [N, C, H, W] → [N, O, H, W] with zero padding of half the kernel."""
    _check_conv(x, weight, groups)
    height, width = x.shape[2:]
    if height == 0 or width == 0:
        # conv2d refuses an empty class; a row and a column of the zeros that surround it change nothing.
        x = F.pad(x, (0, 1, 0, 1))
    # The strides of a one-pixel class look like channels_last, at which conv2d's float64 backward raises.
    x = x.clone(memory_format=torch.contiguous_format)
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return F.conv2d(x, weight, padding=padding, groups=groups)[:, :, :height, :width]


def _check_image(x: Tensor, name: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name}: expected 4 dimensions [N, C, H, W], got shape {tuple(x.shape)}")


def _check_factor(factor: int, name: str) -> None:
    if not isinstance(factor, int):
        raise TypeError(f"{name}: expected an integer, got {type(factor).__name__}")
    if factor < 1:
        raise ValueError(f"{name}: expected at least 1, got {factor}")


def _check_conv(x: Tensor, weight: Tensor, groups: int) -> None:
    _check_image(x, "x")
    _check_factor(groups, "groups")
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a Tensor, got {type(weight).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point dtype, got {x.dtype}")
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(f"weight: expected {x.dtype} on {x.device} as x, got {weight.dtype} on {weight.device}")
    if weight.dim() != 4 or weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"weight: expected [O, C/groups, kh, kw] with odd kh and kw, got shape {tuple(weight.shape)}")
    if x.shape[1] != groups * weight.shape[1]:
        raise ValueError(
            f"x: expected groups · weight.shape[1] = {groups * weight.shape[1]} channels, got {x.shape[1]}"
        )
    if weight.shape[0] % groups != 0:
        raise ValueError(f"weight: expected a multiple of groups = {groups} outputs, got {weight.shape[0]}")

"""Segments one image: mask and overlay as pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn

from . import models
from .backend import BACKENDS, use_backend
from .models.fastfcn import HEADS, UPSAMPLINGS

# ImageNet's, which FastFCN's backbones were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB, turned upright as its EXIF orientation says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an image file, got {'a folder' if path.is_dir() else 'none'}")
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected an image, got a damaged or other file ({error})") from error
    return _to_rgb(upright)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow clips deep greys to 255; scale 16 bits to 8 instead. The modes I and F do not say how many
        # bits the file had.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    return image.convert("RGB")


def to_input(image: Image.Image) -> Tensor:
    """An RGB image as a normalised batch of one, [1, 3, H, W] float32."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    return ((pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])[None]


@torch.inference_mode()
def segment_image(model: nn.Module, image: Image.Image, size: int | None = None) -> NDArray[np.int64]:
    """The class of every pixel of an image.

    Args:
        model: returns logits [N, num_classes, H, W] first, as :class:`jpu_cuda.models.FastFCN` does; its
            mode is left as it is.
        image: RGB.
        size: length in pixels to which the image's shorter side is resized for the model; as it is if None.

    Returns:
        [H, W] in the image's own size, indices of classes.
    """
    width, height = image.size
    resized = image
    if size is not None:
        factor = size / min(width, height)
        resized = image.resize(
            (max(1, round(width * factor)), max(1, round(height * factor))), Image.Resampling.BILINEAR
        )
    parameter = next(model.parameters())
    logits = model(to_input(resized).to(parameter.device, parameter.dtype))[0]
    if logits.shape[2:] != (height, width):
        logits = nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=True)
    return logits[0].argmax(0).cpu().numpy()


def palette(classes: int = 256) -> NDArray[np.uint8]:
    """Colours [classes, 3] as PASCAL VOC's tools assign them: class 0 is black, neighbours differ strongly.

    Bits 0, 1 and 2 of a class give the highest bit of red, green and blue, bits 3, 4 and 5 the next, and so on.
    """
    index = np.arange(classes)[:, None]
    colours = np.zeros((classes, 3), dtype=np.uint8)
    for bit in range(8):
        colours |= (((index >> (3 * bit + np.arange(3))) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def mask_image(mask: NDArray[np.int64], num_classes: int | None = None) -> Image.Image:
    """A mask as a palette picture whose pixel values are the classes; 16-bit grey for more than 256 classes.

    Args:
        mask: [H, W], indices of classes.
        num_classes: how many there may be, so that all masks of a model have one form; those that this one
            shows if None.
    """
    if (int(mask.max()) + 1 if num_classes is None else num_classes) > 256:
        return Image.fromarray(mask.astype(np.uint16))
    picture = Image.fromarray(mask.astype(np.uint8))
    picture.putpalette(palette().ravel().tolist())  # makes it mode P, with the same values
    return picture


def overlay(image: Image.Image, mask: NDArray[np.int64], opacity: float = 0.5) -> Image.Image:
    """The image under the mask's colours; class 0 stays clear.

    Args:
        image: RGB.
        mask: [H, W] in the image's size.
        opacity: of the colours, from 0 to 1.
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(f"mask: expected shape {(image.height, image.width)} as the image, got {mask.shape}")
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    colours = palette(int(mask.max()) + 1)[mask]
    mixed = np.where(mask[..., None] > 0, (1 - opacity) * pixels + opacity * colours, pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``python -m jpu_cuda segment``."""
    parser.add_argument("image", type=Path, help="the image file")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of FastFCN or of this package")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for mask and overlay (default: here)")
    parser.add_argument("--size", type=int, help="shorter side in pixels that the model sees (default: the image's)")
    parser.add_argument("--device", default="cpu", help="device of PyTorch, such as cuda (default: cpu)")
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="who serves the JPU (default: auto)")
    model = parser.add_argument_group("model", "what is not given is read off the weights")
    model.add_argument("--backbone", help="resnet50, resnet101 or a model of timm")
    model.add_argument("--upsampling", choices=UPSAMPLINGS)
    model.add_argument("--head", choices=HEADS)
    model.add_argument("--num-classes", type=int)
    model.add_argument("--width", type=int)


def run(arguments: argparse.Namespace) -> None:
    """Segments the image that the command line names; prints what it found and wrote.

    Raises:
        OSError, ValueError, ImportError: a missing or wrong image, weights, device or argument.
    """
    if arguments.size is not None and arguments.size < 1:
        raise ValueError(f"--size: expected at least 1 pixel, got {arguments.size}")
    image = read_image(arguments.image)
    try:
        device = torch.device(arguments.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        message = str(error).splitlines()[0]
        raise ValueError(
            f"--device: expected a device of this machine, got {arguments.device!r} ({message})"
        ) from error
    names = ("backbone", "upsampling", "head", "num_classes", "width")
    overrides = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    with use_backend(arguments.backend):
        model = models.load(arguments.weights, **overrides).to(device)
        mask = segment_image(model, image, arguments.size)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pictures = {"mask": mask_image(mask, model.config["num_classes"]), "overlay": overlay(image, mask)}
    for suffix, picture in pictures.items():
        path = arguments.out / f"{arguments.image.stem}_{suffix}.png"
        picture.save(path)
        print(f"wrote {path}")
    classes = model.config.get("classes")
    for index, count in zip(*np.unique(mask, return_counts=True), strict=True):
        name = f" ({classes[index]})" if classes else ""
        print(f"class {index}{name}: {100 * count / mask.size:.1f} % of the pixels")

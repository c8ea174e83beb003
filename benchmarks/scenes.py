"""Generated scenes with known masks: shapes of several classes over textured clutter, from a seed alone.

What an object is cannot be read off a pixel: background, clutter and objects take their colours from
the same distribution. A class has an outline and a weave (ripples, checks, stripes, grains, dots) of
two random colours; objects are turned, scaled, lit from one side and partly hidden. Rings and crosses
are thin where discs and squares are full, so a coarse mask is a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

Array = NDArray[np.float64]
Split = Literal["train", "unseen"]

CLASSES = ("background", "disc", "square", "triangle", "ring", "cross")

# Least distance, in the channel where it is largest, between an object's colour and the background's.
MIN_CONTRAST = 0.35


@dataclass(frozen=True)
class Shape:
    """An object's outline.

    Attributes:
        label: index into :data:`CLASSES`, from 1.
        centre: (row, column), in pixels.
        radius: of the circle around it, in pixels.
        angle: in radians.
    """

    label: int
    centre: tuple[float, float]
    radius: float
    angle: float

    def covers(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """[H, W], true where the shape covers the pixel's centre."""
        rows, columns = _pixels(size)
        y, x = (rows - self.centre[0]) / self.radius, (columns - self.centre[1]) / self.radius
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = cos * x + sin * y, cos * y - sin * x
        distance = np.hypot(u, v)
        near, far = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
        match CLASSES[self.label]:
            case "disc":
                return distance <= 1
            case "square":
                return far <= np.sqrt(0.5)
            case "triangle":  # within 1/2 of the centre along each side's normal
                return np.maximum(v, np.sqrt(0.75) * abs(u) - 0.5 * v) <= 0.5
            case "ring":
                return (distance <= 1) & (distance >= 0.65)
            case "cross":
                return (near <= 0.2) & (far <= np.sqrt(1 - 0.2**2))
            case name:
                raise ValueError(f"label: expected one of {', '.join(CLASSES[1:])}, got {name}")


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """A number of scenes, each determined by (split, seed, index) and so the same wherever it is drawn.

    Items are ``(image, mask)``: float32 [3, H, W] from 0 to 1, and int64 [H, W] of indices into
    :data:`CLASSES`. No scene is in both splits, whatever their seeds.

    Args:
        count: how many scenes.
        size: H and W of the (square) scenes, in pixels, or (H, W).
        seed: 0 or more; other scenes.
        split: ``"train"`` or ``"unseen"``.
        plain: draws every object in one colour over one background colour, without texture, clutter,
            light or noise, so that the image shows the mask.

    Raises:
        ValueError: arguments that do not fit; the message says expected and got.
    """

    def __init__(
        self,
        count: int,
        size: int | tuple[int, int] = 96,
        *,
        seed: int = 0,
        split: Split = "train",
        plain: bool = False,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else size
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        if len(self.size) != 2 or min(self.size) < 16:
            raise ValueError(f"size: expected height and width of at least 16, got {self.size}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if split not in get_args(Split):
            raise ValueError(f"split: expected one of {', '.join(map(repr, get_args(Split)))}, got {split!r}")
        self.count = count
        self.seed = seed
        self.split = split
        self.plain = plain

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0 to {self.count - 1}, got {index}")
        rng = np.random.default_rng([get_args(Split).index(self.split), self.seed, index])
        image, mask = draw(rng, self.size, plain=self.plain)
        return torch.from_numpy(image), torch.from_numpy(mask)


def draw(
    rng: np.random.Generator, size: tuple[int, int], *, plain: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draws one scene; see :class:`Scenes`.

    Returns:
        Image [3, H, W] and mask [H, W].
    """
    # Apart, so that a plain scene has the objects and the mask of the scene that it is the plain form of.
    layout, look = rng.spawn(2)
    mask = np.zeros(size, dtype=np.int64)
    background = layout.random(3)
    canvas = np.array(_surface(look, size, background, plain))  # [H, W, 3]
    if not plain:
        for _ in range(look.integers(0, 4)):
            clutter = _stroke(look, size) if look.random() < 0.5 else _haze(look, size)
            canvas += clutter[..., None] * (_surface(look, size, look.random(3), plain) - canvas)
    for _ in range(layout.integers(1, 4)):
        shape = Shape(
            label=int(layout.integers(1, len(CLASSES))),
            centre=(layout.uniform(0.1, 0.9) * size[0], layout.uniform(0.1, 0.9) * size[1]),
            radius=layout.uniform(0.2, 0.36) * min(size),
            angle=layout.uniform(0, 2 * np.pi),
        )
        covered = shape.covers(size)
        colour = _contrasting(layout, background)
        surface = _surface(look, size, colour, plain) if plain else _woven(look, size, colour, shape)
        canvas[covered] = surface[covered]
        mask[covered] = shape.label
    if not plain:
        canvas *= _light(look, size)[..., None]
        canvas += look.normal(0, 0.03, canvas.shape)
    return canvas.clip(0, 1).transpose(2, 0, 1).astype(np.float32), mask


def _pixels(size: tuple[int, int]) -> tuple[Array, Array]:
    """Rows [H, 1] and columns [1, W] of the pixels' centres."""
    rows, columns = (np.arange(0.5, n, dtype=np.float64) for n in size)
    return rows[:, None], columns[None]


def _contrasting(rng: np.random.Generator, background: Array) -> Array:
    """A colour [3] that stands out from the background's; some corner of the cube is always 0.5 away."""
    while True:
        colour = rng.random(3)
        if abs(colour - background).max() >= MIN_CONTRAST:
            return colour


def _surface(rng: np.random.Generator, size: tuple[int, int], colour: Array, plain: bool) -> Array:
    """[H, W, 3]: one colour, mottled unless ``plain``."""
    if plain:
        return np.broadcast_to(colour, (*size, 3))
    return colour + _noise(rng, size)[..., None] * (rng.uniform(0, 0.3) * rng.uniform(-1, 1, 3))


def _woven(rng: np.random.Generator, size: tuple[int, int], colour: Array, shape: Shape) -> Array:
    """[H, W, 3]: the class's weave, in the shape's own axes, between a colour and a darker or lighter one."""
    rows, columns = _pixels(size)
    y, x = rows - shape.centre[0], columns - shape.centre[1]
    cos, sin = np.cos(shape.angle), np.sin(shape.angle)
    u, v = cos * x + sin * y, cos * y - sin * x
    wave = 2 * np.pi / rng.uniform(5, 7)  # one period in 5 to 7 pixels, whatever the scene's size
    match CLASSES[shape.label]:
        case "disc":
            weave = np.sign(np.sin(wave * np.hypot(u, v)))  # ripples
        case "square":
            weave = np.sign(np.sin(wave * u) * np.sin(wave * v))  # checks
        case "triangle":
            weave = np.sign(np.sin(wave * u))  # stripes
        case "ring":
            weave = rng.choice((-1.0, 1.0), size)  # grains
        case _:
            weave = np.where(np.cos(wave * u) + np.cos(wave * v) > 0.8, 1.0, -1.0)  # dots
    return colour + weave[..., None] * rng.uniform(0.2, 0.35)


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """[H, W] from -1 to 1: random values on a coarse grid, interpolated bilinearly."""
    knots = rng.integers(4, 17)
    rows, columns = (np.maximum(0, 1 - abs(np.linspace(0, knots - 1, n)[:, None] - np.arange(knots))) for n in size)
    return rows @ rng.uniform(-1, 1, (knots, knots)) @ columns.T


def _stroke(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """[H, W], 1 on a thin straight stroke across the scene and 0 off it."""
    rows, columns = _pixels(size)
    angle = rng.uniform(0, np.pi)
    centre = rng.random(2) * size
    distance = (rows - centre[0]) * np.cos(angle) + (columns - centre[1]) * np.sin(angle)
    return (abs(distance) <= rng.uniform(0.01, 0.04) * min(size)).astype(np.float64)


def _haze(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """[H, W] from 0 to 1: a disc without an edge."""
    rows, columns = _pixels(size)
    centre = rng.random(2) * size
    distance = np.hypot(rows - centre[0], columns - centre[1]) / (rng.uniform(0.15, 0.35) * min(size))
    return np.maximum(0, 1 - distance**2)


def _light(rng: np.random.Generator, size: tuple[int, int]) -> Array:
    """[H, W] around 1: brighter to one side."""
    rows, columns = _pixels(size)
    angle = rng.uniform(0, 2 * np.pi)
    slope = (2 * rows / size[0] - 1) * np.sin(angle) + (2 * columns / size[1] - 1) * np.cos(angle)
    return 1 + rng.uniform(0, 0.3) * slope

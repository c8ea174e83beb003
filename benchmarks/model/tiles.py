"""How separable_pyramid cuts images for training, and norm_relu rows; as their config.h do, to which tests hold it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch

# Of separable_pyramid/config.h: classes, height and width of the tiles of 128 pixels, in the order of preference.
SHAPES = ((1, 8, 16), (1, 16, 8), (1, 4, 32), (2, 8, 8), (2, 16, 4), (4, 4, 8), (4, 8, 4), (8, 4, 4))
# Of launch_training.h and norm_relu/rows_config.h: blocks that a launch should have; tiles that a part has at least.
ENOUGH_BLOCKS, LEAST_TILES = 2048, 4
# Of norm_relu: a block's threads, bytes of what each owns at a step, how many lie side by side; rounds of a thread, its
# runs' pixels, and how many it has of a part at least.
THREADS, VECTOR_BYTES, VECTOR_LANES = 256, 16, 32
MOST_ROUNDS, RUN, LEAST_PIXELS = 8, 16, 8


@dataclass(frozen=True)
class Tiling:
    """The tiles of one image for one dilation."""

    dilation: int
    size: tuple[int, int]
    shape: tuple[int, int, int]

    @property
    def of_class(self) -> tuple[int, int]:
        """Height and width of the largest class of pixels."""
        return -(-self.size[0] // self.dilation), -(-self.size[1] // self.dilation)

    @property
    def rows(self) -> int:
        return -(-self.of_class[0] // self.shape[1])

    @property
    def columns(self) -> int:
        return -(-self.of_class[1] // self.shape[2])

    @property
    def tiles(self) -> int:
        return -(-(self.dilation**2) // self.shape[0]) * self.rows * self.columns

    @property
    def fetches_little(self) -> bool:
        height, width = self.of_class
        fetched = (height + 2 * (self.rows - 1)) * (width + 2 * (self.columns - 1))
        return 2 * fetched <= 3 * height * width

    def fetched(self, begin: int, end: int) -> int:
        """Pixels that tiles ``begin`` to ``end`` - 1 fetch with their halos, each counted once."""
        classes, height, width = self.shape
        seen = torch.zeros(self.size, dtype=torch.bool)
        for index in range(begin, end):
            column, rest = index % self.columns * width, index // self.columns
            row, first = rest % self.rows * height, rest // self.rows * classes
            for number in range(first, min(first + classes, self.dilation**2)):
                y, x = divmod(number, self.dilation)
                seen[self._reach(y, row, height), self._reach(x, column, width)] = True
        return int(seen.sum())

    def _reach(self, offset: int, first: int, count: int) -> slice:
        step = self.dilation
        return slice(offset + step * max(first - 1, 0), offset + step * (first + count + 1), step)


@cache
def tiling(dilation: int, size: tuple[int, int]) -> Tiling:
    """The one that wastes the fewest pixels, or one that fetches little and wastes an eighth more at most."""
    all_of_them = [Tiling(dilation, size, shape) for shape in SHAPES]
    fewest = min(all_of_them, key=lambda t: t.tiles)
    little = min((t for t in all_of_them if t.fetches_little), key=lambda t: t.tiles, default=None)
    return little if little is not None and 8 * little.tiles <= 9 * fewest.tiles else fewest


def parts(tilings: Sequence[Tiling], shares: int) -> list[int]:
    """Into how many parts each branch's tiles of an image are taken; ``shares``: images, branches and chunks."""
    wanted = -(-ENOUGH_BLOCKS // shares)
    return [min(wanted, -(-t.tiles // LEAST_TILES)) for t in tilings]


@cache
def fetched_by_parts(tiling: Tiling, count: int) -> int:
    """Pixels that all parts of an image fetch, those of a part counted once."""
    edges = [tiling.tiles * part // count for part in range(count + 1)]
    return sum(tiling.fetched(begin, end) for begin, end in pairwise(edges))


@dataclass(frozen=True)
class Rows:
    """How norm_relu cuts rows of q.

    Attributes:
        channels: of a row.
        element_bytes: of each.
    """

    channels: int
    element_bytes: int

    @property
    def vector(self) -> int:
        """Channels of a thread."""
        return VECTOR_BYTES // self.element_bytes

    @property
    def lanes(self) -> int:
        vectors = -(-self.channels // self.vector)
        return -(-vectors // -(-vectors // VECTOR_LANES))

    @property
    def rows(self) -> int:
        return THREADS // self.lanes

    @property
    def tiles(self) -> int:
        """Of channels."""
        return -(-self.channels // (self.lanes * self.vector))

    def blocks(self, pixels: int, at_once: int) -> int:
        """Of a launch over all images' pixels, of which a thread loads so many at once."""
        least = self.rows * at_once
        rounds = min(max(self.tiles * -(-pixels // least) // ENOUGH_BLOCKS, 1), MOST_ROUNDS)
        return self.tiles * -(-pixels // (least * rounds))

    def parts(self, images: int, pixels: int) -> int:
        """Of an image of so many pixels, whose sums are taken one by one."""
        wanted = -(-ENOUGH_BLOCKS // (images * self.tiles))
        return min(wanted, max(pixels // (LEAST_PIXELS * self.rows), 1))

    def later_runs(self, images: int, pixels: int) -> int:
        """Runs of pixels, of rows of threads, that meet sums of the same row."""
        count = self.parts(images, pixels)
        return images * self.tiles * sum(self._later(pixels // count + (i < pixels % count)) for i in range(count))

    def _later(self, pixels: int) -> int:
        return sum(max(-(-own // RUN) - 1, 0) for own in self._own(pixels))

    def _own(self, pixels: int) -> Iterator[int]:
        return (-(-(pixels - row) // self.rows) for row in range(min(self.rows, pixels)))

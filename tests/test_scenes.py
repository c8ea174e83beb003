"""The generated scenes: the same from the same seed, and masks that are what was drawn."""

import matplotlib.path
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scenes import CLASSES, Scenes, Shape

SCENES = 12


def digest(scenes: Scenes) -> set[bytes]:
    return {image.numpy().tobytes() for image, _ in scenes}


def test_same_seed_gives_the_same_scenes_in_any_order() -> None:
    forward, backward = Scenes(SCENES), Scenes(SCENES)
    left = [forward[i] for i in range(SCENES)]
    right = [backward[i] for i in reversed(range(SCENES))][::-1]
    for (image, mask), (other_image, other_mask) in zip(left, right, strict=True):
        assert torch.equal(image, other_image)
        assert torch.equal(mask, other_mask)


def test_every_index_seed_and_split_gives_another_scene() -> None:
    seen = [digest(Scenes(SCENES, seed=seed, split=split)) for seed in (0, 1, 2) for split in ("train", "unseen")]
    assert len(set.union(*seen)) == 6 * SCENES


@pytest.mark.parametrize(("size", "shape"), [(16, (16, 16)), (96, (96, 96)), ((40, 67), (40, 67))])
def test_shapes_dtypes_and_ranges(size: int | tuple[int, int], shape: tuple[int, int]) -> None:
    for image, mask in Scenes(SCENES, size):
        assert image.shape == (3, *shape)
        assert image.dtype == torch.float32
        assert 0 <= image.min() < image.max() <= 1
        assert mask.shape == shape
        assert mask.dtype == torch.int64
        assert 0 <= mask.min() <= mask.max() < len(CLASSES)


def test_every_class_occurs() -> None:
    labels = set().union(*(mask.unique().tolist() for _, mask in Scenes(SCENES)))
    assert labels == set(range(len(CLASSES)))


@pytest.mark.parametrize("index", range(SCENES))
def test_plain_image_shows_its_mask(index: int) -> None:
    image, mask = Scenes(SCENES, plain=True)[index]
    colours, of_pixel = image.flatten(1).T.unique(dim=0, return_inverse=True)
    labels = [mask.flatten()[of_pixel == k].unique() for k in range(len(colours))]
    assert all(len(label) == 1 for label in labels)  # one colour, one object
    assert len(colours) >= 2
    assert sum(int(label) == 0 for label in labels) == 1  # the background's one colour is in no object


@pytest.mark.parametrize("index", range(SCENES))
def test_scene_has_the_mask_of_its_plain_form(index: int) -> None:
    assert torch.equal(Scenes(SCENES)[index][1], Scenes(SCENES, plain=True)[index][1])


def edge_contrast(image: torch.Tensor, mask: torch.Tensor) -> float:
    """Mean step between neighbours in a row across the mask's edges, over that within its background."""
    step = (image[:, :, 1:] - image[:, :, :-1]).abs().sum(0)
    edge = mask[:, 1:] != mask[:, :-1]
    background = (mask[:, 1:] == 0) & (mask[:, :-1] == 0)
    return float(step[edge].mean() / step[background].mean())


@pytest.mark.parametrize("index", range(SCENES))
def test_mask_has_its_edges_where_the_image_has_them(index: int) -> None:
    # A mask that is not the image's own finds a contrast near 1, save where it meets an object by chance.
    scenes = Scenes(SCENES)
    image, mask = scenes[index]
    _, other = scenes[(index + 1) % SCENES]
    assert edge_contrast(image, mask) > 3 > edge_contrast(image, other)


def outline(shape: Shape) -> list[tuple[float, float]]:
    """The corners (u, v) of a shape of radius 1, not turned."""
    match CLASSES[shape.label]:
        case "square":
            corners = np.pi / 4 + np.pi / 2 * np.arange(4)
        case "triangle":
            corners = -np.pi / 2 + 2 * np.pi / 3 * np.arange(3)
        case "cross":  # twelve corners; the inner four lie where two arms meet
            long = np.sqrt(1 - 0.2**2)
            arm = [(long, -0.2), (long, 0.2), (0.2, 0.2)]
            return [(u * c - v * s, u * s + v * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for u, v in arm]
    return list(zip(np.cos(corners), np.sin(corners), strict=True))


@settings(deadline=None)
@given(
    st.sampled_from(["square", "triangle", "cross"]),
    st.tuples(st.floats(-5, 25), st.floats(-5, 35)),
    st.floats(1, 20),
    st.floats(0, 2 * np.pi),
)
def test_polygons_cover_the_pixels_whose_centres_they_contain(
    name: str, centre: tuple[float, float], radius: float, angle: float
) -> None:
    shape = Shape(CLASSES.index(name), centre, radius, angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = radius * np.array(outline(shape)) @ turn.T + centre[::-1]  # (x, y)
    rows, columns = np.mgrid[0.5:20, 0.5:30]
    points = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside, outside = (
        matplotlib.path.Path(np.array(centre[::-1]) + scale * (corners - centre[::-1]))
        .contains_points(points)
        .reshape(20, 30)
        for scale in (1 - 1e-9, 1 + 1e-9)  # a pixel's centre on the very edge may go either way
    )
    covered = shape.covers((20, 30))
    assert not (inside & ~covered).any()
    assert not (covered & ~outside).any()


@pytest.mark.parametrize(("name", "inner"), [("disc", 0.0), ("ring", 0.65)])
def test_round_shapes_cover_the_pixels_between_their_radii(name: str, inner: float) -> None:
    shape = Shape(CLASSES.index(name), (10.3, 14.1), 7.0, 1.0)
    expected = [
        [7.0 * inner <= np.hypot(row + 0.5 - 10.3, column + 0.5 - 14.1) <= 7.0 for column in range(30)]
        for row in range(20)
    ]
    np.testing.assert_array_equal(shape.covers((20, 30)), expected)


def test_background_is_no_shape() -> None:
    with pytest.raises(ValueError, match=r"label: expected one of disc, .*, cross, got background"):
        Shape(0, (0.0, 0.0), 1.0, 0.0).covers((4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: expected at least 1, got 0"),
        ({"count": 1, "size": 15}, r"size: expected height and width of at least 16, got \(15, 15\)"),
        ({"count": 1, "size": (32, 8)}, r"size: expected height and width of at least 16, got \(32, 8\)"),
        ({"count": 1, "seed": -1}, "seed: expected at least 0, got -1"),
        ({"count": 1, "split": "val"}, "split: expected one of 'train', 'unseen', got 'val'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes(**arguments)


@pytest.mark.parametrize("index", [-1, 3])
def test_index_outside_the_scenes_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=f"index: expected 0 to 2, got {index}"):
        Scenes(3)[index]

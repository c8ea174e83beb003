"""``python -m jpu_cuda segment``: pictures in, mask and overlay out, errors in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import jpu_cuda
from jpu_cuda import models
from jpu_cuda.__main__ import main
from jpu_cuda.segment import MEAN, STD, mask_image, overlay, palette, read_image, segment_image, to_input

SMALL = "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    models.save_weights(models.fastfcn(SMALL, head="fcn", num_classes=5, width=16), path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


class Brightness(nn.Module):
    """Class 1 where the first channel is above its mean, so that masks can be foretold."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))
        self.seen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen = tuple(x.shape)
        bright = x[:, :1] * STD[0] + MEAN[0]
        return torch.cat((1 - bright, bright), 1), torch.zeros(1)


def halves(width: int = 40, height: int = 20) -> Image.Image:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


def test_writes_mask_and_overlay(
    photo: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    assert main(["segment", str(photo), "--weights", str(weights), "--out", str(out)]) == 0
    with Image.open(out / "photo_mask.png") as mask, Image.open(photo) as image:
        assert (mask.mode, mask.size) == ("P", image.size)
        expected = segment_image(models.load(weights), image.convert("RGB"))
        np.testing.assert_array_equal(np.asarray(mask), expected)
        with Image.open(out / "photo_overlay.png") as over:
            np.testing.assert_array_equal(np.asarray(over), np.asarray(overlay(image, expected)))
    printed = capsys.readouterr().out
    assert f"wrote {out / 'photo_mask.png'}" in printed
    shares = [float(line.split(": ")[1].split(" %")[0]) for line in printed.splitlines() if line.startswith("class ")]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_as_a_user_types_it(photo: Path, weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jpu_cuda", "segment", str(photo), "--weights", str(weights)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "wrote photo_overlay.png" in done.stdout
    assert (tmp_path / "photo_mask.png").is_file()


def test_classes_are_named(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["sky", "tree", "road"]
    model = models.fastfcn(SMALL, head="fcn", num_classes=3, width=16, classes=names)
    models.save_weights(model, tmp_path / "named.pth")
    assert main(["segment", str(photo), "--weights", str(tmp_path / "named.pth"), "--out", str(tmp_path)]) == 0
    found = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("class ")]
    assert found
    assert set(found) <= {f"class {i} ({name})" for i, name in enumerate(names)}


def test_size_and_overrides(photo: Path, weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights)["state_dict"]
    torch.save(state, tmp_path / "bare.pth")
    words = ["segment", str(photo), "--weights", str(tmp_path / "bare.pth"), "--out", str(tmp_path)]
    assert main(words) == 2
    assert main([*words, "--backbone", SMALL, "--size", "64", "--backend", "reference"]) == 0


def test_a_mask_has_the_images_size_and_content() -> None:
    model = Brightness()
    expected = np.zeros((20, 40), dtype=np.int64)
    expected[:, 20:] = 1
    np.testing.assert_array_equal(segment_image(model, halves()), expected)
    assert model.seen == (1, 3, 20, 40)
    resized = segment_image(model, halves(), size=10)
    assert model.seen == (1, 3, 10, 20)
    assert resized.shape == (20, 40)
    assert (resized == expected).mean() > 0.9


def test_images_are_normalised_as_imagenets() -> None:
    batch = to_input(Image.fromarray(np.full((2, 3, 3), 255, dtype=np.uint8)))
    assert batch.shape == (1, 3, 2, 3)
    torch.testing.assert_close(batch[0, :, 0, 0], torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]))


def test_palette_is_pascal_vocs() -> None:
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
    assert [tuple(c) for c in palette(7).tolist()] == expected
    assert tuple(palette()[255]) == (224, 224, 192)
    assert len({tuple(c) for c in palette().tolist()}) == 256


def test_masks_past_256_classes_keep_their_indices(tmp_path: Path) -> None:
    mask = np.array([[0, 255], [256, 1000]])
    mask_image(mask).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        np.testing.assert_array_equal(np.asarray(read), mask)


def test_all_masks_of_a_model_have_one_form() -> None:
    mask = np.array([[0, 255]])
    assert mask_image(mask, num_classes=256).mode == "P"
    assert mask_image(mask, num_classes=257).mode == "I;16"


def test_overlay_leaves_the_background_clear() -> None:
    mask = np.zeros((20, 40), dtype=np.int64)
    mask[:, 20:] = 2
    pixels = np.asarray(overlay(halves(), mask))
    assert (pixels[:, :20] == 0).all()
    np.testing.assert_array_equal(pixels[0, 30], [128, 192, 128])


def test_overlay_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"mask: expected shape \(20, 40\) as the image, got \(2, 2\)"):
        overlay(halves(), np.zeros((2, 2), dtype=np.int64))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_images_of_any_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    halves().convert(mode).save(path)
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.asarray(image)[0, 0].max() < 16
    assert np.asarray(image)[0, -1].min() > 239


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "deep.png"))[0, :, 0], [0, 100, 255])


def test_a_dark_sixteen_bit_grey_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint16)).save(tmp_path / "dark.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "dark.png"))[0, :, 0], [0, 0, 1])


def test_exif_orientation_is_obeyed(tmp_path: Path) -> None:
    image = halves()
    exif = image.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = read_image(tmp_path / "turned.png")
    assert upright.size == (20, 40)
    assert np.asarray(upright)[0, 0, 0] == 0
    assert np.asarray(upright)[-1, 0, 0] == 255


def corrupt(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "none.png"}, "none.png: expected an image file, got none"),
        ({"image": "."}, "expected an image file, got a folder"),
        ({"weights": "none.pth"}, "none.pth: expected a file with weights, got none"),
        ({"--size": "0"}, "--size: expected at least 1 pixel, got 0"),
        ({"--device": "quantum"}, "--device: expected a device of this machine, got 'quantum'"),
        ({"--backend": "cuda"}, "backend 'cuda' "),
        ({"--width": "32"}, "expected the weights of"),
    ],
)
def test_errors_are_one_line(
    photo: Path, weights: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    options = [word for name, value in change.items() if name.startswith("--") for word in (name, value)]
    words = [change.get("image", str(photo)), "--weights", change.get("weights", str(weights))]
    assert main(["segment", *words, "--out", str(photo.parent), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("which", ["image", "weights"])
def test_corrupt_files(photo: Path, weights: Path, capsys: pytest.CaptureFixture[str], which: str) -> None:
    bad = photo.parent / "bad"
    bad.write_bytes((photo if which == "image" else weights).read_bytes())
    files = {"image": photo, "weights": weights, which: corrupt(bad)}
    assert main(["segment", str(files["image"]), "--weights", str(files["weights"])]) == 2
    expected = "expected an image, got a damaged" if which == "image" else "expected a checkpoint"
    assert expected in capsys.readouterr().err


def test_an_image_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match="expected an image, got a damaged or other file"):
        read_image(tmp_path / "text.png")


def test_unknown_words_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["segment"])
    assert "required" in capsys.readouterr().err


def test_pillow_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "jpu_cuda.segment", raising=False)
    monkeypatch.delattr(jpu_cuda, "segment", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["segment", "x", "--weights", "y"]) == 2
    assert "expected Pillow to be installed" in capsys.readouterr().err

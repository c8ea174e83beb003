"""Weights in files: FastFCN's forms, this package's own, and files that are neither."""

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomise
from torch import Tensor, nn

from jpu_cuda import models
from jpu_cuda.models.checkpoint import CheckpointError, _infer, _read

SMALL = "test_resnet.r160_in1k"


def small(upsampling: str = "jpu", head: str = "encoding", seed: int = 0, **kwargs: Any) -> models.FastFCN:
    torch.manual_seed(seed)
    model = models.fastfcn(SMALL, upsampling, head, **{"num_classes": 5, "width": 16, **kwargs})
    return randomise(model, seed)  # type: ignore[return-value]


@pytest.fixture
def source() -> models.FastFCN:
    return small(seed=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth.tar"


def assert_same_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert [name for name in own if not torch.equal(own[name], state[name])] == []


# --- what FastFCN's training writes ---


def training_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """The entries of FastFCN's training script; its score is a NumPy scalar."""
    return {
        "epoch": 80,
        "state_dict": OrderedDict(state),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001, "params": [0, 1]}]},
        "best_pred": np.float64(0.6497),
    }


WRAPPINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "module": lambda state: {f"module.{name}": value for name, value in state.items()},
    "state_dict, module": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "training": training_checkpoint,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_every_wrapping_loads(source: models.FastFCN, path: Path, wrap: Any, zipped: bool) -> None:
    torch.save(wrap(source.state_dict()), path, _use_new_zipfile_serialization=zipped)
    model = small(seed=2)
    models.load_weights(model, path)
    assert_same_weights(model, source.state_dict())


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=["NumPy 1", "NumPy 2"])
def test_numpy_scalars_load_by_either_versions_name(source: models.FastFCN, path: Path, module: bytes) -> None:
    torch.save(training_checkpoint(source.state_dict()), path)
    renamed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w", zipfile.ZIP_STORED) as new:
        for entry in old.namelist():
            data = old.read(entry)
            if entry.endswith("data.pkl"):
                assert data.count(b"multiarray\nscalar") == 1
                start = data.rindex(b"cnumpy", 0, data.index(b"multiarray\nscalar")) + 1
                data = data[:start] + module + data[data.index(b"\nscalar", start) :]
            new.writestr(entry, data)
    path.write_bytes(renamed.getvalue())
    model = small(seed=2)
    models.load_weights(model, path)
    assert_same_weights(model, source.state_dict())


@pytest.mark.parametrize("score", [np.float32(0.5), np.int64(3), np.int32(3)], ids=lambda s: s.dtype.name)
def test_other_numpy_scalars_load(source: models.FastFCN, path: Path, score: Any) -> None:
    torch.save({"state_dict": source.state_dict(), "best_pred": score}, path)
    models.load_weights(small(seed=2), path)


def test_counters_of_batches_may_be_absent(source: models.FastFCN, path: Path) -> None:
    """PyTorch before 0.4.1 did not write them."""
    state = source.state_dict()
    torch.save({name: value for name, value in state.items() if "num_batches_tracked" not in name}, path)
    model = small(seed=2)
    models.load_weights(model, path)
    expected = {n: torch.zeros_like(v) if "num_batches_tracked" in n else v for n, v in state.items()}
    assert_same_weights(model, expected)


def test_weights_take_the_models_dtype(source: models.FastFCN, path: Path) -> None:
    torch.save({name: value.half() for name, value in source.state_dict().items()}, path)
    model = small(seed=2)
    models.load_weights(model, path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- this package's own ---


def test_saved_weights_come_back_with_the_model(path: Path) -> None:
    model = small("fpn", "encoding", se_loss=False, lateral=True, aux=False, classes=list("abcde"))
    models.save_weights(model, path)
    loaded = models.load(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert_same_weights(loaded, model.state_dict())


def test_names_of_classes_come_back(path: Path) -> None:
    models.save_weights(small(classes=["sky", "tree", "road", "car", "bird"]), path)
    assert models.load(path).config["classes"] == ["sky", "tree", "road", "car", "bird"]


def test_saving_replaces_a_file_and_leaves_no_other(source: models.FastFCN, path: Path) -> None:
    path.write_bytes(b"old")
    models.save_weights(source, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    models.load_weights(small(seed=2), path)


def test_a_failed_save_leaves_the_old_file(source: models.FastFCN, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")

    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        models.save_weights(source, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_a_saved_file_has_the_mode_of_any_new_file(source: models.FastFCN, path: Path, tmp_path: Path) -> None:
    models.save_weights(source, path)
    (tmp_path / "any").touch()
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_saving_into_no_folder(source: models.FastFCN, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected an existing folder to write to, got .*nowhere"):
        models.save_weights(source, tmp_path / "nowhere" / "weights.pth")


# --- the architecture from names and shapes ---

INFERRED = {
    "encoding, jpu": {"backbone": "resnet50", "upsampling": "jpu", "head": "encoding"},
    "encoding, none": {"backbone": "resnet50", "upsampling": "none", "head": "encoding"},
    "encoding, bilinear": {"backbone": "resnet50", "upsampling": "bilinear", "head": "encoding"},
    "encoding, fpn": {"backbone": "resnet50", "upsampling": "fpn", "head": "encoding", "width": 64},
    "lateral": {"backbone": "resnet101", "upsampling": "none", "head": "encoding", "lateral": True},
    "no presence": {"backbone": "resnet50", "upsampling": "jpu", "head": "encoding", "se_loss": False},
    "no auxiliary": {"backbone": "resnet50", "upsampling": "jpu", "head": "encoding", "aux": False},
    "aspp, jpu": {"backbone": "resnet50", "upsampling": "jpu", "head": "aspp"},
    "psp, jpu": {"backbone": "resnet101", "upsampling": "jpu", "head": "psp", "width": 64},
    "fcn, jpu_x": {"backbone": "resnet50", "upsampling": "jpu_x", "head": "fcn"},
    "fcn, none": {"backbone": "resnet50", "upsampling": "none", "head": "fcn"},
}


@pytest.mark.parametrize("arguments", INFERRED.values(), ids=INFERRED)
def test_the_architecture_is_read_off_the_tensors(arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = models.fastfcn(num_classes=7, **arguments)
        twin = models.fastfcn(**_infer(model.state_dict(), "file", {}))
    assert twin.config == model.config


def test_a_file_without_config_builds_its_model(path: Path) -> None:
    torch.manual_seed(0)
    model = models.fastfcn("resnet50", "jpu", "fcn", num_classes=3, width=8)
    torch.save(training_checkpoint(model.state_dict()), path)
    loaded = models.load(path)
    assert loaded.config == model.config
    assert_same_weights(loaded, model.state_dict())


def test_arguments_win_over_the_file(path: Path) -> None:
    models.save_weights(small("none", "psp"), path)
    # Bilinear upsampling has no weights, so the PSP head's file fits both.
    assert models.load(path, upsampling="bilinear").config["upsampling"] == "bilinear"


def test_a_timm_backbone_is_asked_for(source: models.FastFCN, path: Path) -> None:
    torch.save(source.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"backbone cannot be read off its tensors .*give backbone="):
        models.load(path)


def test_a_timm_backbone_given_is_enough(source: models.FastFCN, path: Path) -> None:
    torch.save(source.state_dict(), path)
    assert_same_weights(models.load(path, backbone=SMALL), source.state_dict())


# --- files that do not fit ---


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.pth: expected a file with weights, got none"):
        models.load(tmp_path / "none.pth")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a file with weights, got a folder"):
        models.load_weights(small(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x89PNG\r\n\x1a\n" * 9], ids=["empty", "text", "png"])
def test_a_file_that_is_no_checkpoint(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        models.load(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_truncated_file(source: models.FastFCN, path: Path, zipped: bool, part: float) -> None:
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        models.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_bytes_raise_nothing_else(path: Path, zipped: bool) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    content, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(5):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            _read(path)
        except CheckpointError:
            refused += 1
    assert refused > 0


class Trap:
    """Runs a command when unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch.save"])
def test_code_in_a_file_is_not_run(path: Path, tmp_path: Path, plain: bool) -> None:
    content = {"state_dict": {"a": torch.ones(1)}, "trap": Trap(f"touch {tmp_path / 'sprung'}")}
    if plain:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="which are not loaded for safety"):
        models.load(path)
    assert not (tmp_path / "sprung").exists()


def test_a_pickled_model_is_refused(source: models.FastFCN, path: Path) -> None:
    torch.save(source, path)
    with pytest.raises(CheckpointError, match="which are not loaded for safety"):
        models.load(path)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({}, "a dict with the entries none"),
        ({"epoch": 3, "optimizer": {}}, "a dict with the entries 'epoch', 'optimizer'"),
        ({"state_dict": {}}, "a dict with the entries 'state_dict'"),
        ({"state_dict": [torch.ones(1)]}, "a dict with the entries 'state_dict'"),
        ({1: torch.ones(1)}, "a dict with the entries 1"),
        (torch.ones(2), "an object of type Tensor"),
        ([torch.ones(2)], "an object of type list"),
    ],
)
def test_a_file_without_a_state_dict(path: Path, content: Any, got: str) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"expected a state dict \(names and tensors\), got {got}"):
        models.load(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("text", "expected the config to be a dict, got str"),
        ({"backbone": SMALL}, "expected arguments of models.fastfcn in its config, got .*num_classes"),
        ({"num_classes": 5, "depth": 3}, "expected arguments of models.fastfcn in its config, got .*'depth'"),
        ({"num_classes": 5, "head": "uper"}, "in its config, got .*head: expected one of .* got 'uper'"),
    ],
)
def test_a_wrong_config(source: models.FastFCN, path: Path, config: Any, message: str) -> None:
    torch.save({"config": config, "state_dict": source.state_dict()}, path)
    with pytest.raises(CheckpointError, match=message):
        models.load(path)


def test_weights_of_another_head_are_named(path: Path) -> None:
    torch.save(small("jpu", "psp").state_dict(), path)
    message = (
        "expected the weights of backbone='test_resnet.r160_in1k', upsampling='jpu', head='fcn'.*"
        "unexpected head.conv5.0.conv1.0.weight, .* and [0-9]+ more"
    )
    with pytest.raises(CheckpointError, match=message):
        models.load_weights(small("jpu", "fcn"), path)


def test_missing_weights_are_named(path: Path) -> None:
    torch.save(small("none", "fcn").state_dict(), path)
    with pytest.raises(CheckpointError, match=r"missing jpu.conv5.0.weight, jpu.conv5.1.weight, .* and [0-9]+ more"):
        models.load_weights(small("jpu", "fcn"), path)


def test_wrong_shapes_are_named(path: Path) -> None:
    torch.save(small(head="fcn", num_classes=9).state_dict(), path)
    message = r"expected shapes head.conv5.4.weight \(5, 16, 1, 1\) \(got \(9, 16, 1, 1\)\), head.conv5.4.bias"
    with pytest.raises(CheckpointError, match=message):
        models.load_weights(small(head="fcn"), path)


def test_a_model_is_left_alone_by_weights_that_do_not_fit(path: Path) -> None:
    torch.save(small("jpu", "psp", seed=3).state_dict(), path)
    model = small("jpu", "fcn", seed=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="another model's"):
        models.load_weights(model, path)
    assert_same_weights(model, before)


def test_weights_of_a_plain_resnet(path: Path) -> None:
    torch.save({"conv1.weight": torch.ones(64, 3, 7, 7), "fc.bias": torch.ones(1000)}, path)
    with pytest.raises(CheckpointError, match=r"expected a model in FastFCN's form, got one whose num_classes"):
        models.load(path)

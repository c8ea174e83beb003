"""Weights in files: FastFCN's published checkpoints, and this package's own."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .fastfcn import FastFCN, fastfcn
from .resnet import DEPTHS


class CheckpointError(ValueError):
    """A file that does not hold the weights that were expected of it."""


def save_weights(model: FastFCN, path: str | os.PathLike[str]) -> None:
    """Writes a model's weights and arguments, so that :func:`load` can build it again.

    The file appears whole or not at all.

    Args:
        model: the model.
        path: of the file; an existing one is replaced.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected an existing folder to write to, got {path.parent}")
    # Not of tempfile's making, whose files only their owner may read.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save({"config": model.config, "state_dict": model.state_dict()}, file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_weights(model: FastFCN, path: str | os.PathLike[str]) -> None:
    """Loads weights into a model; every name and shape must fit.

    Args:
        model: the model; left as it was if the file does not fit.
        path: a state dict, or a checkpoint with one under ``state_dict``, as :func:`save_weights` or
            FastFCN's training writes it. A ``module.`` before every name is dropped. Only tensors and
            plain values are read (``weights_only``): no code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, is no checkpoint, or is of another model.
    """
    _load_into(model, _read(path)[0], path)


def load(path: str | os.PathLike[str], **overrides: Any) -> FastFCN:
    """Builds the model that a file holds and loads its weights.

    The arguments of :func:`jpu_cuda.models.fastfcn` come from the file where :func:`save_weights` wrote
    it; otherwise they are read off the names and shapes of its tensors, which tell everything but a
    backbone of timm, and bilinear upsampling from none under other heads than encoding.

    Args:
        path: as for :func:`load_weights`.
        **overrides: arguments of :func:`jpu_cuda.models.fastfcn` that are to hold instead.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: as for :func:`load_weights`, or arguments that can be read off nowhere.
    """
    state, config = _read(path)
    if config is None:
        model = fastfcn(**{**_infer(state, path, overrides), **overrides})
    else:
        try:
            model = fastfcn(**{**config, **overrides})
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected arguments of models.fastfcn in its config, got {config} ({error})"
            ) from error
    _load_into(model, state, path)
    return model.eval()


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The state dict of a file without its wrappers, and its config where it has one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file with weights, got {'a folder' if path.is_dir() else 'none'}")
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: expected a checkpoint of tensors and plain values, got one that is damaged or holds other "
            f"objects, which are not loaded for safety ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # damaged bytes raise anything: struct.error, LookupError, AssertionError, …
        raise CheckpointError(
            f"{path}: expected a checkpoint written by torch.save, got a damaged or other file "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'})"
        ) from error
    config = content.get("config") if isinstance(content, Mapping) else None
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    ):
        raise CheckpointError(f"{path}: expected a state dict (names and tensors), got {_describe(content)}")
    if config is not None and not isinstance(config, Mapping):
        raise CheckpointError(f"{path}: expected the config to be a dict, got {type(config).__name__}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state), None if config is None else dict(config)


def _numpy_scalars() -> list[Any]:
    """What a NumPy scalar in a checkpoint needs: FastFCN's training stored its best score as one.

    Under the names of NumPy 1 and of NumPy 2, since a file knows those of the version that wrote it.
    """
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    dtypes = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)]
    return [*((scalar, name) for name in names), np.dtype, *dtypes]


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with the entries {', '.join(map(repr, list(content)[:5])) or 'none'}"
    return f"an object of type {type(content).__name__}"


def _load_into(model: FastFCN, state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    own = model.state_dict()
    # Checkpoints of PyTorch before 0.4.1 have no such counters; PyTorch itself lets them be absent.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(own[name].shape)} (got {tuple(state[name].shape)})"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    problems = [
        f"{title} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for title, found in (("missing", missing), ("unexpected", unexpected), ("expected shapes", shapes))
        if found
    ]
    if problems:
        architecture = ", ".join(f"{name}={value!r}" for name, value in model.config.items())
        raise CheckpointError(
            f"{path}: expected the weights of {architecture}; got another model's: {'; '.join(problems)}"
        )
    model.load_state_dict(state, strict=True)


def _infer(state: dict[str, Tensor], path: str | os.PathLike[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model in FastFCN's form from the names and shapes of its tensors."""

    def blocks(layer: int) -> int:
        return len({name.split(".")[2] for name in state if name.startswith(f"pretrained.layer{layer}.")})

    def shape(name: str) -> tuple[int, ...]:
        return tuple(state[name].shape) if name in state else ()

    found: dict[str, Any] = {}
    depths = tuple(blocks(i) for i in (1, 2, 3, 4))
    backbone = next((name for name, known in DEPTHS.items() if known == depths), None)
    if backbone is not None and shape("pretrained.conv1.6.weight") == (128, 64, 3, 3):
        found["backbone"] = backbone
    if "head.encmodule.fc.0.weight" in state:
        found |= {"head": "encoding", "se_loss": "head.encmodule.selayer.weight" in state}
        found["lateral"] = "head.connect.0.0.weight" in state
        classifier = "head.conv6.1.weight"
    elif "head.aspp.b0.0.weight" in state:
        found["head"], classifier = "aspp", "head.block.4.weight"
    elif "head.conv5.0.conv1.0.weight" in state:
        found["head"], classifier = "psp", "head.conv5.5.weight"
    else:
        found["head"], classifier = "fcn", "head.conv5.4.weight"
    if shape(classifier):
        found["num_classes"] = shape(classifier)[0]
    found["aux"] = "auxlayer.conv5.0.weight" in state
    if shape("jpu.conv5.0.weight"):
        found |= {"upsampling": "jpu", "width": shape("jpu.conv5.0.weight")[0]}
    elif shape("jpu.jum_2.conv_l.0.weight"):
        found |= {"upsampling": "jpu_x", "width": shape("jpu.jum_2.conv_l.0.weight")[0]}
    elif shape("jpu.laterals.0.0.weight"):
        found |= {"upsampling": "fpn", "width": shape("jpu.laterals.0.0.weight")[0]}
    elif found["head"] == "encoding" and shape("head.conv5.0.weight")[2:] == (1, 1):
        found["upsampling"] = "bilinear"
    else:
        found["upsampling"] = "none"
    for name in ("num_classes", "backbone"):
        if name not in found and name not in overrides:
            raise CheckpointError(
                f"{path}: expected a model in FastFCN's form, got one whose {name} cannot be read off its tensors "
                f"({', '.join(list(state)[:3])}, …); give {name}="
            )
    return found

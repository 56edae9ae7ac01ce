"""Checkpoints: a safetensors file that holds the weights and all that is needed to use them.

The file's metadata carries the network's arguments, the label names and the input specification
as JSON, so a checkpoint alone is enough to classify a video.  Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r21d.atomic import write_atomically
from r21d.models.registry import create_model
from r21d.models.resnet import VideoResNet
from r21d.weights.state_dict import describe_mismatch, import_safetensors, read_state_dict

FORMAT = "r21d"
VERSION = 1


class CheckpointError(RuntimeError):
    """A file cannot be read as weights; the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content.

    Attributes:
        state_dict: tensors on the CPU, by torchvision's names.
        config: keyword arguments of :func:`r21d.create_model`.
        classes: label names in the order of the logits.
        input: the fields of :class:`r21d.video.InputSpec`; empty where the writer had none.
        extra: whatever else the writer noted.
    """

    state_dict: dict[str, torch.Tensor]
    config: dict[str, Any]
    classes: list[str]
    input: dict[str, Any]
    extra: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    classes: Sequence[str],
    input: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write ``model`` into one file, which appears complete or not at all.

    Args:
        path: file to write; its directory must exist.  An existing file is replaced.
        model: the :class:`VideoResNet` itself, not a wrapper around it.
        classes: label names in the order of the logits.
        input: ``InputSpec.to_dict()`` of the clips the network was trained on, or an empty
            mapping where they did not come from videos.
        extra: notes of the writer's own, text by name.

    Raises:
        TypeError: ``model`` is not a :class:`VideoResNet`.
        ValueError: ``classes``, ``input`` or ``extra`` do not fit, or the model was changed so
            that its ``config`` no longer describes it.
        OSError: the file cannot be written.
    """
    if not isinstance(model, VideoResNet):
        raise TypeError(
            f"model must be a VideoResNet, got {type(model).__name__}; pass the network beneath "
            "its wrapper (model.module for DistributedDataParallel)"
        )
    labels = _check_labels(classes, model.config["num_classes"])
    notes = dict(extra or {})
    if not all(isinstance(text, str) for pair in notes.items() for text in pair):
        raise ValueError(f"extra must map text to text, got {notes!r}")
    state = model.state_dict()
    with torch.device("meta"):
        rebuilt = create_model(**model.config)
    if mismatch := describe_mismatch(state, rebuilt.state_dict(), "the model", "its config"):
        raise ValueError(
            "model cannot be saved, because create_model(**model.config) would not rebuild it: "
            f"{mismatch}"
        )
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(model.config),
        "classes": json.dumps(labels),
        "input": json.dumps(_check_input(input), allow_nan=False),
        "extra": json.dumps(notes),
    }
    _write(Path(path), state, metadata)


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file that :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint of this library, or
            written by a later version of it.
    """
    tensors, metadata = _read(Path(path))
    checkpoint = _parse(Path(path), tensors, metadata)
    if checkpoint is None:
        raise CheckpointError(
            f"{os.fspath(path)} holds tensors but is not an r21d checkpoint: its metadata does not "
            f"say format={FORMAT!r}; a plain state dict goes through load_weights(model, path)"
        )
    return checkpoint


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill ``model`` with the weights of a file.

    The file is a checkpoint of this library or a plain state dict in the model's layout:
    ``.pth`` and ``.pt`` are read by ``torch.load(weights_only=True)``, everything else as
    safetensors.  A checkpoint also sets ``classes`` and ``input_spec`` of a :class:`VideoResNet`;
    a plain state dict, which has neither, leaves them alone.

    Raises:
        CheckpointError: the file cannot be read.
        ValueError: names, shapes or BatchNorm's eps differ; all differences are counted and the
            first ones named.  The model is then as it was.
    """
    from r21d.video.transforms import InputSpec

    tensors, metadata = _read(Path(path))
    checkpoint = _parse(Path(path), tensors, metadata)
    differing: list[str] = []
    eps_differs = False
    if checkpoint is not None and isinstance(model, VideoResNet):
        differing = [
            f"{name} is {checkpoint.config[name]!r} in the file and {value!r} in the model"
            for name, value in model.config.items()
            if name in checkpoint.config and checkpoint.config[name] != value
        ]
        eps_differs = checkpoint.config.get("eps", model.config["eps"]) != model.config["eps"]
    mismatch = describe_mismatch(tensors, model.state_dict(), "the file", "the model")
    # No shape shows eps, and the wrong one gives logits that are quietly off.
    if mismatch or eps_differs:
        advice = (
            "; build the model with create_model(**load_checkpoint(path).config, weights=path)"
            if checkpoint is not None
            else ""
        )
        reasons = "; ".join([*differing, mismatch] if mismatch else differing)
        raise ValueError(f"{os.fspath(path)} does not fit the model: {reasons}{advice}")
    model.load_state_dict(tensors)
    if checkpoint is not None and isinstance(model, VideoResNet):
        model.classes = list(checkpoint.classes)
        model.input_spec = InputSpec.from_dict(checkpoint.input) if checkpoint.input else None


def _check_labels(classes: Sequence[str], num_classes: int) -> list[str]:
    labels = list(classes)
    if isinstance(classes, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"classes must be a list of label names, got {classes!r}")
    if len(labels) != num_classes:
        raise ValueError(
            f"classes has {len(labels)} names, but the network has {num_classes} outputs; "
            "give one name for each"
        )
    return labels


def _check_input(input: Mapping[str, Any]) -> dict[str, Any]:
    from r21d.video.transforms import InputSpec

    return InputSpec.from_dict(input).to_dict() if input else {}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        return read_state_dict(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error


def _parse(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> Checkpoint | None:
    """The checkpoint in ``metadata``, or None where it is not one of ours."""
    if metadata.get("format") != FORMAT:
        return None
    try:
        version = int(metadata["version"])
        if version > VERSION:
            raise ValueError(
                f"it has format version {version} and this library reads up to {VERSION}; "
                "upgrade r21d"
            )
        config = json.loads(metadata["config"])
        if not isinstance(config, dict):
            raise ValueError("its config is not a table")
        extra = json.loads(metadata["extra"])
        if not isinstance(extra, dict):
            raise ValueError("its extra notes are not a table")
        classes = _check_labels(json.loads(metadata["classes"]), config["num_classes"])
        input = _check_input(json.loads(metadata["input"]))
    except KeyError as error:
        raise CheckpointError(f"{path} is a damaged r21d checkpoint: it lacks {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a usable r21d checkpoint: {error}") from error
    return Checkpoint(tensors, config, classes, input, extra)


def _write(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    safetensors = import_safetensors()
    # Cloned: safetensors takes neither shared memory nor channels_last strides.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    write_atomically(path, safetensors.torch.save(tensors, metadata=metadata))

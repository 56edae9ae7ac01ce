"""Checkpoints: a safetensors file that holds the weights and all that is needed to use them.

The file's metadata carries the network's arguments, the label names and the input specification
as JSON, so a checkpoint alone is enough to classify a video.  Nothing in a file is ever executed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from r21d.atomic import write_atomically
from r21d.models.base import VideoModel
from r21d.models.registry import build_model, check_name, create_model
from r21d.weights.adapt import adapted
from r21d.weights.labels import labels
from r21d.weights.layouts import Imported, LayoutError, import_layout
from r21d.weights.state_dict import describe_mismatch, import_safetensors, read_state_dict

if TYPE_CHECKING:
    from r21d.video import InputSpec
    from r21d.weights.registry import PublishedWeights

_log = logging.getLogger(__name__)

FORMAT = "r21d"
VERSION = 1
_COUNTER = "num_batches_tracked"


class CheckpointError(RuntimeError):
    """A file cannot be read as weights; the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's content.

    Attributes:
        state_dict: tensors on the CPU, by torchvision's names.
        config: keyword arguments of :func:`r21d.create_model`.
        classes: label names in the order of the logits; empty where they are not known.
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
    input: InputSpec | Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write ``model`` into one file, which appears complete or not at all.

    Args:
        path: file to write; its directory must exist.  An existing file is replaced.
        model: the :class:`VideoModel` itself, not a wrapper around it.
        classes: label names in the order of the logits; empty where they are not known.
        input: the :class:`r21d.video.InputSpec` of the clips the network was trained on, or its
            ``to_dict()``; an empty mapping where they did not come from videos.
        extra: notes of the writer's own, text by name.

    Raises:
        TypeError: ``model`` is not a :class:`VideoModel`.
        ValueError: ``classes``, ``input`` or ``extra`` do not fit, or the model was changed so
            that its ``config`` no longer describes it.
        OSError: the file cannot be written.
    """
    if not isinstance(model, VideoModel):
        raise TypeError(
            f"model must be a VideoModel, got {type(model).__name__}; pass the network beneath "
            "its wrapper (model.module for DistributedDataParallel)"
        )
    names = _check_labels(classes, model.config["num_classes"])
    notes = dict(extra or {})
    if not all(isinstance(text, str) for pair in notes.items() for text in pair):
        raise ValueError(f"extra must map text to text, got {notes!r}")
    state = model.state_dict()
    rebuilt = _on_meta(model.config)
    mismatch = describe_mismatch(state, rebuilt.state_dict(), "the model", "its config")
    eps, configured = _norm_eps(model), _norm_eps(rebuilt)
    if not mismatch and eps != configured:
        mismatch = f"eps is {_distinct(eps)} in the model and {_distinct(configured)} in its config"
    if mismatch:
        raise ValueError(
            "model cannot be saved, because create_model(**model.config) would not rebuild it: "
            f"{mismatch}"
        )
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(model.config),
        "classes": json.dumps(names),
        "input": json.dumps(_check_input(input), allow_nan=False),
        "extra": json.dumps(notes),
    }
    _write(Path(path), state, metadata)


def load_checkpoint(source: str | os.PathLike[str], model: str | None = None) -> Checkpoint:
    """Read weights of any known layout, with all that is known about them.

    Args:
        source: a file that :func:`save_checkpoint` wrote; a published file of torchvision, ig65m,
            VMZ (PyTorch or Caffe2), mmaction2 or I3D; the ``https://`` or ``file://`` URL of one;
            or a name of :func:`r21d.list_weights`.  A file's content decides, not its suffix.
        model: the network that a registry name without one (``"kinetics400_torchvision"``) is of.

    Returns:
        The tensors by our names and the arguments of the network that they fit.  What a published
        file does not tell is taken from its publisher: exactly, where its hash is known to the
        registry; else from its family, and ``extra["assumed"]`` says what.

    Raises:
        CheckpointError: the file is missing, damaged, or of no known layout.
        WeightsUnavailable: published weights cannot be fetched.
        ValueError: an unknown registry name.
    """
    path, entry = _locate(source, model)
    checkpoint = _read(path, entry).checkpoint
    if checkpoint is None:
        raise CheckpointError(
            f"{path} holds tensors of no known layout: it is neither an r21d checkpoint (its "
            f"metadata does not say format={FORMAT!r}) nor published weights of torchvision, "
            "ig65m, VMZ, mmaction2 or I3D; a plain state dict goes through load_weights(model, "
            "path)"
        )
    return checkpoint


def checkpoint_notes(source: str | os.PathLike[str]) -> dict[str, str]:
    """What the writer of a checkpoint noted (``Checkpoint.extra``), its tensors left unread.

    Empty for anything but a file that :func:`save_checkpoint` wrote.
    """
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(os.fspath(source), framework="pt") as file:
            metadata = file.metadata() or {}
        notes = json.loads(metadata.get("extra", "{}")) if metadata.get("format") == FORMAT else {}
    except (safetensors.SafetensorError, OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def load_model(source: str | os.PathLike[str], **options: Any) -> VideoModel:
    """The network that weights are of, ready to use: in eval mode, with classes and input.

    Args:
        source: as for :func:`load_checkpoint`; a registry name needs its network
            (``"r2plus1d_18/kinetics400_torchvision"``) where several have it.
        options: arguments of :func:`r21d.create_model` that shall differ from the file's.

    Raises:
        As :func:`load_checkpoint`; ValueError too for options that do not fit the weights.
    """
    return model_from_weights(source, None, options).eval()


def load_weights(model: nn.Module, source: str | os.PathLike[str], adapt: bool = False) -> None:
    """Fill ``model`` with weights.

    Args:
        model: a network of this library, or any module: one of another library takes weights in
            its own layout, and ours where it has torchvision's.
        source: as for :func:`load_checkpoint`, or a plain state dict of the model.
        adapt: start a :class:`VideoModel` of other classes, input channels or (R2D) clip length
            from these weights, see :func:`r21d.create_model`; without it they must fit as they
            are.

    A :class:`VideoModel` also gets ``classes`` and ``input_spec``.  Those that a file does not
    carry but its family suggests are set only where the model has none.

    Raises:
        CheckpointError: the file cannot be read.
        WeightsUnavailable: published weights cannot be fetched.
        ValueError: names, shapes or BatchNorm's eps differ; all differences are counted and the
            first ones named, and so is the network that would fit.  The model is then as it was.
    """
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    name = model.config["name"] if isinstance(model, VideoModel) else None
    path, entry = _locate(source, name)
    _fill(model, _read(path, entry, model), adapt)


def model_from_weights(
    source: str | os.PathLike[str], name: str | None, given: Mapping[str, Any]
) -> VideoModel:
    """What :func:`r21d.create_model` does with ``weights``; ``name`` None takes the file's."""
    path, entry = _locate(source, name)
    content = _read(path, entry)
    checkpoint = content.checkpoint
    if checkpoint is None:
        if name is None:
            raise CheckpointError(f"{path} holds tensors of no known layout")
        model = build_model(name, given)
        _fill(model, content, adapt=False)
        return model
    held = dict(checkpoint.config)
    found = held.pop("name")
    if name is not None and found != name:
        raise ValueError(
            f"{path} holds a {found}, not a {name}: create_model({found!r}, weights=...)"
        )
    model = build_model(found, held | dict(given))
    _fill(model, content, adapt=True)
    return model


@dataclass(frozen=True)
class _Content:
    """What is in a file.

    Attributes:
        path: the file.
        tensors: as the file names them.
        checkpoint: what they are, or None where no known layout has them.
        certain: whether config, classes and input are the writer's own words, not inferred.
        note: what a layout that nearly fits says.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    checkpoint: Checkpoint | None
    certain: bool
    note: str = ""


def _locate(
    source: str | os.PathLike[str], model: str | None
) -> tuple[Path, PublishedWeights | None]:
    """The file that ``source`` stands for, and its entry where the registry has one."""
    from r21d.weights.registry import fetch, is_name, is_url, looks_like_name, published

    if not isinstance(source, str) or Path(source).exists():
        return Path(source), None
    if is_url(source):
        return fetch(source), None
    if is_name(source):
        entry = published(source, model)
        return fetch(entry), entry
    if looks_like_name(source):
        published(source, model)  # raises, and says which names are like it
    return Path(source), None


def _read(path: Path, entry: PublishedWeights | None, model: nn.Module | None = None) -> _Content:
    """Read and recognise a file.

    A ``model`` whose own state dict the file holds is enough where no layout knows the tensors.
    """
    try:
        tensors, metadata = read_state_dict(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error
    if (own := _parse(path, tensors, metadata)) is not None:
        return _Content(path, tensors, own, certain=True)
    try:
        imported = import_layout(tensors)
    except LayoutError as error:
        if model is not None and model.state_dict().keys() & tensors.keys():
            # In the model's own words the difference is easier to see, if there is one.
            return _Content(path, tensors, None, certain=False, note=str(error))
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error
    if imported is None:
        return _Content(path, tensors, None, certain=False)
    from r21d.weights.registry import identify

    entry = entry or identify(path)
    name = imported.config["name"]
    if entry is not None and entry.model != name:
        raise CheckpointError(
            f"{path} is registered as weights of {entry.model} and holds a {name}"
        )
    return _Content(path, tensors, _as_checkpoint(imported, entry), certain=entry is not None)


def _as_checkpoint(imported: Imported, entry: PublishedWeights | None) -> Checkpoint:
    classes, input = list(imported.classes), dict(imported.input)
    extra = {"layout": imported.layout}
    if entry is None:
        extra["assumed"] = "; ".join(imported.assumed)
    else:
        extra["weights"] = f"{entry.model}/{entry.name}"
        classes = labels(entry.classes) if entry.classes else classes
        if input:
            input |= entry.given_input()
    return Checkpoint(imported.state_dict, imported.config, classes, _check_input(input), extra)


def _fill(model: nn.Module, content: _Content, adapt: bool) -> None:
    """Load what ``content`` holds into ``model``, or raise and leave it alone."""
    checkpoint = content.checkpoint
    state = _state_for(model, content, adapt)
    mismatch = describe_mismatch(state, model.state_dict(), "the file", "the model")
    if checkpoint is None:
        problems = [content.note] if mismatch and content.note else []
    elif mismatch and isinstance(model, VideoModel):
        problems = _config_differences(model, checkpoint)
    else:
        problems = _eps_difference(model, checkpoint, content.certain)
    if mismatch or problems:
        reasons = "; ".join([*problems, mismatch] if mismatch else problems)
        known = checkpoint is not None and isinstance(model, VideoModel)
        advice = _advice(content.path, checkpoint) if checkpoint is not None and known else ""
        raise ValueError(f"{content.path} does not fit the model: {reasons}{advice}")
    model.load_state_dict(dict(state))
    if checkpoint is not None and isinstance(model, VideoModel):
        _describe(model, checkpoint, content.certain, adapt)
        if not content.certain:
            _log.warning(
                "%s does not tell all that it needs; assumed: %s",
                content.path,
                checkpoint.extra["assumed"],
            )


def _describe(model: VideoModel, checkpoint: Checkpoint, certain: bool, adapt: bool) -> None:
    """Set ``classes`` and ``input_spec`` as far as ``checkpoint`` knows better than ``model``."""
    from r21d.video.transforms import InputSpec

    def same(option: str) -> bool:
        return checkpoint.config.get(option) == model.config[option]

    if certain and not adapt:
        model.classes = model.input_spec = None  # which is what a file without them says
    if checkpoint.classes and same("num_classes") and model.classes is None:
        model.classes = list(checkpoint.classes)
    if checkpoint.input and same("in_channels") and (certain or model.input_spec is None):
        spec = InputSpec.from_dict(checkpoint.input)
        clip_len = model.config.get("clip_len")
        model.input_spec = spec if clip_len is None else replace(spec, clip_len=clip_len)


def _state_for(model: nn.Module, content: _Content, adapt: bool) -> Mapping[str, torch.Tensor]:
    """The tensors to load: a module of another library may want them under the file's names."""
    checkpoint = content.checkpoint
    if checkpoint is not None and isinstance(model, VideoModel):
        return adapted(checkpoint, model, content.certain) if adapt else checkpoint.state_dict
    expected = model.state_dict()
    as_they_are = content.tensors
    if not any(name.endswith(_COUNTER) for name in as_they_are):
        # PyTorch before 0.4.1 did not count batches.
        counters = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)}
        as_they_are = {**as_they_are, **counters}
    fits = not describe_mismatch(as_they_are, expected, "the file", "the model")
    return as_they_are if fits or checkpoint is None else checkpoint.state_dict


def _config_differences(model: VideoModel, checkpoint: Checkpoint) -> list[str]:
    return [
        f"{name} is {checkpoint.config[name]!r} in the file and {value!r} in the model"
        for name, value in model.config.items()
        if name in checkpoint.config and checkpoint.config[name] != value
    ]


def _eps_difference(model: nn.Module, checkpoint: Checkpoint, certain: bool) -> list[str]:
    """What no name and no shape shows, and would give logits that are quietly off."""
    wanted, found = _norm_eps(_on_meta(checkpoint.config)), _norm_eps(model)
    if not isinstance(model, VideoModel):  # whose names may be others
        fits = set(found.values()) <= set(wanted.values())
    else:
        fits = wanted == found
    if fits:
        return []
    message = f"eps is {_distinct(wanted)} in the file and {_distinct(found)} in the model"
    if certain:
        return [message]
    _log.warning("%s, judging by the file's family; BatchNorm may be off", message)
    return []


def _norm_eps(model: nn.Module) -> dict[str, float]:
    """eps of each BatchNorm by its name."""
    kinds = (nn.BatchNorm3d, nn.SyncBatchNorm)
    return {name: m.eps for name, m in model.named_modules() if isinstance(m, kinds)}


def _distinct(eps: Mapping[str, float]) -> str:
    return " and ".join(map(repr, dict.fromkeys(eps.values())))


def _on_meta(config: Mapping[str, Any]) -> VideoModel:
    """The network of ``config`` without memory for it."""
    with torch.device("meta"):
        return create_model(**config)


def _advice(path: Path, checkpoint: Checkpoint) -> str:
    name = checkpoint.config.get("name")
    return (
        f"; the file is of a {name}: create_model({name!r}, weights={str(path)!r}) takes it, and "
        "adapt=True makes other classes, channels or R2D frames of it"
    )


def _check_labels(classes: Sequence[str], num_classes: int) -> list[str]:
    names = list(classes)
    if isinstance(classes, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"classes must be a list of label names, got {classes!r}")
    if names and len(names) != num_classes:
        raise ValueError(
            f"classes has {len(names)} names, but the network has {num_classes} outputs; "
            "give one name for each, or none"
        )
    return names


def _check_input(input: InputSpec | Mapping[str, Any]) -> dict[str, Any]:
    from r21d.video.transforms import InputSpec

    if isinstance(input, InputSpec):
        input = input.to_dict()
    return InputSpec.from_dict(input).to_dict() if input else {}


def _check_network(config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """ValueError and others where ``config`` is not the network that ``tensors`` are of.

    Nothing is allocated, whatever sizes a damaged or hostile file claims.
    """
    check_name(config["name"])
    if sum(config.get("blocks", ())) > len(tensors):
        raise ValueError(f"it has {len(tensors)} tensors for {config['blocks']} blocks")
    if mismatch := describe_mismatch(
        tensors, _on_meta(config).state_dict(), "the file", "the network of its config"
    ):
        raise ValueError(mismatch)


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
        if not isinstance(extra, dict) or not all(isinstance(v, str) for v in extra.values()):
            raise ValueError("its extra notes are not a table of texts")
        classes = _check_labels(json.loads(metadata["classes"]), config["num_classes"])
        input = _check_input(json.loads(metadata["input"]))
        _check_network(config, tensors)
    except KeyError as error:
        raise CheckpointError(f"{path} is a damaged r21d checkpoint: it lacks {error}") from error
    except (ValueError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
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

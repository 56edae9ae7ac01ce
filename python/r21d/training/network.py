"""The network that a run starts with: fresh, or from weights that are made to fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from r21d.models.base import VideoModel
from r21d.training.run_folder import BEST_FILE, LAST_FILE
from r21d_ops import Conv2Plus1D
from r21d_ops.modules import FusedSequential

if TYPE_CHECKING:
    from r21d.training.run_config import RunConfig
    from r21d.weights import Checkpoint

WEIGHTS_SOURCE = "the weights"
_NORMALISATION = ("mean", "std", "antialias")


def build_model(
    config: RunConfig, classes: Sequence[str], start: Checkpoint | None = None
) -> VideoModel:
    """The network of ``config`` for ``classes``, in training mode.

    With weights (``start``, what `load_start` returns, saves reading them once more) all that
    ``config`` leaves open is theirs, and the head is fresh where their classes are not ``classes``,
    in this order; weights that do not name theirs keep it where there are as many.

    Raises:
        ValueError: the weights do not fit, or an option does not suit the network.
        CheckpointError: the weights cannot be read.
        WeightsUnavailable: published weights cannot be fetched.
    """
    from r21d import models, weights

    options = config.model.options()
    options |= {"num_classes": len(classes), "clip_len": config.input.clip_len}
    source = weights_file(config.model.weights)
    start = start or load_start(config)
    if start is None:
        options["name"] = config.model.model
    else:
        options = {**start.config, **options, "in_channels": 3}
    if options["name"] == "i3d":
        # Its authors' statistics take thousands of steps to follow.
        options["momentum"] = 0.1
    model = models.create_model(**options)
    model.classes = list(classes)
    if source is not None:
        # The classes are known to it beforehand: as many others need a fresh head, too.
        try:
            weights.load_weights(model, source, adapt=True)
        except ValueError as error:
            if start is None or not (others := _other_options(config, start)):
                raise
            raise ValueError(
                f"{config.model.weights} holds a {start.config['name']} that does not fit: "
                f"{', '.join(others)}; none takes what they have"
            ) from error
        model.classes = list(classes)
    if config.model.recompute:
        for module in model.modules():
            if isinstance(module, Conv2Plus1D | FusedSequential):
                module.recompute = True
    return model if config.model.fused else as_stock(model)


def _other_options(config: RunConfig, start: Checkpoint) -> list[str]:
    """What ``config`` chooses of the network and the weights have otherwise, in words."""
    held = {"width": (start.config.get("widths") or [None])[0]} | start.config
    chosen = {name: getattr(config.model, name) for name in ("width", "midplanes", "eps")}
    return [
        f"{name} is {value} ({config.sources.get(name)}) and {held[name]} in the weights"
        for name, value in chosen.items()
        if value not in (None, held.get(name))
    ]


def load_start(config: RunConfig) -> Checkpoint | None:
    """The weights that ``config`` starts from, None for fresh ones.

    Raises:
        ValueError: an unknown name, a folder without weights, or another network than the one that
            is asked for.
        CheckpointError: they cannot be read.
        WeightsUnavailable: published weights cannot be fetched.
    """
    from r21d import weights

    source = weights_file(config.model.weights)
    if source is None:
        return None
    asked = config.model.model if "model" in config.sources else None
    # A name without its network is, unless said otherwise, one of the default's.
    checkpoint = weights.load_checkpoint(
        source, asked if asked or "/" in str(source) else config.model.model
    )
    found = checkpoint.config["name"]
    if asked not in (None, found):
        raise ValueError(f"{source} holds a {found}, not a {asked}: model = {found!r} takes it")
    return checkpoint


def weights_file(weights: str | None) -> str | None:
    """What to load: of a run's folder its best weights, or else its last.

    Raises:
        ValueError: a folder without either.
    """
    if weights is None or not Path(weights).is_dir():
        return weights
    for name in (BEST_FILE, LAST_FILE):
        if (file := Path(weights) / name).is_file():
            return str(file)
    raise ValueError(
        f"the folder {weights} holds neither {BEST_FILE} nor {LAST_FILE}: name the folder of a run "
        "that has finished an epoch, or a file"
    )


def completed(config: RunConfig, start: Checkpoint | None) -> RunConfig:
    """``config`` with what nobody has chosen as the weights have it: network and input."""
    if start is None:
        return config
    known = {"model": start.config["name"], **{k: _exact(v) for k, v in start.input.items()}}
    open_keys = {
        name: value
        for name, value in known.items()
        if name not in config.sources and name not in _NORMALISATION
    }
    return config.changed(open_keys, WEIGHTS_SOURCE)


def _exact(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def normalisation(start: Checkpoint | None) -> dict[str, Any]:
    """What `InputConfig.spec` needs to scale and normalise pixels as the weights expect."""
    if start is None or start.config["in_channels"] != 3:
        return {}
    return {name: value for name, value in start.input.items() if name in _NORMALISATION}


def describe_start(config: RunConfig, start: Checkpoint, classes: Sequence[str]) -> str:
    """What the weights bring and what becomes of their parts that do not fit, in one line."""
    held, notes = start.config, []
    if held["num_classes"] != len(classes):
        notes.append(f"new head for {len(classes)} classes in place of {held['num_classes']}")
    elif start.classes and list(start.classes) != list(classes):
        notes.append("new head for other classes")
    else:
        notes.append("head kept")
    if held["in_channels"] != 3:
        notes.append(f"first convolution averaged over its {held['in_channels']} channels")
    frames = start.input.get("clip_len")
    if frames is not None and frames != config.input.clip_len:
        merged = held["name"].startswith("r2d_")
        action = "first convolution resampled from" if merged else "trained on"
        notes.append(f"{action} {frames} frames, now {config.input.clip_len}")
    return f"weights {config.model.weights} ({held['name']}): {'; '.join(notes)}"


def as_stock(model: VideoModel) -> VideoModel:
    """``model`` itself, its (2+1)D convolutions run by the stock layers that they consist of.

    Parameters, buffers and their names stay as they are.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2Plus1D | FusedSequential):
                parent._modules[name] = nn.Sequential(*child.children())
    return model

"""What a stopped run needs to go on: safetensors files, no pickle, the newest few of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r21d.atomic import write_atomically
from r21d.training.config import TrainConfig
from r21d.training.run_folder import (
    OLD_STATE_FILE,
    STATES_FOLDER,
    ResumeError,
    state_file,
    state_files,
)
from r21d.weights.state_dict import import_safetensors

_log = logging.getLogger(__name__)

FORMAT = "r21d-training-state"
VERSION = 2
# What resuming may change unasked: where a run computes, how far it goes, what it keeps and tells.
# Of these only device and compile reach into a step: by rounding, and on another device dropout
# draws other numbers.
RESUMABLE_CHANGES = (
    "epochs",
    "max_steps",
    "device",
    "workers",
    "eval_batch_size",
    "checkpoint_steps",
    "keep",
    "log_steps",
    "compile",
)
# Whose product with the number of processes is the global batch, which has to stay.
_BATCH = ("batch_size", "accumulate")
# They decide which clips a step takes; everything else may change if the caller wants it.
_STREAM = ("seed", "epoch_clips")


class TrainingInterrupted(OSError):
    """A file of the run could not be written; the message says what is still good on disk."""


@dataclasses.dataclass(frozen=True)
class TrainState:
    """A run after ``step`` steps.

    Random numbers and the place in the data need no entry: every step draws its own from the seed
    and its number. Where ``step`` ends the epoch after those in ``history``, that epoch is trained
    and not yet validated.

    Attributes:
        model: the network's state dict.
        momentum: momentum buffers by parameter name.
        step: steps done.
        config: the settings.
        global_batch: clips a step.
        data: ``videos`` (how many) and ``classes`` of the training set.
        description: what the caller of `train` says about data and network.
        history: a row for each finished epoch.
        sums: float64 (processes, 3): each one's summed loss, right clips and clips of the epoch at
            hand.
        seconds: how long that epoch has taken.
        skipped: updates left out in it.
        lr: the learning rate of the last step.
        changes: settings that were changed on the way: ``step``, and ``changed``, for each name the
            value before it and from it on.
        scaler: the gradient scaler's state; empty without one.
    """

    model: dict[str, Tensor]
    momentum: dict[str, Tensor]
    step: int
    config: dict[str, Any]
    global_batch: int
    data: dict[str, Any]
    description: dict[str, Any] | None
    history: list[dict[str, Any]]
    sums: Tensor
    seconds: float = 0.0
    skipped: int = 0
    lr: float = 0.0
    changes: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    scaler: dict[str, Any] = dataclasses.field(default_factory=dict)

    def sums_of(self, rank: int, world: int) -> Tensor:
        """Where process ``rank`` of ``world`` begins to sum.

        Where the run had another number of processes the first one carries them all.
        """
        if len(self.sums) == world:
            return self.sums[rank]
        return self.sums.sum(0) if rank == 0 else torch.zeros_like(self.sums[0])


_TENSORS = ("model", "momentum")
_VALUES = tuple(
    field.name for field in dataclasses.fields(TrainState) if field.name not in (*_TENSORS, "sums")
)


class States:
    """The states in a run's folder, of which the newest ``keep`` stay.

    One more does for as long as the newest is not proven good by a validation.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.newest: tuple[int, Path] | None = None
        """Step and file of the newest known to be good."""
        self._good: set[Path] = set()

    def save(self, state: TrainState, proven: bool = True) -> None:
        """Add a state, then remove those that it makes too many.

        ``proven``: False where a validation may still find its weights to be no good.

        Raises:
            OSError: it cannot be written; all others are there as before.
        """
        file = state_file(self.folder, state.step)
        write_state(file, state)
        self._good.add(file)
        self.newest = state.step, file
        kept, wanted = 0, self.keep + (not proven)
        for older in state_files(self.folder).values():
            if kept >= wanted:
                older.unlink(missing_ok=True)
            elif self._is_good(older):
                kept += 1

    def before_newest(self) -> tuple[int, Path] | None:
        """Step and file of the newest good state but one."""
        others = list(state_files(self.folder).items())[1:]
        return next((pair for pair in others if self._is_good(pair[1])), None)

    def load(self) -> TrainState:
        """The newest state.

        Raises:
            ResumeError: there is none, or it is damaged.
        """
        files = state_files(self.folder)
        if not files:
            if (self.folder / OLD_STATE_FILE).exists():
                raise ResumeError(
                    f"{self.folder / OLD_STATE_FILE} is the state of an earlier version of r21d, "
                    "from which this one cannot go on; finish the run with that version, or start "
                    "a new one in another folder, from its last.safetensors if you like"
                )
            raise ResumeError(
                f"there is no run to resume: {self.folder / STATES_FOLDER} holds no state; start "
                "the run without resume"
            )
        step, newest = next(iter(files.items()))
        try:
            state = load_state(newest)
        except ResumeError as error:
            readable = self.before_newest()
            if readable is None:
                raise ResumeError(
                    f"{error}; no other state can be read: start the run anew (overwrite)"
                ) from error
            raise ResumeError(
                f"{error}; the newest that can be read is {readable[1]}: delete the damaged file "
                f"to go on from step {readable[0]}"
            ) from error
        self._good.add(newest)
        self.newest = step, newest
        return state

    def _is_good(self, file: Path) -> bool:
        """Whether a state can be read; each file of an earlier process is read once."""
        if file in self._good:
            return True
        try:
            load_state(file)
        except ResumeError as error:
            _log.warning("%s", error)
            return False
        self._good.add(file)
        return True


def write_state(path: Path, state: TrainState) -> None:
    """Write ``state`` into one file, which is durable when this returns.

    Raises:
        OSError: it cannot be written.
    """
    safetensors = import_safetensors()
    tensors = {"sums": state.sums}
    for kind in _TENSORS:
        tensors |= {f"{kind}/{name}": tensor for name, tensor in getattr(state, kind).items()}
    # Cloned: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    values = {name: getattr(state, name) for name in _VALUES}
    metadata = {"format": FORMAT, "version": str(VERSION), "values": json.dumps(values)}
    metadata["checksum"] = _checksum(tensors, metadata)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, safetensors.torch.save(tensors, metadata))
    _sync_folder(path.parent)


def load_state(path: Path) -> TrainState:
    """Read what :func:`write_state` wrote.

    Raises:
        ResumeError: the file is missing, damaged or not a training state.
    """
    safetensors = import_safetensors()
    try:
        # Its own functions for files take no path that is not UTF-8.
        content = path.read_bytes()
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise ResumeError(f"{path} is not the training state of a run")
        if metadata.get("version") != str(VERSION):
            raise ResumeError(
                f"cannot read the training state {path}: it is of version "
                f"{metadata.get('version')}, this r21d reads {VERSION}"
            )
        if metadata.pop("checksum", None) != _checksum(tensors, metadata):
            raise ResumeError(f"cannot read the training state {path}: its checksum is wrong")
        values = json.loads(metadata["values"])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, ResumeError):
            raise
        raise ResumeError(f"cannot read the training state {path}: {error}") from error
    sums = tensors.pop("sums")
    parts: dict[str, Any] = {kind: {} for kind in _TENSORS}
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        parts[kind][key] = tensor
    return TrainState(**parts, **values, sums=sums)


def read_values(path: Path) -> dict[str, Any]:
    """What a state holds beside tensors, by the names of `TrainState`; no checksum is compared.

    Raises:
        OSError, ValueError, KeyError: it cannot be read.
    """
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    values: dict[str, Any] = json.loads(header["__metadata__"]["values"])
    return values


def momentum_buffers(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's momentum by parameter name; those that have not been updated have none."""
    found = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            found[name] = buffer
    return found


def check_resumable(
    state: TrainState,
    config: TrainConfig,
    world: int,
    data: Mapping[str, Any],
    description: Mapping[str, Any] | None,
    allow_changes: bool = False,
) -> dict[str, list[Any]]:
    """Refuse to go on with other settings or data than the state's.

    ``allow_changes``: settings may be others as long as clips, network and data stay the same.

    Returns:
        The settings that are others, before and now, without those that may change unasked.

    Raises:
        ResumeError: they differ in what a run may not change; the message names it.
    """
    allowed = [*RESUMABLE_CHANGES, *_BATCH]
    if config.schedule == "cosine":
        allowed.remove("epochs")
    before, now = TrainConfig().to_dict() | state.config, config.to_dict()
    for name in allowed:
        del before[name], now[name]
    changes = _differences(before, now)
    allowable = [name for name in changes if name not in _STREAM]
    refused = {name: changes[name] for name in changes if not (allow_changes and name in allowable)}
    if description is not None:
        refused |= _differences(state.description or {}, description)
    changed = [f"{name} was {old!r} and is now {new!r}" for name, (old, new) in refused.items()]
    if state.global_batch != config.global_batch(world):
        changed.append(
            f"a step's clips (batch_size x accumulate x processes) were {state.global_batch} and "
            f"are now {config.global_batch(world)}"
        )
    if state.data["videos"] != data["videos"]:
        changed.append(
            f"the training videos were {state.data['videos']} and are now {data['videos']}"
        )
    elif state.data["classes"] != data["classes"]:
        changed.append("the training set's classes are others")
    if changed:
        hint = ""
        if allowable and not allow_changes:
            names = ", ".join(allowable)
            hint = f"; allow_changes=True (--allow-changes) takes other values of {names}"
        raise ResumeError(
            f"cannot resume with other settings: {', '.join(changed)}; "
            f"use the settings of the run, or start a new one in another folder{hint}"
        )
    return changes


def restore(state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a state back into the model and optimiser it came from.

    Raises:
        ResumeError: the network differs from the state's; nothing is changed then.
    """
    own = model.state_dict()
    differing = sorted(
        name
        for name in own.keys() | state.model.keys()
        if name not in own or name not in state.model or own[name].shape != state.model[name].shape
    )
    if differing:
        raise ResumeError(
            f"cannot resume: the network differs from the run's in {len(differing)} tensors, "
            f"the first is {differing[0]}; use the model options of the run"
        )
    model.load_state_dict(state.model)
    # Settings may have changed: what does not learn, or has no momentum, keeps none.
    learning = {
        parameter
        for group in optimizer.param_groups
        if group["momentum"]
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        if name in state.momentum and parameter in learning:
            buffer = torch.empty_like(parameter).copy_(state.momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Both values of each name whose values differ; None for one that is not there."""
    names = dict.fromkeys((*now, *before))
    pairs = {name: [before.get(name), now.get(name)] for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """CRC-32 of names, shapes, bytes and values; any single flipped bit changes it."""
    found = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: an older state goes only when a newer one is there."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders.
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

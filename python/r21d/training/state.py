"""What a stopped run needs to go on: one safetensors file, no pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from r21d.atomic import write_atomically
from r21d.weights.state_dict import import_safetensors

FORMAT = "r21d-training-state"
STATE_FILE = "state.safetensors"
# Where and how far a run goes. Workers change nothing: each item draws from a seed of its own.
RESUMABLE_CHANGES = ("epochs", "device", "workers", "eval_batch_size")


class ResumeError(ValueError):
    """A run cannot go on from the state found; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class TrainState:
    """A run after its last complete epoch.

    Random numbers need no entry: every epoch draws its own from the seed and its number.
    """

    model: dict[str, Tensor]
    momentum: dict[str, Tensor]
    """Momentum buffers by parameter name."""
    config: dict[str, Any]
    history: list[dict[str, Any]]
    """One row a finished epoch."""


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write model, momentum, settings and history into one file, in one atomic step."""
    safetensors = import_safetensors()
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum/{name}"] = buffer
    # Cloned: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config),
        "history": json.dumps(history),
    }
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load_state(path: Path) -> TrainState:
    """Read what :func:`save_state` wrote.

    Raises:
        ResumeError: the file is missing, damaged or not a training state.
    """
    safetensors = import_safetensors()
    if not path.is_file():
        raise ResumeError(f"there is no run to resume: {path} does not exist")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ResumeError(f"{path} is not the training state of a run")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            config, history = json.loads(metadata["config"]), json.loads(metadata["history"])
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}}
            for name, tensor in tensors.items():
                kind, _, key = name.partition("/")
                parts[kind][key] = tensor
    except (safetensors.SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ResumeError(f"cannot read the training state {path}: {error}") from error
    return TrainState(parts["model"], parts["momentum"], config, history)


def restore(
    state: TrainState, model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> None:
    """Put a state back into the model and optimiser it came from.

    Raises:
        ResumeError: the settings or the network differ from the state's; nothing is changed then.
    """
    changed = [
        f"{name} was {state.config.get(name)!r} and is now {value!r}"
        for name, value in config.items()
        if name not in RESUMABLE_CHANGES and state.config.get(name) != value
    ]
    if changed:
        raise ResumeError(
            f"cannot resume with other settings: {', '.join(changed)}; "
            "use the settings of the run, or start a new one in another folder"
        )
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
    for name, parameter in model.named_parameters():
        if name in state.momentum:
            buffer = torch.empty_like(parameter).copy_(state.momentum[name])
            optimizer.state[parameter]["momentum_buffer"] = buffer

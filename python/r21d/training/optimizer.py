"""The optimiser of a run: SGD over the parameters that learn, each at its own learning rate."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from r21d.models.base import VideoModel
from r21d.training.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD for ``model``, its first ``config.freeze`` stages frozen first.

    Only parameters that ask for a gradient are given to it. There is one parameter group for each
    prefix of ``config.lr_scales`` that leads a parameter, and one for all others; ``lr_scale`` of a
    group is its factor (1 for the others). A prefix ends where a name of a module or parameter
    ends: ``"fc"`` leads ``fc.weight``, not ``fc2.weight``. The longest prefix decides. With
    ``freeze=0`` nothing is frozen or thawed: what the caller has frozen stays so.

    Raises:
        ValueError: a prefix leads no parameter, ``freeze`` is not a number of stages or the
            network has none, or every parameter is frozen.
    """
    if config.freeze:
        _freeze(model, config.freeze)
    _check_prefixes(config.lr_scales, [name for name, _ in model.named_parameters()])
    groups: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in ("", *config.lr_scales)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_longest_prefix(name, config.lr_scales)].append(parameter)
    if not any(groups.values()):
        raise ValueError("every parameter of the network is frozen: there is nothing to train")
    scales = {"": 1.0, **config.lr_scales}
    return torch.optim.SGD(
        [
            {"params": parameters, "lr": config.lr * scales[prefix], "lr_scale": scales[prefix]}
            for prefix, parameters in groups.items()
            if parameters
        ],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let each parameter group learn at ``lr`` times its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _freeze(model: nn.Module, groups: int) -> None:
    if not isinstance(model, VideoModel):
        raise ValueError(
            f"freeze is {groups}, but {type(model).__name__} has no stages to freeze; only "
            "networks of r21d.create_model have"
        )
    if groups > len(model.stages):
        raise ValueError(
            f"freeze is {groups}, expected at most {len(model.stages)}, the network's stages: "
            f"{', '.join(model.stages)}"
        )
    model.freeze(groups)


def _leads(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _longest_prefix(name: str, prefixes: Iterable[str]) -> str:
    """The longest that leads ``name``; empty where none does."""
    return max((prefix for prefix in prefixes if _leads(prefix, name)), key=len, default="")


def _check_prefixes(scales: Mapping[str, float], names: list[str]) -> None:
    for prefix in scales:
        if any(_leads(prefix, name) for name in names):
            continue
        # In the network's order, so that equally near names come from its front.
        known = dict.fromkeys(
            ".".join(parts[:end])
            for parts in (name.split(".") for name in names)
            for end in range(1, len(parts) + 1)
        )
        near = difflib.get_close_matches(prefix, known, n=3, cutoff=0.5)
        modules = dict.fromkeys(name.partition(".")[0] for name in names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(modules)}"
        raise ValueError(f"lr_scales: {prefix!r} leads no parameter of the network; {hint}")

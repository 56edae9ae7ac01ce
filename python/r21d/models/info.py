"""Parameters and multiply-adds of a network, layer by layer, without computing anything."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class LayerInfo:
    """One convolution or linear layer, for one clip.

    Attributes:
        name: its qualified name in the model.
        kind: its class's name.
        input: shape of its input, without the batch.
        output: shape of its output, without the batch.
        parameters: weights and biases.
        macs: multiply-adds.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class ModelInfo:
    """What :func:`model_info` found.

    Attributes:
        parameters: all parameters of the model, BatchNorm's included.
        gmacs: 10^9 multiply-adds a clip, summed over ``layers``.
        layers: convolutions and linear layers in the order they run.
        last_conv: (t, h, w) of the last convolution's output, before pooling.
    """

    parameters: int
    gmacs: float
    layers: list[LayerInfo]
    last_conv: tuple[int, int, int]


def model_info(model: nn.Module, clip_shape: Sequence[int] = (3, 8, 112, 112)) -> ModelInfo:
    """Count a network's parameters and multiply-adds for one clip.

    Every convolution, those of the shortcuts too, and the classifier count; BatchNorm, ReLU,
    additions and pooling do not.  That is the measure of the paper's Figure 3 (its "FLOPs" are
    multiply-adds).  The model itself is neither run nor changed.

    Args:
        model: any module of ``Conv3d`` and ``Linear`` layers that takes (N, C, T, H, W).
        clip_shape: (C, T, H, W) of one clip.

    Raises:
        ValueError: ``clip_shape`` is not four positive integers, or the model has no ``Conv3d``.
            What the model itself raises for clips that it does not take is passed on.
    """
    shape = tuple(clip_shape)
    if len(shape) != 4 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(
            f"clip_shape must be four positive integers (C, T, H, W), got {tuple(clip_shape)}"
        )
    twin = _meta_twin(model)
    rows: list[LayerInfo] = []
    for name, module in twin.named_modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.register_forward_hook(_Recorder(name, rows))
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        twin(torch.empty(1, *shape, device="meta", dtype=dtype))
    # I3D's classifier is a convolution, too, but comes after the pooling.
    head = getattr(twin, "_head", None)
    convolutions = [
        row
        for row in rows
        if isinstance(twin.get_submodule(row.name), nn.Conv3d) and row.name.split(".")[0] != head
    ]
    if not convolutions:
        raise ValueError(f"model has no Conv3d layer that runs: {type(model).__name__}")
    frames, height, width = convolutions[-1].output[1:]
    return ModelInfo(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gmacs=sum(row.macs for row in rows) / 1e9,
        layers=rows,
        last_conv=(frames, height, width),
    )


class _Recorder:
    """A forward hook that appends its layer's row."""

    def __init__(self, name: str, rows: list[LayerInfo]) -> None:
        self.name = name
        self.rows = rows

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        # Each output value is a dot product as long as one output channel's slice of the weight.
        macs = output[0].numel() * math.prod(weight.shape[1:])
        self.rows.append(
            LayerInfo(
                name=self.name,
                kind=type(module).__name__,
                input=tuple(args[0].shape[1:]),
                output=tuple(output.shape[1:]),
                parameters=sum(parameter.numel() for parameter in module.parameters()),
                macs=macs,
            )
        )


def _meta_twin(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on the meta device, in eval mode, without its owner's hooks.

    Parameters and buffers are never duplicated: the copy is told to take storage-less tensors in
    their place.
    """
    placeholders: dict[int, Any] = {}
    for parameter in model.parameters():
        placeholders[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        placeholders[id(buffer)] = torch.empty_like(buffer, device="meta")
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            placeholders[id(hooks)] = type(hooks)()
    return copy.deepcopy(model, placeholders).eval()

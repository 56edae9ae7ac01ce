"""The losses of R(2+1)D-18's first training steps, by one backend and by stock PyTorch.

    python -m benchmarks.training_losses --device cuda --backend cuda --out losses.json

All begin with the same weights and see the same clips: waves whose label is their direction and
speed, so that the loss falls. bfloat16 under autocast, SGD with Nesterov momentum as in
r21d.training. Rounding sets them apart, as it does the two stock runs in different memory formats:
that is the distance to judge the first by.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.results import machine, versions
from r21d import create_model
from r21d.training.network import as_stock
from r21d_ops.backends import BACKEND_VARIABLE

_CLASSES = 8


def make_clips(
    clips: int, frames: int, height: int, width: int, step: int
) -> tuple[Tensor, Tensor]:
    """(N, 3, T, H, W) waves that travel, and (N,) which of eight directions and speeds."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(_CLASSES, (clips,), generator=generator)
    phase = torch.rand(clips, 3, 1, 1, 1, generator=generator) * 6.3
    angle = (labels % 4).view(-1, 1, 1, 1, 1) * (torch.pi / 2)
    speed = (labels // 4 + 1).view(-1, 1, 1, 1, 1) * 0.7
    t = torch.arange(frames).view(1, 1, -1, 1, 1)
    y = torch.arange(height).view(1, 1, 1, -1, 1)
    x = torch.arange(width).view(1, 1, 1, 1, -1)
    wave = torch.sin(0.3 * (x * torch.cos(angle) + y * torch.sin(angle)) - speed * t + phase)
    return wave + 0.1 * torch.randn(wave.shape, generator=generator), labels


def train(
    model: nn.Module, clips: tuple[int, int, int, int], steps: int, device: str, layout: Any
) -> list[float]:
    """The loss of each step."""
    model.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
    losses = []
    for step in range(steps):
        x, labels = (t.to(device) for t in make_clips(*clips, step))
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(model(x.contiguous(memory_format=layout)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [float(loss) for loss in torch.stack(losses)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backend", default="cuda", help="of r21d_ops.backends()")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--clips", default="32x16x112x112", help="NxTxHxW of a step")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    options = parser.parse_args(arguments)
    n, t, h, w = map(int, options.clips.split("x"))

    def network() -> nn.Module:
        torch.manual_seed(0)
        return create_model("r2plus1d_18", _CLASSES)

    last, first = torch.channels_last_3d, torch.contiguous_format
    os.environ[BACKEND_VARIABLE] = options.backend
    common = ((n, t, h, w), options.steps, options.device)
    losses = {
        options.backend: train(network(), *common, last),
        "stock": train(as_stock(network()), *common, last),
        "stock, NCDHW": train(as_stock(network()), *common, first),
    }
    run = {
        "benchmark": "training_losses",
        "commit": os.environ.get("R21D_COMMIT", ""),
        **machine(options.device),
        **versions(options.device),
        "clips": options.clips,
        "losses": losses,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=options.out.parent, delete=False) as file:
        file.write(json.dumps(run, indent=1) + "\n")
    os.replace(file.name, options.out)
    for name, values in losses.items():
        print(f"{name}: {values[0]:.4f} to {values[-1]:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

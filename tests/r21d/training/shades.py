"""Clips made in memory, a network small enough for them, and what a run of it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import Dataset

from r21d.models import VideoResNet, create_model
from r21d.training import TrainConfig, train
from r21d.video import InputSpec

#: All that a run leaves, apart from its logs.
FILES = ("last.safetensors", "best.safetensors", "best.json", "history.jsonl")
CONFIG = TrainConfig(epochs=4, batch_size=4, lr=0.05, schedule="cosine", warmup_epochs=1.0)


class Shades(Dataset[tuple[Tensor, int, int]]):
    """Two classes, bright clips and dark ones, under random noise."""

    classes: ClassVar[list[str]] = ["bright", "dark"]

    def __init__(
        self, videos: int = 12, clips: int = 1, poison: float = 0.0, size: int = 8
    ) -> None:
        self.spec = InputSpec(clip_len=4, resize=(size, size), crop=(size, size))
        self.videos, self.clips, self.poison = videos, clips, poison

    def __len__(self) -> int:
        return self.videos

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if index >= self.videos:
            raise IndexError(index)
        label = index % 2
        brightness = 1.0 if label == 0 else -1.0
        noise = 0.3 * torch.randn(self.clips, 3, self.spec.clip_len, *self.spec.crop)
        return noise + brightness + self.poison, label, index


class FixedValidation(Shades):
    """The same noise each time it is read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        with torch.random.fork_rng():
            torch.manual_seed(index)
            return super().__getitem__(index)


def small_model(**options: Any) -> VideoResNet:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": 2, "dropout": 0.2, "stem_channels": 4, **options}
    return create_model("r2plus1d_18", blocks=(1, 1, 1, 1), widths=(4, 4, 8, 8), **settings)


def changed(**settings: Any) -> TrainConfig:
    return TrainConfig(**{**CONFIG.to_dict(), **settings})


def run(out: Path | None = None, config: TrainConfig = CONFIG, **options: Any) -> Any:
    """The network and the history of a run."""
    model = small_model()
    history = train(model, Shades(), FixedValidation(6, clips=2), config, out=out, **options)
    return model, history


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What does not depend on how fast it went."""
    assert all(row["seconds"] > 0 for row in history)
    return [{name: row[name] for name in row if name != "seconds"} for row in history]


def contents(folder: Path) -> dict[str, Any]:
    """What a run's files hold, apart from times and settings.

    The bytes of equal safetensors files may differ in their order.
    """
    found: dict[str, Any] = {}
    for name in FILES:
        file = folder / name
        if name == "history.jsonl":
            found[name] = timeless([json.loads(line) for line in file.read_text().splitlines()])
        elif name.endswith(".json"):
            found[name] = json.loads(file.read_text())
        else:
            with safe_open(file, framework="pt") as held:
                tensors = {key: held.get_tensor(key).tolist() for key in held.keys()}  # noqa: SIM118
                metadata = held.metadata()
            extra = json.loads(metadata.pop("extra"))
            del extra["train_config"]
            found[name] = (metadata, extra, tensors)
    return found


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)

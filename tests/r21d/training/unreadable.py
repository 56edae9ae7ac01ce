"""Trains on videos of which one cannot be read by the worker process that comes to it."""

from __future__ import annotations

from typing import Any

from training.shades import Shades, small_model

from r21d.training import TrainConfig, train
from r21d.video import VideoError


class Unreadable(Shades):
    """Shades, one of which is gone."""

    def __getitem__(self, index: int) -> Any:
        if index == 3:
            raise VideoError("clip.mp4: gone")
        return super().__getitem__(index)


if __name__ == "__main__":
    train(small_model(), Unreadable(), None, TrainConfig(epochs=2, batch_size=4, workers=1))

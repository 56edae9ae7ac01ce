"""One of two processes that train together: ``python rank_training.py RANK FOLDER``.

Writes to FOLDER/RANK.json what each scenario, those of `rank_parallel` included, came to in this
process, and ends without a word in the middle of the last one where its rank is 1. FOLDER holds the
videos of `write_videos` and ``killed``, a run with `arguments` that was stopped.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset
from training import rank_parallel
from training.rank_parallel import network, outcome

from r21d.cli.app import main as command
from r21d.evaluation.distributed import current_ranks
from r21d.training import StopRequest, TrainConfig, train
from r21d.video.writer import write_video

STEPS = 50
FEW = 5
BATCH = 8
# A step an epoch, so that the history tells every step's loss. At this rate float64 keeps what
# rounding begins small for 50 steps; float32, or a higher rate, would let it grow over all bounds.
CONFIG = TrainConfig(epochs=STEPS, epoch_clips=BATCH, batch_size=BATCH, lr=0.005, lr_step=STEPS)
HALF = replace(CONFIG, batch_size=BATCH // 2)


class Noise(Dataset[tuple[Tensor, int, int]]):
    """Noise of three brightnesses. Item ``poisoned`` is NaN; read ``reads`` asks to ``stop``."""

    classes: ClassVar[list[str]] = ["bright", "medium", "dark"]

    def __init__(
        self,
        poisoned: int | None = None,
        stop: StopRequest | None = None,
        reads: int = 5 * (BATCH // 2),
    ) -> None:
        self.poisoned = poisoned
        self.stop = stop
        self.left = reads

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if index >= len(self):
            raise IndexError(index)
        self.left -= 1
        if self.stop is not None and self.left == 0:
            self.stop.requested = signal.SIGTERM
        label = index % 3
        noise = 0.7 * torch.randn(1, 3, 4, 16, 16) + 0.4 * (1 - label)
        return noise * (torch.nan if index == self.poisoned else 1), label, index


class Double(nn.Module):
    """A network in float64, whose batches are turned by ``turn`` clips before and back after."""

    def __init__(self, turn: int = 0) -> None:
        super().__init__()
        self.network = network(widths=(8, 8, 16, 16)).double()
        self.turn = turn

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.double().roll(self.turn, 0)).roll(-self.turn, 0)
        return logits


def losses(model: nn.Module, config: TrainConfig) -> list[float]:
    return [row["train_loss"] for row in train(model, Noise(), None, config)]


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def shared() -> dict[str, Any]:
    """Losses with statistics over both processes' clips, and whether the weights stay alike."""
    model = Double()
    found = losses(model, replace(HALF, sync_bn=True))
    kinds = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
    with current_ranks() as ranks:
        first, second = ranks.gather(weights(model))
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    return {"losses": found, "same": same, "norms": sorted(kinds)}


def apart() -> list[float]:
    """Losses with each process's own statistics, of a few steps."""
    return losses(Double(), replace(HALF, epochs=FEW))


def stopped(rank: int, folder: Path) -> dict[str, Any]:
    """The second process is asked to stop in step 5 of 6; both do, and go on to the same end.

    The first one's disk is full by then, once.
    """
    config = replace(HALF, epochs=2, epoch_clips=3 * BATCH, sync_bn=True)
    model = network()
    whole = train(model, Noise(), Noise(), config)
    again = network()
    stop = StopRequest()
    own = stop if rank == 1 else None
    told = outcome(
        lambda: train(again, Noise(stop=own), Noise(), config, out=folder / "stopped", stop=stop)
    )

    def resume() -> Any:
        return train(again, Noise(), Noise(), config, out=folder / "stopped", resume=True)

    fsync = os.fsync
    os.fsync = fail if rank == 0 else fsync
    full = outcome(resume)
    os.fsync = fsync
    resumed = resume()
    for row in (*whole, *resumed):
        del row["seconds"]
    same = all(torch.equal(a, b) for a, b in zip(weights(model), weights(again), strict=True))
    return {"told": told, "full": full, "same": same and whole == resumed, "history": whole}


def left(rank: int, folder: Path) -> list[Any]:
    """The second process is asked to stop amid the validation, which is then made anew."""
    config, out = replace(HALF, epochs=1), folder / "left"
    stop = StopRequest()
    tested = Noise(stop=stop if rank == 1 else None, reads=3)
    told = outcome(lambda: train(network(), Noise(), tested, config, out=out, stop=stop))
    (row,) = train(network(), Noise(), Noise(), config, out=out, resume=True)
    return [told, row["step"], "video_top1" in row]


def fail(descriptor: int) -> None:
    """A disk without room for the next checkpoint."""
    if "last.safetensors" in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def held(folder: Path) -> str:
    """Only the first process sees that the folder holds a run."""
    (folder / "held").mkdir(exist_ok=True)
    (folder / "held" / "history.jsonl").write_text("")
    return str(outcome(lambda: train(network(), Noise(), None, HALF, out=folder / "held")))


def poisoned(rank: int) -> str:
    """A NaN among the second process's clips alone."""
    with current_ranks() as ranks:
        data = Noise(poisoned=_clips_of_the_second(ranks.world)[0] if rank == 1 else None)
    return str(outcome(lambda: train(network(), data, None, replace(HALF, epochs=1))))


def _clips_of_the_second(world: int) -> list[int]:
    from r21d.training.stream import ClipStream

    stream = ClipStream(
        len(Noise()), HALF.seed, BATCH, batch_size=HALF.batch_size, rank=1, world=world, stop=1
    )
    return [video for _, video in next(iter(stream))]


def write_videos(folder: Path) -> None:
    """Two classes of four short videos."""
    generator = torch.Generator().manual_seed(0)
    for index in range(8):
        place = folder / "videos" / ("left", "right")[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        frames = torch.randint(256, (6, 16, 16, 3), generator=generator, dtype=torch.uint8)
        write_video(place / f"{index}.mp4", frames, 15.0)


def arguments(folder: Path, out: str) -> list[str]:
    """``r21d train`` with two processes: 2 epochs of 6 steps."""
    options = (
        "--width 4 --clip-len 4 --resize 16x16 --crop 16x16 --batch-size 2 --epochs 2 "
        "--epoch-clips 24 --lr 0.002 --val-clips 1 --checkpoint-steps 2 --sync-bn --device cpu"
    )
    return ["train", str(folder / "videos"), *options.split(), "--out", str(folder / out)]


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    found: dict[str, Any] = {
        "shared": shared(),
        "apart": apart(),
        "stopped": stopped(rank, folder),
        "left": left(rank, folder),
        "held": held(folder),
        "poisoned": poisoned(rank),
        "whole": command(arguments(folder, "whole")),
        "killed": command(["train", "--resume", "--out", str(folder / "killed")]),
    }
    for name, scenario in rank_parallel.SCENARIOS.items():
        Path(folder / f"{rank}.json").write_text(json.dumps(found))
        found[name] = scenario(rank)
    Path(folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""The clips of a run, their order and their seeds. About six seconds."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

import processes
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from training import unreadable
from training.shades import Shades, small_model

from r21d.evaluation.distributed import Ranks
from r21d.training import TrainConfig
from r21d.training.step import micro_seed
from r21d.training.stream import ClipLoader, ClipStream, clip_seed, recalibration_clips


def numbers(stream: ClipStream) -> list[list[int]]:
    return [[number for number, _ in batch] for batch in stream]


def test_steps_take_consecutive_clips_shared_out_by_micro_batch_and_process() -> None:
    def of(rank: int) -> list[list[int]]:
        return numbers(ClipStream(5, 0, 12, batch_size=3, rank=rank, world=2, stop=2))

    assert of(0) == [[0, 1, 2], [6, 7, 8], [12, 13, 14], [18, 19, 20]]
    assert of(1) == [[3, 4, 5], [9, 10, 11], [15, 16, 17], [21, 22, 23]]
    assert len(ClipStream(5, 0, 12, batch_size=3, world=2, stop=2)) == 4
    with pytest.raises(ValueError, match=r"global_batch is 12, expected a multiple of .* 5 \* 1"):
        ClipStream(5, 0, 12, batch_size=5, stop=1)


def test_a_later_start_gives_the_same_steps() -> None:
    whole = list(ClipStream(7, 3, 4, batch_size=2, stop=9))
    for start in range(9):
        assert list(ClipStream(7, 3, 4, batch_size=2, start=start, stop=9)) == whole[2 * start :]


def test_each_pass_takes_every_video_once_in_an_order_of_its_own() -> None:
    def order(seed: int) -> list[int]:
        return [
            video for batch in ClipStream(9, seed, 3, batch_size=3, stop=9) for _, video in batch
        ]

    videos = order(0)
    passes = [videos[first : first + 9] for first in (0, 9, 18)]
    assert all(sorted(one) == list(range(9)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert videos == order(0) != order(1)


def test_a_step_larger_than_the_set_is_full_all_the_same() -> None:
    (batch,) = ClipStream(3, 0, 8, batch_size=8, stop=1)
    videos = [video for _, video in batch]
    assert sorted(videos[:3]) == sorted(videos[3:6]) == [0, 1, 2] and len(videos) == 8


def test_seeds_are_distinct() -> None:
    runs = [*range(10), *(2**power for power in range(8, 32, 3))]
    seeds = [clip_seed(seed, number) for seed in runs for number in range(50)]
    seeds += [micro_seed(seed, step, m, r) for seed in runs[:3] for step in range(9)
              for m in range(3) for r in range(3)]  # fmt: skip
    # What they lead to, not the numbers themselves: generators do not heed all of a seed.
    drawn = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    assert len(torch.stack(drawn).unique(dim=0)) == len(seeds)


class Signalled(Shades):
    """Its worker processes get what Ctrl-C and torchrun send to every process."""

    number: ClassVar[int] = signal.SIGTERM

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if get_worker_info() is not None and index == 0:
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


class Interrupted(Signalled):
    """The same by Ctrl-C."""

    number: ClassVar[int] = signal.SIGINT


@pytest.mark.parametrize("kind", [Signalled, Interrupted])
def test_workers_outlive_a_signal_that_asks_their_parent_to_stop(kind: type[Signalled]) -> None:
    stream = ClipStream(6, 0, 3, batch_size=3, stop=2)
    with ClipLoader(Shades(6), stream, 0, False) as alone:
        expected = [clips for clips, _, _ in alone]
    with ClipLoader(kind(6), stream, 1, False) as loader:
        for clips, _, _ in loader:
            assert torch.equal(clips, expected.pop(0))
    assert not expected


class Dying(Dataset[int]):
    """Its worker dies, as one does that the kernel kills for lack of memory."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_dead_worker_is_told() -> None:
    with (
        ClipLoader(Dying(), ClipStream(4, 0, 2, batch_size=2, stop=2), 1, False) as loader,  # type: ignore[arg-type]
        pytest.raises(ChildProcessError, match="a decoding process failed"),
    ):
        next(loader)


def test_workers_end_with_the_loader(tmp_path: Path) -> None:
    stream = ClipStream(6, 0, 3, batch_size=3, stop=100)
    with ClipLoader(Shades(6), stream, 2, False) as loader:
        next(loader)
        workers = list(loader._batches._workers)  # type: ignore[union-attr]
        assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    assert not any(worker.is_alive() for worker in workers)


def test_recalibration_clips_are_shared_out_in_full_batches() -> None:
    config = TrainConfig(batch_size=4, bn_recalibration=9)
    own = [list(recalibration_clips(Shades(6), config, Ranks(rank, 2))) for rank in range(2)]
    assert [len(batches) for batches in own] == [2, 1]
    assert all(len(batch) == 4 for batches in own for batch in batches)
    (first, third), (second,) = own
    alone = list(recalibration_clips(Shades(6), config, Ranks()))
    assert all(map(torch.equal, alone, (first, second, third)))
    assert small_model()(first).shape == (4, 2)


def test_a_process_ends_with_what_its_worker_could_not_read() -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = processes.run([sys.executable, unreadable.__file__], env=environment)
    assert done.returncode == 1
    # The exception's message is the worker's, without the traceback that came along.
    told = "VideoError: clip.mp4: gone; no state of the run is saved"
    assert done.stderr.splitlines()[-1].endswith(told)

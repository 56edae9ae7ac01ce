"""The clips of a run, one after another without an end, and the processes that read them.

Clip number i of a run is video ``p_k[i % n]`` of the n training videos, where k = i // n counts
the passes over them and p_k is a permutation drawn from the seed and k alone; its random draws
(moment, crop, flip) come from a seed of its own, made of the run's and i. Step s takes the clips
from ``s * G`` on, G being the global batch. So every batch is full, a run can begin at any step,
and no batch depends on processes, workers or on where the run was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from r21d.evaluation.distributed import Ranks
from r21d.evaluation.evaluate import ClipDataset
from r21d.evaluation.loading import reading, worker_deaths, worker_options
from r21d.seeds import text_seed
from r21d.training.config import TrainConfig

Clip = tuple[int, int]
"""A clip's number in the run, and its video."""


class ClipStream(Sampler[list[Clip]]):
    """The batches of one process: ``accumulate`` of them a step, in the order they are used.

    Args:
        videos: how many there are to choose from.
        seed: the run's.
        global_batch: clips a step, of all processes.
        batch_size: clips a batch. Batch a of a step is, in process r of ``world``, the slice of
            the step's clips at ``(a * world + r) * batch_size``.
        rank, world: this process among how many.
        start, stop: the steps whose batches are given, from 0.
    """

    def __init__(
        self,
        videos: int,
        seed: int,
        global_batch: int,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        stop: int,
    ) -> None:
        if global_batch % (batch_size * world):
            raise ValueError(
                f"global_batch is {global_batch}, expected a multiple of batch_size * world, "
                f"{batch_size} * {world}"
            )
        self.videos, self.seed, self.global_batch = videos, seed, global_batch
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.start, self.stop = start, stop
        self._pass: tuple[int, list[int]] | None = None

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.global_batch // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[Clip]]:
        stride = self.batch_size * self.world
        for step in range(self.start, self.stop):
            first = step * self.global_batch + self.rank * self.batch_size
            for begin in range(first, first + self.global_batch, stride):
                yield [(clip, self.video(clip)) for clip in range(begin, begin + self.batch_size)]

    def video(self, clip: int) -> int:
        """The video of clip number ``clip`` of the run."""
        number, place = divmod(clip, self.videos)
        if self._pass is None or self._pass[0] != number:
            generator = torch.Generator().manual_seed(text_seed(f"{self.seed} pass {number}"))
            self._pass = number, torch.randperm(self.videos, generator=generator).tolist()
        return self._pass[1][place]


class _SeededClips(Dataset[Any]):
    """``dataset`` by `Clip`, each drawn from a seed of its own, whichever process draws it."""

    def __init__(self, dataset: ClipDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, clip: Clip) -> Any:
        number, video = clip
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset a GPU's generator, too, which dropout draws from.
            torch.default_generator.manual_seed(clip_seed(self.seed, number))
            return self.dataset[video]


def clip_seed(seed: int, number: int) -> int:
    """Seed of what is drawn for clip ``number`` of a run."""
    return text_seed(f"{seed} clip {number}")


class ClipLoader:
    """Batches ``(clips (B, K, 3, T, H, W), labels, videos)`` of a stream, read ahead by workers.

    The same workers serve the whole stream, so that no epoch begins with an empty queue. They end
    with the ``with`` block.

    Args:
        dataset: what the clips are read from.
        stream: which, and in what order.
        workers: processes that read; 0 reads in this one.
        pin_memory: into memory from which a GPU copies without waiting.
    """

    def __init__(
        self, dataset: ClipDataset, stream: ClipStream, workers: int, pin_memory: bool
    ) -> None:
        self._loader: DataLoader[Any] = DataLoader(
            _SeededClips(dataset, stream.seed),
            batch_sampler=stream,
            pin_memory=pin_memory,
            # DataLoader draws a seed of its own, which nothing here asks for.
            generator=torch.Generator(),
            **worker_options(workers, fresh=stream.world > 1),
        )
        self._batches: Iterator[Any] | None = None

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Its last reference: that is what ends the workers.
        self._batches = None

    def __iter__(self) -> ClipLoader:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            StopIteration: there are no more.
            ChildProcessError: a worker died.
        """
        with worker_deaths():
            if self._batches is None:
                self._batches = reading(self._loader)
            return next(self._batches)


def recalibration_clips(
    dataset: ClipDataset, config: TrainConfig, ranks: Ranks
) -> Iterator[Tensor]:
    """This process's batches (B, 3, T, H, W) of ``config.bn_recalibration`` training clips.

    They are the same ones after each epoch, rounded up to whole batches, of which some processes
    may have one less than others.
    """
    own = text_seed(f"{config.seed} recalibration")
    size = config.batch_size
    count = -(-config.bn_recalibration // size)
    batches = list(ClipStream(len(dataset), own, size, batch_size=size, stop=count))
    loader: DataLoader[Any] = DataLoader(
        _SeededClips(dataset, own),
        batch_sampler=batches[ranks.rank :: ranks.world],
        generator=torch.Generator(),
        **worker_options(config.workers, fresh=ranks.world > 1),
    )
    with worker_deaths():
        for batch, _, _ in reading(loader):
            yield batch.flatten(0, 1)

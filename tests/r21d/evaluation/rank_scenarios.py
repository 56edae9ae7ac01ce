"""One of two processes that evaluate together: ``python rank_scenarios.py RANK FOLDER``.

Writes to FOLDER/RANK.json what each scenario came to in this process, and ends without a word in
the middle of the last one where its rank is 1.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from evaluation.written import PartedScored, Scored, Written

from r21d.evaluation import EvalResult, evaluate
from r21d.video import VideoError

GOOD = [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]


def videos(count: int) -> Scored:
    """Videos of unlike scores, two clips each; number 6 and every fifth are broken."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(count, 2, 3, generator=generator).softmax(-1).tolist()
    broken = {6, *range(4, count, 5)}
    dataset = Scored(
        [(i % 3, None if i in broken else clips) for i, clips in enumerate(probabilities)]
    )
    dataset.clips = 2
    return dataset


def result(found: EvalResult) -> dict[str, Any]:
    """All that an evaluation found, to the last digit."""
    values = found.to_dict()
    values["video_scores"] = found.scores.video_scores.tolist()
    values["clip_scores"] = found.scores.clip_scores.tolist()
    values["names"] = found.scores.names
    return values


def outcome(action: Callable[[], EvalResult]) -> Any:
    """The result, or the error in words."""
    try:
        return result(action())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def parted(whole: Scored) -> PartedScored:
    """The same videos, read clip by clip."""
    dataset = PartedScored(whole.videos)
    dataset.clips = whole.clips
    return dataset


class Fresh(Scored):
    """Cannot be read in a copy of the process that made it, nor where that process could be met."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any, int]:
        parent = multiprocessing.parent_process()
        if parent is None or parent.pid == os.getppid():
            raise VideoError("read in a forked process")
        if "MASTER_ADDR" in os.environ:
            raise VideoError("an unguarded script would join the group here")
        return super().__getitem__(index)


class Dying(Written):
    """Ends its process at the third batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == 2:
            os._exit(3)
        return super().forward(x)


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "as from torchrun"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )

    def nan_in_the_second() -> EvalResult:
        # Many more rounds follow: the first process must not run them all.
        dataset = videos(400)
        if rank == 1:
            dataset.videos[2] = (0, [[math.nan, 0.5, 0.5], *GOOD[1:]])
        model = Written(3)
        try:
            return evaluate(model, dataset, batch_size=4)
        finally:
            found["rounds after an error"] = len(model.batches)

    model = Written(3)
    evaluate(model, videos(23), batch_size=4)
    found: dict[str, Any] = {"batches": model.batches}
    scenarios = {
        "same": lambda: evaluate(Written(3), videos(23), batch_size=4, clip_scores=True),
        "workers": lambda: evaluate(
            Written(3), videos(23), batch_size=4, workers=rank + 1, clip_scores=True
        ),
        "parts": lambda: evaluate(
            Written(3), parted(videos(23)), batch_size=4, workers=rank, clip_scores=True
        ),
        "fresh": lambda: evaluate(
            Written(3), Fresh([(0, GOOD), (1, GOOD)]), workers=1, clip_scores=True
        ),
        "one video": lambda: evaluate(Written(3), videos(1), batch_size=4, clip_scores=True),
        "nan": nan_in_the_second,
        "strict": lambda: evaluate(Written(3), videos(9), strict=True),
        "other videos": lambda: evaluate(Written(3), videos(9 + rank)),
        "bad label": lambda: evaluate(Written(3), Scored([(0, GOOD), (3, GOOD)])),
    }
    for name, action in scenarios.items():
        found[name] = outcome(action)
    model = Dying(3) if rank == 1 else Written(3)
    found["address"] = os.environ["MASTER_ADDR"]
    Path(folder / f"{rank}.json").write_text(json.dumps(found))
    found["dying"] = outcome(lambda: evaluate(model, videos(400), batch_size=4))
    Path(folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

"""One process of two for ``test_distributed.py``: runs every scenario, writes its results.

Usage: distributed_worker.py RANK RENDEZVOUS_FILE RESULT_FILE DRAWS BACKENDS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from ops.modules_under_test import Results, collect, randomize
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from r21d_ops import Conv2Plus1D

WORLD = 2
#: Clips of each process.
SPLITS = {"equal": (2, 2), "unequal": (3, 1), "empty": (4, 0)}
#: What ``test_distributed.py`` compares of Triton's interpreter, whose time is short.
_INTERPRETED = ("sync", "all empty")
NAN_IN = ("x", "weight")


def make_module() -> Conv2Plus1D:
    """The same weights in every process."""
    torch.manual_seed(5)
    module = randomize(Conv2Plus1D(3, 6, 9, stride=2))
    assert isinstance(module, Conv2Plus1D)
    return module


def make_batch(draw: int) -> tuple[Tensor, Tensor]:
    """Four clips and the gradient of their output, the same in every process."""
    generator = torch.Generator().manual_seed(16 + draw)
    x = torch.randn(4, 3, 5, 8, 7, generator=generator)
    # Values that differ in mean from clip to clip, so that wrong counts show.
    x = x + torch.arange(4.0).view(4, 1, 1, 1, 1)
    return x, torch.randn(4, 6, 3, 4, 4, generator=generator)


def share(tensor: Tensor, counts: Sequence[int], rank: int) -> Tensor:
    """This process's clips."""
    begin = sum(counts[:rank])
    return tensor[begin : begin + counts[rank]]


def _sync_norm(rank: int, split: str, recompute: bool, draw: int) -> Results:
    module = make_module()
    module.recompute = recompute
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    x, grad = (share(t, SPLITS[split], rank) for t in make_batch(draw))
    return collect(module, x, grad)


def _data_parallel(rank: int, draw: int) -> Results:
    # DistributedDataParallel refuses modules with a SyncBatchNorm on the CPU.
    module = DistributedDataParallel(make_module())
    x, grad = (share(t, SPLITS["equal"], rank) for t in make_batch(draw))
    return collect(module, x, grad)


def _all_empty() -> Results:
    module = nn.SyncBatchNorm.convert_sync_batchnorm(make_module())
    x, grad = (t[:0] for t in make_batch(0))
    return collect(module, x, grad)


def put_nan(where: str, module: nn.Sequential, x: Tensor) -> None:
    """One NaN, in the first clip or in the weights of one mid channel."""
    tensor = {"x": x, "weight": module[0].weight.data}[where]
    tensor[0, 1, 0, 2, 1] = torch.nan


def _sync_norm_of_nan(rank: int, where: str) -> Results:
    """Only the first process sees a NaN in x."""
    module = make_module()
    x, grad = make_batch(0)
    put_nan(where, module, x)
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return collect(module, *(share(t, SPLITS["equal"], rank) for t in (x, grad)))


def _scenarios(rank: int, draw: int) -> Iterator[tuple[str, Callable[[], Results]]]:
    """Those that do not depend on the batch belong to the first draw."""
    for split in SPLITS:
        for recompute in (False, True):
            yield f"sync {split} {recompute}", partial(_sync_norm, rank, split, recompute, draw)
    yield "ddp", partial(_data_parallel, rank, draw)
    if draw == 0:
        yield "all empty", _all_empty
        for where in NAN_IN:
            yield f"nan in {where}", partial(_sync_norm_of_nan, rank, where)


def main(rank: int, rendezvous: str, result: str, draws: str, backends: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    results: dict[str, Results] = {}
    for backend in backends.split(","):
        os.environ["R21D_BACKEND"] = backend
        for draw in map(int, draws.split(",")):
            for name, run in _scenarios(rank, draw):
                if backend != "triton" or name.startswith(_INTERPRETED):
                    results[f"{backend} {name} {draw}"] = run()
    torch.save(results, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])

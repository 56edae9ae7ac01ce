"""One process of two for ``test_distributed.py``: runs every scenario, writes its results.

Usage: distributed_worker.py RANK RENDEZVOUS_FILE RESULT_FILE BACKENDS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from r21d_ops import Conv2Plus1D

WORLD = 2
#: Clips of each process.
SPLITS = {"equal": (2, 2), "unequal": (3, 1), "empty": (4, 0)}
Results = dict[str, Tensor]


def make_module() -> Conv2Plus1D:
    """The same weights in every process."""
    torch.manual_seed(5)
    return Conv2Plus1D(3, 6, 9, stride=2)


def make_batch() -> tuple[Tensor, Tensor]:
    """Four clips and the gradient of their output, the same in every process."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(4, 3, 5, 8, 7, generator=generator)
    # Values that differ in mean from clip to clip, so that wrong counts show.
    x = x + torch.arange(4.0).view(4, 1, 1, 1, 1)
    return x, torch.randn(4, 6, 3, 4, 4, generator=generator)


def collect(
    module: nn.Module, x: Tensor, grad: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> Results:
    """Output, gradients (of a sum over this process's clips) and running statistics."""
    x = x.clone().requires_grad_()
    y = (module if run is None else run)(x)
    y.backward(grad)
    assert x.grad is not None
    results = {"y": y.detach(), "x.grad": x.grad}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        results[f"{name.removeprefix('module.')}.grad"] = parameter.grad.clone()
    for name, buffer in module.named_buffers():
        results[name.removeprefix("module.")] = buffer.clone()
    return results


def share(tensor: Tensor, counts: Sequence[int], rank: int) -> Tensor:
    """This process's clips."""
    begin = sum(counts[:rank])
    return tensor[begin : begin + counts[rank]]


def _sync_norm(rank: int, split: str, recompute: bool) -> Results:
    module = make_module()
    module.recompute = recompute
    module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    x, grad = (share(t, SPLITS[split], rank) for t in make_batch())
    return collect(module, x, grad)


def _data_parallel(rank: int) -> Results:
    # DistributedDataParallel refuses modules with a SyncBatchNorm on the CPU.
    module = DistributedDataParallel(make_module())
    x, grad = (share(t, SPLITS["equal"], rank) for t in make_batch())
    return collect(module, x, grad)


def _all_empty(rank: int) -> Results:
    module = nn.SyncBatchNorm.convert_sync_batchnorm(make_module())
    x, grad = (t[:0] for t in make_batch())
    return collect(module, x, grad)


def main(rank: int, rendezvous: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    results: dict[str, Results] = {}
    for backend in sys.argv[4].split(","):
        os.environ["R21D_BACKEND"] = backend
        for split in SPLITS:
            for recompute in (False, True):
                name = f"{backend} sync {split} {recompute}"
                results[name] = _sync_norm(rank, split, recompute)
        results[f"{backend} all empty"] = _all_empty(rank)
        results[f"{backend} ddp"] = _data_parallel(rank)
    torch.save(results, result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

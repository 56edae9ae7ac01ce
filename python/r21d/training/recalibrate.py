"""BatchNorm's running statistics measured anew, for the weights as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from r21d.evaluation.distributed import Ranks
from r21d.training.sync_bn import local_statistics


def recalibrate(model: nn.Module, batches: Iterable[Tensor], ranks: Ranks) -> None:
    """Replace running means and variances by averages over ``batches``, in place.

    During training they trail behind weights that move. Here every batch runs through the network
    as it is, each BatchNorm normalising by the batch's own statistics, as in training; the mean of
    those, weighted by clips, over the batches of all processes becomes the running statistics, the
    same in every process. BatchNorms that ``model.train()`` leaves in eval (frozen stages), or that
    keep no running statistics, stay as they are, as does every mode, momentum and count of batches.
    Everything else runs in eval: no dropout, no random numbers. Collective.

    Args:
        model: A network on its device, unwrapped.
        batches: What ``model`` takes, (N, 3, T, H, W), this process's own; the processes may have
            different numbers of them. Without a clip in any of them nothing changes.
        ranks: The processes.

    Raises:
        RankFailed: another process failed; nothing is changed then, nor by an error of this one.
    """
    with _training_norms(model) as norms:
        sums = _Sums(norms)
        with ranks.together(), local_statistics(model), torch.no_grad():
            for clips in batches:
                if len(clips):
                    model(clips)
                    sums.add(len(clips))
    # By rank, so that the order of summation is the same in all.
    parts = ranks.gather((sums.clips, [total.cpu() for total in sums.totals]))
    seen = sum(own for own, _ in parts)
    if seen == 0:
        return
    for number, buffer in enumerate(_running(norms)):
        total = torch.stack([totals[number] for _, totals in parts]).sum(0)
        buffer.copy_(total / seen)


class _Sums:
    """Sums over clips, float64, of the statistics that each batch left in ``norms``."""

    def __init__(self, norms: list[_BatchNorm]) -> None:
        self.norms = norms
        self.clips = 0
        self.totals = [torch.zeros_like(b, dtype=torch.float64) for b in _running(norms)]

    def add(self, clips: int) -> None:
        self.clips += clips
        for total, buffer in zip(self.totals, _running(self.norms), strict=True):
            total.add_(buffer, alpha=clips)


@contextlib.contextmanager
def _training_norms(model: nn.Module) -> Iterator[list[_BatchNorm]]:
    """The BatchNorms that train, which alone do so here: each batch replaces their statistics.

    Afterwards all is as it was before, the statistics too.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.running_mean is not None
    ]
    kept = [(norm.momentum, {k: v.clone() for k, v in norm.state_dict().items()}) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = 1.0
    try:
        yield norms
    finally:
        for norm, (momentum, state) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.load_state_dict(state)
        for module, mode in modes:
            # Not train(): that would set the modules inside, too.
            module.training = mode


def _running(norms: list[_BatchNorm]) -> list[Tensor]:
    found = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    return [buffer for buffer in found if buffer is not None]

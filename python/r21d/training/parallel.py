"""A training step in several processes: the network wrapped, and what all must agree on.

The processes are those of torch.distributed's default group, one a GPU, or several on CPUs. Each
runs a network of its own on clips of its own; gradients are averaged (synchronous data-parallel
SGD, paper, section 4.1), so that all weights stay equal.
"""

from __future__ import annotations

import contextlib
import datetime
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from r21d.evaluation.distributed import RankFailed, Ranks, ended_early, launched_ranks
from r21d.training.sync_bn import convert_sync_batch_norm

if TYPE_CHECKING:
    from r21d.training.config import TrainConfig

# Within a step processes wait for each other's compute alone, or for the first one's writing of a
# state. One that died is missed at once over gloo; NCCL only notices by this.
_STEP_TIMEOUT = datetime.timedelta(minutes=10)


@contextlib.contextmanager
def training_ranks(device: torch.device | str) -> Iterator[Ranks]:
    """The processes that torchrun started, tied together to train while this lasts.

    Their tensors meet over NCCL where ``device`` (of which the type alone counts) is a GPU, over
    gloo elsewhere; what they tell each other as `Ranks` goes over gloo. A process that was not
    started by torchrun, or is alone, has ``Ranks()``; a default group that exists is used.
    """
    cuda = torch.device(device).type == "cuda"
    with launched_ranks("cpu:gloo,cuda:nccl" if cuda else "gloo", _STEP_TIMEOUT) as ranks:
        yield ranks


def wrap(model: nn.Module, config: TrainConfig, ranks: Ranks) -> nn.Module:
    """What to call in a training step in place of ``model``, which lies on its device already.

    The parameters are those of ``model``, and so are the names in its state dict: save, validate
    and recalibrate ``model`` itself. Where there are several processes, the first one's parameters
    and buffers are copied to all, gradients are averaged over them in backward, and with
    ``config.sync_bn`` those BatchNorms of ``model`` that train become ones that share their
    statistics, in place, until :func:`r21d.training.sync_bn.restore_batch_norm`. With
    ``config.compile`` the step's forward and backward are compiled. Collective.

    Returns:
        ``model`` itself for one process and no ``config.compile``.

    Raises:
        RankFailed: another process failed.
        ValueError: no parameter trains, or both ``config.sync_bn`` and ``config.compile`` are set.
    """
    wrapped = model
    if ranks.world > 1:
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError("model has no parameter that trains; freeze fewer stages")
        if config.sync_bn and config.compile:
            # Between any two exchanges there is a layer or two, and Inductor (2.13) fails at some.
            raise ValueError(
                "sync_bn and compile do not go together: statistics are exchanged at every "
                "BatchNorm, which leaves nothing to compile; leave one of them out"
            )
        device = next(model.parameters()).device
        if device.type == "cuda":
            # NCCL takes the current GPU to be this process's own.
            torch.cuda.set_device(device)
        # Of an axis of one element the stride says nothing; convolutions choose another each.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with peers_alive(ranks):
            device_ids = [device] if device.type == "cuda" else None
            wrapped = DistributedDataParallel(model, device_ids=device_ids)
        if config.sync_bn:
            # Afterwards: it would refuse nn.SyncBatchNorm on a CPU.
            convert_sync_batch_norm(model)
    return torch.compile(wrapped) if config.compile else wrapped  # type: ignore[return-value]


def no_sync(wrapped: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """A block whose backward passes add to each process's own gradients.

    They are averaged over the processes, with what was added, in the next backward outside: for
    all micro-batches of a step but the last. ``wrapped`` is what :func:`wrap` returned.
    """
    inner = getattr(wrapped, "_orig_mod", wrapped)
    if isinstance(inner, DistributedDataParallel):
        return inner.no_sync()
    return contextlib.nullcontext()


def agree(flags: Tensor, ranks: Ranks, device: torch.device | str) -> Tensor:
    """The largest of every process's ``flags`` (any shape, whole numbers), in all of them.

    One collective, on ``device``, where the result stays, int32. A process that waits here longer
    than ten minutes fails.

    Raises:
        RankFailed: another process ended.
    """
    flags = flags.to(device=device, dtype=torch.int32, copy=True)
    if ranks.world > 1:
        with peers_alive(ranks):
            dist.all_reduce(flags, dist.ReduceOp.MAX)
    return flags


def same_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Give every process the first one's buffers: running statistics are each process's own.

    Before a validation, in which all must run the same network. Collective.

    Raises:
        RankFailed: another process ended.
    """
    if ranks.world > 1:
        with peers_alive(ranks):
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def peers_alive(ranks: Ranks) -> Iterator[None]:
    """A block, of a step say, in which a process that ends makes the others fail by `RankFailed`.

    Other errors pass: a block may hold more than collectives.
    """
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or isinstance(error, RankFailed) or not _of_communication(error):
            raise
        raise ended_early(error) from error


def _of_communication(error: RuntimeError) -> bool:
    texts = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, dist.DistError) or any(text in str(error) for text in texts)

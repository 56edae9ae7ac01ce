"""What two processes of a group do together, each calling these with its rank.

What a test should see is returned as JSON values; what is a matter of tensors is checked here. The
second process ends without a word in the middle of the last scenario.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accuracy import assert_accurate
from torch import Tensor, nn

from r21d.evaluation.distributed import RankFailed, Ranks, current_ranks
from r21d.models import VideoResNet, create_model
from r21d.training import TrainConfig
from r21d.training.parallel import agree, no_sync, peers_alive, same_buffers, wrap
from r21d.training.recalibrate import recalibrate
from r21d.training.sync_bn import (
    CPUSyncBatchNorm,
    convert_sync_batch_norm,
    local_statistics,
    restore_batch_norm,
)
from r21d_ops import fuse_report

SYNC = TrainConfig(sync_bn=True)


def network(**options: Any) -> VideoResNet:
    """A small R(2+1)D without dropout, the same in every process."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"blocks": (1, 1, 1, 1), "widths": (4, 4, 8, 8), **options}
    return create_model("r2plus1d_18", num_classes=3, dropout=0.0, stem_channels=4, **settings)


def clips(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # A large mean: a careless sum of squares would lose the variance in it.
    return torch.randn(count, 3, 4, 12, 12, generator=generator, dtype=dtype) + 3


def of_rank(whole: Tensor, rank: int, first: int) -> Tensor:
    """The first process's ``first`` rows, or the rest."""
    return (whole[:first], whole[first:])[rank]


def own_norms(rank: int) -> None:
    """`CPUSyncBatchNorm` against BatchNorm over the whole batch, forward and backward."""
    video, vector = (6, 64, 2, 3, 3), (6, 7)
    for first in (3, 2, 6, 0):
        for options in ({}, {"affine": False}, {"momentum": None}, {"frozen": True}):
            compare_norms(rank, torch.float64, video, first, **options)
        compare_norms(rank, torch.float64, vector, first)
        for dtype in (torch.float32, torch.bfloat16):
            compare_norms(rank, dtype, video, first)


def compare_norms(
    rank: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    first: int,
    frozen: bool = False,
    **options: Any,
) -> None:
    torch.manual_seed(1)
    kind = nn.BatchNorm3d if len(shape) == 5 else nn.BatchNorm1d
    exact = kind(shape[1], dtype=torch.float64, **options)
    for value in exact.parameters():
        nn.init.normal_(value)
    exact.running_mean.normal_()
    stock = copy.deepcopy(exact).to(torch.float64 if dtype == torch.float64 else torch.float32)
    # The same numbers for all three.
    exact.load_state_dict(stock.state_dict())
    shared = nn.Sequential(copy.deepcopy(stock))
    convert_sync_batch_norm(shared)
    assert type(shared[0]) is CPUSyncBatchNorm
    x = (torch.randn(shape) + 3).to(dtype)
    grad = torch.randn(shape).to(dtype)
    for module in (exact, stock, shared):
        module.train(not frozen)

    def run(module: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        y = module(x)
        y.backward(grad)
        assert y.dtype == x.dtype and x.grad is not None
        return [y.detach(), x.grad]

    expected = run(exact, x.double(), grad.double())
    reference = run(stock, x, grad)
    # The layout that activations have in training.
    own = of_rank(x, rank, first)
    own = own.contiguous(memory_format=torch.channels_last_3d) if own.dim() == 5 else own
    found = run(shared, own, of_rank(grad, rank, first))
    for a, e, s, part in zip(found, expected, reference, ("y", "dx"), strict=True):
        e, s = of_rank(e, rank, first), of_rank(s, rank, first)
        if dtype == torch.float64:
            torch.testing.assert_close(a, e)
        else:
            assert_accurate(a, e, s, part)
    for own, e in zip(shared.parameters(), exact.parameters(), strict=True):
        # Each process has its part of the sum.
        dist.all_reduce(own.grad)
        torch.testing.assert_close(own.grad, e.grad.to(own.dtype))
    for own, e in zip(shared.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(own, e.to(own.dtype))


def conversion(rank: int) -> None:
    """What becomes of the norms of a network, and back."""
    model = network()
    model.freeze(2)
    before = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    kinds = [type(module) for module in model.modules()]
    convert_sync_batch_norm(model)
    assert {name: id(t) for name, t in model.state_dict(keep_vars=True).items()} == before
    # In a fused convolution torch's own class, which the operator knows.
    assert type(model.layer2[0].conv1[0][1]) is nn.SyncBatchNorm
    assert type(model.layer2[0].conv1[1]) is CPUSyncBatchNorm
    assert type(model.stem[1]) is nn.SyncBatchNorm and type(model.stem[4]) is CPUSyncBatchNorm
    assert all(row.fused for row in fuse_report(model))
    statistics = [model.stem[1].running_mean.clone(), model.layer2[0].conv1[1].running_mean.clone()]
    model.train()
    model(clips(2, rank))
    assert torch.equal(model.stem[1].running_mean, statistics[0])
    assert not torch.equal(model.layer2[0].conv1[1].running_mean, statistics[1])
    with local_statistics(model):
        assert [type(module) for module in model.modules()] == kinds
    assert type(model.stem[1]) is nn.SyncBatchNorm and type(model.stem[4]) is CPUSyncBatchNorm
    restore_batch_norm(model)
    assert [type(module) for module in model.modules()] == kinds


def one_value(rank: int) -> str:
    """A single value in all processes together has no variance."""
    norm = nn.Sequential(nn.BatchNorm1d(3))
    convert_sync_batch_norm(norm)
    try:
        norm(torch.ones(1 - rank, 3))
    except ValueError as error:
        return str(error)
    return "nothing"


def gradients(rank: int) -> None:
    """Two processes' gradients are those of one with both their clips."""
    labels = torch.tensor([0, 1, 2, 0])
    first = 2

    def learn(model: nn.Module, called: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        model.train()
        nn.functional.cross_entropy(called(x), y).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    x = clips(4)
    exact_model = network().double()
    exact = learn(exact_model, exact_model, x.double(), labels)
    stock_model = network()
    stock = learn(stock_model, stock_model, x, labels)
    with current_ranks() as ranks:
        model = network(widths=(4, 4, 8, 8))
        if rank == 1:
            for parameter in model.parameters():
                nn.init.zeros_(parameter)  # wrap() gives it the first one's
        called = wrap(model, SYNC, ranks)
        own_labels = of_rank(labels, rank, first)
        found = learn(model, called, of_rank(x, rank, first), own_labels)
    # All in one: a tensor alone is too few numbers to judge rounding by.
    flat = [
        torch.cat([g.flatten() / e.norm() for g, e in zip(grads, exact, strict=True)])
        for grads in (found, exact, stock)
    ]
    assert_accurate(*flat, "gradients")


def accumulated(rank: int) -> list[float]:
    """Largest differences of the gradients between the processes, without and with the last."""
    with current_ranks() as ranks:
        model = network()
        called = wrap(model, TrainConfig(), ranks)
        model.train()
        found = []
        for number in range(2):
            x = clips(2, 10 * number + rank)
            if number == 0:
                with no_sync(called):
                    called(x).sum().backward()
            else:
                called(x).sum().backward()
            gathered = ranks.gather([p.grad.clone() for p in model.parameters()])
            found.append(max(float((a - b).abs().max()) for a, b in zip(*gathered, strict=True)))
    return found


def agreement(rank: int) -> list[list[int]]:
    own = torch.tensor([0, rank, 1 - rank, 15 * rank])
    with current_ranks() as ranks:
        found = agree(own, ranks, "cpu")
        assert found.dtype == torch.int32
        return [found.tolist(), own.tolist(), agree(own > 0, ranks, "cpu").tolist()]


def buffers(rank: int) -> list[bool]:
    """Whether the processes' running statistics are alike, before and after, and the first's."""
    with current_ranks() as ranks:
        model = network()
        called = wrap(model, TrainConfig(), ranks)
        model.train()
        called(clips(2, rank))
        own = model.stem[1].running_mean.clone()
        before = ranks.gather(own)
        same_buffers(model, ranks)
        after = ranks.gather(model.stem[1].running_mean)
        return [torch.equal(*before), torch.equal(*after), torch.equal(after[1], before[0])]


def recalibrated(rank: int) -> None:
    """Three batches of two processes are those of one, with and without shared statistics."""
    batches = [clips(2, 1), clips(3, 2), clips(4, 3)]
    alone = network()
    recalibrate(alone, batches, Ranks())
    for shared in (False, True):
        model = network()
        if shared:
            convert_sync_batch_norm(model)
        with current_ranks() as ranks:
            recalibrate(model, [batches[0], batches[2]] if rank == 0 else [batches[1]], ranks)
        restore_batch_norm(model)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, alone.get_buffer(name), rtol=1e-6, atol=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with current_ranks() as ranks:
        recalibrate(model, [], ranks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def failing_recalibration(rank: int) -> list[Any]:
    """An error of the second process, and that nothing has changed in either."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def batches() -> Iterator[Tensor]:
        yield clips(2)
        if rank == 1:
            raise KeyError("a clip")

    with current_ranks() as ranks:
        message = outcome(lambda: recalibrate(model, batches(), ranks))
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return [message, same]


def outcome(action: Callable[[], Any]) -> Any:
    """The result, or the error in words."""
    try:
        return action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def missed(rank: int) -> str:
    """What the first process is told when the second ends within a step."""
    with current_ranks() as ranks:
        model = network()
        called = wrap(model, SYNC, ranks)
        model.train()
        try:
            for step in range(3):
                if rank == 1 and step == 1:
                    os._exit(3)
                with peers_alive(ranks):
                    called(clips(2)).sum().backward()
        except RankFailed as error:
            return str(error)
    return "nothing"


SCENARIOS = {
    "norms": own_norms,
    "conversion": conversion,
    "one value": one_value,
    "gradients": gradients,
    "accumulated": accumulated,
    "agreement": agreement,
    "buffers": buffers,
    "recalibrated": recalibrated,
    "failing recalibration": failing_recalibration,
    "missed": missed,
}

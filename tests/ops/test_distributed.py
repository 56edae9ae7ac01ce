"""Two gloo processes against one with the whole batch (about 10 s)."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accuracy import Draw, assert_accurate_over_draws
from ops.chosen_backend import Backend, available_backends
from ops.distributed_worker import (
    NAN_IN,
    SPLITS,
    WORLD,
    make_batch,
    make_module,
    put_nan,
    share,
)
from ops.gradients import stock_step
from ops.modules_under_test import Results, collect, exact_step
from torch import Tensor, nn

from r21d_ops import Conv2Plus1D, fuse_report

Stock = dict[str, list[Tensor]]

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)


def _run(draws: str, backends: str, folder: Path) -> None:
    """Each process writes a file there."""
    paths = [path for path in sys.path if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ops.distributed_worker", str(rank),
             str(folder / "rendezvous"), str(folder / f"{rank}.pt"), draws, backends],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


#: The results of a scenario in a process, of the first draw where no other is given.
Ours = Callable[..., Results]


@pytest.fixture
def ours(backend: Backend, once: Callable[[str, Callable[[Path], None]], Path]) -> Ours:
    """``ours(rank, scenario, draw=0)`` of ``backend``.

    The rule of accuracy asks for the first draw of each, and seldom for two further ones.
    """
    everyone = ",".join(b.name for b in available_backends(every_isa=False))

    @functools.lru_cache
    def written(rank: int, draws: str) -> dict[str, Results]:
        names = backend.name if draws == "1,2" else everyone
        folder = once(f"gloo-{draws}-{names}", functools.partial(_run, draws, names))
        found: dict[str, Results] = torch.load(folder / f"{rank}.pt", weights_only=True)
        return found

    def ours(rank: int, scenario: str, draw: int = 0) -> Results:
        return written(rank, "1,2" if draw else "0")[f"{backend.name} {scenario} {draw}"]

    return ours


@functools.lru_cache
def _whole_batch(draw: int) -> tuple[Results, Stock]:
    """One process with all four clips: the four layers in float64, and stock PyTorch's."""
    x, grad = make_batch(draw)
    return exact_step(make_module(), x, grad), stock_step(make_module(), x, grad)


@functools.lru_cache
def _shares(draw: int) -> list[tuple[Results, Stock]]:
    """As :func:`_whole_batch`, of each process's two clips by themselves."""
    return [
        (exact_step(make_module(), *given), stock_step(make_module(), *given))
        for rank in range(WORLD)
        for given in [[share(t, SPLITS["equal"], rank) for t in make_batch(draw)]]
    ]


def _accurate(draw: Callable[[int], Draw], what: str) -> None:
    numbers = itertools.count()
    assert_accurate_over_draws(lambda: draw(next(numbers)), what)


@pytest.mark.interpreted
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_sync_norm_reduces_sums_and_counts(split: str, recompute: bool, ours: Ours) -> None:
    """Outputs, gradients and statistics are those of the whole batch, however it is shared out."""

    def synced(name: str, rank: int, number: int) -> Tensor:
        return ours(rank, f"sync {split} {recompute}", number)[name]

    def of_rank(name: str, rank: int, number: int) -> Draw:
        expected, stock = _whole_batch(number)
        results_of_all = (expected[name], *stock[name])
        exact, *others = (share(tensor, SPLITS[split], rank) for tensor in results_of_all)
        return synced(name, rank, number), exact, others

    def whole(name: str, rank: int, number: int) -> Draw:
        expected, stock = _whole_batch(number)
        return synced(name, rank, number), expected[name], stock[name]

    def total(name: str, number: int) -> Draw:
        # Gradients stay local, DDP reduces them: their sum is the whole batch's.
        expected, stock = _whole_batch(number)
        added = sum(
            (synced(name, rank, number) for rank in range(1, WORLD)), synced(name, 0, number)
        )
        return added, expected[name], stock[name]

    for rank in range(WORLD):
        for name in ("y", "x.grad"):
            if SPLITS[split][rank]:
                _accurate(functools.partial(of_rank, name, rank), f"{name} of {rank}")
            else:
                assert synced(name, rank, 0).shape == make_batch(0)[name == "y"][:0].shape
        for name in ("1.running_mean", "1.running_var"):
            _accurate(functools.partial(whole, name, rank), f"{name} of {rank}")
            assert torch.equal(synced(name, rank, 0), synced(name, 0, 0))
    for name, _ in make_module().named_parameters():
        _accurate(functools.partial(total, f"{name}.grad"), f"gradient of {name}")
        if split == "empty":
            assert torch.count_nonzero(synced(f"{name}.grad", 1, 0)) == 0


@pytest.mark.parametrize("where", NAN_IN)
def test_sync_norm_shows_nan_in_the_statistics(where: str, ours: Ours) -> None:
    """NaN is not taken for a process without clips: the channels that see it show it, as stock."""
    module = make_module()
    x, grad = make_batch(0)
    put_nan(where, module, x)
    stock = stock_step(module, x, grad)
    for name in ("1.running_mean", "1.running_var"):
        expected = stock[name][0].isnan()
        assert expected.sum() == (9 if where == "x" else 1)
        for rank in range(WORLD):
            assert torch.equal(ours(rank, f"nan in {where}")[name].isnan(), expected), name


@pytest.mark.interpreted
def test_sync_norm_with_no_clip_anywhere_changes_nothing(ours: Ours) -> None:
    before = make_module()
    for rank in range(WORLD):
        found = ours(rank, "all empty")
        assert torch.equal(found["1.running_mean"], before[1].running_mean)
        assert torch.equal(found["1.running_var"], before[1].running_var)
        for name, value in found.items():
            if name.endswith(".grad"):
                assert torch.count_nonzero(value) == 0, name


def test_data_parallel_averages_the_gradients_of_its_shares(ours: Ours) -> None:
    """Without SyncBN each process normalizes by itself; gradients are the mean of the two."""

    def mean(name: str, number: int) -> Draw:
        shares = _shares(number)
        expected = sum(exact[name] for exact, _ in shares) / WORLD
        ways = zip(*(stock[name] for _, stock in shares), strict=True)
        return ours(0, "ddp", number)[name], expected, [sum(way) / WORLD for way in ways]

    def output(rank: int, number: int) -> Draw:
        expected, stock = _shares(number)[rank]
        return ours(rank, "ddp", number)["y"], expected["y"], stock["y"]

    for name, _ in make_module().named_parameters():
        gradients = [ours(rank, "ddp")[f"{name}.grad"] for rank in range(WORLD)]
        assert torch.equal(*gradients)
        _accurate(functools.partial(mean, f"{name}.grad"), f"gradient of {name}")
    for rank in range(WORLD):
        _accurate(functools.partial(output, rank), f"y of {rank}")


def test_converted_module_stays_a_fused_drop_in(backend: Backend) -> None:
    """In one process, SyncBatchNorm is the norm it replaced: same keys, same results."""
    module = make_module()
    before = copy.deepcopy(module)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert isinstance(converted, Conv2Plus1D)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert list(converted.state_dict()) == list(before.state_dict())
    assert fuse_report(converted)[0].fused
    x, grad = make_batch(0)
    ours, expected = collect(converted, x, grad), collect(before, x, grad)
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name
    with torch.no_grad():
        assert torch.equal(converted.eval()(x), before.eval()(x))

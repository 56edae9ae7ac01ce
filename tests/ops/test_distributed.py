"""Two gloo processes against one with the whole batch; one spawn for all (about 10 s)."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from accuracy import assert_accurate
from ops.chosen_backend import Backend, available_backends
from ops.distributed_worker import (
    SPLITS,
    WORLD,
    Results,
    collect,
    make_batch,
    make_module,
    share,
)
from ops.modules_under_test import run_children
from torch import nn

from r21d_ops import Conv2Plus1D, fuse_report

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch is built without gloo"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Results]]:
    """What each process wrote."""
    folder = tmp_path_factory.mktemp("gloo")
    names = ",".join(b.name for b in available_backends(every_isa=False))
    paths = [path for path in sys.path if path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ops.distributed_worker", str(rank),
             str(folder / "rendezvous"), str(folder / f"{rank}.pt"), names],
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
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def _whole_batch() -> tuple[Results, Results, list[Results]]:
    """One process with all four clips: the drop-in, float64, and stock layers in float32."""
    x, grad = make_batch()
    module, exact, plain = (make_module() for _ in range(3))
    exact.double()
    fused = collect(module, x, grad)
    expected = collect(exact, x.double(), grad.double(), lambda x: run_children(exact, x))
    stock = collect(plain, x, grad, lambda x: run_children(plain, x))
    return fused, expected, [stock, fused]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_sync_norm_reduces_sums_and_counts(
    split: str, recompute: bool, backend: Backend, results: list[dict[str, Results]]
) -> None:
    """Outputs, gradients and statistics are those of the whole batch, however it is shared out."""
    ours = [r[f"{backend.name} sync {split} {recompute}"] for r in results]
    _, expected, stock = _whole_batch()
    for name in ("y", "x.grad"):
        for rank in range(WORLD):
            shared = [share(s[name], SPLITS[split], rank) for s in stock]
            exact = share(expected[name], SPLITS[split], rank)
            assert ours[rank][name].shape == exact.shape
            if exact.numel():
                assert_accurate(ours[rank][name], exact, shared, f"{name} of {rank}")
    for name in ("1.running_mean", "1.running_var"):
        for rank in range(WORLD):
            assert_accurate(ours[rank][name], expected[name], [s[name] for s in stock], name)
        assert torch.equal(ours[0][name], ours[1][name])
    for name in expected:
        if not name.endswith("weight.grad") and name != "1.bias.grad":
            continue
        # Gradients stay local, DDP reduces them: their sum is the whole batch's.
        total = ours[0][name] + ours[1][name]
        assert_accurate(total, expected[name], [s[name] for s in stock], name)
        if split == "empty":
            assert torch.count_nonzero(ours[1][name]) == 0


def test_sync_norm_with_no_clip_anywhere_changes_nothing(
    backend: Backend, results: list[dict[str, Results]]
) -> None:
    before = make_module()
    for result in results:
        ours = result[f"{backend.name} all empty"]
        assert torch.equal(ours["1.running_mean"], before[1].running_mean)
        assert torch.equal(ours["1.running_var"], before[1].running_var)
        for name, value in ours.items():
            if name.endswith(".grad"):
                assert torch.count_nonzero(value) == 0, name


def test_data_parallel_averages_the_gradients_of_its_shares(
    backend: Backend, results: list[dict[str, Results]]
) -> None:
    """Without SyncBN each process normalizes by itself; gradients are the mean of the two."""
    x, grad = make_batch()
    shares = []
    for rank in range(WORLD):
        given = [share(t, SPLITS["equal"], rank) for t in (x, grad)]
        exact, plain, fused = make_module().double(), make_module(), make_module()
        shares.append((
            collect(exact, *(t.double() for t in given), lambda t, m=exact: run_children(m, t)),
            collect(plain, *given, lambda t, m=plain: run_children(m, t)),
            collect(fused, *given),
        ))  # fmt: skip
    ours = [result[f"{backend.name} ddp"] for result in results]
    for name, _ in make_module().named_parameters():
        key = f"{name}.grad"
        assert torch.equal(ours[0][key], ours[1][key])
        expected, *stock = ((shares[0][i][key] + shares[1][i][key]) / 2 for i in range(3))
        assert_accurate(ours[0][key], expected, stock, key)
    for rank in range(WORLD):
        expected, *stock = (shares[rank][i]["y"] for i in range(3))
        assert_accurate(ours[rank]["y"], expected, stock, f"y of {rank}")


def test_converted_module_stays_a_fused_drop_in(backend: Backend) -> None:
    """In one process, SyncBatchNorm is the norm it replaced: same keys, same results."""
    module = make_module()
    before = copy.deepcopy(module)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    assert isinstance(converted, Conv2Plus1D)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert list(converted.state_dict()) == list(before.state_dict())
    assert fuse_report(converted)[0].fused
    x, grad = make_batch()
    ours, expected = collect(converted, x, grad), collect(before, x, grad)
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name
    with torch.no_grad():
        assert torch.equal(converted.eval()(x), before.eval()(x))

"""Training in two processes: alone, and under torchrun (45 s; seven processes import torch).

`rank_parallel` and `rank_training` are what runs in the processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run, run_pair
from safetensors.torch import load_file
from torch import nn
from training import rank_killed, rank_training

from r21d.evaluation.distributed import Ranks
from r21d.training import TrainConfig
from r21d.training.parallel import agree, no_sync, peers_alive, training_ranks, wrap
from r21d.training.sync_bn import CPUSyncBatchNorm

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch lacks gloo"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos."""
    folder = tmp_path_factory.mktemp("ranks")
    rank_training.write_videos(folder)
    return folder


@pytest.fixture(scope="module")
def killed(folder: Path) -> subprocess.CompletedProcess[str]:
    """A run under torchrun, of which a process was killed, and then torchrun stopped."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert rank_killed.__file__ is not None
    script = ["--max-restarts=2", rank_killed.__file__]
    return run(
        [sys.executable, *launcher, *script, *rank_training.arguments(folder, "killed")],
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def found(folder: Path, killed: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What the scenarios came to in each of two processes, and that run goes on in them."""
    done = run_pair(rank_training.__file__, folder)
    assert [one.returncode for one in done] == [0, 3], "\n".join(one.stderr for one in done)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> list[float]:
    """The losses of one process with the same batches, in float64."""
    return rank_training.losses(rank_training.Double(), rank_training.CONFIG)


def difference(some: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(some, others, strict=True))


def test_shared_statistics_make_two_processes_one(
    found: list[dict[str, Any]], one: list[float]
) -> None:
    """In float64, which keeps what its rounding begins small for as long.

    A loss is a mean of float32 numbers. A sum of n of them is off by at most n / 2 units of
    float32's last place, whatever the order: two such by n.
    """
    rounding = rank_training.BATCH * torch.finfo(torch.float32).eps * max(one)
    turned = rank_training.losses(rank_training.Double(3), rank_training.CONFIG)
    assert difference(one, turned) <= rounding, "not even the order of a batch's clips may change"
    assert len(one) == 50 and one[-1] < 0.7 * one[0]
    for process in found:
        assert difference(process["shared"]["losses"], one) <= rounding
        assert process["shared"]["same"], "the processes' weights have drifted apart"
        assert process["shared"]["norms"] == ["BatchNorm3d"]


def test_without_them_each_normalises_by_its_own_clips(
    found: list[dict[str, Any]], one: list[float]
) -> None:
    config = replace(rank_training.HALF, accumulate=2, epochs=rank_training.FEW)
    accumulated = rank_training.losses(rank_training.Double(), config)
    for process in found:
        # Half a sum each is exact, and so is a sum of two in either order.
        assert process["apart"] == accumulated
        # From the first step on, long before rounding could show.
        assert abs(process["apart"][0] - one[0]) > 1e-3 * one[0]


def test_a_request_to_one_process_stops_all_and_nothing_is_lost(
    found: list[dict[str, Any]],
) -> None:
    for process in found:
        assert process["stopped"]["told"].startswith("TrainingStopped: stopped by SIGTERM after ")
        assert "after step 5 of 6" in process["stopped"]["told"]
        assert process["stopped"]["same"]
    assert found[0]["stopped"]["history"] == found[1]["stopped"]["history"]
    # On the way the disk of the first one was full.
    message = found[0]["stopped"]["full"]
    assert message.startswith("TrainingInterrupted: cannot write ")
    assert "last good state is" in message and "from step 6" in message
    assert found[1]["stopped"]["full"] == f"RankFailed: process 0 of 2: {message}"


def test_a_request_to_one_process_ends_the_validation_of_all(found: list[dict[str, Any]]) -> None:
    for process in found:
        told, *resumed = process["left"]
        assert told.startswith("TrainingStopped: stopped by SIGTERM after step 1 of 1")
        assert resumed == [1, True]


def test_each_process_learns_of_the_first_ones_folder(found: list[dict[str, Any]]) -> None:
    message = found[0]["held"]
    assert message.startswith("FileExistsError: ") and "already holds a run" in message
    assert found[1]["held"] == f"RankFailed: process 0 of 2: {message}"


def test_a_loss_that_one_process_alone_has_ends_all(found: list[dict[str, Any]]) -> None:
    first, second = (process["poisoned"] for process in found)
    assert first.startswith("TrainingDiverged: the loss is no longer finite in another process")
    assert second.startswith("TrainingDiverged: the loss is nan in epoch 1, step 1")


def test_killed_restarted_stopped_and_resumed_ends_with_the_same_weights(
    folder: Path, killed: subprocess.CompletedProcess[str], found: list[dict[str, Any]]
) -> None:
    errors = killed.stderr
    assert "(exitcode: -9) local_rank: 1" in errors
    assert "r21d: error: another process of the group ended early" in errors
    assert "[rank0]: Traceback" not in errors
    # After the restart it went on by itself, and to the step at which torchrun was stopped.
    assert "stopped by SIGTERM after step 11 of 12" in errors
    assert f"go on with: r21d train --resume --out {folder / 'killed'}" in errors
    assert killed.stdout.count("epoch 1/2") == 1 and "epoch 2/2" not in killed.stdout
    assert [process[name] for process in found for name in ("whole", "killed")] == [0] * 4
    for file in ("last.safetensors", "best.safetensors", "states/step_000000012.safetensors"):
        whole, resumed = (load_file(folder / run / file) for run in ("whole", "killed"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items()), file
    histories = [
        [json.loads(line) for line in (folder / run / "history.jsonl").read_text().splitlines()]
        for run in ("whole", "killed")
    ]
    for row in (*histories[0], *histories[1]):
        del row["seconds"]
    assert len(histories[0]) == 2 and histories[0] == histories[1]


@pytest.mark.parametrize("scenario", ["norms", "conversion", "gradients", "recalibrated"])
def test_what_the_processes_check_themselves(found: list[dict[str, Any]], scenario: str) -> None:
    assert [process[scenario] for process in found] == [None, None]


def test_a_single_value_has_no_variance(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert process["one value"].startswith("Expected more than 1 value per channel")


def test_gradients_meet_in_the_last_micro_batch(found: list[dict[str, Any]]) -> None:
    for process in found:
        before, after = process["accumulated"]
        assert before > 0 and after == 0


def test_flags_are_the_largest_of_all(found: list[dict[str, Any]]) -> None:
    for rank, process in enumerate(found):
        own = [0, rank, 1 - rank, 15 * rank]
        assert process["agreement"] == [[0, 1, 1, 15], own, [0, 1, 1, 1]]


def test_buffers_are_the_first_ones(found: list[dict[str, Any]]) -> None:
    assert [process["buffers"] for process in found] == [[False, True, True]] * 2


def test_a_recalibration_that_fails_in_one_changes_nothing(found: list[dict[str, Any]]) -> None:
    assert found[1]["failing recalibration"] == ["KeyError: 'a clip'", True]
    assert found[0]["failing recalibration"] == [
        "RankFailed: process 1 of 2: KeyError: 'a clip'",
        True,
    ]


def test_a_process_that_ends_within_a_step_is_missed(found: list[dict[str, Any]]) -> None:
    assert found[0]["missed"].startswith("another process of the group ended early, or hangs (")
    assert "gloo" not in found[0]["missed"] and "GLHF" not in found[0]["missed"]


def test_alone() -> None:
    model = nn.Linear(2, 2)
    with training_ranks("cpu") as ranks:
        assert ranks == Ranks()
        assert wrap(model, TrainConfig(sync_bn=True), ranks) is model
        with no_sync(model):
            model(torch.ones(1, 2)).sum().backward()
    flags = torch.tensor([True, False])
    assert agree(flags, Ranks(), "cpu").tolist() == [1, 0]


def test_compiled_with_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def compile_(module: nn.Module) -> Callable[..., Any]:
        compiled.append(module)
        return torch._dynamo.optimize("eager")(module)

    monkeypatch.setattr(torch, "compile", compile_)
    model = nn.Linear(2, 2)
    wrapped = wrap(model, TrainConfig(compile=True), Ranks())
    assert compiled == [model] and wrapped is not model
    assert all(a is b for a, b in zip(wrapped.parameters(), model.parameters(), strict=True))
    with no_sync(wrapped):
        wrapped(torch.ones(1, 2)).sum().backward()


def test_other_errors_of_a_step_stay_themselves() -> None:
    with pytest.raises(RuntimeError, match="shapes"), peers_alive(Ranks(0, 2)):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(dist.DistNetworkError), peers_alive(Ranks()):
        raise dist.DistNetworkError("gloo: there is nobody")


def test_a_network_of_which_nothing_trains_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that trains"):
        wrap(model, TrainConfig(), Ranks(0, 2))


def test_shared_statistics_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="sync_bn and compile do not go together"):
        wrap(nn.Linear(2, 2), TrainConfig(sync_bn=True, compile=True), Ranks(0, 2))


@pytest.mark.parametrize("grouped", [False, True])
def test_alone_a_shared_norm_is_a_plain_one(grouped: bool) -> None:
    if grouped:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        shared, plain = CPUSyncBatchNorm(3), nn.BatchNorm1d(3)
        x = torch.randn(5, 3)
        assert torch.equal(shared(x), plain(x))
        assert torch.equal(shared.running_var, plain.running_var)
    finally:
        if grouped:
            dist.destroy_process_group()

"""Two processes on one evaluation (about eleven seconds: they start interpreters with torch)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist
from evaluation import orphaned, rank_scenarios
from evaluation.written import Written
from processes import run_pair, start

from r21d.evaluation import evaluate
from r21d.evaluation.distributed import RankFailed, Ranks, fresh_store, was_told

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch lacks gloo"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the scenarios came to in each of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    done = run_pair(rank_scenarios.__file__, folder)
    assert [one.returncode for one in done] == [0, 3], "\n".join(one.stderr for one in done)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values))


@pytest.mark.parametrize("scenario", ["same", "workers", "parts"])
def test_two_processes_find_what_one_does_to_the_last_digit(
    found: list[dict[str, Any]], scenario: str
) -> None:
    alone = evaluate(Written(3), rank_scenarios.videos(23), batch_size=4, clip_scores=True)
    assert alone.videos == 18 and len(alone.failed) == 5
    expected = as_json(rank_scenarios.result(alone))
    assert found[0][scenario] == expected
    assert found[1][scenario] == expected


def test_decoding_processes_are_no_copies_of_one_with_threads(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert process["fresh"]["videos"] == 2 and not process["fresh"]["failed"]
        assert process["address"] == "as from torchrun"


def test_videos_meet_in_the_same_batches_in_turn(found: list[dict[str, Any]]) -> None:
    model = Written(3)
    evaluate(model, rank_scenarios.videos(23), batch_size=4)
    assert len(model.batches) == 12 and set(model.batches) == {2, 4}
    assert [found[0]["batches"], found[1]["batches"]] == [model.batches[::2], model.batches[1::2]]


def test_a_process_without_videos(found: list[dict[str, Any]]) -> None:
    alone = evaluate(Written(3), rank_scenarios.videos(1), batch_size=4, clip_scores=True)
    assert [f["one video"] for f in found] == [as_json(rank_scenarios.result(alone))] * 2


def test_an_error_of_one_ends_all_and_soon(found: list[dict[str, Any]]) -> None:
    message = "FloatingPointError: the network's scores for video 2 are not finite"
    assert found[1]["nan"] == message
    assert found[0]["nan"] == f"RankFailed: process 1 of 2: {message}"
    # Of the 100 batches of its own, and not to the end.
    assert found[0]["rounds after an error"] <= 16


@pytest.mark.parametrize(
    ("scenario", "at_fault", "message"),
    [
        ("strict", 0, "VideoError: video 4 is damaged"),
        ("bad label", 1, "ValueError: video 1 has label 3, but the network has 3 outputs"),
    ],
)
def test_each_process_learns_whose_error_it_was(
    found: list[dict[str, Any]], scenario: str, at_fault: int, message: str
) -> None:
    assert found[at_fault][scenario] == message
    told = f"RankFailed: process {at_fault} of 2: {message}"
    assert found[1 - at_fault][scenario] == told


def test_processes_with_other_videos_are_refused(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert "different videos or batch sizes (9, 10 videos)" in process["other videos"]


def test_a_process_that_ends_without_a_word_is_missed(found: list[dict[str, Any]]) -> None:
    assert found[0]["dying"].startswith("RankFailed: another process of the group ended early")


def test_a_store_that_others_have_used_is_used_afresh() -> None:
    used = dist.HashStore()

    def start(rank: int) -> dict[int, str]:
        """What each process reads that every process has written."""
        store = fresh_store(used, rank, 3)
        assert not store.check([f"address {rank}"])
        store.set(f"address {rank}", "new")
        return {other: store.get(f"address {other}").decode() for other in range(3)}

    # Some that died before they met, and some that did meet.
    used.set("r21d/1", "r21d/of a dead one")
    with ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            assert list(pool.map(start, range(3))) == [dict.fromkeys(range(3), "new")] * 3


def test_workers_end_with_a_process_that_is_killed() -> None:
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, orphaned.__file__]
    with start(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "read\n"
            process.kill()
            # To the end of what the workers, too, may write to.
            assert process.communicate(timeout=60) == ("", None)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_what_a_told_error_has_caused_is_told() -> None:
    error = MemoryError("too little")
    assert not was_told(error)
    error.__cause__ = RankFailed("process 1 of 2: too little")
    assert was_told(error)


def test_alone() -> None:
    ranks = Ranks()
    assert ranks.gather(3) == [3] and ranks.from_first("a") == "a"
    ranks.agree()
    with pytest.raises(KeyError, match="mine"), ranks.together():
        raise KeyError("mine")

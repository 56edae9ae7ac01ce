"""The autotuner of the Triton backend, with a fake GPU and a fake clock (1 s)."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from r21d_ops.triton import cache, tuning

GPU = torch.device("cuda", 0)
MACHINE = cache.Machine("NVIDIA H200/NVL", "9.0", "2.10.0+cu130", "3.6.0", "0.1.0")
KEY = (64, (1, 3, 3), True, torch.float16)


class Block(NamedTuple):
    """A configuration that takes ``milliseconds``, or raises what ``milliseconds`` is."""

    name: str
    milliseconds: float | Exception


SLOW, FAST, MIDDLE = Block("slow", 3.0), Block("fast", 1.0), Block("middle", 2.0)
BLOCKS = (SLOW, FAST, MIDDLE)


class Bench:
    """Stands in for the kernel and the clock; ``launched`` holds what was launched."""

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.last = 0.0

    def launch(self, block: Block) -> None:
        self.launched.append(block.name)
        if isinstance(block.milliseconds, Exception):
            raise block.milliseconds
        self.last = block.milliseconds

    def time(self, run: Callable[[], object], device: torch.device) -> float:
        assert device == GPU
        run()
        return self.last

    def pick(self, blocks: tuple[Block, ...] = BLOCKS, **changes: object) -> Block:
        arguments = {"operator": "spatial", "key": KEY, "device": GPU} | changes
        return tuning.pick(candidates=blocks, launch=self.launch, **arguments)

    def took(self) -> list[str]:
        """What was launched since the last call."""
        launched, self.launched = self.launched, []
        return launched


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bench]:
    pytest.importorskip("triton")
    fake = Bench()
    monkeypatch.setenv("R21D_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("R21D_AUTOTUNE", raising=False)
    monkeypatch.setattr(cache, "machine", lambda device: MACHINE)
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(tuning, "_time", fake.time)
    monkeypatch.setattr(tuning, "_is_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_is_interpreted", lambda: False)
    _restart()
    yield fake
    _restart()


def _restart() -> None:
    """As in a new process: what is on disk stays."""
    tuning._winners.clear()
    cache._found.clear()


def _stored() -> dict[str, object]:
    (path,) = tuning.cache_files()
    results: dict[str, object] = json.loads(path.read_text())["results"]
    return results


def test_the_fastest_is_found_once_and_kept_on_disk(bench: Bench, tmp_path: Path) -> None:
    assert bench.pick() is FAST
    assert bench.took() == ["slow", "fast", "middle"]
    assert bench.pick() is FAST
    assert bench.took() == []
    _restart()
    assert bench.pick() is FAST
    assert bench.took() == []
    (path,) = tuning.cache_files()
    assert path.parent == tmp_path / "triton-tuning"
    assert path.name == "NVIDIA_H200_NVL-9.0-torch2.10.0+cu130-triton3.6.0-r21d0.1.0.json"
    key = '["spatial", 64, [1, 3, 3], true, "torch.float16"]'
    times = {"slow": 3.0, "fast": 1.0, "middle": 2.0}
    assert _stored() == {key: {"winner": "fast", "milliseconds": times}}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_problems_operators_and_gpus_have_results_of_their_own(bench: Bench) -> None:
    bench.pick()
    reversed_speeds = (Block("slow", 1.0), Block("fast", 3.0))
    for changes in ({"key": (65,)}, {"operator": "temporal"}):
        bench.took()
        assert bench.pick(reversed_speeds, **changes).name == "slow"
        assert bench.took() == ["slow", "fast"]
    assert len(_stored()) == 3
    # A second GPU of the same model finds the result on disk.
    assert bench.pick(device=torch.device("cuda", 1)) is FAST
    assert bench.took() == []


def test_one_candidate_and_the_cpu_are_not_timed(bench: Bench) -> None:
    assert bench.pick((SLOW,)) is SLOW
    assert bench.pick(device=torch.device("cpu")) is SLOW
    assert bench.took() == []
    assert tuning.cache_files() == []


def test_switched_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R21D_AUTOTUNE", "0")
    assert bench.pick() is SLOW
    assert bench.took() == []
    monkeypatch.setenv("R21D_AUTOTUNE", "1")
    assert bench.pick() is FAST


def test_interpreted_kernels_are_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_is_interpreted", lambda: True)
    assert bench.pick() is SLOW
    assert bench.took() == []


def test_a_timing_does_not_decide_deterministic_bits(bench: Bench) -> None:
    """Not even one from before."""
    assert bench.pick() is FAST
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        bench.took()
        assert bench.pick() is SLOW
        assert bench.pick(key=(1,)) is SLOW
        assert bench.took() == []
    finally:
        torch.use_deterministic_algorithms(False, warn_only=before)
    assert bench.pick() is FAST


def test_nothing_is_timed_while_a_graph_is_captured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem first met there is tuned later; one met before has its winner there too."""
    with monkeypatch.context() as capture:
        capture.setattr(tuning, "_is_capturing", lambda: True)
        assert bench.pick() is SLOW
        assert bench.took() == []
    assert bench.pick() is FAST
    with monkeypatch.context() as capture:
        capture.setattr(tuning, "_is_capturing", lambda: True)
        assert bench.pick() is FAST


def test_a_winner_that_is_no_longer_a_candidate_is_replaced(bench: Bench) -> None:
    bench.pick()
    bench.took()
    _restart()
    assert bench.pick((SLOW, MIDDLE)) is MIDDLE
    assert bench.took() == ["slow", "middle"]
    (result,) = _stored().values()
    assert result == {"winner": "middle", "milliseconds": {"slow": 3.0, "middle": 2.0}}


def _refusals() -> list[Exception]:
    errors = pytest.importorskip("triton.runtime.errors")
    return [
        errors.OutOfResources(300_000, 232_448, "shared memory"),
        errors.PTXASError("too many registers"),
    ]


def test_a_candidate_without_room_is_dropped(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="r21d_ops")
    large, larger = (Block(f"large{i}", error) for i, error in enumerate(_refusals()))
    assert bench.pick((large, SLOW, larger, MIDDLE)) is MIDDLE
    (result,) = _stored().values()
    assert result == {"winner": "middle", "milliseconds": {"slow": 3.0, "middle": 2.0}}
    messages = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert len(messages) == 2
    assert "large0" in messages[0] and "shared memory" in messages[0]
    assert "large1" in messages[1]


def test_no_candidate_with_room_is_the_first_ones_error(bench: Bench) -> None:
    first, second = _refusals()
    with pytest.raises(type(first)) as raised:
        bench.pick((Block("large", first), Block("larger", second)))
    assert raised.value is first
    assert tuning.cache_files() == []


def test_other_errors_are_not_hidden(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        bench.pick((SLOW, Block("broken", RuntimeError("illegal memory access"))))
    # Nor is the tuner stuck afterwards.
    assert bench.pick() is FAST


def test_one_line_says_what_was_found(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="r21d_ops")
    bench.pick()
    bench.pick()
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelname == "INFO"
    for part in ("spatial", "[1, 3, 3]", "fast is the fastest", "slow 3.0000", "middle 2.0000"):
        assert part in message


class WatchedLock:
    """``lock``, and an event for whoever is about to wait for it."""

    def __init__(self, lock: threading.RLock) -> None:
        self.lock = lock
        self.second = threading.Event()

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.second.set()
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def test_threads_tune_a_problem_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second thread meets the problem while the first is timing it; no disk helps it."""
    (tmp_path / "triton-tuning").write_text("a file where the folder would be")
    lock = WatchedLock(tuning._lock)
    monkeypatch.setattr(tuning, "_lock", lock)
    found: list[Block] = []
    thread = threading.Thread(target=lambda: found.append(bench.pick()))
    time = bench.time

    def time_with_company(run: Callable[[], object], device: torch.device) -> float:
        if not thread.ident:
            thread.start()
            assert lock.second.wait(10)
        return time(run, device)

    monkeypatch.setattr(tuning, "_time", time_with_company)
    assert bench.pick() is FAST
    thread.join(10)
    assert found == [FAST]
    assert bench.took() == ["slow", "fast", "middle"]


def test_where_nothing_can_be_written_tuning_goes_on(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "triton-tuning").write_text("a file where the folder would be")
    for key in ((1,), (2,)):
        assert bench.pick(key=key) is FAST
        assert bench.took() == ["slow", "fast", "middle"]
        assert bench.pick(key=key) is FAST
        assert bench.took() == []


def test_clear_cache_forgets_what_is_in_memory_too(bench: Bench) -> None:
    bench.pick()
    paths = tuning.cache_files()
    assert tuning.clear_cache() == paths
    assert tuning.cache_files() == []
    bench.took()
    bench.pick()
    assert bench.took() == ["slow", "fast", "middle"]


class FakeGpu:
    """Time passes in kernels alone."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.log: list[str] = []

    def event(self, enable_timing: bool) -> FakeGpu.Event:
        assert enable_timing
        return FakeGpu.Event(self)

    def pause(self, cycles: int) -> None:
        self.log.append("pause")

    class Event:
        def __init__(self, gpu: FakeGpu) -> None:
            self.gpu = gpu
            self.at = 0.0

        def record(self) -> None:
            self.at = self.gpu.clock

        def elapsed_time(self, end: FakeGpu.Event) -> float:
            return end.at - self.at


@pytest.mark.parametrize(("milliseconds", "runs"), [(0.01, 25), (2.5, 10), (400.0, 5)])
def test_a_timing_is_the_median_of_a_bounded_number_of_runs(
    monkeypatch: pytest.MonkeyPatch, milliseconds: float, runs: int
) -> None:
    """The first run compiles, the second tells how many follow; neither counts."""
    gpu = FakeGpu()
    durations = iter([5000.0, milliseconds, 100 * milliseconds] + [milliseconds] * (runs - 1))

    def run() -> None:
        gpu.clock += next(durations)
        gpu.log.append("run")

    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "_sleep", gpu.pause)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    assert tuning._time(run, GPU) == pytest.approx(milliseconds)
    assert gpu.log == ["run", "run", "pause"] + ["run"] * runs

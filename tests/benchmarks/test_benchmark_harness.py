"""Interleaving, checking, memory and one small run of the suite (about 8 s)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import r21d
from benchmarks import __main__ as command
from benchmarks import memory, peers, results, suite
from benchmarks.cases import QUICK, Case, Settings, list_cases
from benchmarks.ceilings import Ceilings
from benchmarks.check import accuracy
from benchmarks.layers import LAYERS
from benchmarks.measure import Rounds, interleave, quartiles
from benchmarks.workloads import (
    StockBlock,
    layer_workload,
    pad_mid_channels,
    stock_twin,
)
from r21d_ops import Conv2Plus1D
from r21d_ops.modules import FusedSequential


class Ticks:
    """A clock that every sampler moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def sampler(self, name: str, seconds: float):  # type: ignore[no-untyped-def]
        def sample(number: int) -> float:
            self.order.append(name)
            self.now += seconds
            return seconds + number

        return sample


def test_rounds_interleave_and_start_with_another_peer_each() -> None:
    ticks = Ticks()
    samplers = {name: ticks.sampler(name, 0.1) for name in "abc"}
    samples = interleave(samplers, Rounds(3, 3, 99), warmup=1, clock=lambda: ticks.now)
    assert "".join(ticks.order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3, "c": 3}
    # Sample i is round i's, so ratios can be taken within a round; the warm-up is not kept.
    assert samples["b"] == [0.1, 1.1, 2.1]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, 4), (1.65, 9), (1e9, 20)])
def test_rounds_end_with_the_time(seconds: float, expected: int) -> None:
    ticks = Ticks()
    samplers = {name: ticks.sampler(name, 0.1) for name in "ab"}
    rounds = Rounds(least=4, most=20, seconds=seconds)
    samples = interleave(samplers, rounds, clock=lambda: ticks.now)
    assert len(samples["a"]) == expected


def test_no_peers_take_no_time() -> None:
    assert interleave({}, Rounds()) == {}


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert quartiles([7.0]) == (7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="at least one value"):
        quartiles([])


def test_accuracy_counts_in_units_of_stock() -> None:
    exact = {"y": torch.ones(4, dtype=torch.float64), "z": torch.zeros(2, dtype=torch.float64)}
    ulp = torch.finfo(torch.float32).eps
    stock = [{"y": torch.ones(4) + n * ulp, "z": torch.zeros(2)} for n in (1, 4)]
    ours = {"y": torch.ones(4) + 8 * ulp, "z": torch.zeros(2)}
    found = accuracy(ours, exact, stock, torch.float32)
    assert (found.tensor, found.max_ratio, found.rms_ratio) == ("y", 2.0, 2.0)
    assert found.within(2.0) and not found.within(1.9)


def test_one_wrong_value_among_many_is_out() -> None:
    exact = {"y": torch.ones(10**6, dtype=torch.float64)}
    ours = {"y": torch.ones(10**6)}
    ours["y"][1234] += 1e-4
    found = accuracy(ours, exact, [{"y": torch.ones(10**6)}], torch.float32)
    assert found.rms_ratio < 2 and not found.within(2.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_missing_is_infinitely_wrong(bad: float) -> None:
    exact = {"y": torch.ones(4, dtype=torch.float64)}
    broken = {"y": torch.tensor([1, 1, 1, bad])}
    short = {"y": torch.ones(3)}
    for actual in (broken, short):
        assert accuracy(actual, exact, [{"y": torch.ones(4)}], torch.float32).worst == math.inf


def test_host_memory_counts_what_a_call_holds_at_once() -> None:
    def hold(count: int) -> torch.Tensor:
        return torch.cat([torch.ones(1 << 20) for _ in range(count)])

    peaks = [memory.host_peak(lambda n=n: hold(n)) for n in (2, 6)]
    if None in peaks:
        pytest.skip("this system does not tell the peak of resident memory")
    # n blocks of 4 MB and their concatenation, give or take half a block: the kernel counts to
    # half a megabyte, and on a busy machine it was further off.
    for peak, count in zip(peaks, (2, 6), strict=True):
        assert peak is not None
        assert abs(peak - 2 * count * (4 << 20)) < 2 << 20


def test_stock_twin_computes_the_same_and_holds_nothing_of_ours() -> None:
    torch.manual_seed(0)
    widths = {"widths": (8, 8, 16, 16), "stem_channels": 8}
    model = r21d.create_model("r2plus1d_18", num_classes=5, **widths).eval()
    twin = stock_twin(model)
    ours = (Conv2Plus1D, FusedSequential)
    assert any(isinstance(m, ours) for m in model.modules())
    assert not any(isinstance(m, ours) for m in twin.modules())
    assert any(isinstance(m, StockBlock) for m in twin.modules())
    assert list(twin.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model(x))


def test_padding_the_intermediate_changes_no_value() -> None:
    torch.manual_seed(0)
    conv = Conv2Plus1D(3, 4, 13).eval()
    assert conv[1].running_mean is not None
    conv[1].running_mean.normal_()
    padded = pad_mid_channels(conv, 8)
    assert padded[0].out_channels == 16 and padded[1].num_features == 16
    x = torch.randn(2, 3, 3, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(padded(x), nn.Sequential(*conv.children())(x))
    assert conv[0].out_channels == 13


def test_cases_and_their_selection() -> None:
    names = [case.name for case in list_cases(Settings())]
    assert len(names) == len(set(names)) == 22
    assert [case.name for case in list_cases(Settings(quick=True))] == list(QUICK)
    (case,) = list_cases(Settings(cases=("stem/bf16",), peers=("eager", "r21d cpu")))
    assert case.peers == ("r21d cpu", "eager")
    wanted = ("stem/bf16", "r2plus1d_18/train/fp32", "conv2_x/fp32")
    assert tuple(case.name for case in list_cases(Settings(cases=wanted))) == wanted


def test_every_layer_trains_on_a_gpu_and_where_it_is_asked_for() -> None:
    for settings in (Settings(device="cuda"), Settings(full=True)):
        names = {case.name for case in list_cases(settings)}
        assert len(names) == 38
        for name in [*LAYERS, "r2plus1d_18"]:
            assert {f"{name}/{d}" for d in ("fp32", "bf16", "train/fp32", "train/bf16")} <= names
    for case in list_cases(Settings(device="cuda")):
        assert ("r21d eager" in case.peers) == case.training
        ways = {"recompute"} if case.training else {"fused", "two kernels"}
        assert {p for p in case.peers if p.startswith("r21d triton ")} == {
            f"r21d triton {way}" for way in ways
        }
        cuda = {"r21d cuda", *(f"r21d cuda {way}" for way in ways)}
        assert {p for p in case.peers if p.startswith("r21d cuda")} == cuda
        stock = {"eager", "eager channels_last_3d", "conv2d views", "conv2d views M to 8"}
        assert {*stock, "r21d triton", "inductor"} <= set(case.peers)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(cases=("conv9/fp32",)), r"cases has \['conv9/fp32'\].*known are stem/fp32"),
        (Settings(peers=("egaer",)), r"peers has \['egaer'\].*'eager'"),
        (Settings(shrink=0), "shrink must be at least 1, got 0"),
        (Settings(batch=-1), "batch must be at least 1, got -1"),
        (Settings(device="tpu"), "device must be cpu or cuda, got 'tpu'"),
    ],
)
def test_bad_settings(settings: Settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_cases(settings)


def _run(case: str, peer_names: tuple[str, ...]) -> suite.Suite:
    rounds = Rounds(least=2, most=2, seconds=0.0)
    # Two clips: one leaves BatchNorm a single value a channel at the end of the network.
    chosen = Settings(batch=2, shrink=8, cases=(case,), peers=peer_names, rounds=rounds)
    run = suite.Suite(chosen)
    run._ceilings = Ceilings({"float32": 1e11, "bfloat16": 2e11}, 1e10)
    run.result(case)
    return run


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("conv2_x/fp32", ("eager", "eager channels_last_3d", "conv2d views")),
        ("conv4_1a/bf16", ("eager", "conv2d views")),
        ("conv2_x block/fp32", ("eager channels_last_3d", "conv2d views")),
        ("conv2_x/train/fp32", ("r21d eager", "eager", "conv2d views")),
        ("r2plus1d_18/train/fp32", ("eager channels_last_3d", "conv2d views")),
        ("r2plus1d_18/fp32", ("eager channels_last_3d", "conv2d views")),
    ],
)
def test_a_case_is_checked_timed_and_written(
    case: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    run = _run(case, names)
    rows = run.results[case].rows
    assert [(row.peer, row.status, row.reason) for row in rows] == [(n, "timed", "") for n in names]
    assert all(len(row.samples) == 2 and min(row.samples) > 0 for row in rows)
    path = results.write_results(run, tmp_path)
    assert path.parent.name == results.machine("cpu")["slug"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    (written,) = json.loads(path.read_text())["cases"]
    assert [row["samples"] for row in written["peers"]] == [row.samples for row in rows]
    assert written["floor_s"] > 0 and written["output_bytes"] > 0


def _command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[int, list[str]]:
    """``python -m benchmarks`` on two small cases: its exit status and the cases in its file."""
    monkeypatch.setattr(
        suite, "measure_ceilings", lambda *_, **__: Ceilings({"float32": 1e11}, 1e10)
    )
    cases = "stem/fp32,conv2_x/fp32"
    given = ["--cases", cases, "--peers", "conv2d views", "--results", str(tmp_path)]
    small = ["--device", "cpu", "--shrink", "8", "--seconds", "0"]
    status = command.main([*given, *small, *options])
    files = list(tmp_path.rglob("*.json"))
    assert len(files) <= 1
    found = json.loads(files[0].read_text())["cases"] if files else []
    return status, [case["name"] for case in found]


def test_the_command_writes_after_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def interrupted(case: Case, *rest: object) -> suite.CaseResult:
        if measured:
            raise KeyboardInterrupt
        measured.append(case.name)
        return whole(case, *rest)  # type: ignore[arg-type]

    whole = suite._measure
    monkeypatch.setattr(suite, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _command(tmp_path, monkeypatch)
    (path,) = tmp_path.rglob("*.json")
    assert [case["name"] for case in json.loads(path.read_text())["cases"]] == ["stem/fp32"]


def test_the_command_goes_on_after_a_case_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(case: Case, *rest: object) -> suite.CaseResult:
        if case.name == "stem/fp32":
            raise MemoryError("no room for float64")
        return whole(case, *rest)  # type: ignore[arg-type]

    whole = suite._measure
    monkeypatch.setattr(suite, "_measure", broken)
    assert _command(tmp_path, monkeypatch) == (1, ["conv2_x/fp32"])
    assert "stem/fp32: MemoryError: no room for float64" in capsys.readouterr().out


def test_the_command_keeps_its_time_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command(tmp_path, monkeypatch, "--within", "-1") == (0, [])
    assert "not measured: stem/fp32, conv2_x/fp32" in capsys.readouterr().out
    assert _command(tmp_path, monkeypatch) == (0, ["stem/fp32", "conv2_x/fp32"])
    assert _command(tmp_path, monkeypatch, "--shrink", "0")[0] == 2
    assert "error: shrink must be at least 1, got 0" in capsys.readouterr().err


def test_our_backends_are_rows_or_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r21d_ops.native.load_error", "hidden by this test")
    row = _run("conv2_x/fp32", ("r21d cpu", "eager")).results["conv2_x/fp32"].row("r21d cpu")
    assert (row.status, row.reason, row.samples) == ("unavailable", "hidden by this test", [])


def _peer(module: nn.Module, ours: bool) -> peers.Peer:
    def prepare(work: object) -> peers.Prepared:
        inputs = getattr(work, "inputs")  # noqa: B009
        return peers.Prepared(module, inputs, {})

    return peers.Peer("eager", ours, prepare)


class Broken(nn.Module):
    """Raises."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("no convolution today")


@pytest.mark.parametrize(
    ("module", "status", "reason"),
    [
        (nn.Conv3d(8, 8, 3, padding=1), "wrong", "output is off by"),
        (nn.Conv3d(8, 8, 3), "wrong", "output is off by inf"),
        (Broken(), "failed", "ArithmeticError: no convolution today"),
    ],
)
def test_a_peer_with_wrong_values_is_reported_and_not_timed(
    module: nn.Module, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peers.PEERS, "eager", _peer(module, False))
    rows = _run("conv2_x/fp32", ("eager", "conv2d views")).results["conv2_x/fp32"].rows
    assert (rows[0].status, rows[0].samples, rows[0].peak_bytes) == (status, [], None)
    assert reason in rows[0].reason
    assert rows[1].status == "timed"


def test_absent_runtimes_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    problem_case = "conv2_x/fp32"
    rows = _run(problem_case, ("onnxruntime", "openvino")).results[problem_case].rows
    assert [row.status for row in rows] == ["unavailable", "unavailable"]
    assert all("pip install 'r21d[bench]'" in row.reason for row in rows)


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run("conv2_x/fp32", ("eager",))

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(results.json, "dump", fail)
    with pytest.raises(OSError, match="disk full"):
        results.write_results(run, tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_training_workload_keeps_relu_away_from_zero() -> None:
    """A value of BatchNorm near zero would have one gradient in float64 and another in float32."""
    torch.manual_seed(0)
    case = next(c for c in list_cases(Settings(shrink=4)) if c.name == "conv2_x/train/fp32")
    work = case.build()
    assert layer_workload.__name__ in case.build.__code__.co_names
    normalized = work.stock[1](work.stock[0](work.inputs[0]))
    assert normalized.abs().min() > 0.5
    assert (normalized > 0).any() and (normalized < 0).any()

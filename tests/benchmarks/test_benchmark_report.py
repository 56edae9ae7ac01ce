"""The report over results made by hand (under 1 s; the picture about 1 s)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report


def _peer(name: str, samples: list[float], peak: int | None, ours: bool = False) -> dict[str, Any]:
    return {
        "peer": name,
        "ours": ours,
        "status": "timed",
        "reason": "",
        "accuracy": None,
        "timing": "host",
        "samples": samples,
        "peak_bytes": peak,
        "note": "",
    }


def _run(ours: list[float], stock: list[float], peaks: tuple[int, int]) -> dict[str, Any]:
    absent = {**_peer("openvino", [], None), "status": "unavailable", "reason": "not installed"}
    case = {
        "name": "conv2_x/fp32",
        "dtype": "float32",
        "shape": "1x64x8x56x56, 64→144→64",
        "training": False,
        "flops": 4_000_000_000,
        "fused_bytes": 20_000_000,
        "eager_bytes": 100_000_000,
        "output_bytes": 6_000_000,
        "floor_s": 0.01,
        "peers": [
            _peer("r21d cpu", ours, peaks[0], ours=True),
            _peer("eager channels_last_3d", stock, peaks[1]),
            absent,
        ],
    }
    return {
        "schema": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "commit": "0123456789abcdef",
        "dirty": True,
        "machine": {"cpu": "A CPU", "gpu": None, "cores": 2, "threads": 2},
        "load_before": 0.1,
        "versions": {"python": "3.11.7", "torch": "2.13.0", "openvino": None},
        "settings": {"shrink": 1},
        "ceilings": {"flops": {"float32": 4e11}, "bytes_per_second": 2e10},
        "cases": [case],
    }


FAST = _run([0.02, 0.04, 0.02, 0.02], [0.05, 0.08, 0.04, 0.06], (7_000_000, 29_000_000))
SLOW = _run([0.04, 0.04], [0.02, 0.02], (20_000_000, 29_000_000))


def _lines(run: dict[str, Any], peer: str, **options: bool) -> list[str]:
    return [line for line in report.table(run, **options).splitlines() if peer in line]


def test_a_line_for_each_peer() -> None:
    (line,) = _lines(FAST, "r21d cpu")
    # median 20 ms, quartiles 20 and 25 ms: ± 2.5; 4 GFLOP and 20 MB in 20 ms; floor 10 ms.
    assert line.split()[-6:] == ["20.000", "2.500", "0.200", "1.0", "50.0", "7.0"]
    (line,) = _lines(FAST, "channels_last")
    # Ratios round by round: 2.5, 2, 2, 3.
    assert line.endswith("29.0  2.25 (2.00-2.62)")


def test_slower_is_shown_as_slower() -> None:
    (line,) = _lines(SLOW, "channels_last")
    assert line.endswith("0.50 (0.50-0.50)")


def test_a_peer_that_is_absent_has_its_line_and_reason() -> None:
    (line,) = _lines(FAST, "openvino")
    assert line.endswith("unavailable: not installed")
    (line,) = _lines(FAST, "openvino", markdown=True)
    assert "| openvino | unavailable: not installed |" in line


def test_markdown_has_as_many_cells_in_every_row() -> None:
    rows = report.table(FAST, markdown=True).splitlines()
    assert len(rows) == 5
    assert len({row.count("|") for row in rows}) == 1


def test_without_a_backend_of_ours_there_is_no_ratio() -> None:
    run = json.loads(json.dumps(FAST))
    run["cases"][0]["peers"][0] = {**FAST["cases"][0]["peers"][0], "status": "wrong"}
    (line,) = _lines(run, "channels_last")
    assert line.endswith("29.0")
    assert report.claims(run) == []


@pytest.mark.parametrize(("run", "expected"), [(FAST, [True, True]), (SLOW, [False, False])])
def test_claims(run: dict[str, Any], expected: list[bool], tmp_path: Path) -> None:
    assert [claim.holds for claim in report.claims(run)] == expected
    assert ("DOES NOT HOLD" in report.render(run)) is not all(expected)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run))
    assert report.main([str(path), "--check"]) == (0 if all(expected) else 1)
    assert report.main([str(path)]) == 0


def test_heading_tells_what_the_figures_depend_on() -> None:
    run = {**FAST, "settings": {"shrink": 4}, "load_before": 3.2}
    text = "\n".join(report.heading(run))
    for part in ("A CPU, 2 cores", "0123456789 and changes", "torch 2.13.0", "float32 0.400"):
        assert part in text
    assert "openvino" not in text
    assert "TRIAL" in text and "BUSY MACHINE: the load was 3.2" in text
    assert "TRIAL" not in "\n".join(report.heading(FAST))
    assert "BUSY" not in "\n".join(report.heading(FAST))
    assert report.claims(run) == []
    # The CPU's load does not disturb what a GPU's own clock times.
    machine = {**FAST["machine"], "gpu": "NVIDIA H200"}
    assert "BUSY" not in "\n".join(report.heading({**run, "machine": machine}))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 2}'])
def test_other_files_are_refused(text: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert report.main([str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and str(path) in captured.err


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report.plot(FAST, tmp_path / "speed.png")
    assert [p.name for p in tmp_path.iterdir()] == ["speed.png"]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(report.ResultError, match="nothing to plot"):
        report.plot({**FAST, "cases": []}, tmp_path / "none.png")
    assert [p.name for p in tmp_path.iterdir()] == ["speed.png"]

"""The benchmark of training steps: its ways compute the same, its command works (about 5 s)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import training_run
from benchmarks.measure import quartiles
from benchmarks.training_run import WAYS, Case, Run
from r21d_ops import Conv2Plus1D

ROOT = Path(__file__).parent.parent.parent
_TINY = Case("r2plus1d_18, width 16", (2, 2, 16, 16), "float32")
# Statistics of two values, as the last layers of the former have, make much of every rounding.
_SMALL = Case("r2plus1d_18, width 16", (4, 4, 32, 32), "float32")


def test_the_ways_take_the_same_steps() -> None:
    """Two steps, the second after the first's update: losses differ by rounding at most."""
    losses = {}
    for way in WAYS:
        run = Run(_SMALL, way, "cpu")
        losses[way] = [run.step(), run.step()]
    spread = max(losses[way][0] for way in WAYS) - min(losses[way][0] for way in WAYS)
    moved = abs(losses["stock"][0] - losses["stock"][1])
    assert moved > 0
    for way in WAYS:
        # The update shows, and what rounding makes of it is far smaller.
        assert abs(losses[way][1] - losses["stock"][1]) < 0.1 * moved, way
    assert spread < 0.1 * moved


def test_each_way_is_what_it_says() -> None:
    def kinds(way: str) -> list[nn.Module]:
        model = training_run._network(_TINY, way)
        return [module for module in model.modules() if isinstance(module, Conv2Plus1D)]

    assert kinds("fused") and not any(module.recompute for module in kinds("fused"))
    assert all(module.recompute for module in kinds("fused, recompute"))
    for way in WAYS:
        if way.startswith("stock"):
            assert not kinds(way), way


def test_a_run_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command; one way's peak is measured, in a process of its own."""
    measured = training_run._peak_elsewhere

    def peak(case: Case, way: str, device: str) -> dict[str, int | None]:
        if way == "fused":
            return measured(case, way, device)
        return {"step_bytes": None, "total_bytes": None}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "cases", lambda _: [_TINY])
        patch.setattr(training_run, "_peak_elsewhere", peak)
        command = ["--seconds", "0", "--threads", "1", "--results", str(tmp_path)]
        assert training_run.main(command) == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*/training/*.json")
    run: dict[str, Any] = json.loads(path.read_text())
    (case,) = run["cases"]
    rows = {row["way"]: row for row in case["ways"]}
    assert list(rows) == list(WAYS) and case["clips"] == [2, 2, 16, 16]
    for row in rows.values():
        assert len(row["samples"]) >= 7 and min(row["samples"]) > 0
    if rows["fused"]["step_bytes"] is not None:
        assert 0 < rows["fused"]["step_bytes"] < rows["fused"]["total_bytes"]
    assert training_run.main(["--report", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed


def test_ratios_by_hand() -> None:
    """Round by round: 20/10 and 90/30, the median of 2 and 3."""
    rows = [
        {"way": "fused", "samples": [0.010, 0.030], "loss": 1.0},
        {"way": "stock", "samples": [0.020, 0.090], "loss": 1.0},
    ]
    for row in rows:
        row |= {"step_bytes": 3 << 20, "total_bytes": None}
    line = training_run._line(rows[1], rows[0])
    assert "55 ms (38-72)" in line and "x 2.50 (2.25-2.75)" in line
    assert "3 MiB" in line and "unknown" in line


def test_the_guides_table_is_that_of_a_result_file() -> None:
    """docs/training.md: rows in the order of WAYS, two cases side by side, rounded as printed."""
    guide = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^\| way \|.*\n\|-.*\n((?:\|.*\n)+)", guide, re.MULTILINE)
    printed = [re.findall(r"\d[\d.]*", row.split("|", 2)[2]) for row in block.splitlines()]
    runs = []
    for path in ROOT.glob("benchmarks/results/*/training/*.json"):
        rows: list[list[str]] = [[] for _ in WAYS]
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            assert [row["way"] for row in case["ways"]] == list(WAYS)
            fused = case["ways"][0]["samples"]
            for cells, row in zip(rows, case["ways"], strict=True):
                cells.append(f"{quartiles(row['samples'])[1] * 1e3:.0f}")
                if row["way"] != "fused":
                    pairs = zip(row["samples"], fused, strict=True)
                    first, middle, last = quartiles([theirs / own for theirs, own in pairs])
                    cells += [f"{ratio:.2f}" for ratio in (middle, first, last)]
                cells.append(f"{row['step_bytes'] / 2**20:.0f}")
        runs.append(rows)
    assert printed in runs


def test_cuda_without_a_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    with pytest.raises(SystemExit):
        training_run.main(["--device", "cuda"])
    assert "torch finds no CUDA device" in capsys.readouterr().err

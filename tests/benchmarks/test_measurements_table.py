"""The table that chooses backends, made of results and read by the package (under 1 s)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measurements as maker
from benchmarks.cases import Settings, list_cases
from benchmarks.suite import CaseResult, PeerResult
from r21d.models.layers import LAYERS
from r21d_ops.dispatch import measurements

H200 = "NVIDIA H200"


def _case(name: str, **samples: list[float]) -> dict[str, Any]:
    """A case of a run on a GPU as the suite writes it, its peers with ``samples``."""
    (case,) = list_cases(Settings(device="cuda", cases=(name,)))
    rows = [
        PeerResult(peer.replace("_", " "), True, samples=times) for peer, times in samples.items()
    ]
    rows.append(PeerResult("r21d cuda", True, "unavailable", "not there"))
    # As a file would give it back: tuples are lists there.
    return json.loads(json.dumps(CaseResult(case, 1, 1, None, 1, 1.0, rows).as_dict()))


def _file(folder: Path, created: str, *cases: dict[str, Any], **changed: Any) -> Path:
    run = {
        "schema": 1,
        "created": created,
        "commit": f"{created}-commit",
        "machine": {"gpu": H200},
        "settings": {"shrink": 1},
        "cases": list(cases),
    }
    path = folder / f"{created}.json"
    path.write_text(json.dumps(run | changed))
    return path


def _found(rows: list[dict[str, Any]], folder: Path, name: str, training: bool) -> dict[Any, float]:
    table = folder / "table.json"
    maker.write(rows, table)
    problem = LAYERS[name].problem(32, 16, torch.bfloat16)
    key = (H200, *problem[3:], "bfloat16", training)
    found = measurements.read_table(table).get(key, [])
    assert all(row.batch == 32 for row in found)
    return {(row.backend, row.kernels): row.seconds for row in found}


def test_medians_of_every_way_by_problem(tmp_path: Path) -> None:
    ways = {"r21d_triton": [9.0], "r21d_triton_fused": [3.0, 1.0, 2.0]}
    ways |= {"r21d_triton_two_kernels": [4.0], "conv2d_views": [5.0], "eager": [0.1]}
    ways |= {"r21d_cuda_fused": [8.0], "r21d_cuda_two_kernels": [7.0]}
    steps = {"r21d_triton": [6.0], "r21d_triton_recompute": [5.0], "conv2d_views": [0.2]}
    steps |= {"r21d_eager": [7.0]}
    path = _file(
        tmp_path,
        "2026-01-01",
        _case("conv2_x/bf16", **ways),
        _case("conv2_x/train/bf16", **steps),
        _case("conv2_x block/bf16", **ways),
        _case("r2plus1d_18/bf16", **ways),
    )
    rows = maker.collect([path])
    expected = {("triton", "fused"): 2.0, ("triton", "two"): 4.0, ("eager", ""): 5.0}
    expected |= {("cuda", "fused"): 8.0, ("cuda", "two"): 7.0}
    assert _found(rows, tmp_path, "conv2_x", False) == expected
    assert _found(rows, tmp_path, "conv2_x", True) == {("triton", ""): 6.0, ("eager", ""): 7.0}
    assert len(rows) == 7
    assert {row["file"] for row in rows} == {f"{tmp_path.name}/2026-01-01.json"}
    assert {row["commit"] for row in rows} == {"2026-01-01-commit"}


def test_a_case_comes_from_the_newest_file_that_compares(tmp_path: Path) -> None:
    def files(*ways: dict[str, list[float]]) -> list[Path]:
        cases = [_case("stem/bf16", **peers) for peers in ways]
        made = [_file(tmp_path, f"2026-0{n}-01", case) for n, case in enumerate(cases, 1)]
        return made[::-1]

    both = {"conv2d_views": [1.0], "r21d_triton_fused": [3.0]}
    alone, other = {"conv2d_views": [2.0]}, {"r21d_triton_two_kernels": [4.0]}
    # Of one file alone, and it must hold eager and another.
    expected = {("eager", ""): 1.0, ("triton", "fused"): 3.0}
    for ways in ([both, alone], [alone, both], [both, other], [other, both]):
        assert _found(maker.collect(files(*ways)), tmp_path, "stem", False) == expected
    newer = {"conv2d_views": [7.0], "r21d_triton_two_kernels": [8.0]}
    rows = maker.collect(files(both, newer))
    expected = {("eager", ""): 7.0, ("triton", "two"): 8.0}
    assert _found(rows, tmp_path, "stem", False) == expected
    rows = maker.collect(files(alone, other))
    assert _found(rows, tmp_path, "stem", False) == {("triton", "two"): 4.0}


def test_trials_cpus_and_older_files_give_no_rows(tmp_path: Path) -> None:
    case = _case("stem/bf16", conv2d_views=[2.0])
    older = {key: value for key, value in case.items() if key not in ("problem", "arithmetic")}
    paths = [
        _file(tmp_path, "a", case, settings={"shrink": 8}),
        _file(tmp_path, "b", case, machine={"gpu": None}),
        _file(tmp_path, "c", older),
    ]
    assert maker.collect(paths) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, "2026-01-01", _case("stem/bf16", conv2d_views=[2.0]))
    output = tmp_path / "table.json"
    assert maker.main([str(path), "--output", str(output)]) == 0
    assert "1 rows" in capsys.readouterr().out
    assert len(measurements.read_table(output)) == 1
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert maker.main([str(broken), "--output", str(output)]) == 1
    assert "broken.json" in capsys.readouterr().err
    assert len(measurements.read_table(output)) == 1


def test_the_committed_table_is_that_of_the_committed_results(tmp_path: Path) -> None:
    results = Path(maker.__file__).parent / "results"
    made = tmp_path / "made.json"
    maker.write(maker.collect(sorted(results.glob("*/*.json"))), made)
    assert made.read_text() == measurements.TABLE.read_text(), (
        "run: python -m benchmarks.measurements benchmarks/results/*/*.json"
    )

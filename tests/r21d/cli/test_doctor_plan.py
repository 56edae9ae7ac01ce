"""``r21d doctor --plan`` (about 3 s)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from r21d.cli import main
from r21d.cli.doctor_plan import convolutions
from r21d.models.layers import LAYERS
from r21d_ops import dispatch, native
from r21d_ops.dispatch.estimate import ASSUMPTIONS

pytestmark = pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
PLAN = ["doctor", "--plan", "r2plus1d_18", "--clip", "3x16x112x112", "--batch", "32"]


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "gpu_name", lambda: "")
    for variable in ("R21D_BACKEND", "R21D_INFERENCE"):
        monkeypatch.delenv(variable, raising=False)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_convolutions_are_those_of_table_1() -> None:
    problems = [c.problem for c in convolutions("r2plus1d_18", (3, 16, 112, 112), 32)]
    expected = []
    for layer in LAYERS.values():
        expected += [layer.problem(32, 16, torch.bfloat16)] * layer.times
    assert problems == expected


def test_a_plan_for_each_convolution(capsys: pytest.CaptureFixture[str]) -> None:
    report = _json(capsys, *PLAN)
    # Without a GPU an H200 is planned for.
    assert report["gpu"] == "NVIDIA H200" and report["batch"] == 32
    rows = {row["layer"]: row for row in report["layers"]}
    assert len(rows) == 17
    first = rows["layer1.0.conv1.0"]
    assert first["channels"] == [64, 144, 64] and first["size"] == [16, 56, 56]
    plan = first["plan"]
    assert plan["fused"]["grid_x"] == 32 * plan["fused"]["tiles"]
    assert plan["kernels"] in ("fused", "two") and first["route"]["source"] == "estimated"
    for way in ("fused", "two"):
        total = sum(row["plan"][f"{way}_seconds"] for row in rows.values())
        assert report["seconds"][way] == pytest.approx(total)
    assert report["seconds"]["chosen"] <= min(report["seconds"][way] for way in ("fused", "two"))


def test_the_tables_say_what_the_plan_says(capsys: pytest.CaptureFixture[str]) -> None:
    report = _json(capsys, *PLAN, "--gpu", "A100-SXM4-80GB")
    assert main([*PLAN, "--gpu", "A100-SXM4-80GB"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("r2plus1d_18 on NVIDIA A100-SXM4-80GB, 32 clips of 3x16x112x112, bf")
    lines = text.splitlines()
    row = report["layers"][-1]
    fused, two = (round(row["plan"][f"{way}_seconds"] * 1e6) for way in ("fused", "two"))
    line, trained = (line for line in lines if line.startswith(row["layer"]))
    step = round(row["plan"]["training"]["seconds"] * 1e6)
    assert trained.split() == [
        row["layer"],
        row["training_route"]["backend"],
        "estimated",
        str(step),
    ]
    assert "512>1152>512" in line and "2x7x7" in line
    assert line.split()[-3:] == [str(fused), str(two), str(min(fused, two))]
    # The tiles of layers alike are told once: eight kinds of three kernels, and of training's six.
    assert sum(" pixels x " in line for line in lines) == 8 * (3 + 4)
    assert sum(" spatial weight " in line for line in lines) == 8
    plan = report["layers"][1]["plan"]["fused"]
    (line,) = (line for line in lines if line.startswith("layer1.0.conv1.0") and "fused " in line
               and " pixels x " in line)  # fmt: skip
    assert f"{plan['shared_bytes'] / 1024:.1f}" in line and str(plan["registers"]) in line
    assert lines[-1] == f"Estimates are no measurements. Assumed: {ASSUMPTIONS}."


def test_where_one_kernel_does_not_fit_the_table_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wide = ["doctor", "--plan", "r2plus1d_18", "--clip", "3x4x64x3000", "--batch", "1"]
    report = _json(capsys, *wide)
    assert report["seconds"]["fused"] is None and report["seconds"]["two"] > 0
    assert main(wide) == 0
    text = capsys.readouterr().out
    assert "not: a block would take" in text
    total, _ = (line for line in text.splitlines() if line.startswith("total"))
    assert total.split()[1] == "-"


def test_what_32_bits_do_not_index_has_no_plan(capsys: pytest.CaptureFixture[str]) -> None:
    report = _json(capsys, *PLAN[:-1], "20000")
    stem = report["layers"][0]
    assert stem["plan"]["refusal"].startswith("x has 4014080000 pixels")
    # A backend without that limit serves; the last layers are small enough.
    assert stem["route"]["backend"] != "cuda"
    assert report["layers"][-1]["plan"]["refusal"] is None
    assert set(report["seconds"].values()) == {None}
    assert main([*PLAN[:-1], "20000"]) == 0
    assert "x has 4014080000 pixels" in capsys.readouterr().out


def test_the_environment_forces_the_route(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R21D_BACKEND", "cuda")
    monkeypatch.setenv("R21D_INFERENCE", "two")
    routes = [row["route"] for row in _json(capsys, *PLAN)["layers"]]
    assert {(route["backend"], route["kernels"]) for route in routes} == {("cuda", "two")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "mc3_18"], "mc3_18 has no (2+1)D convolutions; r2plus1d_18 and r2plus1d_34"),
        (["--plan", "r2plus1d"], "name='r2plus1d' is not a known network; did you mean"),
        (["--plan", "r2plus1d_18", "--gpu", "abacus"], "--gpu 'abacus' is no GPU that is known"),
        (["--clip", "3x16x112x112"], "--clip and --batch are for --plan: name a network"),
        (["--batch", "2"], "--clip and --batch are for --plan: name a network"),
        (
            ["--plan", "r2plus1d_18", "--batch", "10000000000000"],
            "--batch 10000000000000 with --clip 3x16x112x112 is 6021120000000000000 values; at "
            "most 281474976710656 are planned",
        ),
        (["--plan", "r2plus1d_18", "--batch", "9" * 20], "values; at most 281474976710656 are"),
        (["--plan", "r2plus1d_18", "--clip", f"3x16x{10**20}x1"], "values; at most 28147497671"),
        (
            ["--plan", "r2plus1d_18", "--clip", "3x65537x8x8"],
            "--clip has 65537 frames; at most 65536 are planned",
        ),
        (
            ["--plan", "r2plus1d_18", "--clear-cache"],
            "--plan and --clear-cache are two commands: give one of them",
        ),
    ],
)
def test_bad_requests(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert captured.out == "" and message in line


@pytest.mark.parametrize("given", [["--clip", "3x16x112"], ["--batch", "0"]])
def test_bad_numbers(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--plan", "r2plus1d_18", *given])
    assert f"argument {given[0]}: '{given[1]}' is not" in capsys.readouterr().err


def test_a_gpu_without_rates_and_a_missing_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "gpu_name", lambda: "Abacus 3")
    assert main(PLAN) == 2
    assert "the rates of Abacus 3 are not known; --gpu takes one of: NVIDIA H200" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr(native, "load_error", "it is not built")
    assert main(PLAN) == 2
    assert "the plan is the native library's: it is not built" in capsys.readouterr().err

"""The demo: that all of it runs, and that its judgement can fail. About 20 seconds."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from r21d.cli import main
from r21d.cli.demo_motion import Run, failures, required, sampling_bound
from r21d.cli.demo_product import (
    CLIP,
    Row,
    _peak_in_own_process,
    differences,
    prepare,
    show,
)
from r21d.cli.peak_memory import measure_peak
from r21d.cli.stock_r2plus1d import build_stock
from r21d.evaluation import EvalResult
from r21d.models import create_model


def test_quick_demo_leaves_everything_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for part in ("1. The product", "2. Training", "3. A prediction", "4. Yours", "fuse(stock)"):
        assert part in text
    results = json.loads((out / "results.json").read_text())
    assert results["failures"] == []
    rows = results["product"]["rows"]
    variants = ["stock", "stock, channels_last_3d", "fuse(stock)"]
    assert [row["variant"] for row in rows] == 2 * variants
    for row in rows:
        assert 0 < row["error"] < 0.1
        assert min(row["seconds"]) > 0
    # Against float64: bfloat16, which comes second, is much less accurate than float32.
    assert rows[3]["error"] > 100 * rows[0]["error"]
    assert set(results["training"]) == {"R(2+1)D", "f-R2D"}
    for picture in ("prediction.png", "curves.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"
    checkpoint = str(out / "r2plus1d_18" / "last.safetensors")
    video = str(out / "motion" / "val" / "pan_up" / "0000.mp4")
    assert main(["predict", video, "--checkpoint", checkpoint, "--clips", "1"]) == 0


def _row(variant: str, error: float) -> Row:
    return Row(variant, "float32", error, ulp=1e-7, seconds=[1.0], peak_extra_mib=None)


@pytest.mark.parametrize(
    ("stock", "fused", "found"),
    [(1e-6, 1.9e-6, 0), (1e-6, 2.1e-6, 1), (0.0, 1e-7, 0), (0.0, 2e-7, 1), (1e-6, math.nan, 1)],
)
def test_other_logits_are_found(stock: float, fused: float, found: int) -> None:
    rows = [_row("stock", stock), _row("fuse(stock)", fused)]
    assert len(differences(rows)) == found


def test_stock_network_is_the_published_one() -> None:
    stock, _ = build_stock(0)
    ours = create_model("r2plus1d_18", midplanes="torchvision")
    assert {k: v.shape for k, v in stock.state_dict().items()} == {
        k: v.shape for k, v in ours.state_dict().items()
    }
    assert all(
        "r21d" not in type(m).__module__ or "Stock" in type(m).__name__ for m in stock.modules()
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('first\\nRuntimeError: no shared memory')", "no shared memory"),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
def test_a_failing_memory_probe_is_a_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    run = subprocess.run

    def broken(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return run([command[0], "-c", code], **options)

    monkeypatch.setattr(subprocess, "run", broken)
    peak, problem = _peak_in_own_process("stock", "float32", 0)
    assert peak is None and reason in problem
    row = dataclasses.replace(_row("stock", 1e-6), peak_problem=problem)
    show([row, dataclasses.replace(row, variant="fuse(stock)")], "a test")
    text = capsys.readouterr().out
    assert text.count("n/a") == 3
    assert text.count(reason) == 1


def test_a_memory_probe_that_cannot_start_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    peak, problem = _peak_in_own_process("stock", "float32", 0)
    assert peak is None and "/nowhere/python" in problem


def test_peak_memory_sees_the_activations() -> None:
    peak = measure_peak("stock", "float32", 0)
    if peak is None:
        pytest.skip("this system does not tell a process's peak memory")
    # conv2_x alone needs its 144-channel intermediate, 8x56x56 pixels in float32, at least once.
    assert peak > 144 * 8 * 56 * 56 * 4 / 2**20


def test_variants_leave_the_stock_network_alone() -> None:
    stock, _ = build_stock(0)
    before = [type(module) for module in stock.modules()]
    for variant in ("stock, channels_last_3d", "fuse(stock)"):
        prepare(stock, torch.zeros(CLIP), variant)
    assert [type(module) for module in stock.modules()] == before
    assert stock.state_dict()["layer1.0.conv1.0.0.weight"].is_contiguous()


@pytest.mark.parametrize("videos", [1, 10, 160])
def test_sampling_bound_is_the_binomial_quantile(videos: int) -> None:
    hits = round(sampling_bound(videos) * videos)
    mass = [math.comb(videos, k) / 2**videos for k in range(videos + 1)]
    assert sum(mass[: hits + 1]) >= 0.999
    assert sum(mass[:hits]) < 0.999


def _run(label: str, clip: float, video: float) -> Run:
    result = EvalResult(
        clip, 1.0, video, 1.0, 1.0, 800, 160, {}, torch.zeros(8, 8, dtype=torch.int64), [], []
    )
    model = create_model("fr2d_18", 8, widths=(4, 4, 4, 4), blocks=(1, 1, 1, 1), stem_channels=4)
    return Run(label, model, [], result, Path("last.safetensors"))


@pytest.mark.parametrize(
    ("ours", "control", "found"),
    [
        ((0.9, 0.95), (0.4, 0.45), []),
        ((0.9, 0.95), (0.5, 0.55), []),
        ((0.6, 0.95), (0.4, 0.45), ["R(2+1)D's clip@1 is 60.0%, below 75.0%"]),
        ((0.9, 0.7), (0.4, 0.45), ["R(2+1)D's video@1 is 70.0%, below 75.0%"]),
        ((0.9, 0.95), (0.4, 0.7), ["f-R2D's video@1 is 70.0%, above 61.9%"]),
        ((0.9, 0.95), (0.7, 0.4), ["f-R2D's clip@1 is 70.0%, above 61.9%"]),
    ],
)
def test_judgement(
    ours: tuple[float, float], control: tuple[float, float], found: list[str]
) -> None:
    assert failures([_run("R(2+1)D", *ours), _run("f-R2D", *control)]) == found


def test_few_videos_ask_for_more() -> None:
    assert required(8) == sampling_bound(8) == 1.0
    assert required(160) == 0.75


def test_a_failed_demo_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(seed: int, quick: bool) -> tuple[list[Row], str]:
        rows = [_row("stock", 1e-6), _row("fuse(stock)", 1e-2)]
        return [dataclasses.replace(row) for row in rows], "a test"

    monkeypatch.setattr("r21d.cli.demo_product.compare", worse)
    assert main(["demo", "--quick", "--out", str(tmp_path)]) == 1
    assert "the demo failed: logits of fuse(stock)" in capsys.readouterr().err
    assert json.loads((tmp_path / "results.json").read_text())["failures"]

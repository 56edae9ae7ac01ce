"""The losses of the first training steps beside stock PyTorch's (5 s)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import training_losses


def test_a_step_by_the_backend_and_by_stock_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("R21D_BACKEND", raising=False)
    monkeypatch.setenv("R21D_BACKEND", "")
    out = tmp_path / "results" / "losses.json"
    arguments = ["--device", "cpu", "--backend", "eager", "--steps", "2", "--clips", "2x16x32x32"]
    assert training_losses.main([*arguments, "--out", str(out)]) == 0
    run = json.loads(out.read_text())
    assert [path.name for path in out.parent.iterdir()] == ["losses.json"]
    assert run["clips"] == "2x16x32x32" and run["torch"]
    losses = run["losses"]
    assert losses.keys() == {"eager", "stock", "stock, NCDHW"}
    # The first is of the same weights and clips; bfloat16 rounds it.
    first = [values[0] for values in losses.values()]
    assert all(len(values) == 2 for values in losses.values())
    assert max(first) - min(first) < 0.05 and 0.5 < min(first) < 2 * math.log(8)


def test_clips_tell_their_label() -> None:
    x, labels = training_losses.make_clips(4, 6, 8, 10, step=3)
    again, _ = training_losses.make_clips(4, 6, 8, 10, step=3)
    other, _ = training_losses.make_clips(4, 6, 8, 10, step=4)
    assert x.shape == (4, 3, 6, 8, 10) and torch.equal(x, again) and not torch.equal(x, other)
    assert labels.min() >= 0 and labels.max() < 8

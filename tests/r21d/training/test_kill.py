"""Runs killed by SIGKILL at random moments and resumed. About ten seconds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from processes import run
from training import killed_runs
from training.shades import contents

from r21d.training.run_folder import state_files
from r21d.training.state import load_state


def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    """Any moment: amid a file, between two, in loading, in a step, in validation, in a log."""
    seed = int(torch.initial_seed()) % 2**31
    command = [sys.executable, killed_runs.__file__, tmp_path, str(seed)]
    # The paths of this process's packages, tests included; one thread, for bits depend on it.
    paths = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = run(command, env=environment)
    assert done.returncode == 0, done.stderr
    lives = [json.loads(line) for line in done.stdout.splitlines()]
    killed = [life["kind"] for life in lives if life["killed"]]
    assert sorted(killed) == sorted([*killed_runs.MOMENTS, *2 * [killed_runs.OUTSIDE]])
    whole = tmp_path / "whole"
    parts = sorted(tmp_path.glob("parts*"))
    assert parts
    for folder in parts:
        assert contents(folder) == contents(whole), lives
        assert not [*folder.rglob("*.tmp")]
        # What a further resume would go on from, momentum included.
        (_, one), (_, other) = (next(iter(state_files(run).items())) for run in (folder, whole))
        mine, theirs = load_state(one), load_state(other)
        assert mine.momentum.keys() == theirs.momentum.keys() != set()
        for kind in ("model", "momentum"):
            held, expected = getattr(mine, kind), getattr(theirs, kind)
            assert all(torch.equal(held[name], expected[name]) for name in expected)
        for name in ("steps.csv", "metrics.csv"):
            steps = [[row.split(",")[0] for row in (place / name).read_text().splitlines()]
                     for place in (folder, whole)]  # fmt: skip
            assert steps[0] == steps[1]

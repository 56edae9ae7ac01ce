"""Commands as processes of their own, of which none outlives its test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_GRACE = 45.0
"""Seconds that torchrun has to end the processes that it started, in sessions of their own."""


def start(command: list[Any], **options: Any) -> subprocess.Popen[str]:
    """Start ``command`` as the head of a process group; see `end`."""
    return subprocess.Popen(command, text=True, start_new_session=True, **options)


def end(process: subprocess.Popen[str]) -> None:
    """End what is left of ``process`` and of those in its group."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(
    command: list[Any], seconds: float = 120.0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end; after ``seconds`` it is ended, with subprocess.TimeoutExpired."""
    with start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
        finally:
            end(process)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def run_pair(script: str | None, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run ``python script RANK folder`` for the ranks 0 and 1 side by side, a thread each."""
    assert script is not None
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    environment |= {"OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, script, str(rank), str(folder)] for rank in range(2)]
    processes = [start(c, env=environment, stderr=subprocess.PIPE) for c in commands]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            end(process)
    return [
        subprocess.CompletedProcess(command, process.returncode, None, error)
        for command, process, error in zip(commands, processes, errors, strict=True)
    ]

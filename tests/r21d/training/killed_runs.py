"""Runs killed at random moments: ``python killed_runs.py FOLDER SEED``.

Each life of a run is a process of its own, forked from this one, which has everything imported and
never trains itself. FOLDER/whole is a run that nobody disturbed; FOLDER/parts0 and so on are runs
that were killed by SIGKILL and resumed until they were complete. Prints a line of JSON for each
life: how it was to end, how far it came, whether it was killed.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from training.shades import FixedValidation, Shades, changed, small_model

from r21d.training import train
from r21d.training.logs import CsvLog
from r21d.training.run_folder import state_files
from r21d.training.step import Learner

CONFIG = changed(epochs=4, checkpoint_steps=2, log_steps=1, bn_recalibration=4, eval_batch_size=4)
OUTSIDE = "from outside"

#: Kinds of moments at which a run kills itself, and how many of each a whole run has at least.
MOMENTS = {
    "half a file is written": 20,
    "a file is written": 20,
    "a file is in its place": 20,
    "a file is removed": 20,
    "a clip is read": 60,
    "a step is done": 12,
    "a batch is validated": 12,
    "a row is logged": 16,
}


class Killer:
    """Ends this process at the n-th moment of a kind, and tells every step through a pipe."""

    def __init__(self, kind: str | None, number: int, pipe: int) -> None:
        self.kind, self.left, self.pipe = kind, number, pipe

    def moment(self, kind: str) -> None:
        if kind == self.kind:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if kind == "a step is done":
            os.write(self.pipe, b".")

    def after(self, owner: Any, name: str, kind: str) -> None:
        """Let each call of ``owner.name`` be followed by a moment."""
        plain: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            result = plain(*args, **options)
            self.moment(kind)
            return result

        setattr(owner, name, call)

    def watch(self) -> None:
        """Look at everything that a run does."""
        plain_open = Path.open
        killer = self

        def opened(path: Path, *args: Any, **options: Any) -> Any:
            file = plain_open(path, *args, **options)
            return Halved(file, killer) if path.suffix == ".tmp" else file

        Path.open = opened  # type: ignore[method-assign]
        self.after(os, "fsync", "a file is written")
        self.after(os, "replace", "a file is in its place")
        self.after(Path, "unlink", "a file is removed")
        self.after(Shades, "__getitem__", "a clip is read")
        self.after(Learner, "step", "a step is done")
        evaluation = importlib.import_module("r21d.evaluation.evaluate")
        self.after(evaluation, "_classify", "a batch is validated")
        self.after(CsvLog, "append", "a row is logged")


class Halved:
    """A file of which each half is written by itself."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self.file, self.killer = file, killer

    def write(self, content: bytes) -> None:
        middle = len(content) // 2
        self.file.write(content[:middle])
        self.file.flush()
        self.killer.moment("half a file is written")
        self.file.write(content[middle:])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Halved:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def live(folder: Path, workers: int, killer: Killer) -> None:
    """Start the run in ``folder`` or go on with it."""
    torch.set_num_threads(1)
    killer.watch()
    config = changed(**{**CONFIG.to_dict(), "workers": workers})
    resume = bool(state_files(folder))
    # A run that was killed before its first state has left nothing to lose.
    options = {"resume": resume, "overwrite": not resume}
    train(small_model(), Shades(), FixedValidation(6, clips=2), config, out=folder, **options)


def life(folder: Path, kind: str | None = None, number: int = 0, workers: int = 0) -> bool:
    """Let the run in ``folder`` go on until the n-th moment of a kind, or to its end.

    Returns whether it was killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            live(folder, workers, Killer(kind, number, writing))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    if kind == OUTSIDE:
        for _ in range(number):
            os.read(reading, 1)
        # Whatever it is about, some time after a step.
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(reading)
    killed = os.WIFSIGNALED(status)
    if not killed and os.WEXITSTATUS(status) != 0:
        sys.exit(f"a run failed in {folder}: its error is above")
    step = next(iter(state_files(folder)), None)
    told = {"folder": folder.name, "kind": kind, "number": number, "step": step, "killed": killed}
    print(json.dumps(told), flush=True)
    return killed


def main(root: Path, seed: int) -> None:
    draw = random.Random(seed)
    life(root / "whole")
    plan = [*MOMENTS, OUTSIDE, OUTSIDE]
    draw.shuffle(plan)
    runs = 0
    for kind in plan:
        number = draw.randint(1, MOMENTS.get(kind, 8) // 2)
        # Decoding processes outlive their parent for seconds, and must not hold its folder.
        workers = int(kind == OUTSIDE)
        while not life(root / f"parts{runs}", kind, number, workers):
            # It was nearly complete: the next one begins anew.
            runs += 1
    life(root / f"parts{runs}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""On what a run was made: versions, machine, command. Nothing about who made it."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import r21d
from r21d.atomic import write_atomically
from r21d.machine import cpu_model, installed_version

_log = logging.getLogger(__name__)

_PACKAGES = ("triton", "numpy", "av", "opencv-python-headless", "safetensors")
_PATIENCE = 20
"""Seconds for git, on a slow network folder, say."""


def describe_environment() -> dict[str, Any]:
    """Versions, machine, processes and command line of this process, as JSON values.

    ``started`` is UTC. ``git`` is the commit of r21d where it runs from a checkout, with a ``+``
    where files differ from it; else None. ``world`` is the number of processes. ``variables`` are
    those of r21d and OMP_NUM_THREADS. The home folder's path is written ``~``.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": _homeless(shlex.join(["r21d", *sys.argv[1:]])),
        "r21d": r21d.__version__,
        "git": _commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **{name: installed_version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "world": int(os.environ.get("WORLD_SIZE", "1")),
        "variables": {
            name: _homeless(value)
            for name, value in sorted(os.environ.items())
            if name == "OMP_NUM_THREADS" or name.startswith("R21D_")
        },
    }


def append_environment(path: str | os.PathLike[str], *, anew: bool = False) -> None:
    """Add `describe_environment` to the list in the file ``path``: an entry each time a run starts.

    ``anew`` begins the list, of a run that replaces another.

    Raises:
        OSError: the file cannot be written; the old one stands.
    """
    entries = [*([] if anew else read_environments(path)), describe_environment()]
    write_atomically(path, (json.dumps(entries, indent=2) + "\n").encode())


def read_environments(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What `append_environment` wrote, the first start first; of no or a damaged file, nothing."""
    try:
        entries = json.loads(Path(path).read_bytes())
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("it is no list of starts")
    except FileNotFoundError:
        return []
    except ValueError as error:
        _log.warning("%s is damaged and left out: %s", path, error)
        return []
    return entries


def _homeless(text: str) -> str:
    """``text`` without the name of the user, which paths of the home folder hold."""
    home = str(Path.home())
    return re.sub(rf"(?<![\w./-]){re.escape(home)}(?![\w.-])", "~", text)


def _commit() -> str | None:
    source = Path(r21d.__file__).resolve()
    # A checkout of something else may hold the environment that r21d is installed in.
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = _git(source.parent, "rev-parse", "HEAD")
    changed = _git(source.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if commit and changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it is missing or fails."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout.strip()

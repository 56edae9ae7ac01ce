"""What the autotuner found, kept on disk: one JSON file per GPU model and versions.

The files lie in ``triton-tuning`` within the folder that ``R21D_CACHE_DIR`` names, else within
``$XDG_CACHE_HOME/r21d``, else within ``~/.cache/r21d``. Nothing here raises on account of a file
that cannot be read or written: the cost of a lost result is to tune once more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

import torch

_FORMAT = 1
_logger = logging.getLogger(__name__)
#: What this process found, per file: whatever a process writing at the same time may overwrite is
#: there again after the next result.
_found: dict[Path, dict[str, Result]] = {}
_warned: set[str] = set()


class Machine(NamedTuple):
    """What a result holds for; one file for each."""

    gpu: str
    capability: str
    torch: str
    triton: str
    r21d: str


class Result(NamedTuple):
    """The fastest configuration's name, and of each that ran its median time."""

    winner: str
    milliseconds: dict[str, float]


def machine(device: torch.device) -> Machine:
    """The GPU ``device`` and the versions at hand."""
    import triton

    from r21d_ops import __version__

    major, minor = torch.cuda.get_device_capability(device)
    return Machine(
        gpu=torch.cuda.get_device_name(device),
        capability=f"{major}.{minor}",
        torch=str(torch.__version__),
        triton=triton.__version__,
        r21d=__version__,
    )


def load(owner: Machine, key: str) -> Result | None:
    """The result stored for ``key``, or None."""
    try:
        return _read(_path(owner), owner).get(key)
    except OSError as error:
        _warn_once(f"the autotuner's results cannot be read: {error}")
        return None


def save(owner: Machine, key: str, result: Result) -> None:
    """Adds a result to the owner's file, which other processes may be writing too."""
    try:
        path = _path(owner)
        own = _found.setdefault(path, {})
        own[key] = result
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, owner, {**_read(path, owner), **own})
    except OSError as error:
        _warn_once(
            f"the autotuner's results are kept for this process alone: {error}; "
            "R21D_CACHE_DIR may name another folder"
        )


def files() -> list[Path]:
    """The files there are, in the order of their names."""
    try:
        return sorted(folder().glob("*.json"))
    except OSError:
        return []


def clear() -> list[Path]:
    """Removes the files, and returns which.

    Raises:
        OSError: a file cannot be removed.
    """
    _found.clear()
    removed = files()
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def folder() -> Path:
    """Where the files are, by ``R21D_CACHE_DIR`` and ``XDG_CACHE_HOME``."""
    if named := os.environ.get("R21D_CACHE_DIR"):
        base = Path(named)
    elif named := os.environ.get("XDG_CACHE_HOME"):
        base = Path(named, "r21d")
    else:
        try:
            base = Path.home() / ".cache" / "r21d"
        except RuntimeError as error:
            raise FileNotFoundError(str(error)) from error
    return base / "triton-tuning"


def _path(owner: Machine) -> Path:
    """E.g. ``NVIDIA_H200-9.0-torch2.10.0-triton3.6.0-r21d0.1.0.json``."""
    versions = (f"torch{owner.torch}", f"triton{owner.triton}", f"r21d{owner.r21d}")
    parts = (owner.gpu, owner.capability, *versions)
    return folder() / ("-".join(re.sub(r"[^\w.+]+", "_", part) for part in parts) + ".json")


def _read(path: Path, owner: Machine) -> dict[str, Result]:
    """The results in ``path``; none where it does not exist or is not the owner's file."""
    try:
        return _parse(path.read_bytes(), owner)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        _warn_once(f"{path} is not used and will be replaced: {error}")
        return {}


def _parse(content: bytes, owner: Machine) -> dict[str, Result]:
    """Raises ValueError, of which bad JSON and bad UTF-8 are cases, for anything unexpected."""
    data: Any = json.loads(content)
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ValueError(f"it is not a file of results in format {_FORMAT}")
    if data.get("machine") != owner._asdict():
        raise ValueError(f"it is about {data.get('machine')}, not {owner._asdict()}")
    try:
        results = {key: Result(**entry) for key, entry in data["results"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"its results are damaged: {error!r}") from error
    if not all(isinstance(result.winner, str) for result in results.values()):
        raise ValueError("its results are damaged: a winner is not a name")
    return results


def _write(path: Path, owner: Machine, results: dict[str, Result]) -> None:
    data = {
        "format": _FORMAT,
        "machine": owner._asdict(),
        "results": {key: results[key]._asdict() for key in sorted(results)},
    }
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        unfinished.write_text(json.dumps(data, indent=1), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        _logger.warning("%s", message)

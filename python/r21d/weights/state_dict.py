"""Tensors by name: read from a file without executing it, and compared with what is expected."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import torch

from r21d.weights.pickles import read_pickle

_ZIP = b"PK\x03\x04"
_GZIP = b"\x1f\x8b"
# torch.save before 1.6 begins with its magic number, a pickle of its own.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Protocols 2 to 5 begin with PROTO.  Before them a dict, a list or a named class is what files of
# arrays begin with; whatever else a text may be, these are not its first characters.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\([dl]|[}\]]|c[\w.]+\n[\w.]+\n")
_STOP = b"."
_START = 256
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network"),
    *("model_ema", "ema_state_dict", "state_dict_ema", "ema"),
)
_PREFIXES = ("module.", "_orig_mod.")
_NAMED = 3
_DEEPEST = 8
_MOST_ENTRIES = 100_000
_LONGEST_NAME = 1000
_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
)


def read_state_dict(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a file.

    The content decides how it is read, not the suffix: safetensors, a PyTorch file of tensors
    (``torch.load(weights_only=True)``), or a pickle of numpy arrays
    (:func:`r21d.weights.pickles.read_pickle`); the archive of a registered download is read
    through the member that holds the weights.  The state dict may be an entry of the file
    (``state_dict``, ``model``, ...), and DistributedDataParallel's ``module.`` and
    torch.compile's ``_orig_mod.`` are taken off its names.  Dicts within dicts are flattened, with
    ``/`` between the names.  Of VMZ's pickles these are the arrays of ``blobs``.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is in none of these formats, is damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError("it is not a file" if path.exists() else "there is no such file")
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start.startswith(_GZIP):
        return _read_archive(path)
    metadata: dict[str, str] = {}
    if start.startswith((_ZIP, _LEGACY)):
        tensors = _by_name(_read_torch(path))
    elif _looks_like_safetensors(start, path.suffix.lower()):
        tensors, metadata = _read_safetensors(path)
    else:
        tensors = _by_name(_read_plain_pickle(path))
    for name, tensor in tensors.items():
        _check_plain(name, tensor)
    return _without_prefix(tensors), metadata


def looks_like_weights(path: Path) -> bool:
    """Whether a file begins and ends as those that :func:`read_state_dict` reads.

    A web page, an error message or an empty file does not, nor does most of a PyTorch file or of a
    pickle whose rest is missing.
    """
    with path.open("rb") as file:
        start = file.read(_START)
        if start.startswith(_ZIP):
            return zipfile.is_zipfile(file)
        if start.startswith((_GZIP, _LEGACY)) or _looks_like_safetensors(start, ""):
            return True
        if _PICKLE.match(start) is None:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) == _STOP


def describe_mismatch(
    given: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    given_name: str,
    expected_name: str,
) -> str:
    """How the names and shapes of two state dicts differ, in words; empty where they agree."""
    shapes = [
        f"{name} ({_shape(given[name])} in {given_name}, {_shape(expected[name])} in "
        f"{expected_name})"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    groups = (
        (f"missing from {given_name}", [name for name in expected if name not in given]),
        (f"unknown to {expected_name}", [name for name in given if name not in expected]),
        ("of another shape", shapes),
    )
    return "; ".join(f"{title}: {_first_few(names)}" for title, names in groups if names)


def import_safetensors() -> ModuleType:
    """``safetensors`` with ``safetensors.torch`` loaded, or an error that names the extra."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "reading and writing weights needs safetensors: pip install 'r21d[train]'"
        ) from error
    return safetensors


def _looks_like_safetensors(start: bytes, suffix: str) -> bool:
    # Eight bytes of a length, the upper ones zero, and JSON; a pickle of protocol 2 or later has
    # the opcode PROTO and never a zero as its third byte.
    if start[5:9] == b"\0\0\0{":
        return True
    return suffix == ".safetensors" and not (start[:1] == b"\x80" and start[2:3] > b"\0")


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # Cloned, because the tensors are views of the mapped file, which may be rewritten.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a safetensors file, or damaged ({error})") from error
    return tensors, metadata


def _read_torch(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # a path would be judged by its suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or damaged file fails in any of a dozen ways
        text = str(error) or type(error).__name__
        if found := re.search(r"Unsupported (?:global|class)\W+(?:GLOBAL )?([\w.]+)", text):
            raise ValueError(
                f"it holds more than tensors, a {found[1]}, which was not loaded because that "
                "could run code; where the file is trusted, load it with its own software and "
                "save the state dict alone"
            ) from error
        reason = text.splitlines()[0]
        raise ValueError(f"not a PyTorch file of tensors, or damaged ({reason})") from error


def _read_plain_pickle(path: Path) -> Any:
    content = read_pickle(path)
    if isinstance(content, dict) and isinstance(content.get("blobs"), dict):
        # Caffe2 keeps counters and the like among its blobs.
        return {k: v for k, v in content["blobs"].items() if isinstance(v, torch.Tensor)}
    return content


def _read_archive(archive: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from r21d.weights.registry import archive_named, identify, read_member

    entry = identify(archive)
    if entry is None or entry.member is None:
        if (named := archive_named(archive.name)) is not None:
            raise ValueError(
                f"it has the name of the archive of {named.model}/{named.name}, but not its "
                f"SHA-256, so it is damaged or another one; download {named.url} again"
            )
        raise ValueError(
            "it is an archive that the list of published weights does not know; extract it and "
            "pass the file of weights in it"
        )
    # Not into the cache, which may be read-only and would keep a second copy.
    with tempfile.TemporaryDirectory() as folder:
        member = Path(folder) / PurePosixPath(entry.member).name
        member.write_bytes(read_member(entry, archive))
        return read_state_dict(member)


def _by_name(content: Any) -> dict[str, torch.Tensor]:
    """The state dict in what a file holds."""
    for _ in range(_DEEPEST):  # a dict may hold itself
        if not isinstance(content, dict):
            break
        inner = (content[name] for name in _WRAPPERS if isinstance(content.get(name), dict))
        wrapped = next(inner, None)
        if wrapped is None:
            break
        content = wrapped
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of tensors by name")
    if not content:
        raise ValueError("it holds no tensors")
    tensors: dict[str, torch.Tensor] = {}
    _flatten(content, "", 0, tensors, itertools.count(1))
    return tensors


def _flatten(
    content: Mapping[Any, Any],
    prefix: str,
    depth: int,
    tensors: dict[str, torch.Tensor],
    visits: Iterator[int],
) -> None:
    """Fill ``tensors``; ``visits`` counts the entries seen, dicts among them.

    A dict that is in the file once may be in itself and in others any number of times, so that
    seven of thirty entries each would be 30**7.
    """
    for name, value in content.items():
        if next(visits) > _MOST_ENTRIES:
            raise ValueError(
                f"it has more than {_MOST_ENTRIES} entries, dicts within dicts counted"
            )
        if not isinstance(name, str | int | float):  # anything else may be endless as text
            raise ValueError(f"an entry's name is a {type(name).__name__}, expected text")
        full = f"{prefix}{name}"
        if len(full) > _LONGEST_NAME:
            raise ValueError(
                f"the name of entry {full[:40]!r}... has {len(full)} characters, {_LONGEST_NAME} "
                "are the most"
            )
        if isinstance(name, str) and isinstance(value, dict) and depth < _DEEPEST:
            _flatten(value, f"{full}/", depth + 1, tensors, visits)
        elif not isinstance(name, str) or not isinstance(value, torch.Tensor):
            label = repr(name) if not prefix else repr(full)
            raise ValueError(
                f"entry {label} is a {type(value).__name__}, expected tensors by name; if the "
                "state dict is an entry of the file, save that entry alone"
            )
        elif full in tensors:
            raise ValueError(f"entry {full!r} is there twice")
        else:
            tensors[full] = value


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while True:
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in tensors)), None)
        if prefix is None or not tensors:
            return tensors
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _check_plain(name: str, tensor: torch.Tensor) -> None:
    # Others would fail, or lose a part, only while they are copied into a model.
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{name} is a {tensor.device.type} tensor of {tensor.dtype} with layout "
            f"{tensor.layout}; expected a dense tensor of real numbers"
        )
    needed, held = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if held < needed:
        # Strides of 0 make terabytes of a small file as soon as somebody copies them.
        raise ValueError(
            f"{name} ({_shape(tensor)}) has {needed} bytes of values but only {held} in the file, "
            "which are repeated; save it after .contiguous()"
        )


def _first_few(names: list[str]) -> str:
    text = ", ".join(names[:_NAMED])
    rest = len(names) - _NAMED
    return f"{text} and {rest} more" if rest > 0 else text


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"

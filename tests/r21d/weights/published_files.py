"""Files as publishers write them: pickles of Python 2 and numpy 1, PyTorch files old and new."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_python2_pickle(path: Path, value: Any) -> None:
    """``cPickle.dump(value, file, cPickle.HIGHEST_PROTOCOL)`` of Python 2 and numpy 1.

    That is protocol 2 with byte strings: what Python 3 cannot write, since there each string is
    text and each run of bytes a call of ``_codecs.encode``.  So the opcodes are emitted here.
    """
    path.write_bytes(_Python2Pickler().dump(value))


class _Python2Pickler:
    """Opcodes of dicts, lists, tuples, strings, integers, numbers and float32 arrays."""

    def __init__(self) -> None:
        self.memo: dict[str, int] = {}
        self.count = 0

    def dump(self, value: Any) -> bytes:
        return b"\x80\x02" + self.value(value) + b"."

    def value(self, value: Any) -> bytes:
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return self.integer(value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str | bytes):
            return self.string(value.encode("ascii") if isinstance(value, str) else value)
        if isinstance(value, tuple):
            return self.tuple(value)
        if isinstance(value, list):
            return b"]" + self.put() + b"(" + b"".join(map(self.value, value)) + b"e"
        if isinstance(value, Mapping):
            items = (self.value(key) + self.value(item) for key, item in value.items())
            return b"}" + self.put() + b"(" + b"".join(items) + b"u"
        assert isinstance(value, Tensor), type(value)
        return self.array(value)

    def integer(self, value: int) -> bytes:
        if 0 <= value < 1 << 8:
            return b"K" + struct.pack("<B", value)
        if 0 <= value < 1 << 16:
            return b"M" + struct.pack("<H", value)
        return b"J" + struct.pack("<i", value)

    def string(self, value: bytes) -> bytes:
        if len(value) < 256:
            return b"U" + struct.pack("<B", len(value)) + value + self.put()
        return b"T" + struct.pack("<i", len(value)) + value + self.put()

    def tuple(self, value: tuple[Any, ...]) -> bytes:
        parts = b"".join(map(self.value, value))
        if not value:
            return b")"
        if len(value) <= 3:
            return parts + (b"\x85", b"\x86", b"\x87")[len(value) - 1] + self.put()
        return b"(" + parts + b"t" + self.put()

    def array(self, tensor: Tensor) -> bytes:
        content = tensor.contiguous().numpy().astype("<f4").tobytes()
        empty = self.name("numpy.core.multiarray", "_reconstruct")
        # In order, because names that were met before are taken from the memo.
        empty += self.name("numpy", "ndarray") + self.tuple((0,)) + self.string(b"b")
        empty += b"\x87" + self.put() + b"R" + self.put()
        state = b"(" + self.integer(1) + self.tuple(tuple(tensor.shape)) + self.dtype()
        return empty + state + self.value(False) + self.string(content) + b"t" + self.put() + b"b"

    def dtype(self) -> bytes:
        if "f4" in self.memo:
            return self.get("f4")
        made = self.name("numpy", "dtype") + self.tuple(("f4", 0, 1)) + b"R" + self.put("f4")
        return made + self.tuple((3, "<", None, None, None, -1, -1, 0)) + b"b"

    def name(self, module: str, name: str) -> bytes:
        key = f"{module}.{name}"
        if key in self.memo:
            return self.get(key)
        return f"c{module}\n{name}\n".encode() + self.put(key)

    def put(self, key: str | None = None) -> bytes:
        index = self.count
        self.count += 1
        if key is not None:
            self.memo[key] = index
        return b"q" + struct.pack("<B", index) if index < 256 else b"r" + struct.pack("<i", index)

    def get(self, key: str) -> bytes:
        index = self.memo[key]
        return b"h" + struct.pack("<B", index) if index < 256 else b"j" + struct.pack("<i", index)


def write_numpy1_pickle(path: Path, value: Mapping[str, Any]) -> None:
    """``pickle.dump`` of Python 3.8 to 3.13 and numpy 1: protocol 4, names in ``numpy.core``."""
    with path.open("wb") as file:
        _Numpy1Pickler(file, protocol=4).dump(_as_arrays(value))


class _Numpy1Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__module__", None) != "numpy._core.multiarray":
            super().save_global(obj, name)
            return
        self.save("numpy.core.multiarray")
        self.save(obj.__name__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def _as_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    return value.numpy()


def write_torch(path: Path, content: Any) -> None:
    """``torch.save`` of today: a zip file."""
    torch.save(content, path)


def write_old_torch(path: Path, content: Any) -> None:
    """``torch.save`` before PyTorch 1.6: pickles one after another."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def nested(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Names with ``|`` as dicts in dicts."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *parents, leaf = name.split("|")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return tree

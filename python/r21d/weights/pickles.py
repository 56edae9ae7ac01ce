"""Pickles of arrays, read without running them.

A pickle is a program: it may name any function of any module and call it.  The reader here runs
only the part of the language that data needs.  What the file calls ``numpy.ndarray`` and the like
are inert stand-ins that check shape, dtype and size and hold a tensor; numpy itself is never
imported.  Every other name ends in :class:`UnsafePickleError`.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
_ARRAY_STATE = 5
_DTYPE_STATE = 8
_DEEPEST = 64
_MOST_DIMENSIONS = 64
_LARGEST_SIZE = 1 << 63
_SAID = 60
_SCALARS = (str, bytes, int, float)

_OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "GLOBAL", "STACK_GLOBAL"),
    *("INST", "REDUCE", "BUILD", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"),
    *("GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
)
# CPython hands out a cached extension without asking find_class; NEWOBJ and OBJ make instances.
_REFUSED = (
    *("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "OBJ", "NEWOBJ", "NEWOBJ_EX"),
    *("NEXT_BUFFER", "READONLY_BUFFER"),
)


class UnsafePickleError(ValueError):
    """A pickle names something other than arrays and plain containers; it was not run."""


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """The content of a pickle of numpy arrays in plain containers; nothing in it is executed.

    Protocols 0 to 5, of Python 2 (text is read as latin-1) and 3.

    Returns:
        Dicts, lists, tuples, sets, text, bytes and numbers as they are; arrays as contiguous
        tensors (bool, uint8, int8 to int64, float16 to float64), numpy scalars as numbers.

    Raises:
        UnsafePickleError: the file names anything but numpy arrays and plain containers; the
            message has the full name.
        ValueError: the file is not a pickle, is damaged, or claims what it does not hold.
        OSError: the file cannot be read.
    """
    path = Path(path)
    reader = _Reader(path)
    try:
        return _plain(reader.load(), {}, 0)
    except UnsafePickleError:
        raise
    except Exception as error:  # damage shows as whichever step stumbles over it
        reason = str(error) or type(error).__name__
        if isinstance(error, EOFError | IndexError | AttributeError | TypeError | KeyError):
            reason = f"{reason} at byte {reader.position()}"
        raise ValueError(f"not a pickle of arrays, or damaged ({reason})") from error


# The Python implementation, because the C one allocates whatever size a file claims and its
# opcodes cannot be restricted.  The arrays are single opcodes, so speed is not at stake.
class _Reader(pickle._Unpickler):
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    stack: list[Any]

    def __init__(self, path: Path) -> None:
        # In memory, so that a read stops at the end of the file whatever length is claimed.
        self._file = io.BytesIO(path.read_bytes())
        self._name = path.name
        super().__init__(self._file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"{self._name} asks for {module}.{name}"[:200] + ", which is neither an array nor "
                "a plain container, so it was not run; save the arrays alone, in a dict by name"
            ) from None

    def position(self) -> int:
        return self._file.tell()

    def load_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # the inherited one allocates what is claimed

    # The inherited ones hash whatever they are given, and the hash of forty tuples, each of the one
    # before twice, takes 2**40 steps.
    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self.stack[-1][_key(key)] = value

    def load_setitems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def load_additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if not isinstance(target, set):
            raise ValueError(f"members are added to a {type(target).__name__}; expected a set")
        target.update(_member(item) for item in items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(_member(item) for item in items))

    def refuse(self, opcode: str) -> None:
        raise UnsafePickleError(
            f"{self._name} uses pickle's opcode {opcode} (persistent ids, extension codes, "
            "instances or outside buffers), which arrays and plain containers do not need, so it "
            "was not run; save the arrays alone, in a dict by name"
        )


def _dispatch() -> dict[int, Callable[[Any], None]]:
    table: dict[int, Callable[[Any], None]] = {}
    for name in _OPCODES:
        code = getattr(pickle, name)[0]
        table[code] = _Reader.dispatch[code]
    for name in _REFUSED:
        table[getattr(pickle, name)[0]] = functools.partial(_Reader.refuse, opcode=name)
    table[pickle.BYTEARRAY8[0]] = _Reader.load_bytearray
    table[pickle.SETITEM[0]] = _Reader.load_setitem
    table[pickle.SETITEMS[0]] = _Reader.load_setitems
    table[pickle.DICT[0]] = _Reader.load_dict
    table[pickle.ADDITEMS[0]] = _Reader.load_additems
    table[pickle.FROZENSET[0]] = _Reader.load_frozenset
    return table


_Reader.dispatch = _dispatch()


class _Callable:
    """What a name of numpy's stands for: a check, and nothing else that a file could change."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name = name
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __repr__(self) -> str:
        return self._name

    def __setstate__(self, state: object) -> None:
        raise UnsafePickleError(f"the file tries to change {self._name}, so it was not run")


class _Table(dict[Any, Any]):
    """An OrderedDict; attributes it may carry (a state dict's ``_metadata``) are dropped."""

    def __setstate__(self, state: object) -> None:
        pass


class _DType:
    """A dtype: its kind and size, and its byte order once the file tells."""

    __slots__ = ("code", "swapped")

    def __init__(self, code: object, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or code not in _DTYPES:
            raise ValueError(
                f"an array has dtype {_say(code)}; expected one of {', '.join(_DTYPES)}"
            )
        self.code = code
        self.swapped = False

    def __setstate__(self, state: object) -> None:
        orders = {"<": "little", ">": "big", "=": sys.byteorder, "|": sys.byteorder}
        order = state[1] if isinstance(state, tuple) and len(state) >= _DTYPE_STATE else None
        if not isinstance(order, str) or order not in orders:
            raise ValueError(f"a dtype has the state {_say(state)}; expected a byte order")
        self.swapped = orders[order] != sys.byteorder

    @property
    def torch(self) -> torch.dtype:
        return _DTYPES[self.code]


class _Array:
    """An array; ``tensor`` is None until the file has given its content."""

    __slots__ = ("tensor",)

    def __init__(self) -> None:
        self.tensor: torch.Tensor | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != _ARRAY_STATE:
            raise ValueError("an array's state is not (version, shape, dtype, order, content)")
        _, shape, dtype, fortran, content = state
        self.tensor = _tensor(shape, dtype, bool(fortran), content)


def _reconstruct(kind: object, shape: object = None, code: object = None) -> _Array:
    if kind is not _NDARRAY:
        raise ValueError(f"an array is of the kind {_say(kind)}; expected numpy.ndarray")
    return _Array()


def _frombuffer(content: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.tensor = _tensor(shape, dtype, order == "F", content)
    return array


def _scalar(dtype: object, content: object = None) -> bool | int | float:
    return _tensor((), dtype, False, content).item()


def _tensor(shape: object, dtype: object, fortran: bool, content: object) -> torch.Tensor:
    if not isinstance(dtype, _DType):
        raise ValueError(f"an array's dtype is {_say(dtype)}; expected numpy.dtype")
    if not isinstance(shape, tuple) or not all(
        type(n) is int and 0 <= n < _LARGEST_SIZE for n in shape
    ):
        raise ValueError("an array has a shape that is not a tuple of numbers; expected sizes")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"an array has {len(shape)} dimensions, {_MOST_DIMENSIONS} are the most")
    if isinstance(content, str):  # Python 2 has no other bytes
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise ValueError(f"an array's content is a {type(content).__name__}; expected bytes")
    needed = math.prod(shape) * dtype.torch.itemsize
    if len(content) != needed:
        raise ValueError(
            f"an array of shape {shape} and dtype {dtype.code} needs {needed} bytes, the file "
            f"gives {len(content)}"
        )
    if not needed:
        return torch.empty(shape, dtype=dtype.torch)
    flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if dtype.swapped:
        flat = flat.view(-1, dtype.torch.itemsize).flip(1).flatten()
    values = flat.view(dtype.torch)
    if fortran:
        return values.view(shape[::-1]).permute(*reversed(range(len(shape)))).contiguous()
    return values.view(shape)


def _encode(text: object, encoding: object = None) -> bytes:
    # How Python 3 writes bytes in the protocols of Python 2.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes are written as {_say(encoding)} text; expected latin1")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


def _bytearray(*content: object) -> bytearray:
    if not all(isinstance(part, bytes) for part in content) or len(content) > 1:
        raise ValueError("a bytearray is made of something other than bytes")
    return bytearray(b"".join(part for part in content if isinstance(part, bytes)))


def _table(pairs: object = ()) -> _Table:
    if not isinstance(pairs, list | tuple):
        raise ValueError(f"an OrderedDict is made of a {type(pairs).__name__}; expected pairs")
    table = _Table()
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError("an OrderedDict is made of something other than pairs")
        table[_key(pair[0])] = pair[1]
    return table


_NDARRAY = _Callable("numpy.ndarray", lambda *args: _reconstruct(None))
_DTYPE = _Callable("numpy.dtype", _DType)
_TABLE = _Callable("collections.OrderedDict", _table)


def _known() -> dict[tuple[str, str], _Callable]:
    known = {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _DTYPE,
        ("collections", "OrderedDict"): _TABLE,
        ("_codecs", "encode"): _Callable("_codecs.encode", _encode),
    }
    # numpy 2 renamed numpy.core, Python 3 renamed __builtin__; files have either name.
    for core in ("numpy.core", "numpy._core"):
        for module, name, call in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        ):
            known[f"{core}.{module}", name] = _Callable(f"{core}.{module}.{name}", call)
    for builtins in ("builtins", "__builtin__"):
        known[builtins, "bytes"] = _Callable("builtins.bytes", _empty_bytes)
        known[builtins, "bytearray"] = _Callable("builtins.bytearray", _bytearray)
    return known


_KNOWN = _known()


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """``value`` with tensors for arrays; ``done`` has the result of every container by identity.

    A container that is there twice stays one object, so sharing cannot blow the result up.
    """
    if isinstance(value, _Array):
        if value.tensor is None:
            raise ValueError("an array is named but its content is missing")
        return value.tensor
    if value is None or isinstance(value, str | bytes | bytearray | int | float):
        return value
    if not isinstance(value, dict | list | tuple | set | frozenset):
        raise ValueError(f"it holds {_say(value)} itself instead of an array")
    if id(value) in done:
        if done[id(value)] is None:
            raise ValueError("a container holds itself")
        return done[id(value)]
    if depth >= _DEEPEST:
        raise ValueError(f"its containers are nested more than {_DEEPEST} deep")
    done[id(value)] = None
    result: Any
    if isinstance(value, dict):
        result = {_key(key): _plain(item, done, depth + 1) for key, item in value.items()}
    else:
        result = type(value)(_plain(item, done, depth + 1) for item in value)
    done[id(value)] = result
    return result


def _key(key: Any) -> Any:
    if key is None or isinstance(key, _SCALARS):
        return key
    raise ValueError(f"a dict has a {type(key).__name__} as a key; expected text or a number")


def _member(item: Any) -> Any:
    if item is None or isinstance(item, _SCALARS):
        return item
    raise ValueError(f"a set has a {type(item).__name__} in it; expected text and numbers")


def _say(value: object) -> str:
    """``value`` for a message: a few bytes of a container may be terabytes of text."""
    if value is None or isinstance(value, bool | float | _Callable):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value[:_SAID])
    if isinstance(value, int) and abs(value) < _LARGEST_SIZE:
        return repr(value)
    return f"a {type(value).__name__}"

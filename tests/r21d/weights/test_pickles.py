"""Pickles: arrays come out as tensors, and nothing that a file says is run (about 2 s)."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import functools
import operator
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights.python2_pickle import python2_pickle

from r21d.weights.pickles import UnsafePickleError, read_pickle

PROTOCOLS = range(6)
DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"]


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    """Writes bytes into a file and reads that."""

    def from_file(content: bytes) -> Any:
        (tmp_path / "a.pkl").write_bytes(content)
        return read_pickle(tmp_path / "a.pkl")

    return from_file


def random_array(dtype: str, shape: tuple[int, ...], order: Any = "C") -> np.ndarray:
    values = np.random.default_rng(torch.initial_seed() % 2**32).normal(size=shape) * 100
    return np.asarray(values.astype(dtype), order=order)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5), (7,), (), (0, 4)])
def test_arrays(
    read: Callable[[bytes], Any], protocol: int, dtype: str, shape: tuple[int, ...]
) -> None:
    array = random_array(dtype, shape)
    (tensor,) = read(pickle.dumps([array], protocol))
    assert tensor.shape == shape and tensor.is_contiguous()
    assert tensor.numpy().dtype == array.dtype
    assert np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_and_byte_order(
    read: Callable[[bytes], Any], protocol: int, byteorder: str, order: str
) -> None:
    array = random_array(f"{byteorder}f4", (3, 4, 5), order)
    tensor = read(pickle.dumps(array, protocol))
    assert tensor.is_contiguous() and np.array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_numbers_and_text(read: Callable[[bytes], Any], protocol: int) -> None:
    content = {
        "nested": collections.OrderedDict(a=[1, 2.5, None, True, -(2**70)], b=("x", b"y", b"")),
        "scalar": np.float32(1.5),
        "ä跳": {3, 4},
        "array": bytearray(b"abc"),
        7: frozenset([1]),
    }
    if protocol < 4:  # sets are written as calls then
        content = {name: value for name, value in content.items() if name not in ("ä跳", 7)}
    assert read(pickle.dumps(content, protocol)) == content


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("order", ["C", "F"])
def test_python_2(read: Callable[[bytes], Any], protocol: int, order: str) -> None:
    array = random_array("f4", (3, 4, 5), order)
    big = random_array(">f8", (2, 2))
    content = python2_pickle({"conv1_w": array, "big": big, "lr": 0.5, "iter": 3}, protocol)
    if order == "C":
        expected = pickle.loads(content, encoding="latin1")["blobs"]["conv1_w"]
        assert np.array_equal(expected, array)  # the file is what Python takes it for
    blobs = read(content)["blobs"]
    assert np.array_equal(blobs["conv1_w"].numpy(), array)
    assert np.array_equal(blobs["big"].numpy(), big)
    assert blobs["lr"] == 0.5 and blobs["iter"] == 3


def test_shared_containers_stay_shared(read: Callable[[bytes], Any]) -> None:
    value: list[Any] = [np.zeros(2)]
    for _ in range(40):
        value = [value, value]  # 2**40 arrays if each were copied
    result = read(pickle.dumps(value))
    assert result[0] is result[1]


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


class Forbidden:
    """An instance, which arrays and containers are not."""


def by_name(name: str, module: str, *args: str) -> bytes:
    """A protocol-4 pickle that calls ``module.name``, whatever that is, with text."""
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    values = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in args)
    return b"\x80\x04" + b"".join(texts) + b"\x93(" + values + b"tR."


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"a": [np.zeros(2), evil]}])
def test_calls_are_not_made(
    read: Callable[[bytes], Any], tmp_path: Path, protocol: int, wrap: Callable[[Any], Any]
) -> None:
    marker = tmp_path / "executed"
    touch = f"open({str(marker)!r}, 'w')"
    calls = {
        f"{os.system.__module__}.system": Call(os.system, f"touch {marker}"),
        "eval": Call(builtins.eval, touch),
        "exec": Call(builtins.exec, touch),
        "getattr": Call(getattr, "", "join"),
        "functools.partial": Call(functools.partial(os.system, f"touch {marker}")),
        "operator.attrgetter": Call(operator.attrgetter("a")),
        "pathlib" if protocol > 3 else "getattr.*": Call(Path.touch, marker),
        "Forbidden" if protocol > 1 else "_reconstructor": Forbidden(),
    }
    for name, evil in calls.items():
        with pytest.raises(UnsafePickleError, match=name) as caught:
            read(pickle.dumps(wrap(evil), protocol))
        assert "a.pkl" in str(caught.value) and "was not run" in str(caught.value)
    assert not marker.exists()


def test_the_calls_work_where_files_are_trusted(tmp_path: Path) -> None:
    # Otherwise the test above would show nothing.
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Call(os.system, f"touch {marker}")))
    assert marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("numpy", "ndarray.__reduce__"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "_reconstruct.__class__"),
        ("numpy.core.multiarray", "__builtins__"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("_codecs", "lookup"),
        ("torch", "load"),
        ("r21d.weights.pickles", "read_pickle"),
    ],
)
def test_names_are_refused_by_name(read: Callable[[bytes], Any], module: str, name: str) -> None:
    with pytest.raises(UnsafePickleError) as caught:
        read(by_name(name, module))
    assert f"{module}.{name}" in str(caught.value)


@pytest.mark.parametrize(
    "target", ["numpy\nndarray", "numpy\ndtype", "collections\nOrderedDict", "_codecs\nencode"]
)
@pytest.mark.parametrize(
    "state", [b"}U\x05_callU\x01xs", b"N}U\x05_callU\x01xs\x86", b"}U\x0c__setstate__Ks"]
)
def test_stand_ins_cannot_be_changed(
    read: Callable[[bytes], Any], target: str, state: bytes
) -> None:
    # BUILD sets attributes on whatever is on the stack; the stand-ins are shared by all files.
    with pytest.raises(ValueError):
        read(b"\x80\x02c" + target.encode() + b"\n" + state + b"b.")
    assert np.array_equal(read(pickle.dumps(np.arange(3))).numpy(), np.arange(3))


@pytest.mark.parametrize(
    ("content", "opcode"),
    [
        (b"Pname\n.", "PERSID"),
        (b"\x80\x02U\x04nameQ.", "BINPERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x00.", "EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        (b"\x80\x02cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"\x80\x04cnumpy\nndarray\n)}\x92.", "NEWOBJ_EX"),
        (b"(cnumpy\nndarray\no.", "OBJ"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
    ],
)
def test_opcodes_that_data_does_not_need(
    read: Callable[[bytes], Any], content: bytes, opcode: str
) -> None:
    with pytest.raises(UnsafePickleError, match=rf"a\.pkl uses pickle's opcode {opcode} "):
        read(content)


def test_cached_extensions_are_not_handed_out(read: Callable[[bytes], Any], tmp_path: Path) -> None:
    code = 0x52214421
    content = b"\x80\x02\x84" + struct.pack("<i", code) + b"U\x02id\x85R."
    copyreg.add_extension("os", "system", code)
    try:
        pickle.loads(b"\x80\x02\x84" + struct.pack("<i", code) + b".")  # now it is cached
        with pytest.raises(UnsafePickleError, match="EXT4"):
            read(content)
    finally:
        copyreg.remove_extension("os", "system", code)


def state(shape: str, dtype: str, data: bytes) -> bytes:
    """A pickle of one array with these literals in it."""
    return (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        b"(K\x01"
        + shape.encode("latin1")
        + b"cnumpy\ndtype\nX"
        + struct.pack("<i", len(dtype))
        + dtype.encode()
        + b"K\x00K\x01\x87R\x89C"
        + bytes([len(data)])
        + data
        + b"tb."
    )


def test_the_literal_is_an_array(read: Callable[[bytes], Any]) -> None:
    assert read(state("K\x02\x85", "f4", b"\0\0\x80?\0\0\0@")).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (state("K\x03\x85", "f4", b"12345678"), r"shape \(3,\).* needs 12 bytes, the file gives 8"),
        (state("K\x01\x85", "f4", b"12345678"), "needs 4 bytes, the file gives 8"),
        (
            state("\x8a\x08" + "\xff" * 7 + "\x7fK\x02\x86", "f4", b""),
            "needs 73786976294838206456 bytes, the file gives 0",
        ),
        (state("J\xff\xff\xff\xff\x85", "f4", b""), "expected sizes"),
        (state("\x88\x85", "u1", b"1"), "expected sizes"),
        (state("K\x01", "u1", b"1"), "expected sizes"),
        (state("K\x01\x85", "O8", b"12345678"), "dtype 'O8'; expected one of f2, f4"),
        (state("K\x01\x85", "c8", b"12345678"), "dtype 'c8'"),
        (state("K\x01\x85", "U2", b"12345678"), "dtype 'U2'"),
        (b"cnumpy\nndarray\n.", "it holds numpy.ndarray itself instead of an array"),
        (
            b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R.",
            "its content is missing",
        ),
        (b"(l.", None),
        (b"", "not a pickle of arrays, or damaged"),
        (b".", "not a pickle of arrays, or damaged"),
        (b"hello, world", "not a pickle of arrays, or damaged"),
        (b"<html><body>404</body></html>", "not a pickle of arrays, or damaged"),
        (bytes(range(256)), "not a pickle of arrays, or damaged"),
        (b"\x80\x09N.", "unsupported pickle protocol: 9"),
        (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "not a pickle of arrays, or damaged"),
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x3f.", "not a pickle of arrays, or damaged"),
        (b"\x80\x04\x95" + b"\xff" * 7 + b"\x3fN.", None),
        (b"Nr\xff\xff\xff\x7f.", None),  # a memo of 2**31 places in the C implementation
        (b"}q\x00K\x01h\x00s.", "a container holds itself"),
        (b"]" * 100 + b"a" * 99 + b".", "nested more than 64 deep"),
        (b"(" * 100_000 + b"t" * 100_000 + b".", "nested more than 64 deep"),
        (pickle.dumps({(1, 2): 3}), "a dict has a tuple as a key"),
        (pickle.dumps(np.array([None, "a"])), "dtype 'O8'"),
        (pickle.dumps(np.zeros(2, dtype="f4,i4")), "dtype 'V8'"),
    ],
)
def test_damage_ends_in_one_clear_error(
    read: Callable[[bytes], Any], content: bytes, message: str | None
) -> None:
    if message is None:
        read(content)
        return
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert not isinstance(caught.value, UnsafePickleError)


# Forty tuples, each of the one before twice: their hash and their text are 2**40 long.
NESTED = b")" + b"2\x86" * 40
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"}" + NESTED + b"K\x01s.", "a dict has a tuple as a key"),
        (b"}(" + NESTED + b"K\x01u.", "a dict has a tuple as a key"),
        (b"(" + NESTED + b"K\x01d.", "a dict has a tuple as a key"),
        (b"\x8f(" + NESTED + b"\x90.", "a set has a tuple in it"),
        (b"(" + NESTED + b"\x91.", "a set has a tuple in it"),
        (b"ccollections\nOrderedDict\n(((" + NESTED + b"K\x01tttR.", "a dict has a tuple as a key"),
        (b"]" + b"(" + NESTED + b"\x90.", "members are added to a list"),
        (b"cnumpy\ndtype\n(" + NESTED + b"tR.", "has dtype a tuple; expected"),
        (b"cnumpy\ndtype\n(U\x02f4tR" + NESTED + b"b.", "has the state a tuple; expected"),
        (RECONSTRUCT + b"(" + NESTED + b"tR.", "of the kind a tuple; expected"),
        (
            RECONSTRUCT + b"(cnumpy\nndarray\ntR(K\x01)" + NESTED + b"\x89U\x00tb.",
            "dtype is a tuple; expected",
        ),
        (
            RECONSTRUCT + b"(cnumpy\nndarray\ntR(K\x01" + NESTED + b"cnumpy\ndtype\n(U\x02f4tR"
            b"\x89U\x00tb.",
            "a shape that is not a tuple of numbers",
        ),
        (
            RECONSTRUCT + b"(cnumpy\nndarray\ntR(K\x01(" + b"K\x00" * 100 + b"tcnumpy\ndtype\n"
            b"(U\x02f4tR\x89U\x00tb.",
            "an array has 100 dimensions",
        ),
        (b"c_codecs\nencode\n(U\x00" + NESTED + b"tR.", "written as a tuple text"),
    ],
)
def test_endless_tuples_are_neither_hashed_nor_printed(
    read: Callable[[bytes], Any], body: bytes, message: str
) -> None:
    # Without the checks each of these runs for days.
    with pytest.raises(ValueError, match=message) as caught:
        read(b"\x80\x04" + body)
    assert len(str(caught.value)) < 300


def test_an_ordered_dict_of_pairs(read: Callable[[bytes], Any]) -> None:
    # As Python 2 wrote them.
    head = b"\x80\x02ccollections\nOrderedDict\n"
    assert read(head + b"(((U\x01aK\x01t(U\x01bK\x02tltR.") == {"a": 1, "b": 2}
    for body in (b"(K\x01tR.", b"((K\x01ltR.", b"(((K\x01tltR."):
        with pytest.raises(ValueError, match="an OrderedDict is made of"):
            read(head + body)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_truncation_is_an_error(read: Callable[[bytes], Any], protocol: int) -> None:
    content = pickle.dumps({"a": np.arange(5.0), "b": [1, (2, 3)]}, protocol)
    for length in range(len(content)):
        with pytest.raises(ValueError):
            read(content[:length])


def test_random_damage_never_runs_or_crashes(read: Callable[[bytes], Any]) -> None:
    generator = np.random.default_rng(torch.initial_seed() % 2**32)
    whole = pickle.dumps({"a": np.arange(5.0), "b": [1, (2, 3)]}, 2)
    for _ in range(500):
        content = bytearray(whole)
        for place in generator.integers(len(whole), size=3):
            content[place] = generator.integers(256)
        with contextlib.suppress(ValueError):
            read(bytes(content))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "none.pkl")


def test_numpy_is_not_needed(read: Callable[[bytes], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(np.arange(3.0))
    monkeypatch.setitem(sys.modules, "numpy", None)  # importing it would fail now
    assert read(content).tolist() == [0.0, 1.0, 2.0]

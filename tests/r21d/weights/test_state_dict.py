"""Tensors by name from any file: the content decides, not the suffix (about 2 s)."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import sys
import tarfile
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weights.python2_pickle import python2_pickle

from r21d.weights.state_dict import describe_mismatch, looks_like_weights, read_state_dict

safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs the extra 'train'")

State = dict[str, torch.Tensor]
STATE = {"a": torch.arange(6.0)}
SUFFIXES = [".pth", ".pt", ".safetensors", ".pkl", ".ckpt", ""]


def random_state() -> State:
    return {"fc.weight": torch.randn(3, 2), "fc.bias": torch.randn(3), "n": torch.tensor(7)}


def same(given: State, expected: State) -> bool:
    return given.keys() == expected.keys() and all(
        torch.equal(given[name], tensor) and given[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


def write(path: Path, kind: str, content: Any) -> Path:
    if kind == "safetensors":
        safetensors_torch.save_file(content, path, metadata={"a": "b"})
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in content.items()}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_formats(tmp_path: Path, kind: str, suffix: str) -> None:
    state = random_state()
    tensors, metadata = read_state_dict(write(tmp_path / f"a{suffix}", kind, state))
    assert same(tensors, state)
    assert metadata == ({"a": "b"} if kind == "safetensors" else {})


def test_safetensors_with_a_header_that_starts_as_a_pickle_does(tmp_path: Path) -> None:
    # The header's length, 640, is 80 02 in hexadecimal: pickle's opcode PROTO and its argument.
    for padding in range(640):
        content = safetensors_torch.save(random_state(), metadata={"a": "x" * padding})
        if content[:3] == b"\x80\x02\0":
            break
    assert content[:3] == b"\x80\x02\0"
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    assert read_state_dict(path)[1] == {"a": "x" * padding}


@pytest.mark.parametrize(
    "name", ["state_dict", "model_state_dict", "model", "module", "model_ema", "ema", "net"]
)
def test_wrappers(tmp_path: Path, name: str) -> None:
    state = random_state()
    content = {"epoch": 3, "optimizer": {"lr": 0.1, "state": {}}, "args": [1], name: state}
    for kind in ("zip", "legacy"):
        assert same(read_state_dict(write(tmp_path / "a", kind, content))[0], state)
    assert same(
        read_state_dict(write(tmp_path / "a", "zip", {"state": 1, "model": content}))[0], state
    )


def test_trained_weights_go_before_averaged_ones(tmp_path: Path) -> None:
    state, averaged = random_state(), random_state()
    path = write(tmp_path / "a", "zip", {"ema": averaged, "state_dict": state})
    assert same(read_state_dict(path)[0], state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_prefixes_of_wrapped_modules(tmp_path: Path, prefix: str) -> None:
    state = random_state()
    content = {prefix + name: tensor for name, tensor in state.items()}
    assert same(read_state_dict(write(tmp_path / "a", "zip", content))[0], state)
    some = {**content, "extra": torch.zeros(1)}
    assert same(read_state_dict(write(tmp_path / "a", "zip", some))[0], some)


def test_nested_dicts_are_flattened(tmp_path: Path) -> None:
    array = np.arange(6.0, dtype="f4").reshape(2, 3)
    content = {"params": {"a": {"kernel": array}}, "batch_stats": {"a": {"mean": array[0]}}}
    (tmp_path / "a").write_bytes(pickle.dumps(content))
    tensors, _ = read_state_dict(tmp_path / "a")
    assert same(
        tensors,
        {
            "params/a/kernel": torch.from_numpy(array),
            "batch_stats/a/mean": torch.from_numpy(array[0]),
        },
    )


@pytest.mark.parametrize("protocol", [0, 2])
def test_the_arrays_of_blobs(tmp_path: Path, protocol: int) -> None:
    weight = np.arange(6.0, dtype="f4").reshape(2, 3)
    content = python2_pickle({"conv1_w": weight, "lr": 0.1, "iteration": 7}, protocol)
    (tmp_path / "a.pkl").write_bytes(content)
    tensors, _ = read_state_dict(tmp_path / "a.pkl")
    assert same(tensors, {"conv1_w": torch.from_numpy(weight)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds a list instead of tensors by name"),
        (torch.zeros(2), "holds a Tensor instead of tensors by name"),
        ({}, "holds no tensors"),
        ({"state_dict": {}}, "holds no tensors"),
        ({3: torch.zeros(2)}, "entry 3 is a Tensor"),
        ({"a": {"b": {3: torch.zeros(2)}}}, "entry 'a/b/3' is a Tensor"),
        ({"epoch": 3, "fc.weight": torch.zeros(2)}, "entry 'epoch' is a int, expected tensors"),
        ({"a/b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, "entry 'a/b' is there twice"),
        ({"a": torch.zeros(3).to_sparse()}, "expected a dense tensor of real numbers"),
        ({"a": torch.zeros(3, dtype=torch.complex64)}, "expected a dense tensor"),
        ({"a": torch.zeros(3, device="meta")}, "a is a meta tensor"),
        ({(1, 2): torch.zeros(2)}, "an entry's name is a tuple, expected text"),
        ({"a": {(1, 2): torch.zeros(2)}}, "an entry's name is a tuple, expected text"),
        ({"a" * 1001: torch.zeros(1)}, "'a+'... has 1001 characters, 1000 are the most"),
        (
            {"a": torch.zeros(1).expand(10**11)},
            r"a \(100000000000\) has 400000000000 bytes of values but only 4 in the file",
        ),
        ({"a": torch.zeros(2).expand(3, 2)}, r"a \(3x2\) has 24 bytes of values but only 8"),
    ],
)
def test_files_of_something_else(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "a.pth")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    content: Any = torch.zeros(1)
    for _ in range(20):
        content = {"a": content}
    torch.save(content, tmp_path / "a")
    with pytest.raises(ValueError, match="is a dict, expected tensors by name"):
        read_state_dict(tmp_path / "a")


@pytest.mark.parametrize("kind", ["torch", "pickle"])
@pytest.mark.parametrize("leaves", ["tensors", "nothing"])
def test_sharing_does_not_blow_up(tmp_path: Path, kind: str, leaves: str) -> None:
    zero: Any = torch.zeros(1) if kind == "torch" else np.zeros(1)
    content: Any = {str(index): zero for index in range(30)} if leaves == "tensors" else {}
    for _ in range(7):
        content = {str(index): content for index in range(30)}
    if kind == "torch":
        torch.save(content, tmp_path / "a")
    else:
        (tmp_path / "a").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="it has more than 100000 entries"):
        read_state_dict(tmp_path / "a")


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "a")
    with pytest.raises(ValueError, match="expected tensors by name"):
        read_state_dict(tmp_path / "a")


@pytest.mark.parametrize("as_strided", [False, True])
def test_views_of_a_whole_storage_are_read(tmp_path: Path, as_strided: bool) -> None:
    base = torch.randn(4, 6)
    view = base.t() if as_strided else base[1:3]
    torch.save({"a": view}, tmp_path / "a")
    assert torch.equal(read_state_dict(tmp_path / "a")[0]["a"], view)


class Payload:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.write_text, (self.target, "executed")


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_what_torch_refuses_is_named_and_not_run(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "executed"
    path = write(tmp_path / "a.pth", kind, {"state_dict": random_state(), "x": Payload(target)})
    with pytest.raises(ValueError, match=r"more than tensors, a .*getattr.*could run code"):
        read_state_dict(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists()  # the payload works where files are trusted


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.95])
def test_truncated(tmp_path: Path, kind: str, kept: float) -> None:
    path = write(tmp_path / "a", kind, random_state())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match="damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4" * 50, bytes(range(256)), b"<html>"])
def test_foreign(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_state_dict(path)


def test_an_unknown_archive_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(ValueError, match="extract it and pass the file of weights in it"):
        read_state_dict(path)


def archive(path: Path, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        info = tarfile.TarInfo("a/w.pth")
        info.size = len(content)
        opened.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def known_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of ``STATE`` that the list knows, outside the cache."""
    module: Any = sys.modules["r21d.weights.registry"]
    monkeypatch.setattr(module, "_registry", dict(module._registry))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = archive(tmp_path / "known-1.0.tar.gz", write(tmp_path / "w", "zip", STATE).read_bytes())
    module.register_weights(
        module.PublishedWeights(
            model="r3d_18",
            name="mine",
            url="https://example.invalid/known-1.0.tar.gz",
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            member="a/w.pth",
        )
    )
    return path


def test_an_archive_is_read_without_a_cache(
    tmp_path: Path, known_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file where the cache's folder would be: nothing can be written there.
    (tmp_path / "hub").write_bytes(b"")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert same(read_state_dict(known_archive)[0], STATE)
    assert list((tmp_path / "tmp").iterdir()) == []  # nothing is left behind
    assert (tmp_path / "hub").read_bytes() == b""


def test_a_damaged_archive_of_a_known_name(tmp_path: Path, known_archive: Path) -> None:
    known_archive.write_bytes(known_archive.read_bytes()[:-20])
    for name in (known_archive.name, "other.tar.gz"):
        path = known_archive.rename(tmp_path / name)
        known_archive = path
        with pytest.raises(ValueError) as caught:
            read_state_dict(path)
        damaged = "damaged or another one; download https://example.invalid/known-1.0.tar.gz again"
        assert (damaged in str(caught.value)) == (name != "other.tar.gz")
        assert ("r3d_18/mine" in str(caught.value)) == (name != "other.tar.gz")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
def test_weights_look_like_weights(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a", kind, random_state())
    assert looks_like_weights(path)
    if kind in ("zip", "pickle"):  # the others do not tell their end
        path.write_bytes(path.read_bytes()[:-1])
        assert not looks_like_weights(path)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_look_like_weights(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a"
    array = np.zeros(3, dtype="f4")
    for content in ({"a": array}, {}, [array], array, OrderedDict(a=array)):
        path.write_bytes(pickle.dumps(content, protocol))
        assert looks_like_weights(path), content
    if protocol in (0, 2):
        path.write_bytes(python2_pickle({"a": array}, protocol))
        assert looks_like_weights(path)
    path.write_bytes(gzip.compress(b"an archive"))
    assert looks_like_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n", b"<!DOCTYPE html><html>", b"\r\n<html>", b"\xef\xbb\xbf<html>"),
        *(b'{"message": "Not Found"}', b"[1]", b"(404) not found", b"connection refused\nbye\n"),
        *(b"%PDF-1.4", b"\x89PNG\r\n", b"Rate limit exceeded", bytes(1000)),
    ],
)
def test_other_things_do_not(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not looks_like_weights(tmp_path / "a")


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_state_dict(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="it is not a file"):
        read_state_dict(tmp_path)


def test_mismatch_in_words() -> None:
    given = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "x": torch.zeros(1)}
    expected = {"a": torch.zeros(3, 2), "b": torch.zeros(()), "c": torch.zeros(1)}
    assert describe_mismatch(given, expected, "the file", "the model") == (
        "missing from the file: c; unknown to the model: x; of another shape: a (2x3 in the file, "
        "3x2 in the model)"
    )
    assert describe_mismatch(given, given, "the file", "the model") == ""

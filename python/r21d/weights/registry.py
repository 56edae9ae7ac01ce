"""Published weights by name: where they are, what they are, and how they get here.

Nothing is downloaded before :func:`fetch` is called.  What it fetches lies in torch.hub's folder,
``checkpoints/r21d`` below ``torch.hub.get_dir()``, and its hash is checked at every use.  A
``file://`` URL that is no entry's is read where it is.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import os
import re
import socket
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import torch

from r21d.atomic import write_atomically
from r21d.weights.catalogue import CATALOGUE, PublishedWeights
from r21d.weights.state_dict import looks_like_weights

__all__ = [
    "PublishedWeights",
    "WeightsUnavailable",
    "archive_named",
    "cache_path",
    "fetch",
    "identify",
    "is_name",
    "is_url",
    "list_weights",
    "looks_like_name",
    "published",
    "read_member",
    "register_weights",
    "unpack",
]

_log = logging.getLogger(__name__)

_SCHEMES = ("https", "file")
_RECORD = ".sha256"
_LARGEST_MEMBER = 1 << 32
_BLOCK = 1 << 20
_SILENCE = 30.0
"""Seconds without a byte after which a download is given up."""
_SHOWN = 60
_SUFFIX = re.compile(r"\.[A-Za-z]\w*$")
_ALL = "`r21d info --weights` lists all"
# A timeout is set for the whole process, so one download at a time.
_downloading = threading.Lock()

_registry: dict[str, PublishedWeights] = {
    f"{entry.model}/{entry.name}": entry for entry in CATALOGUE
}


class WeightsUnavailable(RuntimeError):
    """Published weights cannot be fetched; the message says from where, and what to do instead."""


def list_weights(model: str | None = None) -> list[str]:
    """The names of published weights, ``"model/name"`` each, sorted; of one network if given.

    Raises:
        ValueError: ``model`` is not a known network.
    """
    names = sorted(key for key, entry in _registry.items() if model in (None, entry.model))
    if model is not None and not names:
        from r21d.models.registry import check_name  # the models import the weights

        check_name(model)
    return names


def published(name: str, model: str | None = None) -> PublishedWeights:
    """The entry of published weights.

    Args:
        name: ``"r2plus1d_18/kinetics400_torchvision"``, or what follows the slash where ``model``
            is given or only one network has weights of that name.
        model: the network that the weights shall be of.

    Raises:
        ValueError: there is no such entry, it is of another network, or several networks have it.
    """
    if name in _registry:
        entry = _registry[name]
        if model not in (None, entry.model):
            raise ValueError(f"weights {name!r} are those of {entry.model}, not of {model}")
        return entry
    found = [entry for entry in _registry.values() if entry.name == name]
    fitting = [entry for entry in found if model in (None, entry.model)]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        choices = ", ".join(sorted(f"{entry.model}/{entry.name}" for entry in fitting))
        raise ValueError(f"several networks have weights {name!r}: name one of {choices}")
    if found:
        choices = ", ".join(sorted(f"{entry.model}/{entry.name}" for entry in found))
        raise ValueError(f"{model} has no weights {name!r}; there are {choices}")
    raise ValueError(f"there are no published weights {name!r}; {_instead(name, model)}")


def _instead(name: str, model: str | None) -> str:
    """What could have been meant by the unknown ``name``."""
    before = name.partition("/")[0]
    if model is None and _is_network(before):
        model = before
    keys = list_weights(model)
    if model is not None and not keys:
        return f"there are none of {model}; {_ALL}"
    close = difflib.get_close_matches(name, keys)
    if not close:
        short = {key.rpartition("/")[2] for key in keys}
        near = difflib.get_close_matches(name.rpartition("/")[2], short, n=1)
        close = [key for key in keys if key.rpartition("/")[2] in near][:3]
    if not close:
        return _ALL if model is None else f"{model} has {', '.join(keys)}; {_ALL}"
    return f"did you mean {' or '.join(map(repr, close))}? {_ALL}"


def _is_network(name: str) -> bool:
    from r21d.models.registry import list_models

    return name in list_models() or any(name == entry.model for entry in _registry.values())


def register_weights(entry: PublishedWeights) -> None:
    """Add an entry, so that its name works wherever that of published weights does.

    Raises:
        ValueError: the name is taken by a different entry, or a field is not usable.
    """
    key = f"{entry.model}/{entry.name}"
    if _registry.get(key, entry) != entry:
        raise ValueError(f"weights {key!r} are registered already, with {_registry[key].url}")
    if "/" in entry.model or "/" in entry.name or not entry.model or not entry.name:
        raise ValueError(f"model and name must be without a slash and not empty, got {key!r}")
    _check_url(entry.url)
    _check_input(entry)
    for field, digest in (("sha256", entry.sha256), ("member_sha256", entry.member_sha256)):
        if digest is not None and not _is_digest(digest):
            raise ValueError(
                f"{field} must be 8 to 64 lower-case hexadecimal digits, got {digest!r}"
            )
    _registry[key] = entry


def is_url(source: str) -> bool:
    """Whether ``source`` is an address rather than a path or a name."""
    return "://" in source or source.startswith("file:")


def is_name(source: str) -> bool:
    """Whether ``source`` is the name of registered weights, with or without the network."""
    return source in _registry or any(source == entry.name for entry in _registry.values())


def looks_like_name(source: str) -> bool:
    """Whether ``source``, which is no file, is more likely a misspelt name than a missing file.

    It is or begins with a network, or nearly is a registered name; :func:`published` then
    says which.
    """
    if is_url(source) or Path(source).exists():
        return False
    if is_name(source):
        return True
    if _SUFFIX.search(source):
        return False
    before = source.partition("/")[0]
    if _is_network(before) and not Path(before).exists():
        return True
    known = [*_registry, *(entry.name for entry in _registry.values())]
    return bool(difflib.get_close_matches(source, known, n=1, cutoff=0.8))


def archive_named(name: str) -> PublishedWeights | None:
    """The entry whose archive is called ``name`` where it is published, or in the cache."""
    for entry in _registry.values():
        if entry.member is not None and name in (_url_name(entry.url), cache_path(entry).name):
            return entry
    return None


def cache_path(source: PublishedWeights | str) -> Path:
    """Where :func:`fetch` keeps the download of an entry or a URL.

    The name has a hash of the URL, because different ones may end in the same name.
    """
    url = source if isinstance(source, str) else source.url
    return Path(torch.hub.get_dir()) / "checkpoints" / "r21d" / f"{_hash(url)}-{_url_name(url)}"


def fetch(source: PublishedWeights | str) -> Path:
    """The file of published weights, downloaded unless it is here already.

    A file is used only while its SHA-256 is the published one; a damaged one is fetched again.
    What ``torch.hub`` downloaded for torchvision is used as it lies there.  Where the publisher
    gives no hash, that of the first download is written beside the file and holds from then on;
    a web page or the like is not taken for weights.

    Args:
        source: an entry of :func:`published`, or a ``https://`` or ``file://`` URL.  That of a
            file which is no entry's is never copied, it is the file itself.

    Raises:
        ValueError: a URL of another kind.
        WeightsUnavailable: the download fails, or is not what was published.
    """
    known = source if isinstance(source, PublishedWeights) else _entry_of(source)
    entry = known or PublishedWeights(model="", name="", url=str(source))
    _check_url(entry.url)
    if known is None and urlsplit(entry.url).scheme == "file":
        return _local_file(entry.url)
    path = cache_path(entry)
    if entry.member is not None:
        unpacked = _member_path(entry)
        if unpacked.is_file() and _digest(unpacked).startswith(entry.member_sha256 or "?"):
            return unpacked
    if _is_intact(entry, path):
        if known is None:
            _log.warning("%s is here already: using %s; delete it to fetch again", source, path)
    elif (shared := _of_torch_hub(entry)) is not None:
        path = shared
    else:
        _download(entry, path)
    return path if entry.member is None else unpack(entry, path)


def unpack(entry: PublishedWeights, archive: str | os.PathLike[str]) -> Path:
    """Extract the file that holds an entry's weights from its archive, into the cache.

    Raises:
        ValueError: the entry is no archive's.
        WeightsUnavailable: the archive is damaged or holds something else.
        OSError: the cache cannot be written.
    """
    content = read_member(entry, archive)
    target = _member_path(entry)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, content)
    return target


def read_member(entry: PublishedWeights, archive: str | os.PathLike[str]) -> bytes:
    """The file that holds an entry's weights, from its archive.

    Only that member is read, and only if it is a plain file whose hash is the published one.

    Raises:
        ValueError: the entry is no archive's.
        WeightsUnavailable: the archive is damaged or holds something else.
    """
    if entry.member is None:
        raise ValueError(f"the weights {entry.model}/{entry.name} are a file, not an archive")
    try:
        with tarfile.open(archive) as opened:
            info = opened.getmember(entry.member)
            if not info.isreg() or info.size > _LARGEST_MEMBER:
                raise tarfile.TarError(f"{entry.member} is not a plain file of a usable size")
            reader = opened.extractfile(info)
            assert reader is not None
            content = reader.read()
    except (tarfile.TarError, KeyError, OSError, EOFError, zlib.error) as error:
        raise WeightsUnavailable(
            f"{os.fspath(archive)} does not hold {entry.member}: {error}; download {entry.url} "
            "again"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if entry.member_sha256 is not None and not digest.startswith(entry.member_sha256):
        raise WeightsUnavailable(
            f"{entry.member} in {os.fspath(archive)} is not what was published: its SHA-256 is "
            f"{digest}, expected {entry.member_sha256}; download {entry.url} again"
        )
    return content


def identify(path: str | os.PathLike[str]) -> PublishedWeights | None:
    """The entry whose file this is, by its SHA-256, or None.

    A file without a published hash is known by the one that :func:`fetch` recorded.
    """
    digest = _digest(Path(path))
    for entry in _registry.values():
        if any(
            known is not None and digest.startswith(known)
            for known in (entry.sha256, entry.member_sha256)
        ):
            return entry
    for entry in _registry.values():
        if entry.sha256 is None and _recorded(cache_path(entry)) == digest:
            return entry
    return None


def _check_url(url: str) -> None:
    scheme = urlsplit(url).scheme
    if scheme not in _SCHEMES:
        raise ValueError(
            f"url={url!r} must start with https:// or file://; download it by other means and "
            "pass the file"
        )


def _is_digest(text: str) -> bool:
    return 8 <= len(text) <= 64 and not set(text) - set("0123456789abcdef")


def _check_input(entry: PublishedWeights) -> None:
    from r21d.video.sampling import (  # loads the decoder
        check_clip_len,
        check_frame_rate,
        check_frame_stride,
    )

    if entry.clip_len is not None:
        check_clip_len(entry.clip_len)
    if isinstance(entry.frame_rate, str) and entry.frame_rate != "native":
        raise ValueError(f"frame_rate must be a number or 'native', got {entry.frame_rate!r}")
    if not isinstance(entry.frame_rate, str):
        check_frame_rate(entry.frame_rate)
    if entry.frame_stride is not None:
        check_frame_stride(entry.frame_stride)


def _entry_of(url: str) -> PublishedWeights | None:
    return next((entry for entry in _registry.values() if entry.url == url), None)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _url_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name or "weights"


def _member_path(entry: PublishedWeights) -> Path:
    member = entry.member or ""
    name = f"{_hash(f'{entry.url} {member}')}-{PurePosixPath(member).name}"
    return cache_path(entry).with_name(name)


def _local_file(url: str) -> Path:
    parts = urlsplit(url)
    path = Path(url2pathname(parts.path))
    if parts.netloc not in ("", "localhost"):
        problem = f"it is on {parts.netloc}, not on this machine"
    elif not path.is_file():
        problem = "it is not a file" if path.exists() else "there is no such file"
    else:
        return path
    raise WeightsUnavailable(
        f"cannot download {url}: {problem}; give the path of a file on this machine"
    )


def _of_torch_hub(entry: PublishedWeights) -> Path | None:
    """The entry's file where ``torch.hub`` itself puts it, if it is there and intact."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / _url_name(entry.url)
    if entry.sha256 is None or not path.is_file():
        return None
    return path if _digest(path).startswith(entry.sha256) else None


def _expected(entry: PublishedWeights, path: Path) -> str | None:
    return entry.sha256 or _recorded(path)


def _recorded(path: Path) -> str | None:
    record = path.with_name(path.name + _RECORD)
    try:
        text = record.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 64 and _is_digest(text) else None


def _is_intact(entry: PublishedWeights, path: Path) -> bool:
    if not path.is_file():
        return False
    expected, digest = _expected(entry, path), _digest(path)
    if expected is None and not looks_like_weights(path):
        _log.warning(
            "%s is no whole file of weights but %s; fetching it again", path, _beginning(path)
        )
        return False
    if expected is None:
        # Put here by hand, as WeightsUnavailable advises.
        _record(entry, path, digest)
        return True
    if digest.startswith(expected):
        return True
    _log.warning(
        "%s is damaged (its SHA-256 is %s, expected %s); fetching it again", path, digest, expected
    )
    return False


def _record(entry: PublishedWeights, path: Path, digest: str) -> None:
    write_atomically(path.with_name(path.name + _RECORD), f"{digest}\n".encode())
    _log.warning(
        "no hash was published for %s; %s is taken as it is, and its SHA-256 %s is checked from "
        "now on",
        entry.url,
        path,
        digest,
    )


def _download(entry: PublishedWeights, path: Path) -> None:
    expected = _expected(entry, path)
    advice = f"download it elsewhere, then pass the file, or put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _given_up_after(_SILENCE):
            torch.hub.download_url_to_file(
                entry.url, str(path), hash_prefix=expected, progress=sys.stderr.isatty()
            )
    except RuntimeError as error:  # torch.hub's word for another hash
        raise WeightsUnavailable(
            f"{entry.url} does not give what was published: {error}; {advice}"
        ) from error
    except (OSError, ValueError, HTTPException) as error:  # URLError and HTTPError are OSErrors
        silent = isinstance(error, TimeoutError)
        silent |= isinstance(getattr(error, "reason", None), TimeoutError)
        reason = f"no answer for {_SILENCE:g} seconds" if silent else error
        raise WeightsUnavailable(f"cannot download {entry.url}: {reason}; {advice}") from error
    if expected is not None:
        return
    if not looks_like_weights(path):
        found = _beginning(path)
        path.unlink()
        raise WeightsUnavailable(
            f"{entry.url} gives no whole file of weights but {found}; open it in a browser to see "
            f"what it wants, {advice}"
        )
    _record(entry, path, _digest(path))


@contextlib.contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """Connections opened inside fail when they are silent for so long; torch.hub sets no limit."""
    with _downloading:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(seconds)
        try:
            yield
        finally:
            socket.setdefaulttimeout(before)


def _beginning(path: Path) -> str:
    """What a file that is not weights is, for a message."""
    with path.open("rb") as file:
        start = file.read(_SHOWN)
    if not start:
        return "an empty file"
    begins = start.decode("utf-8", "replace")
    return f"{path.stat().st_size} bytes that begin with {begins!r}"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

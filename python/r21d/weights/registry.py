"""Published weights by name: where they are, what they are, and how they get here.

Nothing is downloaded before :func:`fetch` is called.  What it fetches lies in torch.hub's folder,
``checkpoints/r21d`` below ``torch.hub.get_dir()``, and its hash is checked at every use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tarfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import torch

from r21d.atomic import write_atomically
from r21d.weights.catalogue import CATALOGUE, PublishedWeights

__all__ = [
    "PublishedWeights",
    "WeightsUnavailable",
    "cache_path",
    "fetch",
    "identify",
    "is_name",
    "is_url",
    "list_weights",
    "published",
    "register_weights",
    "unpack",
]

_log = logging.getLogger(__name__)

_SCHEMES = ("https", "file")
_RECORD = ".sha256"
_LARGEST_MEMBER = 1 << 32
_BLOCK = 1 << 20

_registry: dict[str, PublishedWeights] = {
    f"{entry.model}/{entry.name}": entry for entry in CATALOGUE
}


class WeightsUnavailable(RuntimeError):
    """Published weights cannot be fetched; the message says from where, and what to do instead."""


def list_weights(model: str | None = None) -> list[str]:
    """The names of published weights, ``"model/name"`` each, sorted; of one network if given."""
    return sorted(key for key, entry in _registry.items() if model in (None, entry.model))


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
    known = ", ".join(list_weights(model)) or f"none of {model}"
    raise ValueError(f"there are no published weights {name!r}; known are {known}")


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


def cache_path(source: PublishedWeights | str) -> Path:
    """Where :func:`fetch` keeps the download of an entry or a URL."""
    url = source if isinstance(source, str) else source.url
    name = PurePosixPath(unquote(urlsplit(url).path)).name or "weights"
    if isinstance(source, str):
        # Others' URLs may end in the same name.
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    return Path(torch.hub.get_dir()) / "checkpoints" / "r21d" / name


def fetch(source: PublishedWeights | str) -> Path:
    """The file of published weights, downloaded unless it is here already.

    A file is used only while its SHA-256 is the published one; a damaged one is fetched again.
    Where the publisher gives no hash, that of the first download is written beside the file and
    holds from then on.

    Args:
        source: an entry of :func:`published`, or a ``https://`` or ``file://`` URL.

    Raises:
        ValueError: a URL of another kind.
        WeightsUnavailable: the download fails, or is not what was published.
    """
    entry = PublishedWeights(model="", name="", url=source) if isinstance(source, str) else source
    if isinstance(source, str):
        entry = next((known for known in _registry.values() if known.url == source), entry)
    _check_url(entry.url)
    path = cache_path(source if entry.model == "" else entry)
    if entry.member is not None:
        unpacked = _member_path(entry, path)
        if unpacked.is_file() and _digest(unpacked).startswith(entry.member_sha256 or "?"):
            return unpacked
    if not _is_intact(entry, path):
        _download(entry, path)
    return path if entry.member is None else unpack(entry, path)


def unpack(entry: PublishedWeights, archive: str | os.PathLike[str]) -> Path:
    """Extract the file that holds an entry's weights from its archive, into the cache.

    Only that member is read, and only if it is a plain file whose hash is the published one.

    Raises:
        ValueError: the entry is no archive's.
        WeightsUnavailable: the archive is damaged or holds something else.
    """
    if entry.member is None:
        raise ValueError(f"the weights {entry.model}/{entry.name} are a file, not an archive")
    target = _member_path(entry, cache_path(entry))
    try:
        with tarfile.open(archive) as opened:
            info = opened.getmember(entry.member)
            if not info.isreg() or info.size > _LARGEST_MEMBER:
                raise tarfile.TarError(f"{entry.member} is not a plain file of a usable size")
            reader = opened.extractfile(info)
            assert reader is not None
            content = reader.read()
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
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
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, content)
    return target


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


def _member_path(entry: PublishedWeights, archive: Path) -> Path:
    return archive.with_name(PurePosixPath(entry.member or "").name)


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
        torch.hub.download_url_to_file(
            entry.url, str(path), hash_prefix=expected, progress=sys.stderr.isatty()
        )
    except RuntimeError as error:  # torch.hub's word for another hash
        raise WeightsUnavailable(
            f"{entry.url} does not give what was published: {error}; {advice}"
        ) from error
    except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
        raise WeightsUnavailable(f"cannot download {entry.url}: {error}; {advice}") from error
    if expected is None:
        _record(entry, path, _digest(path))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()

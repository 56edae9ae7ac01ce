"""TOML files of tables of plain values, each with a comment that says where it comes from."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=(.*)")
# The longest line of comment beside a value; a longer one goes above it.
_WIDTH = 100


def read_toml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a file, and the comment of each ``key = value`` line by its key.

    A comment stands behind its value, or else in the lines above it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not TOML; the message names the file and the line.
        ImportError: Python 3.10 without tomli.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a configuration: it is not UTF-8 text") from error
    try:
        content = _parser()(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a configuration: {error}") from error
    return content, _comments(text)


def _parser() -> Any:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads
    try:
        import tomli
    except ImportError as error:
        raise ImportError(
            "reading a configuration needs tomli on Python 3.10: pip install 'r21d[train]'"
        ) from error
    return tomli.loads


def title(path: Path) -> str:
    """The first comment of a file: what it is for."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.lstrip("#").strip() if first.startswith("#") else ""


def _comments(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    above: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip("# ").rstrip())
            continue
        if key := _KEY.match(line):
            found[key[1]] = _behind(key[2]) or " ".join(above)
        above = []
    return found


def _behind(value: str) -> str:
    """The comment behind a value, whose quoted text may hold the same sign."""
    quote = ""
    for position, character in enumerate(value):
        if quote:
            closes = character == quote and (quote == "'" or not _escaped(value, position))
            quote = "" if closes else quote
        elif character in "\"'":
            quote = character
        elif character == "#":
            return value[position + 1 :].strip()
    return ""


def _escaped(value: str, position: int) -> bool:
    before = value[:position]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def write_table(name: str, values: Mapping[str, Any], comments: Mapping[str, str]) -> list[str]:
    """The lines of one table, each value with its comment."""
    lines = [f"[{name}]"]
    for key, value in values.items():
        line, comment = f"{key} = {write_value(value)}", _comment(comments.get(key, ""))
        if not comment:
            lines.append(line)
        elif len(line) + len(comment) + 4 <= _WIDTH:
            lines.append(f"{line}  # {comment}")
        else:
            lines += [f"# {comment}", line]
    return lines


def _comment(text: str) -> str:
    """``text`` on one line, with escapes for what no comment may hold: a file's name may be any."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def write_value(value: Any) -> str:
    """A number, truth value, text, list or table of these as TOML writes it.

    Raises:
        ValueError: text that is not Unicode (bytes of a file's name).
        TypeError: anything else.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        value.encode()
        # JSON's escapes are TOML's, but for the one control character that JSON lets be.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(write_value, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{write_value(str(key))} = {write_value(v)}" for key, v in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    raise TypeError(f"{value!r} is no value of a configuration")

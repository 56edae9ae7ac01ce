"""Protocols: the settings of a run read from files and the command line, and written.

A configuration file is TOML with the tables and keys of `r21d.training.run_config`. The files of
``r21d/configs`` are known by name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r21d.training.run_config import (
    COMMAND_LINE,
    DEFAULT_SOURCE,
    KEYS,
    NONE,
    TABLES,
    Key,
    RunConfig,
    checked,
    none_of,
)
from r21d.training.toml_file import read_toml, title, write_table, write_value

CONFIGS = Path(__file__).parent.parent / "configs"
_FOLLOWED = "as batch_size"


def list_configs() -> dict[str, str]:
    """What each configuration of the library is for, by its name."""
    return {path.stem: title(path) for path in sorted(CONFIGS.glob("*.toml"))}


def load_config(
    name_or_path: str | Path | None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """A configuration with ``overrides``; what neither names has its default.

    Args:
        name_or_path: One of :func:`list_configs`, or a TOML file; None: defaults alone. A file may
            say ``extends = "..."``, a name or a path relative to it, for what it does not say.
        overrides: Values by key, the command line's.

    Raises:
        ValueError: no such configuration, an unknown key, a value of another type or out of range;
            the message names file and key.
        OSError: the file cannot be read.
    """
    config = RunConfig(**{table: cls() for table, cls in TABLES.items()})
    given: dict[str, Any] = {}
    if name_or_path is not None:
        for path in _chain(_find(name_or_path, Path())):
            values, comments = _read(path)
            given |= values
            if _follows(values, comments):
                del given["eval_batch_size"]
            try:
                config = config.changed(values, str(path))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            sources = {**config.sources, **comments}
            # A run's own file tells what nobody chose.
            chosen = {name: text for name, text in sources.items() if text != DEFAULT_SOURCE}
            config = dataclasses.replace(config, sources=chosen)
    config = config.changed(overrides or {}, COMMAND_LINE)
    given |= overrides or {}
    if "batch_size" in given and "eval_batch_size" not in given:
        # What is chosen for memory in training is good for memory in validation.
        size = {"eval_batch_size": config.train.batch_size}
        config = config.changed(size, _FOLLOWED)
    return config


def _follows(values: Mapping[str, Any], comments: Mapping[str, str]) -> bool:
    """Whether a run's own file has ``eval_batch_size`` beside what it follows, chosen by nobody."""
    size = values.get("eval_batch_size")
    source = comments.get("eval_batch_size")
    if source == DEFAULT_SOURCE:
        return bool(size == KEYS["eval_batch_size"].default)
    return source == _FOLLOWED and bool(size == values.get("batch_size"))


def _find(name_or_path: str | Path, beside: Path) -> Path:
    """The file of a name or path; ``beside`` is the folder that a relative path starts from."""
    name = str(name_or_path)
    if (known := CONFIGS / f"{name}.toml").is_file() and "/" not in name:
        return known
    path = beside / name
    if path.is_file():
        return path
    close = difflib.get_close_matches(name, list_configs(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ValueError(
        f"there is no configuration {name!r}, neither by name nor as a file; {hint}"
        "r21d train --list-configs lists those that have a name"
    )


def _chain(path: Path) -> list[Path]:
    """The files that make up a configuration, the one that is extended first."""
    chain = [path]
    while (base := read_toml(chain[0])[0].get("extends")) is not None:
        if not isinstance(base, str):
            raise ValueError(f"{chain[0]}: extends is {base!r}, expected a name or a path")
        found = _find(base, chain[0].parent)
        if any(found.samefile(other) for other in chain):
            raise ValueError(f"{chain[0]}: extends = {base!r} leads back to {found}")
        chain.insert(0, found)
    return chain


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of one file by key, checked, and their sources where it gives any."""
    content, comments = read_toml(path)
    content.pop("extends", None)
    values: dict[str, Any] = {}
    for table, entries in content.items():
        if table not in TABLES:
            raise ValueError(f"{path}: {table} is no table{_near(table, TABLES)}")
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: {table} is {entries!r}, expected a table [{table}]")
        for name, value in entries.items():
            _check_key(path, table, name)
            try:
                values[name] = checked(KEYS[name], value)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    return values, {name: text for name, text in comments.items() if name in values and text}


def _check_key(path: Path, table: str, name: str) -> None:
    if name not in KEYS:
        raise ValueError(f"{path}: [{table}] has an unknown key {name}{_near(name, KEYS)}")
    if KEYS[name].table != table:
        raise ValueError(f"{path}: {name} belongs into [{KEYS[name].table}], not into [{table}]")


def _near(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def dump_config(config: RunConfig) -> str:
    """The configuration as a file that :func:`load_config` reads, each value with its source.

    A path that is not Unicode is left out.
    """
    tables = []
    for table in TABLES:
        keys = [key for key in KEYS.values() if key.table == table]
        values = {key.name: _plain(key, getattr(getattr(config, table), key.name)) for key in keys}
        unset = NONE if table == "run" else None
        values = {name: v for name, v in values.items() if v != unset and _is_text(v)}
        sources = {name: config.sources.get(name, DEFAULT_SOURCE) for name in values}
        tables.append("\n".join(write_table(table, values, sources)))
    return "\n\n".join(tables) + "\n"


def _plain(key: Key, value: Any) -> Any:
    return none_of(key) if value is None else value


def _is_text(value: Any) -> bool:
    """Whether TOML has a way to write it; a file's name may be no Unicode."""
    try:
        write_value(value)
    except ValueError:
        return False
    return True

"""Empty files in the place of videos: no list opens one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

Touch = Callable[[Iterable[str]], Path]


@pytest.fixture
def touch(tmp_path: Path) -> Touch:
    """Makes empty files below a folder, which it returns."""

    def make(names: Iterable[str]) -> Path:
        root = tmp_path / "videos"
        root.mkdir(exist_ok=True)
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Writes a text file into a folder of lists and returns its path."""

    def make(name: str, content: str | bytes) -> Path:
        file = tmp_path / "lists" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return make

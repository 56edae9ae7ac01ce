"""One thread, as networks this small only lose time to a second one; what runs train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run each test on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Folders of which a report would have been written."""
    from cli.train_runs import unwritten_reports

    return unwritten_reports(monkeypatch, tmp_path)


@pytest.fixture
def videos(tmp_path: Path) -> str:
    """A folder of two classes of three videos."""
    from small_sets import small_set

    return small_set("folder", tmp_path)[0]

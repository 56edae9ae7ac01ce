"""Compiles the Triton kernels on an idle core while the interpreter runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).with_name("triton_compilation.py")
ARCHES = (80, 90)


class Compilation:
    """A process for each architecture: this one interprets."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # An empty cache: nothing that another version of the kernels left is mistaken for ours.
        environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
        environment.pop("TRITON_INTERPRET", None)
        self._processes = {arch: self._start(arch, environment) for arch in ARCHES}

    def _file(self, arch: int, suffix: str) -> Path:
        return self._folder / f"{arch}.{suffix}"

    def _start(self, arch: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(_SCRIPT), "--arch", str(arch), "--json"]
        with self._file(arch, "log").open("wb") as log:
            return subprocess.Popen(
                [*command, str(self._file(arch, "json"))], env=environment, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait(self, arch: int) -> Path:
        """The file of an architecture's rows; fails with what was printed."""
        status = self._processes[arch].wait()
        assert status == 0, self._file(arch, "log").read_text()[-8000:]
        return self._file(arch, "json")

    def stop(self) -> None:
        """Ends what still runs."""
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def compilation() -> Iterator[Compilation]:
    """Starts at the first test that asks for it."""
    with tempfile.TemporaryDirectory(prefix="r21d-compiled-") as folder:
        running = Compilation(Path(folder))
        yield running
        running.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those who wait for the compiler come last of their folder's."""
    waiting = [item for item in items if "compiled" in getattr(item, "fixturenames", ())]
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    rest = [item for item in here if item not in waiting]
    places = [place for place, item in enumerate(items) if item.path.parent == here[0].path.parent]
    for place, item in zip(places, rest + waiting, strict=True):
        items[place] = item

"""Fixtures that every test can use: seeds, test data, backends, poisoned memory, torchvision.

``R21D_TEST_SEED`` shifts every seed: a number, or ``random`` for inputs that no run had before.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import secrets
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
import pytest
import torch

# Before anything imports the kernels: without a GPU, Triton's interpreter runs them on the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell's background jobs ignore Ctrl-C, and so would all that the tests start and interrupt.
# Those of nohup do a closed terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import torchvision_oracle
from ops.chosen_backend import Backend, available_backends, simulated_backends
from simt import backend as simulated_backend

from r21d_ops.backends import _BACKENDS
from r21d_ops.triton import INTERPRETED

if TYPE_CHECKING:
    from r21d.models.paper import Network

_SEED_VARIABLE = "R21D_TEST_SEED"
_BASE_SEED = pytest.StashKey[int]()

#: Backends that a test runs only where it is marked: what emulates them takes its time.
_MARKERS = {"triton": "interpreted", "cuda": "simulated"}


def pytest_configure(config: pytest.Config) -> None:
    """At most two threads; the base of all seeds; markers."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    given = os.environ.get(_SEED_VARIABLE, "0")
    config.stash[_BASE_SEED] = secrets.randbits(31) if given == "random" else int(given)
    if config.getoption("numprocesses", default=None):
        # The workers of pytest-xdist: a core for each, on which a second thread must not spin, and
        # the seed that the header names.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ[_SEED_VARIABLE] = str(config.stash[_BASE_SEED])
    _set_up_interpreter()
    config.addinivalue_line(
        "markers",
        "interpreted(**wanted): run the `triton` backend too, in Triton's interpreter; for all "
        "values of a parameter, or those given by its name",
    )
    config.addinivalue_line(
        "markers", "simulated(**wanted): the same for the `cuda` backend, in the host simulator"
    )
    config.addinivalue_line(
        "markers", "every_isa: run the `cpu` backend with each instruction set this CPU has"
    )


def _set_up_interpreter() -> None:
    """Twice the speed, and sums as a GPU makes them."""
    if not INTERPRETED or importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    # Checking each integer sum for overflow takes half the time; small problems have none.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)

    # numpy adds the rows of a matrix one after the other, a GPU in a tree: so does numpy along the
    # innermost axis.
    def sum_in_a_tree(self: Any, tensor: Any) -> Any:
        columns = np.ascontiguousarray(np.moveaxis(tensor.handle.data, self.axis, -1))
        total = columns.sum(-1)
        if self.keep_dims:
            total = np.expand_dims(total, self.axis)
        return self.to_tensor(total, tensor.dtype)

    interpreter.ReduceOps.sum = sum_in_a_tree


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what an emulated backend would take too long for."""
    wanted = [item for item in items if _is_wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if not _is_wanted(item)])
    items[:] = wanted


def _is_wanted(item: pytest.Item) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    backend = params.get("backend")
    if not isinstance(backend, Backend) or backend.name not in _MARKERS:
        return True
    marker = item.get_closest_marker(_MARKERS[backend.name])
    return marker is not None and all(
        str(params[name]) in map(str, values) for name, values in marker.kwargs.items()
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Names the base seed, so that any run can be repeated."""
    return f"{_SEED_VARIABLE}={config.stash[_BASE_SEED]}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``backend`` alone, or ``backend`` with each ``dtype`` that it serves."""
    if "backend" not in metafunc.fixturenames:
        return
    every_isa = metafunc.definition.get_closest_marker("every_isa") is not None
    found = [*available_backends(every_isa), *simulated_backends()]
    if "dtype" in metafunc.fixturenames:
        pairs = [(b, dtype) for b in found for dtype in b.dtypes]
        ids = [f"{b}-{str(dtype).removeprefix('torch.')}" for b, dtype in pairs]
        metafunc.parametrize(("backend", "dtype"), pairs, ids=ids, indirect=["backend"])
    else:
        metafunc.parametrize("backend", found, ids=str, indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """Each backend that can run here, in force for the test, also behind modules."""
    chosen: Backend = request.param
    monkeypatch.setenv("R21D_BACKEND", chosen.name)
    if chosen.isa is not None:
        monkeypatch.setenv("R21D_CPU_ISA", chosen.isa)
    if chosen.kernels is not None:
        monkeypatch.setenv("R21D_INFERENCE", chosen.kernels)
    if chosen.is_simulated:
        monkeypatch.setitem(_BACKENDS, simulated_backend.NAME, simulated_backend)
    return chosen


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """The test's own seed, the same for every backend; set in torch and shown when it fails."""
    name = request.node.nodeid
    if "backend" in request.fixturenames:
        name = name.replace(str(request.getfixturevalue("backend")), "")
    base = request.config.stash[_BASE_SEED]
    value = zlib.crc32(name.encode()) + base
    print(f"seed {value}; {_SEED_VARIABLE}={base} repeats it")
    torch.manual_seed(value)
    return value


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """A source of random operands with the test's seed."""
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory holds NaN (integers: their maximum), that of the native library included."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """``once(name, make)`` is a folder that ``make`` filled, in one of pytest-xdist's workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # what the workers of this run share

    def made(name: str, make: Callable[[Path], None]) -> Path:
        path, done = folder / name, folder / f"{name}.done"
        with filelock.FileLock(folder / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # what a failure has left
                path.mkdir()
                make(path)
                done.touch()
        return path

    return made


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of test videos, ``R21D_TEST_DATA``; skips where there is none."""
    value = os.environ.get("R21D_TEST_DATA")
    if not value:
        pytest.skip("R21D_TEST_DATA is not set to the folder of test videos")
    folder = Path(value)
    if not folder.is_dir():
        pytest.skip(f"R21D_TEST_DATA={value} is not a folder")
    return folder


@pytest.fixture(scope="session")
def networks() -> dict[str, Network]:
    """Every network of the paper and I3D, counted once (3 s) for all tests that need the counts."""
    from r21d.models import paper

    return paper.count_networks()


@pytest.fixture(scope="session")
def torchvision_resnet() -> ModuleType:
    """``torchvision.models.video.resnet``; skips with the reason where it cannot be had."""
    try:
        return torchvision_oracle.load()
    except ImportError as error:
        pytest.skip(str(error))

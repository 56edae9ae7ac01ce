"""The suite's command line, its shared run, and its report at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.cases import Settings
from benchmarks.measure import Rounds
from benchmarks.report import read_results, render
from benchmarks.results import write_results
from benchmarks.suite import Suite

_SUITE = pytest.StashKey[Suite]()
_WRITTEN = pytest.StashKey[Path]()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("r21d benchmarks")
    group.addoption("--quick", action="store_true", help="conv2_x alone, under two minutes")
    group.addoption("--device", default=None, help="cpu or cuda; default: cuda where there is one")
    group.addoption("--batch", type=int, help="clips in a batch (default: 1; cuda: 32)")
    group.addoption("--frames", type=int, help="frames in a clip (default: 8; cuda: 16)")
    group.addoption("--cases", type=_names, default=(), help="names, separated by commas")
    group.addoption("--peers", type=_names, default=(), help="names, separated by commas")
    group.addoption("--seconds", type=float, help="seconds of timing for each case")
    group.addoption("--threads", type=int, help="torch threads on the CPU")
    group.addoption("--shrink", type=int, default=1, help="divide sizes: a trial of the harness")
    group.addoption("--results", type=Path, help="folder for the JSON file")


def _settings(config: pytest.Config) -> Settings:
    device = config.getoption("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda, but this torch sees no CUDA device")
    seconds = config.getoption("seconds")
    return Settings(
        device=device,
        batch=config.getoption("batch"),
        frames=config.getoption("frames"),
        quick=config.getoption("quick"),
        cases=config.getoption("cases"),
        peers=config.getoption("peers"),
        shrink=config.getoption("shrink"),
        rounds=None if seconds is None else Rounds(least=3, seconds=seconds),
    )


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("threads")
    if threads is not None:
        torch.set_num_threads(threads)
    # Stock PyTorch at its best: cuDNN picks its fastest algorithm for each shape.
    torch.backends.cudnn.benchmark = True
    try:
        config.stash[_SUITE] = Suite(_settings(config))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "peer" in metafunc.fixturenames:
        suite = metafunc.config.stash[_SUITE]
        rows = [(case.name, peer) for case in suite.cases.values() for peer in case.peers]
        ids = [f"{case}-{peer}" for case, peer in rows]
        metafunc.parametrize(("case", "peer"), rows, ids=ids)


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Suite]:
    """The run that all benchmarks share; its results are written when the last one is done."""
    run = request.config.stash[_SUITE]
    yield run
    if run.results:
        path = write_results(run, request.config.getoption("results"))
        request.config.stash[_WRITTEN] = path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    path = terminalreporter.config.stash.get(_WRITTEN, None)
    if path is None:
        return
    terminalreporter.section("r21d benchmarks")
    terminalreporter.write_line(render(read_results(path)))
    terminalreporter.write_line(f"\nwritten: {path}")

"""The suite under pytest: its options, its shared run, and its report at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.options import add_options, prepare
from benchmarks.report import read_results, render
from benchmarks.results import write_results
from benchmarks.suite import Suite

_SUITE = pytest.StashKey[Suite]()
_WRITTEN = pytest.StashKey[Path]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser.getgroup("r21d benchmarks").addoption)


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[_SUITE] = Suite(prepare(config.option))
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

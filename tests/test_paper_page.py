"""docs/paper.md names what exists (about 4 s alone, of which most is counting).

Shows that every file and test that the page names is there, every command parses, every section,
equation, figure and table of the paper has its row, and the contradictions are those computed.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from r21d.cli.app import build_parser
from r21d.models import list_models, paper
from r21d.models.paper import Network
from r21d.models.registry import check_name
from r21d.weights.registry import list_weights

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")

ITEMS = (
    ["Abstract", "Section 1", "Section 2", "Section 3", "Section 5", "Appendix", "Eq. 1"]
    + [f"Section 3.{number}" for number in range(1, 6)]
    + [f"Section 4.{number}" for number in range(1, 5)]
    + [f"Fig. {number}" for number in range(1, 7)]
    + [f"Table {number}" for number in range(1, 6)]
)
STATUSES = re.findall(r"^\| ([a-z ]+) \| [a-z]", PAGE.partition("\n## ")[0], re.MULTILINE)[1:]
CODE = re.findall(r"`([^`\n]+)`", PAGE)
COMMANDS = sorted({code for code in CODE if code.startswith("r21d ")})
PATHS = sorted({code for code in CODE if re.fullmatch(r"[\w/]+\.(py|md)(::\w+)?", code)})


def rows() -> list[list[str]]:
    """Cells of the tables of items: item, what it says, file, command or test, status."""
    lines = re.findall(r"^\| (.*) \|$", PAGE.partition("\n## ")[2], re.MULTILINE)
    cells = [line.split(" | ") for line in lines]
    return [row for row in cells if row[0] != "item"]


def test_there_is_something_to_check() -> None:
    assert len(STATUSES) == 5
    assert len(COMMANDS) >= 15
    assert len(PATHS) >= 25
    assert len(rows()) >= len(ITEMS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    args = build_parser().parse_args(shlex.split(command)[1:])
    if getattr(args, "model", None):
        check_name(args.model)
    # `r21d info` has a switch of that name.
    weights = getattr(args, "weights", False)
    for name in weights if isinstance(weights, list) else [weights]:
        if isinstance(name, str) and not re.fullmatch(r"FILE|.*\.safetensors", name):
            assert name in list_weights()
    assert callable(args.run)


@pytest.mark.parametrize("name", PATHS)
def test_files_and_tests_exist(name: str) -> None:
    path, _, test = name.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE)


def test_every_path_in_the_page_is_checked() -> None:
    """A path that the pattern above does not match would be checked by nobody."""
    others = (".venv/bin/", "r21d ")
    assert [c for c in CODE if "/" in c and c not in PATHS and not c.startswith(others)] == []


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_of_the_paper_has_a_row(item: str) -> None:
    assert item in {row[0] for row in rows()}


def test_rows_are_complete() -> None:
    for row in rows():
        assert len(row) == 5, row
        item, _, file, shown_by, status = row
        assert item in ITEMS
        assert status.startswith(tuple(STATUSES)), status
        if status.startswith(("shown", "differs")):
            assert "`" in file and "`" in shown_by, row


def test_contradictions_are_those_computed(networks: dict[str, Network]) -> None:
    """Each claim that does not hold has its row of that status and its place in the list."""
    failed = [claim for claim in paper.check_claims(networks) if not claim.holds]
    contradictions = PAGE.partition("## Where the paper contradicts itself")[2]
    for claim in failed:
        figures = re.findall(r"\d[\d,]*\.?\d*", claim.found)
        assert figures
        missing = [figure for figure in figures if figure not in contradictions]
        assert not missing, (claim, missing)
    for family, row in paper.TABLE_2.items():
        millions = networks[f"{family}_18"].infos[8].parameters / 1e6
        if paper.printed_as(millions, row.parameters) == "cut":
            assert f"{millions:.2f}" in contradictions and row.parameters in contradictions
    assert sum(row[-1].startswith("differs") for row in rows()) >= 6


def test_every_network_named_is_known() -> None:
    names = set(re.findall(r"\b[a-z]+\d?(?:plus1)?d?\d?_(?:18|34)\b", PAGE))
    assert names and names <= set(list_models())

"""``r21d info``: one network, all beside the paper's figures, published weights (about 6 s)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from r21d.cli import main
from r21d.models import list_models, paper
from r21d.models.paper import Network
from r21d.weights.registry import list_weights, published


@pytest.fixture(autouse=True)
def counted_once(networks: dict[str, Network], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command does not count all networks again."""
    monkeypatch.setattr(paper, "count_networks", lambda: networks)


def run_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["info", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(run_text(capsys, *arguments, "--json"))


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["info", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line.removeprefix("r21d: error: ")


def test_all_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_text(capsys, "--all")
    assert max(map(len, text.splitlines())) <= 120
    assert "NO" in text.split() and "holds" in text.split()


def test_all_counts(capsys: pytest.CaptureFixture[str]) -> None:
    counts = run_text(capsys, "--all").split("\nnetwork")[1].split("\n\n")[0]
    by_name = {line.split()[0]: " ".join(line.split()[1:]) for line in counts.splitlines()[1:]}
    assert list(by_name) == [*paper.TABLE_2, "i3d"]
    # Figures of test_counts.py, as they must stand in the table.
    assert by_name["r2d"] == "11,447,568 1.93 2.17 2.64 1x7x7 11.4 21,555,728 3.78"
    assert by_name["rmc3"] == "33,057,744 12.48 24.95 49.91 1x7x7 33.0 cut 63,219,920 26.12"
    assert by_name["r2plus1d"] == "33,370,839 20.75 41.50 82.99 1x7x7 33.3 cut 63,697,175 38.09"
    assert by_name["i3d"].startswith("12,697,264 3.49 6.98 13.97 ")
    assert sum("cut" in row for row in by_name.values()) == 3


def test_all_judges_the_claims(
    networks: dict[str, Network], capsys: pytest.CaptureFixture[str]
) -> None:
    claims = run_text(capsys, "--all").split("\nwhere")[1].splitlines()[1:]
    for claim, line in zip(paper.check_claims(networks), claims, strict=True):
        assert line.startswith(claim.where) and claim.says in line and claim.found in line
        assert line.split()[-1] == ("holds" if claim.holds else "NO")


def test_all_is_ordered_by_cost(capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = run_text(capsys, "--all").split("\nnetwork")[2].splitlines()
    rows = [line.split() for line in accuracy if "/" in line]
    costs = [float(row[1]) for row in rows]
    assert costs == sorted(costs)
    expected = "rmc3 12.48 12.5 48.9 / 60.6 50.2 / 62.8 24.95 25 53.6 / 65.5"
    assert " ".join(rows[1]) == expected
    assert [row[0] for row in rows] == run_json(capsys, "--all")["order"]


def test_all_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "--all")
    assert set(found["networks"]) == set(list_models())
    network = found["networks"]["r2plus1d_18"]
    assert network["parameters"]["8"] == 33_370_839
    assert round(network["gmacs"]["32"], 2) == 82.99
    assert network["last_conv"]["16"] == [2, 7, 7]
    assert network["table_2"] == {
        "parameters": "33.3",
        "parameters_printed": "cut",
        "clip_top1": 52.4,
        "video_top1": 63.9,
    }
    assert network["vmz"]["16"] == {"gmacs": "41.5", "clip_top1": 57.3, "video_top1": 68.5}
    assert "table_2" not in found["networks"]["r2plus1d_34"]
    assert [claim["holds"] for claim in found["claims"]].count(False) == 8


@pytest.mark.parametrize(
    "option", ["--clip=3x4x9x9", "--midplanes=paper", "--classes=0", "--layers"]
)
@pytest.mark.parametrize("table", ["--all", "--weights"])
def test_tables_pass_over_no_option(
    capsys: pytest.CaptureFixture[str], table: str, option: str
) -> None:
    message = error_of(capsys, table, option)
    assert message == f"{table} takes no {option.partition('=')[0]}: leave out either"
    assert "takes no --layers" in error_of(capsys, table, "--layers")


def test_all_takes_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert "leave out r3d_18 or --all" in error_of(capsys, "r3d_18", "--all")


def test_a_clip_of_any_size(capsys: pytest.CaptureFixture[str]) -> None:
    """R2D is built for the clip's frames, and every network for its channels and the classes."""
    (info,) = run_json(capsys, "r2d_18", "--clip", "2x5x40x56", "--classes", "7").values()
    assert info["last_conv"] == [1, 3, 4]
    assert info["parameters"] == 11_447_568 + (2 * 5 - 3 * 8) * 64 * 49 - 393 * 513
    text = run_text(capsys, "r3d_18", "--clip", "3x4x16x16", "--layers")
    assert "r3d_18, clip 3x4x16x16" in text
    assert "stem.0" in text
    assert "3x8x112x112" in run_text(capsys, "r3d_18", "--layers")


def test_midplanes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one network or, where it has a meaning, of all."""
    (info,) = run_json(capsys, "r2plus1d_18", "--midplanes", "torchvision").values()
    infos = run_json(capsys, "--midplanes", "torchvision")
    assert infos["r2plus1d_18"] == info
    assert info["parameters"] == 31_505_325
    assert infos["i3d"]["parameters"] == 12_697_264
    assert "midplanes='paper'" in error_of(capsys, "i3d", "--midplanes", "paper")


def test_i3d_at_its_own_clip(capsys: pytest.CaptureFixture[str]) -> None:
    (info,) = run_json(capsys, "i3d", "--clip", "3x64x224x224").values()
    own = f"i3d at 64 frames of 224x224, its own clip: {info['gmacs']:.2f} GMAC"
    assert own in run_text(capsys, "--all").splitlines()


def test_weights(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_text(capsys, "--weights")
    assert max(map(len, text.splitlines())) <= 120
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "/" in line}
    assert list(rows) == list_weights()
    assert rows["r3d_18/kinetics400_vmz_8f"] == ["8", "30", "kinetics400", "49.8", "62.3"]
    assert rows["r2plus1d_18/kinetics400_torchvision"][-1] == "91a641e6"


def test_weights_of_one_network(capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "r2plus1d_34", "--weights")
    assert list(found) == list_weights("r2plus1d_34")
    name, values = next(iter(found.items()))
    assert values["url"] == published(name).url
    assert run_text(capsys, "r2d_34", "--weights") == "no published weights of r2d_34 are known\n"
    assert "did you mean 'r2d_34'" in error_of(capsys, "r2d", "--weights")

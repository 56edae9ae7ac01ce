"""The decoding benchmark: its peers pick the same frames, its sums are right (about 6 s)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import decoding
from benchmarks.decoding_peers import PEERS

pytest.importorskip("av")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("decoding") / "moving.mp4"
    decoding.write_moving_picture(path, (96, 128), keyframes=20, seconds=2.0)
    return path


@pytest.mark.parametrize("name", [name for name in PEERS if name != "r21d"])
def test_peers_read_the_same_frames(name: str, video: Path) -> None:
    reader = PEERS[name]
    if (reason := reader.missing()) is not None:
        pytest.skip(f"{name}: {reason}")
    for start in (0.0, 0.41, 0.98, 1.7):
        assert decoding._difference(reader, video, start) < decoding._LIMIT


def test_other_frames_are_told(video: Path) -> None:
    """One frame of 30 a second late: beyond what another filter makes."""
    reader = PEERS["PyAV, whole file"]
    late = dataclasses.replace(reader, read=lambda p, t, spec: reader.read(p, t + 1 / 30, spec))
    assert decoding._difference(late, video, 0.5) > decoding._LIMIT


def test_a_run(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole command on one small file, and its report again from the file."""

    def only(folder: Path) -> list[decoding.Case]:
        return [decoding.Case("small", [video])]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "generated", only)
        assert decoding.main(["--rounds", "3", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*/decoding/*.json")
    run = json.loads(path.read_text())
    (case,) = run["cases"]
    ours = case["peers"][0]
    assert ours["peer"] == "r21d" and len(ours["samples"]) == 3 and ours["difference"] == 0
    assert decoding.main(["--report", str(path)]) == 0
    assert capsys.readouterr().out.strip() in printed


def test_cores_by_hand() -> None:
    """788 TFLOP/s over 83 GFLOP a clip: 9494 clips a second; a step is three times that work."""
    rates = decoding.needed_rates()
    assert rates["inference"] == pytest.approx(9494, abs=1)
    assert rates["training"] == pytest.approx(3165, abs=1)
    peer: dict[str, Any] = {"status": "timed", "reason": ""}
    run = {
        "machine": {"cpu": "A CPU"},
        "commit": None,
        "dirty": None,
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {},
        "cases": [
            {
                "name": "files",
                "files": 1,
                "first": {"codec": "h264"},
                "peers": [
                    {**peer, "peer": "r21d", "samples": [0.01, 0.01, 0.04]},
                    {**peer, "peer": "other", "samples": [0.02, 0.02, 0.02]},
                    {"peer": "gone", "status": "unavailable", "reason": "why", "samples": []},
                ],
            }
        ],
    }
    text = decoding.render(run)
    # The mean, 0.02 s, feeds: 50 clips a second; 3165 / 50 and 9494 / 50 cores.
    assert "50.0 clips/s a core" in text
    assert "training at 100% of the ceiling 63;" in text and "inference at 100%" in text
    assert "ours is x 2.00 (1.25-2.00)" in text
    assert "unavailable: why" in text

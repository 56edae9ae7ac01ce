"""``r21d train --resume`` where some videos are others than before (about five seconds)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cli.train_runs import SMALL, at_step, rows, same, train, weights
from small_sets import small_set

from r21d.training.run_folder import VIDEOS_FILE
from r21d.training.stream import ClipStream
from r21d.video import InputSpec, VideoDataset, VideoError, open_list
from r21d.weights import load_checkpoint

BEGIN = [*SMALL.split(), "--out", "run", "--max-steps", "1"]
GO_ON = ["--resume", "--out", "run", "--max-steps", "none"]

pytestmark = pytest.mark.usefixtures("reports")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of two classes of ten videos, of which sixteen are trained on."""
    folder = Path(small_set("folder", tmp_path)[0])
    for video in sorted(folder.rglob("*.mp4")):
        for number in range(4):
            if len([*video.parent.iterdir()]) < 10:
                shutil.copy(video, video.with_stem(f"{video.stem}{number}"))
    assert len([*folder.rglob("*.mp4")]) == 20
    return folder


def noted(side: str) -> list[str]:
    """Names of the videos that the run has begun with."""
    return [name for name, _ in json.loads(Path("run", VIDEOS_FILE).read_bytes())[side]]


def test_videos_that_come_later_stay_out(videos: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(str(videos), *SMALL.split(), "--out", "whole")
    train(str(videos), *BEGIN)
    own = next(videos.rglob("*.mp4"))
    shutil.copy(own, own.with_name("0.mp4"))
    train(*GO_ON)
    new = own.with_name("0.mp4").relative_to(videos)
    assert f"{new}: not there when the run began, left out" in caplog.text
    assert rows("run") == rows("whole") and same(weights("run"), weights("whole"))
    assert not {*noted("training")} & {*noted("validation")}
    assert len(noted("training")) == 16 and len(noted("validation")) == 4


@pytest.mark.parametrize("damage", ["gone", "broken"])
def test_a_run_goes_on_without_a_video_as_if_it_had_broken_on_the_way(
    damage: str, videos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same weights as a run that was not interrupted, of one that is drawn later on."""
    train(str(videos), *BEGIN)
    number = ClipStream(16, 0, 2, batch_size=2, stop=4).video(6)
    lost = videos / noted("training")[number]

    def lose() -> None:
        if damage == "gone":
            lost.rename("kept.mp4")
        else:
            shutil.copy(lost, "kept.mp4")
            lost.write_bytes(lost.read_bytes()[:50])

    at_step(1, monkeypatch, lose)
    train(str(videos), *SMALL.split(), "--out", "whole")
    assert caplog.text.count("another video is drawn instead") == 1
    caplog.clear()
    train(*GO_ON)
    reason = "no such video" if damage == "gone" else ""
    told = f"1 of the run's 16 training videos cannot be read ({lost.name}: {reason}"
    assert told in caplog.text and "others are drawn instead" in caplog.text
    assert caplog.text.count("another video is drawn instead") == 1
    assert rows("run") == rows("whole") and same(weights("run"), weights("whole"))
    # It is back.
    Path("kept.mp4").rename(lost)
    train(str(videos), *SMALL.split(), "--out", "other")
    assert not same(weights("run"), weights("other"))


def test_without_many_it_goes_on_only_if_told_to(
    videos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train(str(videos), *BEGIN)
    capsys.readouterr()
    (videos / noted("validation")[0]).unlink()
    train(*GO_ON, code=2)
    error = capsys.readouterr().err
    assert "1 of the run's 4 validation videos cannot be read" in error
    assert "more than a tenth" in error and error.count("\n") == 1
    train(*GO_ON, "--allow-changes")
    assert "they are left out of it" in caplog.text and len(rows("run")) == 2
    assert len(json.loads(Path("run", "best.json").read_bytes())["predictions"]) == 3
    for name in noted("training")[:9]:
        (videos / name).unlink()
    train(*GO_ON, "--allow-changes", code=2)
    error = capsys.readouterr().err
    assert "9 of the run's 16 training videos" in error and "are these the videos" in error


def test_a_strict_run_goes_on_without_if_told_so(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(str(videos), *BEGIN, "--strict")
    (videos / noted("training")[0]).unlink()
    train(*GO_ON, code=2)
    assert "--no-strict goes on without" in capsys.readouterr().err
    train(*GO_ON, "--no-strict")
    assert len(rows("run")) == 2


@pytest.mark.parametrize("removed", [False, True])
def test_a_class_may_lose_all_its_videos(removed: bool, videos: Path) -> None:
    """And be no class of the folder any more: the numbers of the others stay."""
    rare = videos / "a rare one"
    rare.mkdir()
    for number in range(2):
        shutil.copy(next(videos.rglob("*.mp4")), rare / f"{number}.mp4")
    train(str(videos), *BEGIN, "--val-fraction", "0.5")
    shutil.rmtree(rare)
    if not removed:
        rare.mkdir()
    train(*GO_ON, "--allow-changes")
    assert len(rows("run")) == 2
    assert len(load_checkpoint("run/last.safetensors").classes) == 3


def test_what_was_noted_is_what_the_states_say(
    videos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train(str(videos), *BEGIN)
    path = Path("run", VIDEOS_FILE)
    sides = json.loads(path.read_bytes())
    sides["training"].reverse()
    path.write_text(json.dumps(sides))
    train(*GO_ON, code=2)
    assert "training_videos was" in capsys.readouterr().err
    path.write_text("{")
    train(*GO_ON)
    assert f"{path} cannot be read" in caplog.text and len(rows("run")) == 2
    # It is noted anew, as of a run of an earlier version.
    assert len(noted("training")) == 16
    path.unlink()
    train(*GO_ON)
    assert len(noted("training")) == 16


def test_another_label_is_refused(videos: Path) -> None:
    spec = InputSpec(clip_len=2, resize=(16, 20), crop=(16, 16))
    dataset = VideoDataset(open_list("folder", videos), spec, train=True)
    (name, label), *others = dataset.listed()
    again = dataset.restored([*others, ("no/such.mp4", 1), (name, label)], train=False)
    assert again.listed()[-2:] == [("no/such.mp4", 1), (name, label)]
    assert again.unreadable == [(videos / "no/such.mp4", "no such video")]
    assert again.part_count(19) == 1
    with pytest.raises(VideoError, match=r"no/such.mp4: no such video"):
        again[19]
    with pytest.raises(ValueError, match=r"its label was 1 and is now 0"):
        dataset.restored([(name, 1)], train=True)

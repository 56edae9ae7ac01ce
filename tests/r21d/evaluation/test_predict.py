"""Predictions for real files. About ten seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r21d.evaluation import evaluate, predict
from r21d.evaluation.forward import score_clips
from r21d.models import VideoResNet, create_model
from r21d.video import (
    ClipSampling,
    InputSpec,
    VideoDataset,
    VideoError,
    VideoFolder,
    VideoItem,
    VideoList,
    write_video,
)
from r21d.video.clips import read_input

SPEC = InputSpec(clip_len=4, frame_rate=12.5, resize=(40, 50), crop=(32, 32))


@pytest.fixture
def model() -> VideoResNet:
    network = create_model(
        "r2plus1d_18", num_classes=3, blocks=(1, 1, 1, 1), widths=(4, 4, 8, 8), stem_channels=4
    )
    network.classes, network.input_spec = ["x", "y", "z"], SPEC
    return network


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    write_video(path, torch.randint(0, 255, (30, 48, 64, 3), dtype=torch.uint8), 25.0)
    return path


def test_scores_are_a_ranked_distribution(model: VideoResNet, video: Path) -> None:
    prediction = predict(model, video, clips=3, topk=2)
    assert prediction.path == str(video)
    assert prediction.scores.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert len(prediction.top) == 2
    assert prediction.top[0][1] >= prediction.top[1][1]
    best = model.classes.index(prediction.top[0][0])
    assert prediction.scores.argmax().item() == best
    assert len(prediction.starts) == 3
    assert model.training


def test_more_classes_asked_than_there_are(model: VideoResNet, video: Path) -> None:
    assert len(predict(model, video, clips=1, topk=10).top) == 3


def test_agrees_with_evaluate(model: VideoResNet, video: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.mp4").write_bytes(video.read_bytes())
    folder = VideoFolder(tmp_path / "set", SPEC, False, clips=4, labels=model.classes)
    prediction = predict(model, video, clips=4)
    assert torch.equal(score_clips(model, [folder[0][0]]).mean(0), prediction.scores)
    column = model.classes.index(prediction.top[0][0])
    assert evaluate(model, folder).confusion[:2, column].tolist() == [1, 1]


@pytest.mark.parametrize(
    "sampling", [ClipSampling("random", 3, 3, seed=2), ClipSampling("dense", crops=3)]
)
def test_clips_are_those_of_a_data_set(
    model: VideoResNet, video: Path, tmp_path: Path, sampling: ClipSampling
) -> None:
    (tmp_path / "root" / "x").mkdir(parents=True)
    video.rename(tmp_path / "root" / "x" / "a.mp4")
    path = tmp_path / "root" / "x" / "a.mp4"
    # Of a file whose name is all there is to know: the key of random clips.
    videos = VideoList("one", path.parent, model.classes, [VideoItem(path, (0,))], [])
    dataset = VideoDataset(videos, SPEC, False, sampling)
    options = (sampling.clips, 3, sampling.mode, sampling.crops)
    prediction = predict(model, path, *options, seed=sampling.seed)
    assert torch.equal(score_clips(model, [dataset[0][0]]).mean(0), prediction.scores)
    assert 3 * len(prediction.starts) == len(dataset[0][0])


def test_a_long_video_is_read_in_parts(
    model: VideoResNet, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(model, video, sampling="dense")
    assert len(whole.starts) > 3
    monkeypatch.setattr("r21d.video.clips._PART_BYTES", 3 * 4 * (40 * 50 + 32 * 32) * 2)
    read = []
    monkeypatch.setattr(
        "r21d.video.clips.read_input",
        lambda *given: read.append(len(given[1])) or read_input(*given),
    )
    parts = predict(model, video, sampling="dense")
    assert set(read[:-1]) == {2} and sum(read) == len(whole.starts)
    assert torch.equal(parts.scores, whole.scores)
    assert parts.starts == whole.starts


def test_another_input_than_the_networks_own(model: VideoResNet, video: Path) -> None:
    other = SPEC.replace(clip_len=6, size=24)
    asked = predict(model, video, clips=2, spec=other)
    model.input_spec = other
    assert torch.equal(predict(model, video, clips=2).scores, asked.scores)
    model.input_spec = SPEC
    assert not torch.equal(predict(model, video, clips=2).scores, asked.scores)


def test_classes_without_names_are_numbers(model: VideoResNet, video: Path) -> None:
    model.classes = None
    assert {label for label, _ in predict(model, video, clips=1).top} == {"0", "1", "2"}


@pytest.mark.parametrize("option", ["clips", "topk"])
def test_counts_below_one_are_named(model: VideoResNet, video: Path, option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option} .*at least 1"):
        predict(model, video, **{option: 0})


def test_damaged_weights_are_told(model: VideoResNet, video: Path) -> None:
    with torch.no_grad():
        model.fc.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        predict(model, video)


def test_a_file_that_is_no_video(model: VideoResNet, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("text")
    with pytest.raises(VideoError, match=r"a\.mp4"):
        predict(model, tmp_path / "a.mp4")


def test_every_odd_file_is_classified(
    model: VideoResNet, test_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = sorted((test_data / "videos").iterdir())
    assert len(files) == 6
    for path in files:
        caplog.clear()
        prediction = predict(model, path, clips=2)
        assert prediction.scores.isfinite().all()
        assert bool(caplog.records) == ("corrupted" in path.name), path

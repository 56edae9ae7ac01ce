"""Splitting a folder into training and validation. About two seconds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from r21d.training.split import split_folder, split_videos
from r21d.video import InputSpec, VideoDataset, VideoItem, VideoList, write_video

SPEC = InputSpec(clip_len=2, frame_rate=None, resize=(16, 16), crop=(16, 16))


def write_folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            frames = torch.full((4, 16, 16, 3), 30 * number, dtype=torch.uint8)
            write_video(root / name / f"{number}.mp4", frames, 25.0)
    return root


def test_every_class_is_on_both_sides_and_no_file_is(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 2, "b": 5, "c": 8})
    train_set, val_set = split_folder(root, SPEC, 0.25, clips=3)
    trained = {path for path, _ in train_set.samples}
    held = {path for path, _ in val_set.samples}
    assert not trained & held
    assert len(trained | held) == 15
    per_class = [sum(label == i for _, label in val_set.samples) for i in range(3)]
    assert per_class == [1, 1, 2]
    clips, label, video = val_set[2]
    assert clips.shape == (3, 3, 2, 16, 16)
    assert (label, video) == (val_set.samples[2][1], 2)


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 6, "b": 6})

    def held(seed: int) -> list[tuple[Path, int]]:
        return split_folder(root, SPEC, 0.5, seed=seed)[1].samples

    assert held(0) == held(0)
    assert any(held(seed) != held(0) for seed in range(1, 5))


def test_undecodable_files_are_on_neither_side_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path, {"a": 3, "b": 3})
    (root / "a" / "bad.mp4").write_bytes(b"nothing to see")
    train_set, val_set = split_folder(root, SPEC, 0.5)
    names = [path.name for path, _ in (*train_set.samples, *val_set.samples)]
    assert len(names) == 6
    assert "bad.mp4" not in names
    assert [path.name for path, _ in train_set.failed] == ["bad.mp4"]
    assert val_set.failed == []
    assert len([r for r in caplog.records if "bad.mp4" in r.getMessage()]) == 1


def test_classes_of_one_decodable_video_keep_it_for_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_folder(tmp_path, {"a": 1, "b": 3, "c": 1, "d": 0})
    for name in ("a", "d"):
        (root / name / "bad.mp4").write_bytes(b"nothing to see")
    train_set, val_set = split_folder(root, SPEC, 0.5)
    assert sorted(label for _, label in train_set.samples) == [0, 1, 2]
    assert [label for _, label in val_set.samples] == [1, 1]
    assert val_set.classes == train_set.classes == ["a", "b", "c", "d"]
    assert caplog.text.count("no video is held out of") == 1
    assert "3 of 4 classes, which have fewer than two to choose from: a, c, d" in caplog.text


def test_both_sides_read_their_own_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 4, "b": 4})
    spec = InputSpec(2, None, (16, 16), (16, 16), mean=(0, 0, 0), std=(1, 1, 1))
    for part in split_folder(root, spec, 0.5):
        for clips, label, video in (part[index] for index in range(len(part))):
            path, own = part.samples[video]
            assert own == label == part.classes.index(path.parent.name)
            assert clips.mean().item() * 255 == pytest.approx(30 * int(path.stem), abs=5)


def test_no_class_of_two_videos_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match=r"no class of .* has two videos"):
        split_folder(root, SPEC, 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_a_video_of_several_classes_counts_for_each(tmp_path: Path, seed: int) -> None:
    # Class 3 is nobody's first label, and class 2 has a single video.
    labels = [(0, 3), (0, 3), (0,), (0,), (1, 3), (1, 3), (1,), (1, 2)]
    paths = [tmp_path / f"{number}.mp4" for number in range(len(labels))]
    write_video(paths[0], torch.zeros(4, 16, 16, 3, dtype=torch.uint8), 25.0)
    for path in paths[1:]:
        path.write_bytes(paths[0].read_bytes())
    items = [VideoItem(path, own) for path, own in zip(paths, labels, strict=True)]
    videos = VideoList("csv", tmp_path, list("abcd"), items, [], multilabel=True)
    train_set, val_set = split_videos(VideoDataset(videos, SPEC, train=True), 0.25, seed=seed)
    kept, held = (
        Counter(label for _, own in part.samples for label in own) for part in (train_set, val_set)
    )
    assert len(train_set) + len(val_set) == len(labels)
    assert min(kept[label] for label in range(4)) >= 1
    assert held[2] == 0 and min(held[label] for label in (0, 1, 3)) >= 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_fraction_must_leave_both_sides(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction is"):
        split_folder(tmp_path, SPEC, fraction)

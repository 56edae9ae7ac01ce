"""Folders of videos (about 3 s)."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("av")

from r21d.video.dataset import VideoFolder
from r21d.video.reader import VideoError, read_clips
from r21d.video.resize import resize_frames
from r21d.video.transforms import ClipTransform, InputSpec
from r21d.video.writer import write_video

SPEC = InputSpec(
    clip_len=4, frame_rate=12.5, resize=(24, 32), crop=(16, 16), mean=(0,) * 3, std=(1,) * 3
)
STEP = 8
FRAMES = 24


def _write(path: Path, level: int = 0) -> None:
    """24 frames at 25 a second; frame i is grey level ``level`` + 8 i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = (level + torch.arange(FRAMES) * STEP).to(torch.uint8)
    write_video(path, levels.view(-1, 1, 1, 1).expand(-1, 32, 48, 3), 25.0, quantizer=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("walk/a.mp4", "walk/b.MP4", "run/c.mp4"):
        _write(tmp_path / name)
    (tmp_path / "walk" / "notes.txt").write_text("not a video")
    (tmp_path / "walk" / ".hidden.mp4").write_text("not a video")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def _numbers(clips: torch.Tensor) -> list[list[int]]:
    """Which frames of the file the clips (K, 3, T, h, w) hold."""
    return (clips * 255 / STEP).mean((1, 3, 4)).round().int().tolist()


def test_samples_and_classes(folder):
    dataset = VideoFolder(folder, SPEC, train=False)
    assert dataset.classes == ["run", "walk"]
    names = [(path.name, label) for path, label in dataset.samples]
    assert names == [("c.mp4", 0), ("a.mp4", 1), ("b.MP4", 1)]
    assert len(dataset) == 3


def test_labels_of_a_checkpoint(folder):
    dataset = VideoFolder(folder, SPEC, train=False, labels=["walk", "jump", "run"])
    assert dataset.classes == ["walk", "jump", "run"]
    assert [label for _, label in dataset.samples] == [2, 0, 0]


@pytest.mark.parametrize("cache", [False, True])
def test_test_clips_are_even_and_reach_both_ends(folder, cache):
    dataset = VideoFolder(folder, SPEC, train=False, clips=3, cache=cache)
    clips, label, video = dataset[1]
    assert (label, video) == (1, 1)
    assert clips.shape == (3, 3, 4, 16, 16)
    assert clips.dtype == torch.float32
    numbers = _numbers(clips)
    assert numbers[0] == [0, 2, 4, 6]
    assert numbers[2] == [FRAMES - 7, FRAMES - 5, FRAMES - 3, FRAMES - 1]
    assert numbers[1][0] in (8, 9)


@pytest.mark.parametrize("cache", [False, True])
def test_training_draws_every_start(folder, cache):
    dataset = VideoFolder(folder, SPEC, train=True, cache=cache)
    torch.manual_seed(0)
    drawn = [_numbers(dataset[0][0])[0] for _ in range(250)]
    assert {numbers[0] for numbers in drawn} == set(range(FRAMES - 6))
    assert all(numbers == [numbers[0] + 2 * i for i in range(4)] for numbers in drawn)


def test_cache_changes_nothing(folder):
    items = []
    for cache in (False, True):
        torch.manual_seed(3)
        dataset = VideoFolder(folder, SPEC, train=True, seed=5, cache=cache)
        items.append([dataset[i % 3][0] for i in range(9)])
    assert all(torch.equal(a, b) for a, b in zip(*items, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_seed_repeats_a_run_and_epochs_differ(folder, workers):
    def epochs(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        loader = DataLoader(
            VideoFolder(folder, SPEC, train=True), batch_size=3, num_workers=workers
        )
        return [clips for _ in range(2) for clips, _, _ in loader]

    first, again = epochs(1), epochs(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_seed_matters(folder):
    items = []
    for seed in range(8):
        torch.manual_seed(0)
        items.append(tuple(_numbers(VideoFolder(folder, SPEC, True, seed=seed)[0][0])[0]))
    assert len(set(items)) > 1


def test_short_video_repeats_its_last_frame(folder):
    spec = InputSpec(clip_len=40, frame_rate=None, resize=(24, 32), crop=(16, 16))
    for train in (False, True):
        clips, _, _ = VideoFolder(folder, spec, train)[0]
        assert torch.equal(clips[:, :, 23:], clips[:, :, 23:24].expand(-1, -1, 17, -1, -1))
        assert not torch.equal(clips[:, :, 22], clips[:, :, 23])


def test_undecodable_files_in_test_are_left_out_and_listed(folder, caplog):
    (folder / "run" / "bad.mp4").write_text("no video")
    dataset = VideoFolder(folder, SPEC, train=False)
    assert [path.name for path, _ in dataset.samples] == ["c.mp4", "a.mp4", "b.MP4"]
    ((path, reason),) = dataset.failed
    assert path.name == "bad.mp4"
    assert "cannot be opened as a video" in reason
    assert len([r for r in caplog.records if "bad.mp4" in r.getMessage()]) == 1
    assert [dataset[i][2] for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_files_in_training_are_left_out_and_reported_once(folder, capfd, workers):
    (folder / "run" / "bad.mp4").write_text("no video")
    # Worker processes share this one's stderr, but not its captured log records.
    handler = logging.StreamHandler()
    logging.getLogger("r21d").addHandler(handler)
    try:
        dataset = VideoFolder(folder, SPEC, train=True)
        loader = DataLoader(dataset, batch_size=None, num_workers=workers)
        drawn = [video for _ in range(3) for _, _, video in loader]
    finally:
        logging.getLogger("r21d").removeHandler(handler)
    assert drawn == [0, 1, 2] * 3
    assert [path.name for path, _ in dataset.failed] == ["bad.mp4"]
    assert capfd.readouterr().err.count("skipped: ") == 1


def test_files_removed_while_training_are_replaced_by_any_other(folder, caplog):
    dataset = VideoFolder(folder, SPEC, train=True)
    dataset.samples[1][0].unlink()
    assert {dataset[1][2] for _ in range(40)} == {0, 2}
    assert "another video is drawn instead" in caplog.text
    for path, _ in dataset.samples:
        path.unlink(missing_ok=True)
    with pytest.raises(VideoError, match="none of the 3 videos can be decoded"):
        dataset[0]


def test_nothing_decodable(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mp4").write_text("no video")
    for train in (False, True):
        with pytest.raises(ValueError, match="none of the 2 video files can be decoded"):
            VideoFolder(tmp_path, SPEC, train)


@pytest.mark.parametrize("cache", [False, True])
def test_videos_of_any_aspect_ratio_give_one_batch(folder, cache):
    tall = torch.randint(256, (FRAMES, 48, 32, 3), dtype=torch.uint8)
    write_video(folder / "run" / "d.mp4", tall, 25.0, all_intra=True)
    spec = dataclasses.replace(SPEC, resize=24)
    for train in (False, True):
        dataset = VideoFolder(folder, spec, train, cache=cache)
        loader = DataLoader(dataset, batch_size=4)
        ((clips, _, _),) = list(loader)
        assert clips.shape == (4, 1, 3, 4, 16, 16)
    frames = read_clips(folder / "run" / "d.mp4", [0.0], 4, 12.5)
    expected = ClipTransform(spec)(resize_frames(frames, (36, 24)))
    found = VideoFolder(folder, spec, False, clips=2, cache=cache)[1][0][:1]
    assert torch.equal(found, expected)


def test_flow_is_refused_before_a_file_is_opened(folder, caplog):
    (folder / "run" / "bad.mp4").write_text("no video")
    with pytest.raises(ValueError, match="optical flow"):
        VideoFolder(folder, dataclasses.replace(SPEC, mean=(0, 0), std=(1, 1)), train=False)
    assert not caplog.records


def test_subset_reads_the_chosen_files(folder):
    whole = VideoFolder(folder, SPEC, train=True)
    part = whole.subset([2, 0], train=False, clips=3)
    assert [path.name for path, _ in part.samples] == ["b.MP4", "c.mp4"]
    clips, label, video = part[1]
    assert (clips.shape[0], label, video) == (3, 0, 1)
    assert (len(whole), whole.train, whole.clips) == (3, True, 1)
    with pytest.raises(ValueError, match="clips must be 1, got 2"):
        whole.subset([0], train=True, clips=2)


def _empty_class(root: Path) -> None:
    _write(root / "a" / "x.mp4")
    (root / "b").mkdir()


BAD_FOLDERS = {
    "missing": (lambda root: root.rmdir(), {}, "no such folder"),
    "empty": (lambda root: None, {}, "no class folders"),
    "files only": (lambda root: _write(root / "x.mp4"), {}, "no class folders"),
    "single class": (lambda root: _write(root / "a" / "x.mp4"), {}, "a single class .a."),
    "empty class": (_empty_class, {}, "b: no video files"),
    "foreign class": (
        lambda root: _write(root / "a" / "x.mp4"),
        {"labels": ["b", "c"]},
        "folders a are not among the 2 labels",
    ),
    "no clips": (lambda root: None, {"clips": 0}, "clips must be at least 1"),
    "clips in training": (lambda root: None, {"clips": 2, "train": True}, "clips must be 1"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders(tmp_path, kind):
    make, options, message = BAD_FOLDERS[kind]
    root = tmp_path / "videos"
    root.mkdir()
    make(root)
    with pytest.raises(ValueError, match=message):
        VideoFolder(root, SPEC, **{"train": False, **options})


def test_index_out_of_range(folder):
    with pytest.raises(IndexError):
        VideoFolder(folder, SPEC, train=False)[3]


def test_real_folder(test_data):
    dataset = VideoFolder(test_data / "weizmann", InputSpec(), train=False, clips=2)
    assert (len(dataset), len(dataset.classes), dataset.failed) == (90, 10, [])
    clips, label, _ = dataset[40]
    assert clips.shape == (2, 3, 16, 112, 112)
    assert dataset.classes[label] == dataset.samples[40][0].parent.name

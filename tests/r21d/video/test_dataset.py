"""Lists and folders of videos as datasets (about 5 s)."""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("av")

from r21d.video import dataset as dataset_module
from r21d.video import lookup
from r21d.video.clips import ClipSampling
from r21d.video.dataset import VideoDataset, VideoFolder
from r21d.video.examine import examine
from r21d.video.index import IndexRow, VideoIndex, write_index
from r21d.video.lists import VideoItem, VideoList, find_videos, list_folder
from r21d.video.reader import VideoError, probe, read_clips
from r21d.video.resize import resize_frames
from r21d.video.transforms import ClipTransform, InputSpec, Normalize
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


def test_an_epochs_clips_are_the_same_for_any_number_of_workers(folder):
    def epochs(workers: int, seed: int = 5) -> list[dict[int, bytes]]:
        dataset = VideoFolder(folder, SPEC, train=True, seed=seed)
        loader = DataLoader(
            dataset.subset([0, 1, 2], train=True),
            batch_size=None,
            shuffle=workers > 0,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        passes = []
        for epoch in range(3):
            dataset.set_epoch(epoch)
            passes.append({video: clips.numpy().tobytes() for clips, _, video in loader})
        return passes

    alone = epochs(0)
    assert alone == epochs(1) == epochs(2)
    assert len({clips for one_pass in alone for clips in one_pass.values()}) > 6
    assert alone != epochs(0, seed=6)
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        VideoFolder(folder, SPEC, train=True).set_epoch(-1)


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
    dense = whole.subset([1], train=False, sampling=ClipSampling("dense", crops=3))
    assert (dense.clips, len(dense[0][0])) == (None, 9)
    with pytest.raises(ValueError, match="clips must be 1, got 2"):
        whole.subset([0], train=True, clips=2)


def _list(root: Path, **changes: object) -> VideoList:
    videos = list_folder(root)
    return dataclasses.replace(videos, name="csv", **changes)


def test_a_list_of_any_kind(folder):
    items = [VideoItem(folder / "walk" / "a.mp4", (2,)), VideoItem(folder / "run" / "c.mp4", (0,))]
    videos = VideoList("csv", folder, ["run", "jump", "walk"], items, [])
    dataset = VideoDataset(videos, SPEC, train=False)
    assert [label for _, label, _ in dataset] == [2, 0]
    assert dataset.clips == 10 and dataset[0][0].shape == (10, 3, 4, 16, 16)
    assert dataset.videos is videos and dataset.classes == videos.classes
    assert not dataset.multilabel


@pytest.mark.parametrize("train", [False, True])
def test_several_labels_a_video(folder, train):
    items = [VideoItem(folder / "walk" / "a.mp4", (2, 0)), VideoItem(folder / "run/c.mp4", (1,))]
    videos = VideoList("sports1m", folder, ["a", "b", "c"], items, [], multilabel=True)
    dataset = VideoDataset(videos, SPEC, train, None if train else ClipSampling(clips=2))
    assert dataset.multilabel and dataset.samples[0] == (items[0].path, (2, 0))
    ((_, labels, numbers),) = DataLoader(dataset, batch_size=2)
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[1, 0, 1], [0, 1, 0]] and numbers.tolist() == [0, 1]


def test_missing_files_are_counted(folder, caplog):
    dataset = VideoDataset(_list(folder, missing=[folder / "x.mp4"] * 2), SPEC, train=False)
    assert dataset.missing == [folder / "x.mp4"] * 2 and len(dataset) == 3
    assert "2 of 5 listed videos are missing" in caplog.text
    with pytest.raises(ValueError, match=r"none of the 0 video files .* \(1 more are missing\)"):
        VideoDataset(_list(folder, items=[], missing=[folder / "x.mp4"]), SPEC, train=False)


def test_three_crops_of_each_clip(folder):
    spec = dataclasses.replace(SPEC, resize=24)
    dataset = VideoFolder(folder, spec, False, sampling=ClipSampling("even", 2, crops=3))
    clips = dataset[0][0]
    assert dataset.clips == len(clips) == 6
    info = probe(dataset.samples[0][0])
    frames = read_clips(info.path, info.clip_starts(4, 12.5, 2), 4, 12.5)
    assert torch.equal(clips, ClipTransform(spec, crops=3)(frames))


def test_dense_clips(folder):
    _write(folder / "run" / "d.mp4")
    short = torch.zeros(5, 32, 48, 3, dtype=torch.uint8)
    write_video(folder / "run" / "e.mp4", short, 25.0)
    dataset = VideoFolder(folder, SPEC, False, sampling=ClipSampling("dense"))
    assert dataset.clips is None
    assert _numbers(dataset[0][0]) == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20, 22]]
    assert len(dataset[2][0]) == 1


@pytest.mark.parametrize(
    "sampling", [ClipSampling("dense", crops=3), ClipSampling(clips=5), ClipSampling("random", 5)]
)
@pytest.mark.parametrize("cache", [False, True])
def test_parts_make_up_the_item(folder, sampling, cache, monkeypatch):
    videos = list_folder(folder)
    dataset = VideoDataset(videos, SPEC, False, sampling, normalize=False, cache=cache)
    assert [dataset.part_count(index) for index in range(len(dataset))] == [1] * len(dataset)
    height, width = SPEC.resize
    room = 3 * SPEC.clip_len * (height * width + sampling.crops * SPEC.crop[0] * SPEC.crop[1])
    monkeypatch.setattr("r21d.video.clips._PART_BYTES", 2 * room)
    for index in range(len(dataset)):
        clips, label, _ = dataset[index]
        parts = [dataset.read_part(index, part) for part in range(dataset.part_count(index))]
        assert max(len(part) for part, _, _ in parts) <= 2 * sampling.crops
        assert torch.equal(torch.cat([part for part, _, _ in parts]), clips)
        assert {(other, number) for _, other, number in parts} == {(label, index)}
    training = VideoDataset(videos, SPEC, True)
    assert training.part_count(0) == 1
    torch.manual_seed(0)
    clips, label, _ = training[0]
    torch.manual_seed(0)
    again, same, _ = training.read_part(0, 0)
    assert torch.equal(clips, again) and label == same


def test_random_clips_are_the_same_in_any_order_by_any_worker(folder):
    def clips(workers: int, seed: int = 3) -> dict[str, torch.Tensor]:
        sampling = ClipSampling("random", 2, seed=seed)
        dataset = VideoFolder(folder, SPEC, False, sampling=sampling)
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, shuffle=workers > 0)
        return {dataset.samples[video][0].name: clips for clips, _, video in loader}

    alone, shuffled = clips(0), clips(2)
    assert all(torch.equal(alone[name], shuffled[name]) for name in alone)
    assert not torch.equal(alone["a.mp4"], alone["b.MP4"])
    assert not torch.equal(alone["a.mp4"], clips(0, seed=4)["a.mp4"])
    # The name counts, not where the folder lies.
    moved = folder.rename(folder.with_name("moved"))
    again = VideoFolder(moved, SPEC, False, sampling=ClipSampling("random", 2, seed=3))
    assert torch.equal(again[1][0], alone["a.mp4"])


@pytest.mark.parametrize("train", [False, True])
def test_clips_stay_uint8_on_demand(folder, train):
    made = []
    for normalize in (True, False):
        torch.manual_seed(0)
        made.append(VideoFolder(folder, SPEC, train, normalize=normalize)[0][0])
    assert made[1].dtype == torch.uint8
    assert torch.equal(Normalize(SPEC)(made[1]), made[0])


@pytest.mark.parametrize("short", ["pad", "loop"])
@pytest.mark.parametrize("frame_rate", [None, 12.5])
def test_stride_and_short_videos(folder, short, frame_rate):
    spec = InputSpec(9, frame_rate, (24, 32), (16, 16), (0,) * 3, (1,) * 3, 3, short, False)
    step = 3 if frame_rate is None else 6
    read, cached = (
        VideoFolder(folder, spec, False, clips=1, cache=cache)[0][0] for cache in (False, True)
    )
    assert torch.equal(read, cached)
    instants = [step * i for i in range(9)]
    shown = [i % FRAMES if short == "loop" else min(i, FRAMES - 1) for i in instants]
    assert _numbers(read) == [shown]


def test_damage_that_shows_only_when_read(folder, caplog):
    path = folder / "run" / "c.mp4"
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat")
    # Past the first frames: what follows them is noise.
    middle = begin + (len(content) - begin) // 3
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    dataset = VideoFolder(folder, SPEC, train=False, clips=4)
    assert len(dataset) == 3
    for cached in (dataset, VideoFolder(folder, SPEC, train=False, cache=True)):
        with pytest.raises(VideoError, match=r"c\.mp4: damaged"):
            cached[0]
    training = VideoFolder(folder, SPEC.replace(clip_len=40), train=True)
    assert {training[0][2] for _ in range(10)} == {1, 2} and training.replaced == 10
    assert caplog.text.count("another video is drawn instead") == 1
    with pytest.raises(VideoError, match=r"c\.mp4: damaged"):
        VideoFolder(folder, SPEC.replace(clip_len=40), train=True, strict=True)[0]


def _index(root: Path, file: Path | None = None, **changes: object) -> Path:
    """An index of the folder whose rows say something else where ``changes`` name the file."""
    rows = []
    for name in find_videos(root):
        row = examine(root / name, name)
        rows.append(dataclasses.replace(row, **changes.get(Path(name).stem, {})))
    file = file or root / ".r21d-index.jsonl"
    write_index(file, VideoIndex(root, rows))
    return file


def test_the_index_spares_opening_files(folder, monkeypatch, caplog):
    damage = ("undecodable packet near 0.40 s: noise",)
    file = _index(folder, b={"damage": damage, "full": True})

    def refuse(path: Path, name: str) -> IndexRow:
        raise AssertionError(f"{path} was opened")

    with monkeypatch.context() as patch:
        patch.setattr(lookup, "examine", refuse)
        found = [
            VideoFolder(folder, SPEC, train=False, index=index)
            for index in (None, file, str(file), VideoIndex.load(file))
        ]
    for dataset in found:
        assert [path.name for path, _ in dataset.samples] == ["c.mp4", "a.mp4"]
        assert dataset.failed == [
            (folder / "walk" / "b.MP4", f"{folder / 'walk' / 'b.MP4'}: damaged: {damage[0]}")
        ]
    assert caplog.text.count("skipped: ") == 4
    without = VideoFolder(folder, SPEC, train=False, index=False)
    assert len(without) == 3
    assert torch.equal(without[1][0], found[0][1][0])


def test_files_that_changed_since_they_were_indexed(folder, caplog):
    for name in ("loose.mp4", "run/deeper/d.mp4"):
        _write(folder / name)
    _index(folder, a={"error": "was broken"}, b={"error": "was broken"})
    for name in ("loose.mp4", "run/deeper/d.mp4"):
        (folder / name).unlink()
    (folder / "run" / "deeper").rmdir()
    _write(folder / "walk" / "a.mp4", level=7)
    _write(folder / "walk" / "new.mp4")
    (folder / "run" / "c.mp4").rename(folder / "run" / "d.mp4")
    dataset = VideoFolder(folder, SPEC, train=False)
    assert [path.name for path, _ in dataset.samples] == ["d.mp4", "a.mp4", "new.mp4"]
    assert [path.name for path, _ in dataset.failed] == ["b.MP4"]
    assert dataset.missing == [folder / "run" / "c.mp4"]
    assert "3 of 4 files are not in the index, or have changed since" in caplog.text


@pytest.mark.parametrize(("indexed", "unknown"), [(".", 0), ("walk", 1), ("..", 0)])
def test_an_index_of_the_folder_by_another_name(folder, caplog, indexed, unknown):
    """Of the folder itself, one in it or the one above it, by way of a link."""
    root = folder / "real" / "videos"
    root.mkdir(parents=True)
    for name in ("walk", "run"):
        (folder / name).rename(root / name)
    (folder / "link").symlink_to(folder / "real")
    gone = root / "walk" / "gone.mp4"
    _write(gone)
    _write(folder / "real" / "audios" / "walk" / "x.mp4")  # of a folder beside, as long a name
    linked = Path(os.path.normpath(folder / "link" / "videos" / indexed))
    file = _index(linked, folder / "index.jsonl", b={"error": "was broken"})
    gone.unlink()
    for index in (file, VideoIndex.load(file)):
        dataset = VideoFolder(root, SPEC, train=False, index=index)
        assert [path for path, _ in dataset.samples] == [root / "run/c.mp4", root / "walk/a.mp4"]
        assert [path.name for path, _ in dataset.failed] == ["b.MP4"]
        assert dataset.missing == [gone]
    assert caplog.text.count(f"{unknown} of 3 files are not in the index") == 2 * (unknown > 0)
    assert caplog.text.count("not in the index") == 2 * (unknown > 0)


def test_an_index_that_knows_none_of_the_videos(folder, tmp_path_factory, caplog):
    other = tmp_path_factory.mktemp("other")
    _write(other / "walk" / "other.mp4")
    file = _index(other)
    message = rf"the index of {other}.* knows none of the 3 videos of {folder}"
    for index in (file, VideoIndex.load(file)):
        with pytest.raises(ValueError, match=message):
            VideoFolder(folder, SPEC, train=False, index=index)
    # A file that is not there is not one that the index lacks.
    items = [VideoItem(folder / "none.mp4", (0,)), VideoItem(other / "walk/other.mp4", (0,))]
    dataset = VideoDataset(VideoList("csv", folder, ["a"], items, []), SPEC, False, index=file)
    assert [path.name for path, _ in dataset.failed] == ["none.mp4"]
    assert "not in the index" not in caplog.text
    # Nobody named the folder's own.
    file.rename(folder / file.name)
    assert len(VideoFolder(folder, SPEC, train=False)) == 3
    assert "3 of 3 files are not in the index, or have changed since" in caplog.text


def test_a_class_folder_without_videos(folder, caplog):
    (folder / "jump").mkdir()
    with pytest.raises(ValueError, match=r"/jump: no video files in it; put some there"):
        VideoFolder(folder, SPEC, train=True)
    for labels in (None, ["walk", "jump", "sit", "run"]):
        dataset = VideoFolder(folder, SPEC, train=False, labels=labels)
        assert dataset.classes == (labels or ["jump", "run", "walk"])
        assert len(dataset) == 3
    assert caplog.text.count(f"1 class folders hold no video files: {folder / 'jump'} (") == 2


@pytest.mark.parametrize("train", [False, True])
def test_a_class_whose_only_video_is_gone(folder, caplog, train):
    _index(folder)
    (folder / "run" / "c.mp4").unlink()
    dataset = VideoFolder(folder, SPEC, train=train)
    assert dataset.classes == ["run", "walk"]
    assert [label for _, label in dataset.samples] == [1, 1]
    assert dataset.missing == [folder / "run" / "c.mp4"]
    assert "1 of 3 listed videos are missing" in caplog.text
    assert "no video files" not in caplog.text


def test_strict_stops_at_the_first_broken_file(folder):
    for name in ("x.mp4", "y.mp4"):
        (folder / "run" / name).write_text("no video")
    message = r"2 of 5 video files are broken or damaged; the first: .*x\.mp4: cannot be opened"
    with pytest.raises(VideoError, match=message):
        VideoFolder(folder, SPEC, train=False, strict=True)


def test_of_many_broken_files_some_are_named_and_all_are_counted(folder, caplog, monkeypatch):
    for number in range(13):
        (folder / "run" / f"x{number}.mp4").write_text("no video")
    monkeypatch.setattr(dataset_module, "_MANY_FILES", 5)
    dataset = VideoFolder(folder, SPEC, train=False)
    assert len(dataset.failed) == 13 and len(dataset) == 3
    assert caplog.text.count("cannot be opened") == 10
    assert "skipped: 3 more files, 13 of 16 in all" in caplog.text
    assert "no index, so each of 16 files is opened first" in caplog.text


def test_what_is_no_file_at_all(folder):
    (folder / "run" / "e.mp4").write_bytes(b"")
    (folder / "run" / "f.mp4").symlink_to(folder / "nowhere")
    (folder / "run" / "g.mp4").mkdir()
    odd = folder / "run" / "line\nbreak \udcff.mp4"
    _write(folder / "run" / "h.mp4")
    (folder / "run" / "h.mp4").rename(odd)
    dataset = VideoFolder(folder, SPEC, train=False)
    assert [path.name for path, _ in dataset.failed] == ["e.mp4", "f.mp4"]
    number = [path for path, _ in dataset.samples].index(odd)
    assert _numbers(dataset[number][0])[0] == _numbers(dataset[number - 1][0])[0]


def test_a_dataset_can_be_pickled(folder):
    dataset = VideoFolder(folder, SPEC, False, sampling=ClipSampling("random", 3))
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[2][0], dataset[2][0]) and again.samples == dataset.samples


def test_options_that_contradict_each_other(folder):
    with pytest.raises(ValueError, match="leave clips at 1, got 3"):
        VideoFolder(folder, SPEC, False, clips=3, sampling=ClipSampling())
    with pytest.raises(ValueError, match="sampling must be None"):
        VideoDataset(_list(folder), SPEC, True, ClipSampling())
    with pytest.raises(ValueError, match="decoder must be 'pyav', got 'torchcodec'"):
        VideoFolder(folder, SPEC, False, cache=True, decoder="torchcodec")


def test_a_subset_keeps_its_own_account(folder):
    (folder / "run" / "bad.mp4").write_text("no video")
    whole = VideoFolder(folder, SPEC, train=True, cache=True)
    whole.missing.append(folder / "x.mp4")
    clips = whole[1][0]
    part = whole.subset([0, 2, 1], train=False)
    assert (part.failed, part.missing, len(whole.failed), len(whole.missing)) == ([], [], 1, 1)
    (folder / "walk" / "b.MP4").unlink()
    with pytest.raises(VideoError, match=r"b\.MP4: no such file"):  # not the cached a.mp4
        part[1]
    assert part[2][0].shape == clips.shape


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_frames_are_scaled_as_specified(folder, cache, antialias):
    noise = torch.randint(256, (FRAMES, 32, 48, 3), dtype=torch.uint8)
    write_video(folder / "run" / "c.mp4", noise, 25.0, all_intra=True)
    spec = dataclasses.replace(SPEC, antialias=antialias)
    clips = VideoFolder(folder, spec, False, cache=cache)[0][0]
    info = probe(folder / "run" / "c.mp4")
    frames = read_clips(info.path, info.clip_starts(4, 12.5, 1), 4, 12.5)
    assert torch.equal(clips, ClipTransform(spec)(frames))
    other = ClipTransform(dataclasses.replace(spec, antialias=not antialias))(frames)
    assert not torch.equal(clips, other)


def test_training_clips_of_every_stride_stay_within_the_video(folder):
    spec = dataclasses.replace(SPEC, frame_stride=3)
    dataset = VideoFolder(folder, spec, train=True)
    torch.manual_seed(0)
    drawn = [_numbers(dataset[0][0])[0] for _ in range(60)]
    assert {numbers[0] for numbers in drawn} == set(range(FRAMES - 18))
    assert all(numbers == [numbers[0] + 6 * i for i in range(4)] for numbers in drawn)


def test_how_to_decode_is_handed_on(folder, monkeypatch):
    given = []

    def record(path: Path, starts: list[float], *args: object, **options: object) -> torch.Tensor:
        given.append((path.name, options["decoder"], options["threads"]))
        return torch.zeros(len(starts), 4, 24, 32, 3, dtype=torch.uint8)

    monkeypatch.setattr("r21d.video.clips.read_clips", record)
    VideoFolder(folder, SPEC, train=False, decoder="torchcodec", threads=3)[1]
    assert given == [("a.mp4", "torchcodec", 3)]


def _empty_class(root: Path) -> None:
    _write(root / "a" / "x.mp4")
    (root / "b").mkdir()


BAD_FOLDERS = {
    "missing": (lambda root: root.rmdir(), {}, "no such folder"),
    "empty": (lambda root: None, {}, "no class folders"),
    "files only": (lambda root: _write(root / "x.mp4"), {}, "no class folders"),
    "single class": (lambda root: _write(root / "a" / "x.mp4"), {}, "a single class .a."),
    "empty class": (_empty_class, {"train": True}, "b: no video files"),
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

"""The synthetic motion set (about 6 s)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("cv2")
pytest.importorskip("skimage")

from r21d.video import motion
from r21d.video.motion import PAIRS, render_motion, write_motion_dataset
from r21d.video.reader import probe, read_video


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("motion")
    write_motion_dataset(
        root, clips_per_class_train=2, clips_per_class_val=1, size=(32, 40), frames=9
    )
    return root


def _contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def test_layout(dataset):
    for split, count in (("train", 2), ("val", 1)):
        classes = sorted(folder.name for folder in (dataset / split).iterdir())
        assert classes == sorted(name for pair in PAIRS for name in pair)
        for name in classes:
            files = sorted((dataset / split / name).iterdir())
            assert len(files) == count
            info = probe(files[0])
            assert (info.frames, info.frame_rate) == (9, 25.0)
            assert (info.height, info.width, info.codec) == (32, 40, "h264")


@pytest.mark.parametrize("pair", PAIRS)
def test_partners_hold_the_same_frames_in_opposite_order(dataset, pair):
    """What bounds every classifier of single frames, or of unordered frames, by one half."""
    for file in ("train/{}/0000.mp4", "train/{}/0001.mp4", "val/{}/0000.mp4"):
        first, second = (read_video(dataset / file.format(name))[0] for name in pair)
        assert torch.equal(first.flip(0), second)
        assert len({frame.numpy().tobytes() for frame in first}) == 9


def test_splits_share_no_photograph(tmp_path):
    split = write_motion_dataset(
        tmp_path, clips_per_class_train=1, clips_per_class_val=1, size=16, frames=2
    )
    assert not set(split["train"]) & set(split["val"])
    assert min(len(names) for names in split.values()) >= 4


def test_same_seed_same_files_other_seed_other_files(dataset, tmp_path):
    options = {"clips_per_class_train": 2, "clips_per_class_val": 1, "frames": 9}
    write_motion_dataset(tmp_path / "same", size=(32, 40), **options)
    write_motion_dataset(tmp_path / "other", size=(32, 40), seed=1, **options)
    expected, other = _contents(dataset), _contents(tmp_path / "other")
    assert _contents(tmp_path / "same") == expected
    assert other.keys() == expected.keys()
    assert all(other[name] != content for name, content in expected.items())


def test_running_again(tmp_path):
    """Finished: left alone. Incomplete: completed. Other arguments: replaced."""
    calls = []

    def write(count: int) -> None:
        calls.clear()
        write_motion_dataset(
            tmp_path,
            clips_per_class_train=count,
            clips_per_class_val=1,
            size=16,
            frames=3,
            progress=lambda done, total: calls.append((done, total)),
        )

    write(2)
    assert calls == [(i, 12) for i in range(1, 13)]
    expected = _contents(tmp_path)
    write(2)
    assert calls == []
    (tmp_path / "val" / "zoom_in" / "0000.mp4").unlink()
    write(2)
    assert _contents(tmp_path) == expected
    write(1)
    assert len(list(tmp_path.rglob("*.mp4"))) == 16


def test_files_of_others_are_not_touched(tmp_path):
    other = tmp_path / "train" / "walk" / "mine.mp4"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"mine\.mp4 was not written by this function"):
        write_motion_dataset(tmp_path, size=16, frames=2)
    assert _contents(tmp_path) == {"train/walk/mine.mp4": b"mine"}


def test_a_foreign_manifest_is_refused(tmp_path):
    (tmp_path / "motion.json").write_text("[1]")
    with pytest.raises(FileExistsError, match=r"motion\.json was not written by this function"):
        write_motion_dataset(tmp_path, size=16, frames=2)


def _flow(name: str) -> np.ndarray:
    """Mean of (u, v, divergence, clockwise curl) between neighbouring frames, by Farneback."""
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(4)
    photograph = cv2.GaussianBlur(rng.integers(0, 256, (400, 400, 3), np.uint8), (0, 0), 3)
    photograph = cv2.normalize(photograph, None, 0, 255, cv2.NORM_MINMAX)
    grey = render_motion(photograph, name, (96, 96), 8, rng).mean(-1).astype(np.uint8)
    flows = [
        cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.1, 0)[16:-16, 16:-16]
        for a, b in pairwise(grey)
    ]
    flow = np.mean(flows, 0)
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    u, v = flow[..., 0], flow[..., 1]
    return np.array([u.mean(), v.mean(), (u * x + v * y).mean(), (v * x - u * y).mean()])


@pytest.mark.parametrize(
    ("name", "component", "sign"),
    [
        ("pan_right", 0, -1),  # the picture moves left
        ("pan_down", 1, -1),  # the picture moves up
        ("zoom_in", 2, 1),  # the picture grows
        ("turn_right", 3, 1),  # the picture turns clockwise (y points down)
    ],
)
def test_the_motion_is_what_its_name_says(name, component, sign):
    flow = _flow(name)
    assert flow[component] * sign > 0.1
    assert np.abs(flow).argmax() == component


def test_the_view_stays_inside_the_photograph():
    """A photograph with a red rim: no red ever shows."""
    photograph = np.full((200, 260, 3), 60, np.uint8)
    photograph[20:-20:2, 20:-20] = 90
    rim = np.ones((200, 260), bool)
    rim[2:-2, 2:-2] = False
    photograph[rim] = (255, 0, 0)
    for pair in PAIRS:
        for seed in range(6):
            rng = np.random.default_rng(seed)
            views = render_motion(photograph, pair[0], (24, 24), 12, rng).astype(int)
            assert (views[..., 0] - views[..., 1]).max() < 100


def test_a_photograph_too_small_for_the_motion():
    with pytest.raises(ValueError, match="no pan_right of 64 frames fits"):
        render_motion(
            np.zeros((40, 40, 3), np.uint8), "pan_right", (16, 400), 64, np.random.default_rng(0)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clips_per_class_val": 0}, "clips_per_class_val must be at least 1, got 0"),
        ({"size": 15}, "size must be even and at least 16 pixels, got 15x15"),
        ({"size": (32, 33)}, "size must be even"),
        ({"frames": 1}, "frames must be between 2 and 64, got 1"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_motion_dataset(tmp_path / "motion", **options)
    assert not list(tmp_path.iterdir())


def test_missing_photograph():
    with pytest.raises(
        FileNotFoundError, match=r"lacks the photograph .*; pip install 'r21d\[demo\]'"
    ):
        motion.load_photograph("nothing.png")

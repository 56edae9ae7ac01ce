"""Splitting a folder into training and validation. About two seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from r21d.training.split import split_folder
from r21d.video import InputSpec, write_video

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


def test_undecodable_files_are_reported_where_they_were_held_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 3, "b": 3})
    (root / "a" / "bad.mp4").write_bytes(b"nothing to see")
    for seed in range(20):
        train_set, val_set = split_folder(root, SPEC, 0.5, seed=seed)
        in_training = any(path.name == "bad.mp4" for path, _ in train_set.samples)
        assert [path.name for path, _ in val_set.failed] == ([] if in_training else ["bad.mp4"])
        if not in_training:
            break
    assert not in_training


def test_a_class_of_one_video_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path, {"a": 1, "b": 3})
    with pytest.raises(ValueError, match=r"class a .* has one video"):
        split_folder(root, SPEC, 0.5)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_fraction_must_leave_both_sides(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction is"):
        split_folder(tmp_path, SPEC, fraction)

"""Writing H.264 (about 1 s)."""

from __future__ import annotations

import pytest
import torch

av = pytest.importorskip("av")

from r21d.video.reader import probe, read_video  # noqa: E402
from r21d.video.writer import write_video  # noqa: E402


def test_colours_survive(tmp_path):
    colours = torch.tensor(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [90, 160, 30]],
        dtype=torch.uint8,
    )
    path = tmp_path / "colours.mp4"
    write_video(path, colours.view(-1, 1, 1, 3).expand(-1, 32, 32, 3), 30.0, quantizer=4)
    frames, times = read_video(path)
    assert (frames.int() - colours.view(-1, 1, 1, 3).int()).abs().max() <= 6
    assert times == pytest.approx([i / 30 for i in range(6)], abs=1e-4)
    assert probe(path).frame_rate == pytest.approx(30.0)


def test_intra_coding_of_a_frame_does_not_depend_on_its_place(tmp_path):
    frames = torch.randint(256, (9, 6, 6, 3), dtype=torch.uint8)
    frames = frames.repeat_interleave(8, 1).repeat_interleave(8, 2)
    order = torch.randperm(9)
    for name, shown in (("plain", frames), ("shuffled", frames[order])):
        write_video(tmp_path / name, shown, quantizer=24, all_intra=True)
    plain, shuffled = (read_video(tmp_path / name)[0] for name in ("plain", "shuffled"))
    assert not torch.equal(plain, frames)
    assert torch.equal(plain[order], shuffled)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (torch.zeros(2, 16, 16, 3), {}, "frames must be uint8"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), {}, "frames must be uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), {}, "frames must be uint8"),
        (torch.zeros(0, 16, 16, 3, dtype=torch.uint8), {}, "frames is empty"),
        (torch.zeros(2, 15, 16, 3, dtype=torch.uint8), {}, "even height and width .*15x16"),
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8), {"quantizer": 52}, "quantizer .* got 52"),
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8), {"frame_rate": 0.0}, "frame_rate must be"),
    ],
)
def test_bad_arguments_leave_nothing_behind(tmp_path, frames, options, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, **options)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("r21d.video.writer._encode", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

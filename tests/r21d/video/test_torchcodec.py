"""torchcodec in PyAV's place (about 4 s)."""

from __future__ import annotations

import os
import sys

import pytest
import torch

pytest.importorskip("av")

from video.coded_videos import CODINGS, encode

from r21d.video.reader import VideoError, read_clip, read_clips
from r21d.video.torchcodec_decoder import import_torchcodec

# Grey levels by which values may be rounded otherwise on the way from YUV. Measured with torchcodec
# 0.13, FFmpeg 5.1 and PyAV 18: none.
ROUNDING = 1

NAMES = ["h264_pyramid.mp4", "h264_open.mkv", "h264_variable.mp4", "hevc.mp4", "vp8.webm"]


@pytest.fixture(scope="module")
def torchcodec():
    try:
        return import_torchcodec()
    except ImportError as error:
        pytest.skip(str(error))


def _is_close(clips: torch.Tensor, expected: torch.Tensor) -> bool:
    return int((clips.int() - expected.int()).abs().max()) <= ROUNDING


@pytest.mark.parametrize("name", NAMES)
def test_the_same_frames(torchcodec, tmp_path, name):
    path = encode(tmp_path / name, CODINGS[name])
    starts = [1.7, 0.0, 0.73, 2.6]
    for rate, stride, short in ((None, 1, "pad"), (15.0, 1, "loop"), (None, 3, "loop")):
        options = {"frame_stride": stride, "short": short}
        clips = read_clips(path, starts, 9, rate, decoder="torchcodec", **options)
        expected = read_clips(path, starts, 9, rate, **options)
        assert clips.dtype == torch.uint8
        assert clips.shape == expected.shape
        assert _is_close(clips, expected)
        assert not _is_close(clips[:, 1:], expected[:, :-1])


def test_scaling_and_real_files(torchcodec, test_data):
    for name in ("decord_flipping_a_pancake.mkv", "decord_video_90.mov"):
        path = test_data / "videos" / name
        for antialias in (True, False):
            options = {"size": 64, "antialias": antialias}
            clips = read_clips(path, [0.0, 2.0], 4, 15.0, decoder="torchcodec", **options)
            assert _is_close(clips, read_clips(path, [0.0, 2.0], 4, 15.0, **options))


def test_a_name_that_is_no_text(torchcodec, tmp_path):
    path = tmp_path / os.fsdecode(b"http:caf\xe9.mp4")
    encode(tmp_path / "a.mp4", CODINGS["h264.mp4"]).rename(path)
    assert _is_close(read_clip(path, decoder="torchcodec"), read_clip(path))


def test_a_start_after_the_end_is_reported(torchcodec, tmp_path, caplog):
    path = encode(tmp_path / "a.mp4", CODINGS["h264.mp4"])
    clip = read_clip(path, 3, 15.0, 60.0, decoder="torchcodec")
    assert torch.equal(clip[0], clip[2])
    assert "the last frame is at 2.76 s" in caplog.text


def test_files_it_cannot_read(torchcodec, tmp_path):
    (tmp_path / "a.mp4").write_text("no video\n" * 99)
    with pytest.raises(VideoError, match="cannot be opened as a video"):
        read_clip(tmp_path / "a.mp4", decoder="torchcodec")
    with pytest.raises(VideoError, match="no such file"):
        read_clip(tmp_path / "b.mp4", decoder="torchcodec")
    raw = encode(tmp_path / "raw.h264", CODINGS["h264.h264"])
    with pytest.raises(VideoError, match=r"raw\.h264: torchcodec needs the time stamps"):
        read_clip(raw, decoder="torchcodec")


def test_frames_other_than_those_asked_for_are_refused(torchcodec, tmp_path, monkeypatch):
    """As torchcodec gives of some transport streams, whose index it makes of wrong times."""
    path = encode(tmp_path / "a.mp4", CODINGS["h264.mp4"])
    original = torchcodec.VideoDecoder.get_frames_at
    monkeypatch.setattr(
        torchcodec.VideoDecoder,
        "get_frames_at",
        lambda self, indices: original(self, [min(index + 1, 69) for index in indices]),
    )
    with pytest.raises(VideoError, match="gives other frames than those asked for"):
        read_clip(path, decoder="torchcodec")


def test_without_torchcodec(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", CODINGS["h264.mp4"])
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    message = r"pip install 'r21d\[torchcodec\]'.* torchcodec<0\.14"
    with pytest.raises(ImportError, match=message):
        read_clip(path, decoder="torchcodec")

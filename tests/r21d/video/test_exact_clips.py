"""Clips are those of decoding the whole file, bit for bit, from fewer packets (about 20 s)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

av = pytest.importorskip("av")

from video.coded_videos import CODINGS, WholeVideo, encode, trim  # noqa: E402

from r21d.video import packets, reader  # noqa: E402
from r21d.video.decoder import Decoder  # noqa: E402
from r21d.video.reader import VideoError, read_clip, read_clips, read_video  # noqa: E402
from r21d.video.resize import resize_frames  # noqa: E402

REAL_FILES = {
    "videos/decord_corrupted.mp4": 6,
    "videos/decord_flipping_a_pancake.mkv": 12,
    "videos/decord_video_90.mov": 6,
    "videos/torchcodec_av1_video.mkv": 8,
    "videos/torchcodec_bt709_full_range.mp4": 4,
    "videos/torchcodec_h265_video.mp4": 8,
    "weizmann/bend/ido_bend.mp4": 6,
    "weizmann/jack/eli_jack.mp4": 6,
    "weizmann/jump/lyova_jump.mp4": 6,
    "weizmann/pjump/shahar_pjump.mp4": 6,
    "weizmann/run/denis_run.mp4": 6,
    "weizmann/side/ira_side.mp4": 6,
    "weizmann/skip/lena_skip.mp4": 6,
    "weizmann/walk/daria_walk.mp4": 6,
    "weizmann/wave1/moshe_wave1.mp4": 6,
    "weizmann/wave2/ira_wave2.mp4": 6,
}
SKIPPING = [name for name, coding in CODINGS.items() if coding.skips]
INDEXED = [name for name in CODINGS if name.endswith((".mp4", ".mkv", ".webm", ".mov"))]


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of that name among CODINGS."""
    folder = tmp_path_factory.mktemp("coded")

    @cache
    def make(name: str) -> Path:
        return encode(folder / name, CODINGS[name])

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of packets that each reading gave to its decoder."""
    counts: list[int] = []

    class CountingDecoder(Decoder):
        def __exit__(self, *error: Any) -> None:
            counts.append(self.decoded)
            super().__exit__(*error)

    monkeypatch.setattr(reader, "Decoder", CountingDecoder)
    return counts


def _requests(end: float) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of `read_clips`."""
    rates = st.none() | st.sampled_from([5.0, 12.5, 15.0, 25.0]) | st.floats(2, 60)
    starts = st.floats(0, end) | st.just(0.0) | st.just(end)
    return st.fixed_dictionaries(
        {
            "starts": st.lists(starts, min_size=1, max_size=3),
            "clip_len": st.integers(1, 6),
            "frame_rate": rates,
            "frame_stride": st.integers(1, 3),
            "short": st.sampled_from(["pad", "loop"]),
            "threads": st.integers(1, 2),
        }
    )


def _check(path: Path, whole: WholeVideo, request: dict[str, Any]) -> None:
    clips = read_clips(path, **request)
    rate, stride, short = request["frame_rate"], request["frame_stride"], request["short"]
    for start, clip in zip(request["starts"], clips, strict=True):
        numbers = whole.numbers(start, request["clip_len"], rate, stride, short)
        for number, frame in zip(numbers, clip.numpy(), strict=True):
            assert np.array_equal(frame, whole.frames[number]), (start, number)


def _check_many(path: Path, examples: int) -> None:
    whole = WholeVideo(path)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_requests(whole.times[-1]))
    def check(request: dict[str, Any]) -> None:
        _check(path, whole, request)

    check()


@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files(test_data, name):
    _check_many(test_data / name, REAL_FILES[name])


@pytest.mark.parametrize("name", CODINGS)
def test_codecs_and_containers(coded, name):
    _check_many(coded(name), 12)


@pytest.mark.parametrize("name", INDEXED)
def test_seeking_by_the_files_index(coded, name, monkeypatch):
    monkeypatch.setattr(packets, "_NEAR", 0)
    _check_many(coded(name), 6)


@pytest.mark.parametrize("name", ["h264_pyramid.mp4", "hevc.mp4", "mpeg4.mp4", "vp9.mp4"])
def test_beginnings_hidden_by_an_edit_list(coded, decoded, tmp_path, name):
    path = trim(coded(name), tmp_path / "trimmed.mp4", 0.7)
    whole = WholeVideo(path)
    assert len(whole.times) < 56
    _check(path, whole, _request([whole.times[-3]]))
    assert len(decoded) == 1 and decoded.pop() <= 40
    _check_many(path, 8)


@pytest.mark.parametrize("near", [0, 10])
def test_every_packet_marked_as_a_keyframe(coded, tmp_path, monkeypatch, near):
    """Without its table of keyframes, MP4 says that all are."""
    monkeypatch.setattr(packets, "_NEAR", near)
    for name in ("h264_pyramid.mp4", "hevc.mp4", "mpeg4.mp4"):
        path = tmp_path / name
        path.write_bytes(coded(name).read_bytes().replace(b"stss", b"free"))
        _check_many(path, 4)


@pytest.mark.parametrize("name", ["h264_open.ts", "hevc.ts", "mpeg2.ts", "mpeg2.mpg"])
def test_recordings_that_begin_anywhere_or_over_again(coded, tmp_path, name):
    content = coded(name).read_bytes()
    pack = 188 if name.endswith(".ts") else 2048
    middle = len(content) // 3 // pack * pack
    for kind, changed in (("cut", content[middle:]), ("twice", content * 2)):
        path = tmp_path / f"{kind}{Path(name).suffix}"
        path.write_bytes(changed)
        _check_many(path, 5)


def test_parameters_that_change_on_the_way(coded, tmp_path):
    """Another picture size from the middle on: frames are scaled to the first one's."""
    path = tmp_path / "both.ts"
    other = CODINGS["mpeg2.ts"]
    encode(tmp_path / "small.ts", other, size=(32, 48))
    path.write_bytes(coded("mpeg2.ts").read_bytes() + (tmp_path / "small.ts").read_bytes())
    whole = WholeVideo(path)
    clip = read_clip(path, 140, None)
    for number, frame in enumerate(whole.frames):
        expected = resize_frames(torch.from_numpy(frame.copy()), (48, 64))
        assert torch.equal(clip[number], expected)


@pytest.mark.parametrize("name", SKIPPING)
def test_only_what_a_clip_needs_is_decoded(coded, decoded, name):
    """70 frames, a keyframe every 12: a clip needs its group's, and the file's first few."""
    path = coded(name)
    whole = WholeVideo(path)
    start = whole.times[50]
    _check(path, whole, _request([start], threads=1))
    assert decoded.pop() <= 30
    _check(path, whole, _request([start, 0.0], threads=1))
    assert decoded.pop() <= 32
    assert decoded == []


@pytest.mark.parametrize("name", ["h264_pyramid.mp4", "mpeg4.avi", "vp9.webm"])
def test_nothing_is_decoded_twice(coded, decoded, name):
    path = coded(name)
    starts = [i / 10 for i in range(28)]
    for rate in (None, 15.0):
        _check(path, WholeVideo(path), _request(starts, frame_rate=rate, clip_len=4))
        assert decoded.pop() <= CODINGS[name].frames


def test_a_low_rate_skips_inside_a_clip(coded, decoded):
    path = coded("mjpeg.avi")
    _check(path, WholeVideo(path), _request([0.0], frame_rate=2.5, clip_len=6))
    assert decoded.pop() <= 14


def test_far_clips_use_the_index(coded, decoded, monkeypatch):
    """What lies between is not even read."""
    monkeypatch.setattr(packets, "_NEAR", 0)
    read = 0
    original = packets.read_packets

    def counting(*arguments: Any) -> Any:
        nonlocal read
        for packet in original(*arguments):
            read += 1
            yield packet

    monkeypatch.setattr(packets, "read_packets", counting)
    for name in ("h264.mp4", "h264_open.mkv", "hevc.mp4"):
        read = 0
        path = coded(name)
        whole = WholeVideo(path)
        _check(path, whole, _request([whole.times[40]]))
        assert len(decoded) == 1 and decoded.pop() <= 30
        assert read <= 30


def _request(starts: list[float], **more: Any) -> dict[str, Any]:
    return {
        "starts": starts,
        "clip_len": 2,
        "frame_rate": None,
        "frame_stride": 1,
        "short": "pad",
        "threads": 1,
        **more,
    }


def test_frames_that_a_recorder_dropped(coded, tmp_path):
    """AVI has empty chunks for those, which end the stream for FFmpeg's decoders."""
    content = bytearray(coded("mjpeg.avi").read_bytes())
    place = content.index(b"movi")
    for _ in range(20):
        place = content.index(b"00dc", place + 4)
    size = int.from_bytes(content[place + 4 : place + 8], "little")
    rest = size + size % 2 - 8
    content[place + 4 : place + 16] = bytes(4) + b"JUNK" + rest.to_bytes(4, "little")
    path = tmp_path / "dropped.avi"
    path.write_bytes(content)
    frames, times = read_video(path)
    expected = WholeVideo(coded("mjpeg.avi")).frames
    assert len(times) == 69
    assert np.array_equal(frames[-1].numpy(), expected[-1])
    assert np.array_equal(read_clip(path, 1, None, times[40])[0].numpy(), expected[41])


def test_damage_that_clips_need_and_that_they_do_not(coded, tmp_path, caplog):
    source = coded("h264_intra.mov")
    with av.open(str(source)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][40]
    content = bytearray(source.read_bytes())
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path = tmp_path / "damaged.mov"
    path.write_bytes(content)
    at = 1.001 / 30 * 40
    read_clips(path, [0.0, at + 0.1], 5, None, on_damage="raise")
    assert not caplog.records
    message = r"damaged\.mov: damaged, 1 part.* near 1\.33 s"
    with pytest.raises(VideoError, match=message):
        read_clips(path, [at - 0.1], 6, None, on_damage="raise")
    with pytest.raises(VideoError, match=message):
        read_video(path, on_damage="raise")
    whole = WholeVideo(path)
    assert len(whole.times) == 69
    _check(path, whole, _request([at - 0.1], clip_len=6))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", b"two\nlines.mp4", b"100%d.mp4", b"a b?c#d.mp4"])
def test_any_name(coded, tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(coded("h264.mp4").read_bytes())
    assert torch.equal(read_clip(path), read_clip(coded("h264.mp4")))
    path.unlink()
    with pytest.raises(VideoError, match="no such file"):
        read_clip(path)

"""Decoding (about 8 s)."""

from __future__ import annotations

import logging
import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

av = pytest.importorskip("av")

from r21d.video import reader  # noqa: E402
from r21d.video.reader import VideoError, probe, read_clip, read_clips, read_video  # noqa: E402
from r21d.video.resize import resize_frames  # noqa: E402
from r21d.video.writer import write_video  # noqa: E402

FRAMES = 30
STEP = 8  # grey levels from one frame to the next


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames at 25 a second; frame i is grey level 8 i."""
    path = tmp_path_factory.mktemp("counter") / "counter.mp4"
    levels = (torch.arange(FRAMES) * STEP).to(torch.uint8)
    write_video(path, levels.view(-1, 1, 1, 1).expand(-1, 32, 48, 3), 25.0, quantizer=4)
    return path


def _numbers(clip: torch.Tensor) -> list[int]:
    """Which frames of the counter a clip holds."""
    levels = clip.float().flatten(-3).mean(-1) / STEP
    assert (levels - levels.round()).abs().max() < 0.3
    return levels.round().int().tolist()


def _remux(source: Path, target: Path, kind: str, sound: float = 0) -> Path:
    """The same coded frames in another container, with ``sound`` seconds of silence."""
    with av.open(str(source)) as reader, av.open(str(target), "w", format=kind) as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        track = writer.add_stream("aac", rate=44100, layout="mono") if sound else None
        for packet in reader.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                writer.mux(packet)
        if track is not None:
            silence = np.zeros((1, round(sound * 44100)), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
            frame.sample_rate, frame.pts = 44100, 0
            writer.mux([*track.encode(frame), *track.encode(None)])
    return target


@pytest.mark.parametrize(
    ("frame_rate", "stride", "step"),
    [(None, 1, 1), (25.0, 1, 1), (12.5, 1, 2), (None, 3, 3), (25.0, 4, 4)],
)
def test_even_clips_reach_both_ends(counter, frame_rate, stride, step):
    starts = probe(counter).clip_starts(6, frame_rate, 3, stride)
    found = read_clips(counter, starts, 6, frame_rate, frame_stride=stride)
    clips = [_numbers(clip) for clip in found]
    span = 5 * step
    assert clips[0] == list(range(0, span + 1, step))
    assert clips[2] == list(range(FRAMES - 1 - span, FRAMES, step))
    assert abs(clips[1][0] - clips[2][0] / 2) <= 1
    (middle,) = probe(counter).clip_starts(6, frame_rate, 1, stride)
    assert middle == pytest.approx(starts[1])


@pytest.mark.parametrize(
    ("frame_rate", "start", "expected"),
    [
        (25.0, 0.0, [0, 1, 2, 3, 4, 5]),
        (12.5, 0.0, [0, 2, 4, 6, 8, 10]),
        (15.0, 0.0, [0, 1, 3, 5, 6, 8]),
        (50.0, 0.0, [0, 0, 1, 1, 2, 2]),
        (10.0, 0.13, [3, 5, 8, 10, 13, 15]),
        (25.0, 0.79, [19, 20, 21, 22, 23, 24]),
        (25.0, 1.08, [27, 28, 29, 29, 29, 29]),
        (2.0, 0.0, [0, 12, 25, 29, 29, 29]),
        (None, 0.0, [0, 1, 2, 3, 4, 5]),
        (None, 0.5, [12, 13, 14, 15, 16, 17]),
        (None, 1.1, [27, 28, 29, 29, 29, 29]),
    ],
)
def test_which_frames_are_read(counter, frame_rate, start, expected):
    assert _numbers(read_clip(counter, 6, frame_rate, start)) == expected


@pytest.mark.parametrize(
    ("frame_rate", "stride", "short", "start", "expected"),
    [
        (None, 4, "pad", 0.0, [0, 4, 8, 12, 16, 20]),
        (None, 4, "pad", 0.5, [12, 16, 20, 24, 28, 29]),
        (None, 4, "loop", 0.5, [12, 16, 20, 24, 28, 2]),
        (None, 29, "loop", 0.0, [0, 29, 28, 27, 26, 25]),
        (25.0, 4, "pad", 0.5, [12, 16, 20, 24, 28, 29]),
        (25.0, 4, "loop", 0.5, [12, 16, 20, 24, 28, 2]),
        (5.0, 1, "loop", 0.8, [20, 25, 0, 5, 10, 15]),
        (12.5, 2, "loop", 1.16, [29, 3, 7, 11, 15, 19]),
        (25.0, 1, "loop", 12.0, [0, 1, 2, 3, 4, 5]),
        (1.0, 1, "loop", 0.0, [0, 25, 20, 15, 10, 5]),
    ],
)
def test_strides_and_loops(counter, caplog, frame_rate, stride, short, start, expected):
    clip = read_clip(counter, 6, frame_rate, start, frame_stride=stride, short=short)
    assert _numbers(clip) == expected
    assert not caplog.records


@pytest.mark.parametrize("kind", ["matroska", "mpegts", "flv", "h264"])
def test_other_containers_give_the_same_frames(counter, tmp_path, kind):
    """Whole milliseconds, a start time of 1.4 s, no times at all."""
    path = _remux(counter, tmp_path / f"counter.{kind}", kind)
    for start in (0.0, 0.5, 0.96):
        clip = read_clip(path, 5, 12.5, start)
        assert _numbers(clip) == _numbers(read_clip(counter, 5, 12.5, start))
    assert probe(path).duration == pytest.approx(FRAMES / 25, abs=0.1)


@pytest.mark.parametrize("kind", ["flv", "asf", "matroska", "mov", "mpegts"])
def test_the_duration_is_that_of_the_picture_not_of_the_sound(counter, tmp_path, kind):
    path = _remux(counter, tmp_path / f"counter.{kind}", kind, sound=4.0)
    # Not every program writes a duration per track.
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"ANYTHING"))
    info = probe(path)
    assert info.duration == pytest.approx(FRAMES / 25, abs=0.01)
    (last,) = read_clips(path, info.clip_starts(6, None, 3)[-1:], 6, None)
    assert _numbers(last) == list(range(FRAMES - 6, FRAMES))
    with av.open(str(path)) as container:
        assert container.duration > 3.5e6


@pytest.mark.parametrize("all_intra", [True, False])
def test_seeking_gives_what_decoding_from_the_start_gives(tmp_path, all_intra):
    path = tmp_path / "long.mp4"
    noise = torch.randint(256, (200, 4, 4, 3), dtype=torch.uint8)
    frames = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)
    write_video(path, frames, 25.0, all_intra=all_intra)
    everything, times = read_video(path)
    assert len(times) == 200
    for index in (0, 6, 7, 99, 150, 199):
        clip = read_clip(path, 2, None, index / 25)
        assert torch.equal(clip[0], everything[index])
        assert torch.equal(clip[1], everything[min(index + 1, 199)])


def test_clips_in_one_pass_equal_clips_one_by_one(counter):
    starts = [0.9, 0.0, 0.3, 0.3]
    for rate in (None, 15.0):
        clips = read_clips(counter, starts, 7, rate)
        assert clips.shape == (4, 7, 32, 48, 3)
        assert clips.dtype == torch.uint8
        for start, clip in zip(starts, clips, strict=True):
            assert torch.equal(clip, read_clip(counter, 7, rate, start))


def test_scaling_while_decoding_equals_scaling_the_clip(test_data):
    path = test_data / "weizmann" / "walk" / "daria_walk.mp4"
    clip = read_clips(path, [0.5], 4, 15.0)
    for size in ((50, 70), 50):
        scaled = read_clips(path, [0.5], 4, 15.0, size=size)
        assert torch.equal(scaled, resize_frames(clip, size))
        plain = read_clips(path, [0.5], 4, 15.0, size=size, antialias=False)
        assert torch.equal(plain, resize_frames(clip, size, antialias=False))
        assert not torch.equal(plain, scaled)
    assert scaled.shape[2:4] == (50, 62)


def test_a_stream_that_changes_its_size_keeps_the_first_ones(tmp_path):
    """The shorter side of 16 would be 16x24 first and 24x16 then."""
    parts = []
    for name, height, width in (("wide", 32, 48), ("tall", 48, 32)):
        noise = torch.randint(256, (6, height // 8, width // 8, 3), dtype=torch.uint8)
        frames = noise.repeat_interleave(8, 1).repeat_interleave(8, 2)
        write_video(tmp_path / f"{name}.mp4", frames, 25.0, all_intra=True)
        coded = _remux(tmp_path / f"{name}.mp4", tmp_path / f"{name}.h264", "h264")
        parts.append((coded.read_bytes(), read_clip(coded, 6, None)))
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(content for content, _ in parts))
    clip = read_clips(path, [0.0], 12, None, size=16)[0]
    expected = torch.cat([resize_frames(frames, (16, 24)) for _, frames in parts])
    assert torch.equal(clip, expected)


def test_start_after_the_end_repeats_the_last_frame_and_says_so(counter, caplog):
    assert _numbers(read_clip(counter, 3, 15.0, start=60.0)) == [29, 29, 29]
    assert "the last frame is at 1.16 s" in caplog.text


def test_probe(counter):
    info = probe(counter)
    assert (info.frames, info.width, info.height, info.rotation) == (FRAMES, 48, 32, 0)
    assert (info.duration, info.frame_rate) == pytest.approx((1.2, 25.0))
    assert (info.codec, info.path) == ("h264", counter)


# a, b, c, d of the track header's matrix -> what it does to (..., H, W, 3).
ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), lambda x: x),
    "clockwise": ((0, 1, -1, 0), lambda x: x.rot90(-1, (1, 2))),
    "upside down": ((-1, 0, 0, -1), lambda x: x.rot90(2, (1, 2))),
    "anticlockwise": ((0, -1, 1, 0), lambda x: x.rot90(1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda x: x.flip(2)),
    "mirrored top to bottom": ((1, 0, 0, -1), lambda x: x.flip(1)),
    "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 2)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_orientation(tmp_path, name):
    path = tmp_path / "turned.mp4"
    corners = torch.randint(256, (3, 2, 3, 3), dtype=torch.uint8)
    write_video(path, corners.repeat_interleave(16, 1).repeat_interleave(16, 2), quantizer=8)
    stored = read_clip(path, 3, None)
    (a, b, c, d), turn = ORIENTATIONS[name]
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    one = 1 << 16
    struct.pack_into(
        ">9i", content, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30
    )
    path.write_bytes(content)
    turned = turn(stored)
    assert torch.equal(read_clip(path, 3, None), turned)
    info = probe(path)
    assert (info.height, info.width) == tuple(turned.shape[1:3])


def _write_wav(path: Path) -> None:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))


def _write_picture(path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    picture = torch.randint(256, (32, 32, 3), dtype=torch.uint8).numpy()
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


ODD_FILES = {
    "missing": ("a.mp4", lambda path: None, "no such file"),
    "folder": ("a.mp4", lambda path: path.mkdir(), "not a regular file"),
    "pipe": ("a.mp4", os.mkfifo, "not a regular file"),
    "empty": ("a.mp4", lambda path: path.touch(), "the file is empty"),
    "text": ("a.mp4", lambda path: path.write_text("hello\n" * 99), "cannot be opened as a video"),
    "text, honestly": ("a.txt", lambda path: path.write_text("hello\n" * 99), "a text file"),
    "noise": ("a.mp4", lambda path: path.write_bytes(os.urandom(4096)), "cannot be opened"),
    "sound": ("a.wav", _write_wav, "no video stream"),
    "picture": ("a.png", _write_picture, "a still image"),
    "picture, renamed": ("a.mp4", _write_picture, "a still image"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_what_is_no_video_gives_one_clear_error(tmp_path, capfd, kind):
    name, make, message = ODD_FILES[kind]
    path = tmp_path / name
    make(path)
    for read in (read_clip, probe, read_video):
        with pytest.raises(VideoError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_name_that_looks_like_a_protocol_is_a_file(counter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("http:x.mp4").write_bytes(counter.read_bytes())
    assert _numbers(read_clip("http:x.mp4", 2, None)) == [0, 1]


def test_truncated_file_gives_what_decodes(tmp_path, capfd):
    whole = tmp_path / "whole.mp4"
    noise = torch.randint(256, (FRAMES, 64, 64, 3), dtype=torch.uint8)
    write_video(whole, noise, 25.0, all_intra=True)
    content = _remux(whole, tmp_path / "whole.mkv", "matroska").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(content[: len(content) // 2])
    expected, _ = read_video(whole)
    clip = read_clip(path, FRAMES, None)
    assert torch.equal(clip[:10], expected[:10])
    assert torch.equal(clip[20:], clip[20].expand(10, -1, -1, -1))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seed", range(20))
def test_damaged_file_gives_frames_or_an_error(counter, tmp_path, seed):
    content = bytearray(counter.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    for place in torch.randint(len(content), (40,), generator=generator).tolist():
        content[place] ^= 0xA5
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    try:
        clip = read_clip(path, 8, 12.5, 0.2)
    except VideoError as error:
        assert str(path) in str(error)
    else:
        assert clip.shape[0] == 8
        assert clip.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_len": 0}, "clip_len must be a whole number of frames, at least 1, got 0"),
        ({"clip_len": 1.5}, "clip_len"),
        ({"frame_rate": 0.0}, "frame_rate must be positive"),
        ({"frame_rate": float("inf")}, "frame_rate must be positive"),
        ({"start": -0.1}, "start must be a finite number of seconds, at least 0, got -0.1"),
        ({"start": float("nan")}, "start must be"),
        ({"frame_stride": 0}, "frame_stride must be a whole number, at least 1, got 0"),
        ({"short": "cut"}, "short must be 'pad' or 'loop', got 'cut'"),
        ({"decoder": "opencv"}, "decoder must be 'pyav' or 'torchcodec', got 'opencv'"),
        ({"threads": 0}, "threads must be a whole number, at least 1, or None, got 0"),
    ],
)
def test_bad_arguments(counter, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_clip(counter, **arguments)


@pytest.mark.parametrize("read", [read_video, lambda path, **more: read_clips(path, [0], **more)])
def test_bad_ways_to_report_damage(counter, read):
    with pytest.raises(ValueError, match="on_damage must be 'warn' or 'raise', got 'ignore'"):
        read(counter, on_damage="ignore")


class _Threads(torch.utils.data.Dataset):
    """Item 0 is how many threads decode."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        counts = []

        class WatchedDecoder(reader.Decoder):
            def __exit__(self, *error: object) -> None:
                counts.append(self.stream.codec_context.thread_count)
                super().__exit__(*error)

        reader.Decoder, plain = WatchedDecoder, reader.Decoder
        try:
            read_clip(self.path)
        finally:
            reader.Decoder = plain
        return counts[0]


def test_threads_are_bounded(counter, monkeypatch):
    dataset = _Threads(counter)
    for cpus, threads in ((1, 1), (3, 3), (64, 4)):
        monkeypatch.setattr(reader, "available_cpus", lambda cpus=cpus: cpus)
        assert dataset[0] == threads
        loader = torch.utils.data.DataLoader(dataset, num_workers=1)
        assert [int(count) for count in loader] == [1]


def test_no_starts(counter):
    with pytest.raises(ValueError, match="starts is empty"):
        read_clips(counter, [])


# File -> (frames that decode, height, width, codec).
VIDEOS = {
    "decord_flipping_a_pancake.mkv": (310, 240, 426, "h264"),
    "decord_video_90.mov": (3, 568, 320, "h264"),
    "torchcodec_av1_video.mkv": (125, 360, 640, "av1"),
    "torchcodec_bt709_full_range.mp4": (30, 720, 1280, "h264"),
    "torchcodec_h265_video.mp4": (10, 128, 128, "hevc"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_odd_videos(test_data, caplog, name):
    path = test_data / "videos" / name
    count, height, width, codec = VIDEOS[name]
    info = probe(path)
    assert (info.height, info.width, info.codec) == (height, width, codec)
    assert info.duration * info.frame_rate == pytest.approx(count, abs=0.5)
    frames, times = read_video(path, size=(36, 64))
    assert len(frames) == len(times) == count
    middle = info.duration / 2
    clip = read_clip(path, 4, 15.0, middle)
    assert clip.shape == (4, height, width, 3)
    shown = max(i for i, time in enumerate(times) if time <= middle + 1e-3)
    assert torch.equal(resize_frames(clip[0], (36, 64)), frames[shown])
    assert not caplog.records


@pytest.mark.parametrize("name", [name for name in VIDEOS if "av1" not in name])
def test_colours_and_orientation_are_opencvs(test_data, name):
    cv2 = pytest.importorskip("cv2")
    capture = cv2.VideoCapture(str(test_data / "videos" / name))
    worked, picture = capture.read()
    capture.release()
    assert worked
    expected = torch.from_numpy(picture).flip(-1).int()
    difference = (read_clip(test_data / "videos" / name, 1)[0].int() - expected).abs()
    assert difference.float().mean() < 1.0
    assert difference.max() <= 4


def test_full_range_bt709_colours(test_data):
    """Against the standard's matrix, worked out here from the stored luma and chroma."""
    path = test_data / "videos" / "torchcodec_bt709_full_range.mp4"
    with av.open(str(path)) as container:
        planes = [
            torch.frombuffer(bytearray(p), dtype=torch.uint8).view(p.height, -1)[:, : p.width]
            for p in next(container.decode(video=0)).planes
        ]
    y = planes[0].double()
    cb, cr = (p.double().repeat_interleave(2, 0).repeat_interleave(2, 1) - 128 for p in planes[1:])
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    expected = torch.stack([red, green, blue], -1).clamp(0, 255)
    difference = (read_clip(path, 1)[0].double() - expected).abs()
    assert difference.mean() < 1.0  # the rest is chroma interpolation at edges


def test_corrupt_video_gives_what_decodes_with_one_warning(test_data, caplog, capfd):
    path = test_data / "videos" / "decord_corrupted.mp4"
    with caplog.at_level(logging.WARNING):
        clips = read_clips(path, [0.0, 2.0, 4.0], 10, 10.0, size=(72, 128))
    assert clips.shape == (3, 10, 72, 128, 3)
    assert (clips[0, 1:].int() - clips[0, :-1].int()).abs().sum() > 0
    (record,) = caplog.records
    assert "decord_corrupted.mp4: damaged" in record.getMessage()
    assert capfd.readouterr().err == ""


def test_weizmann_clip(test_data):
    path = test_data / "weizmann" / "wave2" / "ira_wave2.mp4"
    info = probe(path)
    assert (info.width, info.height, info.frame_rate) == (160, 128, 25.0)
    first, again = (read_clip(path, 16, 15.0) for _ in range(2))
    assert first.shape == (16, 128, 160, 3)
    assert torch.equal(first, again)

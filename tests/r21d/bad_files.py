"""Makes the files of docs/bad_files.md, by the names that its rows have there."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from video.coded_videos import HEIGHT, WIDTH, Coding
from video.coded_videos import encode as write_coded

FRAMES, RATE = 24, 25

_Options = dict[str, str]
_Recipe = tuple[str, str, _Options, _Options]
_X265 = {"x265-params": "log-level=none:pools=none:frame-threads=1"}
_FIRST = {"movflags": "faststart"}

#: name: encoder, container, options of either. These tell their length ahead of the pictures, ...
_LENGTH_FIRST: dict[str, _Recipe] = {
    "h264.mp4": ("libx264", "mp4", {"x264-params": "scenecut=0"}, _FIRST),
    "hevc.mp4": ("libx265", "mp4", _X265, _FIRST),
    "av1.mp4": ("libsvtav1", "mp4", {"svtav1-params": "lp=1"}, _FIRST),
    "mpeg4.mp4": ("mpeg4", "mp4", {}, _FIRST),
    "fragmented.mp4": ("libx264", "mp4", {}, {"movflags": "frag_every_frame+empty_moov"}),
    "prores.mov": ("prores", "mov", {}, _FIRST),
    "h264.mkv": ("libx264", "matroska", {}, {}),
    "hevc.mkv": ("libx265", "matroska", _X265, {}),
    "vp8.webm": ("libvpx", "webm", {}, {}),
    "vp9.webm": ("libvpx-vp9", "webm", {}, {}),
    "mpeg4.avi": ("mpeg4", "avi", {}, {}),
    "mjpeg.avi": ("mjpeg", "avi", {}, {}),
    "h264.flv": ("libx264", "flv", {}, {}),
    "wmv2.wmv": ("wmv2", "asf", {}, {}),
}
#: ... these behind them, ...
_LENGTH_LAST: dict[str, _Recipe] = {"last.mp4": ("libx264", "mp4", {}, {})}
#: ... and these nowhere.
_NO_LENGTH: dict[str, _Recipe] = {
    "h264.ts": ("libx264", "mpegts", {}, {}),
    "mpeg2.ts": ("mpeg2video", "mpegts", {}, {}),
    "mpeg2.mpg": ("mpeg2video", "mpeg", {}, {}),
}


def make_bad_files(folder: Path, test_data: Path | None) -> dict[str, list[Path]]:
    """Write the files of every row of the table into ``folder``; returns them by row.

    Copies of the odd videos of ``test_data``, where there are any, are cut like the others.
    """
    plain = sound_video()
    odd_name = Path(os.fsdecode(os.fsencode(folder) + b"/a\n\xff.mp4"))
    rows = {
        "empty": [_write(folder / "empty.mp4", b"")],
        "text": [_write(folder / "text.mp4", b"This is not a video.\n" * 100)],
        "sound": [_write(folder / "sound.mp4", _sound())],
        "single": [_write(folder / "single.mp4", encode(*_LENGTH_LAST["last.mp4"], frames=1))],
        "large": [_write(folder / "large.mp4", _large())],
        "name": [_write(odd_name, plain)],
        "folder": [folder / "folder.mp4"],
        "unreadable": [_write(folder / "unreadable.mp4", plain)],
        "gone": [_write(folder / "gone.mp4", plain)],
        "damaged": [_write(folder / "damaged.mp4", overwritten(plain))],
        **_cut_files(folder, test_data),
    }
    rows["folder"][0].mkdir()
    _write(rows["folder"][0] / "frame.jpg", b"")
    rows["unreadable"][0].chmod(0)
    return rows


def sound_video() -> bytes:
    """H.264, key frames at 0 and 12 of 24."""
    return encode(*_LENGTH_FIRST["h264.mp4"])


def encode(
    codec: str,
    container: str,
    options: _Options,
    container_options: _Options,
    frames: int = FRAMES,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    late: int = 0,
) -> bytes:
    """The content of a video; (height, width) in ``size``, the last frame ``late`` periods late."""
    pixels = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}.get(codec, "yuv420p")
    period = 1000 // RATE
    times = (*range(0, (frames - 1) * period, period), (frames - 1 + late) * period)
    coding = Coding(
        codec,
        container,
        options,
        frames,
        Fraction(RATE),
        pixels,
        times=times if late else None,
        muxer=container_options,
    )
    # A file, because the length can be put first only by reading again what was written.
    with tempfile.TemporaryDirectory() as folder:
        return write_coded(Path(folder) / "video", coding, size).read_bytes()


def _cut_files(folder: Path, test_data: Path | None) -> dict[str, list[Path]]:
    """Truncated copies, by what is left of each."""
    whole = {
        name: encode(*recipe)
        for name, recipe in {**_LENGTH_FIRST, **_LENGTH_LAST, **_NO_LENGTH}.items()
    }
    groups = {"first": [*_LENGTH_FIRST], "last": [*_LENGTH_LAST], "none": [*_NO_LENGTH]}
    for path in [] if test_data is None else sorted((test_data / "videos").iterdir()):
        whole[path.name] = path.read_bytes()
        groups["last" if path.suffix in (".mp4", ".mov") else "first"].append(path.name)
    rows: dict[str, list[Path]] = {
        row: [] for row in ("cut before", "cut", "cut end", "cut last", "cut between", "cut within")
    }
    for group, names in groups.items():
        for name in names:
            content = whole[name]
            packets = list(_packets(content))
            begins = [position for position, _ in packets]
            middles = [position + size // 2 for position, size in packets]
            half, two_thirds = len(packets) // 2, 2 * len(packets) // 3
            places = {
                "first": {
                    "cut before": [begins[0]],
                    "cut": [middles[half], middles[two_thirds]],
                    "cut end": [middles[-1]],
                },
                "last": {"cut last": [middles[half], middles[-1], sum(packets[-1])]},
                # The picture in the middle is a key frame, which takes several of their packets.
                "none": {
                    "cut within": [middles[half]],
                    "cut between": [] if name.endswith(".mpg") else [begins[half], begins[-1]],
                },
            }
            for row, cuts in places[group].items():
                for cut in sorted(set(cuts)):
                    rows[row].append(_write(folder / f"cut{cut}_{name}", content[:cut]))
    return rows


def _packets(content: bytes) -> Iterator[tuple[int, int]]:
    """Where in the file the pictures are coded, and with how many bytes each."""
    with av.open(io.BytesIO(content)) as file:
        for packet in file.demux(video=0):
            if packet.size and packet.pos is not None:
                yield packet.pos, packet.size


def overwritten(content: bytes) -> bytes:
    """`sound_video` with its second key frame overwritten."""
    position, size = list(_packets(content))[FRAMES // 2]
    return content[:position] + b"\xff" * size + content[position + size :]


def _large() -> bytes:
    return encode(*_LENGTH_LAST["last.mp4"], frames=2, size=(2160, 4096))


def _sound() -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return content.getvalue()


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path

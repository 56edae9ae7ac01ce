"""Files that were cut short, told without decoding (about 2 s)."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

import av
from bad_files import encode

from r21d.video.truncation import cut_short, missing_bytes

FILES = {
    "mp4": ("libx264", "mp4", {}, {}),
    "faststart": ("libx264", "mp4", {}, {"movflags": "faststart"}),
    "fragmented": ("libx264", "mp4", {}, {"movflags": "frag_every_frame+empty_moov"}),
    "mkv": ("libx264", "matroska", {}, {}),
    "webm": ("libvpx", "webm", {}, {}),
    "avi": ("mpeg4", "avi", {}, {}),
    "flv": ("libx264", "flv", {}, {}),
    "wmv": ("wmv2", "asf", {}, {}),
}


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return {name: encode(*recipe, frames=12) for name, recipe in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_cut_at_every_byte_of_the_pictures(
    contents: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    """No cut passes for a whole file; only between two fragments or tags is a file whole, too."""
    content = contents[name]
    path = tmp_path / "video"
    path.write_bytes(content)
    assert missing_bytes(path) == 0
    assert cut_short(path) is None
    with av.open(io.BytesIO(content)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    with path.open("r+b") as cut:
        for end in reversed(range(packets[0][0], sum(packets[-1]))):
            cut.truncate(end)
            missing = missing_bytes(path)
            inside = any(begin < end < begin + size for begin, size in packets)
            if name not in ("fragmented", "flv") or inside:
                assert 0 < missing <= len(content) - end
    assert cut_short(path) is not None or name in ("fragmented", "flv")


def test_what_is_said(contents: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(contents["faststart"][:-1])
    assert cut_short(path) == "the file is cut short, at least 1 byte missing"
    path.write_bytes(contents["faststart"][:-1234])
    assert cut_short(path) == "the file is cut short, at least 1,234 bytes missing"


def test_matroska_of_unknown_length_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(encode("libx264", "matroska", {}, {"live": "1"}))
    assert b"\x18\x53\x80\x67\x01" + b"\xff" * 7 in path.read_bytes()
    assert missing_bytes(path) == 0


def test_padding_behind_the_last_box_is_no_box(contents: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "video"
    for padding in (b"\0" * 100, b"\xff" * 100, b"\x7f\xff\xff\xffjunk" * 10):
        path.write_bytes(contents["mp4"] + padding)
        assert missing_bytes(path) == 0


def test_mp4_of_more_than_4_gigabytes(tmp_path: Path) -> None:
    """Its box of pictures has a size of 64 bits; the file is sparse."""
    path = tmp_path / "video"
    length = 5 << 30
    start = b"\0\0\0\x08ftyp" + b"\0\0\0\x01mdat" + length.to_bytes(8, "big")
    path.write_bytes(start)
    assert missing_bytes(path) == 8 + length - len(start)


def test_avi_of_several_riff_chunks(tmp_path: Path) -> None:
    """OpenDML: files beyond 1 GB go on in chunks of their own."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return kind + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)

    movie = chunk(b"LIST", b"movi" + b"p" * 101)
    first = chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"hdrl" + b"h" * 20) + movie)
    second = chunk(b"RIFF", b"AVIX" + movie)
    path = tmp_path / "video"
    for content, missing in ((first + second, 0), (first + second[:-10], 9), (first[:-12], 11)):
        path.write_bytes(content)
        assert missing_bytes(path) == missing


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_header_breaks_it(
    contents: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever bytes a file begins with, there is an answer."""
    start = data.draw(st.sampled_from([b"", *(content[:400] for content in contents.values())]))
    noise = data.draw(st.binary(max_size=64))
    place = data.draw(st.integers(0, len(start)))
    path = tmp_path / "video"
    path.write_bytes(start[:place] + noise + start[place + len(noise) :])
    assert missing_bytes(path) >= 0

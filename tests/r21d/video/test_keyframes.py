"""Where decoding may begin, and what shows that it lost nothing (about 2 s)."""

from __future__ import annotations

from pathlib import Path

import pytest

av = pytest.importorskip("av")

from video.coded_videos import CODINGS, encode  # noqa: E402

from r21d.video.keyframes import entry_test, shows_picture  # noqa: E402
from r21d.video.order import FrameOrder, UnsureError  # noqa: E402


def _entries(path: Path) -> tuple[list[int], list[int]]:
    """The packets with which decoding may begin, and those that the container marks."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        found = [packet for packet in container.demux(stream) if packet.size]
        is_entry = entry_test(
            context.codec.canonical_name,
            context.codec.intra_only,
            context.extradata or b"",
            bytes(found[0]),
        )
        marked = [i for i, packet in enumerate(found) if packet.is_keyframe]
        return [i for i, packet in enumerate(found) if is_entry(bytes(packet))], marked


@pytest.mark.parametrize(
    "name",
    [
        *["h264.mp4", "h264_pyramid.mp4", "h264_open.ts", "h264_intra.mov", "hevc.mp4", "hevc.ts"],
        *["hevc_leading.mkv", "vp8.webm", "vp9.webm", "mpeg4.avi", "mpeg2.mpg", "mpeg1.mpg"],
    ],
)
def test_the_coded_pictures_tell_the_keyframes(tmp_path, name):
    found, marked = _entries(encode(tmp_path / name, CODINGS[name]))
    assert len(marked) > 4
    assert found == marked


@pytest.mark.parametrize("name", ["h264_refresh.mp4", "h264_refresh.mkv"])
def test_a_gradual_refresh_is_no_place_to_begin(tmp_path, name):
    found, marked = _entries(encode(tmp_path / name, CODINGS[name]))
    assert found == [0]
    assert len(marked) > 4


def test_codecs_without_a_test():
    assert entry_test("gif", False, b"", b"GIF") is None
    assert entry_test("prores", True, b"", b"")(b"any")


def test_parameter_sets_that_travel_in_the_stream_must_come_along():
    sequence, picture, idr = (b"\0\0\1" + bytes([kind, 1, 2, 3]) for kind in (7, 8, 5))
    is_entry = entry_test("h264", False, b"", sequence + picture + idr)
    assert is_entry(sequence + picture + idr)
    assert not is_entry(idr)
    assert not is_entry(picture + idr)


def test_vp8_has_pictures_that_are_not_shown():
    assert shows_picture("vp8", 0x10)
    assert not shows_picture("vp8", 0x00)
    assert shows_picture("vp9", 0x00)


def _order(*times: int) -> FrameOrder:
    order = FrameOrder()
    for time in times:
        order.expect(time)
    return order


def test_frames_in_the_order_of_display_are_admitted():
    order = _order(0, 3, 1, 2)
    assert [order.admit(time, time == 0, False) for time in range(4)] == [0, 1, 2, 3]
    order.end()


@pytest.mark.parametrize(
    ("expected", "frames"),
    [
        ((0, 1, 2), [0, 2]),  # one lost
        ((0, 1), [0, 1, 1]),  # one too many
        ((0, 1), [0, None]),
        ((0, 2, 1), [0, 2]),  # displaced
    ],
)
def test_frames_that_are_not_due(expected, frames):
    order = _order(*expected)
    with pytest.raises(UnsureError, match="do not come as their packets say"):
        for frame in frames:
            order.admit(frame, True, False)


def test_other_signs_of_trouble():
    with pytest.raises(UnsureError, match="without a time stamp"):
        _order(0, None)
    with pytest.raises(UnsureError, match="do not come"):
        _order(0).admit(0, True, True)
    order = _order(0, 1)
    order.admit(0, True, False)
    with pytest.raises(UnsureError, match="frames are missing"):
        order.end()
    order = _order(5)
    order.admit(5, True, False)
    order.expect(1)  # time steps back
    with pytest.raises(UnsureError, match="do not come"):
        order.admit(1, True, False)


def test_frames_shown_before_the_keyframe_are_left_out():
    order = _order(0)
    order.begin_anew()
    for time in (20, 18, 19, 21):
        order.expect(time)
    shown = [order.admit(time, time == 20, time < 20) for time in (18, 19, 20, 21)]
    assert shown == [None, None, 20, 21]
    order.end()
    order.begin_anew()
    order.expect(30)
    with pytest.raises(UnsureError, match="a frame that needs others"):
        order.admit(30, False, False)

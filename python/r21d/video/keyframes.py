"""At which packets of a stream decoding may begin and still give the frames of the whole stream.

A container's keyframe flag does not say that: it also marks where an H.264 stream with intra
refresh starts to recover. Here the coded picture itself is read, as far as its type. Codecs that
are not listed give None, and are decoded from their start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_H264_IDR, _H264_SEI, _H264_SETS = 5, 6, {7, 8}
_H264_PICTURES = range(1, 6)
_RECOVERY_POINT = 6
_HEVC_PICTURES, _HEVC_RANDOM_ACCESS, _HEVC_SETS = range(32), range(16, 22), {32, 33, 34}
_AV1_SEQUENCE_HEADER, _AV1_FRAMES = 1, {3, 6}

IsEntry = Callable[[bytes], bool]


def entry_test(codec: str, intra_only: bool, extradata: bytes, first: bytes) -> IsEntry | None:
    """How to tell, from the bytes of a packet, whether decoding may begin with it.

    ``extradata`` are the stream's headers as the container states them and ``first`` is its first
    packet. Where decoding does begin, the frames that are shown before the packet's own must be
    left out: with open groups of pictures they refer to what came before.
    """
    if intra_only:
        return lambda _: True
    if codec == "h264":
        return _with_parameter_sets(extradata, first, 4, _H264_SETS, lambda n: n[0] & 31, _h264)
    if codec == "hevc":
        return _with_parameter_sets(
            extradata, first, 21, _HEVC_SETS, lambda n: n[0] >> 1 & 63, _hevc
        )
    return _TESTS.get(codec)


def shows_picture(codec: str, first_byte: int) -> bool:
    """Whether a frame comes of the packet; VP8 has packets that only prepare others."""
    return codec != "vp8" or bool(first_byte & 0x10)


_Units = list[tuple[int, bytes]]


def _with_parameter_sets(
    extradata: bytes,
    first: bytes,
    length_field: int,
    sets: set[int],
    kind: Callable[[bytes], int],
    is_random_access: Callable[[_Units], bool],
) -> IsEntry:
    """The test for H.264 and HEVC, with or without start codes.

    Where the stream itself carries parameter sets, these can change on the way, and a picture to
    begin with must bring them along.
    """
    # ISO/IEC 14496-15: version 1 first, and the size of length fields at a fixed place.
    length = (extradata[length_field] & 3) + 1 if extradata[:1] == b"\1" else 0

    def units(packet: bytes) -> _Units:
        parts = _prefixed(packet, length) if length else _start_coded(packet)
        return [(kind(part), part) for part in parts if len(part) > 2]

    wanted = sets if not length or {k for k, _ in units(first)} & sets else set()

    def is_entry(packet: bytes) -> bool:
        found = units(packet)
        return wanted <= {k for k, _ in found} and is_random_access(found)

    return is_entry


def _prefixed(packet: bytes, length: int) -> Iterator[bytes]:
    """NAL units, each behind its length."""
    place = 0
    while place + length < len(packet):
        size = int.from_bytes(packet[place : place + length], "big")
        yield packet[place + length : place + length + size]
        place += length + size


def _start_coded(packet: bytes) -> Iterator[bytes]:
    """What follows each start code 00 00 01."""
    place = packet.find(b"\0\0\1")
    while place >= 0:
        following = packet.find(b"\0\0\1", place + 3)
        yield packet[place + 3 : following if following >= 0 else len(packet)]
        place = following


def _h264(units: _Units) -> bool:
    """An IDR picture, or one at which recovery is exact and complete (open group of pictures)."""
    pictures = {kind for kind, _ in units if kind in _H264_PICTURES}
    if pictures == {_H264_IDR}:
        return True
    return bool(pictures) and any(
        _recovers_at_once(unit) for kind, unit in units if kind == _H264_SEI
    )


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an SEI unit holds a recovery point with no frames to wait for, an exact one."""
    content = unit[1:].replace(b"\0\0\3", b"\0\0")
    place = 0
    # Shorter rests are the trailing bits.
    while place + 2 < len(content):
        values = []
        for _ in range(2):
            value = 0
            while place < len(content) and content[place] == 255:
                value, place = value + 255, place + 1
            if place == len(content):
                return False
            values.append(value + content[place])
            place += 1
        kind, size = values
        if kind == _RECOVERY_POINT and place < len(content):
            # recovery_frame_cnt = 0 is one bit, 1; then exact_match_flag and broken_link_flag.
            return content[place] >> 5 == 0b110
        place += size
    return False


def _hevc(units: _Units) -> bool:
    """An intra random access point: IDR, BLA or CRA."""
    pictures = [kind for kind, _ in units if kind in _HEVC_PICTURES]
    return bool(pictures) and pictures[0] in _HEVC_RANDOM_ACCESS


def _vp8(packet: bytes) -> bool:
    return not packet[0] & 1


def _vp9(packet: bytes) -> bool:
    """frame_marker, the profile (and a reserved bit), show_existing_frame = 0, frame_type = 0."""
    return not packet[0] & (0x06 if packet[0] & 0x30 == 0x30 else 0x0C)


def _av1(packet: bytes) -> bool:
    """A sequence header, and a first frame that is a key frame and shown at once."""
    place, has_sequence = 0, False
    while place < len(packet):
        header = packet[place]
        place += 2 if header & 4 else 1
        size = len(packet) - place
        if header & 2:
            size, place = _leb128(packet, place)
        kind = header >> 3 & 15
        if kind in _AV1_FRAMES:
            # show_existing_frame = 0, frame_type = 0 (two bits), show_frame = 1.
            return has_sequence and packet[place : place + 1] != b"" and packet[place] >> 4 == 1
        has_sequence = has_sequence or kind == _AV1_SEQUENCE_HEADER
        place += size
    return False


def _leb128(packet: bytes, place: int) -> tuple[int, int]:
    """A number in little-endian base 128, and the place behind it."""
    value = 0
    for i, byte in enumerate(packet[place : place + 8]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, place + i + 1
    return value, len(packet)


def _mpeg12(packet: bytes) -> bool:
    """A sequence header, which resets the matrices, and a first picture that is intra-coded."""
    units = list(_start_coded(packet))
    pictures = [unit for unit in units if unit[:1] == b"\0"]
    has_sequence = any(unit[:1] == b"\xb3" for unit in units)
    return (
        has_sequence and len(pictures[0]) > 2 and pictures[0][2] >> 3 & 7 == 1
        if pictures
        else False
    )


def _mpeg4(packet: bytes) -> bool:
    """A first picture (VOP) that is intra-coded."""
    place = packet.find(b"\0\0\1\xb6")
    return 0 <= place < len(packet) - 4 and packet[place + 4] >> 6 == 0


def _flagged(_: bytes) -> bool:
    return True


_TESTS: dict[str, IsEntry] = {
    "av1": _av1,
    "mpeg1video": _mpeg12,
    "mpeg2video": _mpeg12,
    "mpeg4": _mpeg4,
    "vp8": _vp8,
    "vp9": _vp9,
    # Each intra picture of these resets the decoder, and the container's flag tells them.
    **dict.fromkeys(("flv1", "h263", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"), _flagged),
}

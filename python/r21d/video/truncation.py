"""Files that were cut short, told by the sizes in their own headers, without decoding.

FFmpeg reads the rest of a cut file without a word: the video just ends early. Most containers say
how long their parts are, so that an interrupted download or a full disk shows. MPEG program and
transport streams and Ogg do not: a cut one of these is a shorter video.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PARTS_OF_MP4 = (b"mdat", b"moof", b"moov")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"


def cut_short(path: str | os.PathLike[str]) -> str | None:
    """Says that the file was cut short; None where that cannot be told. Raises OSError."""
    missing = missing_bytes(path)
    if not missing:
        return None
    return f"the file is cut short, at least {missing:,} byte{'s' * (missing > 1)} missing"


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """By how many bytes the file is shorter than its header announces, at least; 0 if it is whole.

    Knows MP4 and its relatives (ISO/IEC 14496-12, section 4.2), Matroska and WebM (RFC 8794,
    section 6), AVI (RIFF), FLV and ASF; 0 for any other. Raises OSError where it cannot be read.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(12)
        if start[4:8] in (b"ftyp", b"wide", b"free", b"skip", *_PARTS_OF_MP4):
            ends = _ends_of_boxes(file, size)
        elif start.startswith(_EBML_HEADER):
            ends = _end_of_segment(file)
        elif start.startswith(b"RIFF") and start[8:] == b"AVI ":
            ends = _ends_of_chunks(file, size)
        elif start.startswith(b"FLV"):
            ends = _end_of_tags(file, size)
        elif start + file.read(4) == _ASF_HEADER:
            ends = _ends_of_objects(file, size)
        else:
            return 0
        return max(0, max(ends, default=0) - size)


def _ends_of_boxes(file: BinaryIO, size: int) -> Iterator[int]:
    """Where the boxes of an MP4 file end that hold pictures or describe them."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        length, kind = _big(file.read(4)), file.read(4)
        if length == 1:
            length = _big(file.read(8))
        if length < 8:  # 0: to the end of the file; others are no box at all
            return
        position += length
        # What follows the last box may be anything, a camera's padding for one.
        if kind in _PARTS_OF_MP4:
            yield position


def _end_of_segment(file: BinaryIO) -> Iterator[int]:
    """Where a Matroska file's only segment ends, if it says so."""
    file.seek(4)
    header = _element_size(file)
    if header is None:
        return
    file.seek(header, os.SEEK_CUR)
    if file.read(4) == _EBML_SEGMENT and (length := _element_size(file)) is not None:
        yield file.tell() + length


def _element_size(file: BinaryIO) -> int | None:
    """An EBML element's size: its first set bit tells how many bytes it has; None if unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = _big(first + file.read(length - 1)) - (1 << 7 * length)
    return None if value == (1 << 7 * length) - 1 else value


def _ends_of_chunks(file: BinaryIO, size: int) -> Iterator[int]:
    """Where the lists of pictures of an AVI file end; large files have several RIFF chunks."""
    position = 0
    while position + 12 <= size:
        file.seek(position)
        kind, length, form = file.read(4), _little(file.read(4)), file.read(4)
        if kind == b"LIST" and form == b"movi":
            yield position + 8 + length
        # A RIFF chunk is entered, any other passed over; each begins at an even byte.
        position += 12 if kind == b"RIFF" else 8 + length + length % 2


def _end_of_tags(file: BinaryIO, size: int) -> Iterator[int]:
    """Past the end of an FLV file whose last tag is not whole: each is followed by its size."""
    file.seek(max(0, size - 4))
    tag = _big(file.read(4))
    file.seek(max(0, size - 4 - tag + 1))
    if _big(file.read(3)) != tag - 11:
        yield size + 1


def _ends_of_objects(file: BinaryIO, size: int) -> Iterator[int]:
    """Where an ASF file's header and data end."""
    position = 0
    while position + 24 <= size:
        file.seek(position)
        kind, length = file.read(16), _little(file.read(8))
        if length < 24:
            return
        position += length
        if kind in (_ASF_HEADER, _ASF_DATA):
            yield position


def _big(value: bytes) -> int:
    return int.from_bytes(value, "big")


def _little(value: bytes) -> int:
    return int.from_bytes(value, "little")

"""Pickles of arrays as Python 2 wrote them, put together by hand.

Python 3 cannot write them: its text is unicode, and numpy has moved its functions since.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np


def python2_pickle(blobs: Mapping[str, np.ndarray | int | float], protocol: int = 2) -> bytes:
    """``{"blobs": blobs}`` in protocol 0 or 2; numbers are written as such."""
    body = b"".join(
        _text(name, protocol) + _value(value, protocol) + b"s" for name, value in blobs.items()
    )
    start, empty = (b"\x80\x02", b"}") if protocol == 2 else (b"", b"(d")
    return start + empty + _text("blobs", protocol) + empty + body + b"s."


def _value(value: np.ndarray | int | float, protocol: int) -> bytes:
    if isinstance(value, np.ndarray):
        return _array(value, protocol)
    return b"F%r\n" % value if isinstance(value, float) else b"I%d\n" % value


def _array(array: np.ndarray, protocol: int) -> bytes:
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    order = array.dtype.byteorder.replace("=", "<")
    numbers = b"".join(b"I%d\n" % size for size in array.shape)
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\nt",
            _text("b", protocol),
            b"tR(I1\n(" + numbers + b"tcnumpy\ndtype\n(",
            _text(array.dtype.str[1:], protocol),
            b"I0\nI1\ntR(I3\n" + _text(order, protocol) + b"NNNI-1\nI-1\nI0\ntb",
            b"I01\n" if fortran else b"I00\n",
            _bytes(array.tobytes("F" if fortran else "C"), protocol),
            b"tb",
        ]
    )


def _text(text: str, protocol: int) -> bytes:
    return _bytes(text.encode("ascii"), protocol)


def _bytes(content: bytes, protocol: int) -> bytes:
    if protocol == 2:
        return b"T" + struct.pack("<i", len(content)) + content
    return b"S'" + content.decode("latin1").encode("unicode_escape").replace(b"'", b"\\'") + b"'\n"

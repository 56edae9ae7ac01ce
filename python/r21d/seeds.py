"""Seeds of random numbers, from names."""

from __future__ import annotations

import hashlib


def text_seed(text: str) -> int:
    """A seed below 2**32, another one for each text; that is all torch's CPU generator heeds."""
    # Names of files may hold bytes that are no text.
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "big")

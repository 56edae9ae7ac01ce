"""Which of a network's classes those of a list are."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Sequence

_MOST = 5


def match_classes(names: Collection[str], classes: Sequence[str]) -> dict[str, int]:
    """The index into ``classes`` of each of ``names`` that is one of them.

    A name that is not there as it is spelled counts as the class from which it differs by case,
    spaces, ``_`` and ``-`` alone, unless several of the classes or of the names are alike in that.
    """
    exact = {name: number for number, name in reversed(list(enumerate(classes)))}
    spelled = {plain_name(name): number for name, number in exact.items()}
    alike = Counter(map(plain_name, exact)) + Counter(map(plain_name, {*names}))
    numbers = {}
    for name in names:
        plain = plain_name(name)
        if name in exact:
            numbers[name] = exact[name]
        elif plain in spelled and alike[plain] == 2:
            numbers[name] = spelled[plain]
    return numbers


def plain_name(name: str) -> str:
    """``name`` without what sets spell differently: case, ``_`` and ``-`` for spaces."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def nearest(names: Sequence[str], classes: Sequence[str]) -> str:
    """The end of a message that ``names`` are not among ``classes``: those most like them."""
    plain = {plain_name(name): name for name in classes}
    pairs = (
        (name, difflib.get_close_matches(plain_name(name), plain, 1)) for name in names[:_MOST]
    )
    meant = [f"{plain[found[0]]} for {name}" for name, found in pairs if found]
    return f"; did you mean {', '.join(meant)}?" if meant else ""

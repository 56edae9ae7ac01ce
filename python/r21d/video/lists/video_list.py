"""What every list of videos is: files, their labels, the classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from r21d.video.lists.class_names import match_classes, nearest


@dataclass(frozen=True, slots=True)
class VideoItem:
    """A video file and its ``labels``, indices into the list's classes: one, unless multilabel."""

    path: Path
    labels: tuple[int, ...]


@dataclass(frozen=True)
class VideoList:
    """Labelled videos of one data set, or of one side of one of its splits.

    ``items`` name files below ``root``, in a fixed order. ``missing`` holds files that the data
    set's own list names but that are not there, for sets of which everyone has only a part
    (Kinetics, Sports-1M); elsewhere a file that is not there stays in ``items`` and fails to open.
    ``multilabel`` tells whether an item may have several labels. ``split`` names the split, None
    for sets without.
    """

    name: str
    root: Path
    classes: list[str]
    items: list[VideoItem]
    missing: list[Path]
    multilabel: bool = False
    split: str | None = None

    def with_classes(self, classes: Sequence[str]) -> VideoList:
        """The same videos, labelled by name as ``classes`` (a checkpoint's, say) are numbered.

        Names may differ in case, and in spaces being ``_`` or ``-``.

        Raises:
            ValueError: a class of this list is not among ``classes``.
        """
        target = list(classes)
        if target == self.classes:
            return self
        numbers = match_classes(self.classes, target)
        if unknown := [name for name in self.classes if name not in numbers]:
            raise ValueError(
                f"{self.root}: classes {shortened(unknown)} of {self.name} are not among the"
                f" {len(target)} labels ({shortened(target)})" + nearest(unknown, target)
            )
        new = [numbers[name] for name in self.classes]
        items = [
            VideoItem(item.path, tuple(new[label] for label in item.labels)) for item in self.items
        ]
        return replace(self, classes=target, items=items)


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first names, comma-separated, with dots where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")

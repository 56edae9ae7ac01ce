"""Every kind of list by its name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from r21d.video.lists.csv_list import list_csv
from r21d.video.lists.folder import list_folder
from r21d.video.lists.hmdb51 import HMDB51_SPLITS, list_hmdb51
from r21d.video.lists.kinetics import list_kinetics
from r21d.video.lists.sports1m import list_sports1m
from r21d.video.lists.ucf101 import UCF101_SPLITS, list_ucf101
from r21d.video.lists.video_list import VideoList
from r21d.video.lists.weizmann import list_weizmann, weizmann_people

DATASETS = ("folder", "csv", "kinetics", "ucf101", "hmdb51", "sports1m", "weizmann")
"""The names that `open_list` knows."""

_SPLIT = ("ucf101", "hmdb51", "weizmann")
_ANNOTATIONS = {
    "kinetics": "a CSV file, or a folder with those for training and validation",
    "ucf101": "the folder of classInd.txt, trainlist01.txt and testlist01.txt",
    "hmdb51": "the folder of <class>_test_split1.txt and so on",
    "sports1m": "the folder of labels.txt, train_partition.txt and test_partition.txt",
}

_FOLDERS = ("ucf101", "hmdb51")

_Path: TypeAlias = str | os.PathLike[str]


def open_list(
    name: str,
    root: _Path,
    *,
    annotations: _Path | None = None,
    split: str | int | None = None,
    train: bool = False,
    classes: Sequence[str] | None = None,
) -> VideoList:
    """The videos of the data set ``name`` (one of `DATASETS`), which are below ``root``.

    ``annotations`` is what the set comes with: for ``ucf101`` and ``hmdb51`` the folder of the
    official lists; for ``kinetics`` and ``sports1m`` such a folder, too, or one file of it; for
    ``csv`` the file, or ``root`` itself is the file. ``split`` names one of `list_splits`. Where
    the set says what is for training (`has_sides`), ``train`` chooses between that and the test
    (or validation) side. The labels are indices into ``classes`` where given.

    Raises:
        ValueError: the name or the split is unknown, an argument is lacking or means nothing
            here, or the list is bad, see the functions of each.
    """
    split = None if split is None else str(split)
    _check_arguments(name, annotations, split)
    if name == "folder":
        return list_folder(root, classes)
    if name == "csv":
        return list_csv(annotations or root, root if annotations else None, classes)
    lists = Path(annotations or root)
    if name == "kinetics":
        file = _kinetics_file(lists, train) if lists.is_dir() else lists
        return list_kinetics(root, file, classes)
    if name == "sports1m":
        videos = list_sports1m(root, *_sports1m_files(lists, train))
    elif name == "ucf101":
        videos = list_ucf101(root, lists, split or "", train)
    elif name == "hmdb51":
        videos = list_hmdb51(root, lists, split or "", train)
    else:
        videos = list_weizmann(root, split or "", train)
    return videos if classes is None else videos.with_classes(classes)


def list_splits(name: str, root: _Path, annotations: _Path | None = None) -> list[str]:
    """The splits of the data set ``name``: numbers or, for Weizmann, people; empty without any.

    Raises:
        ValueError: the name is unknown, or the videos of Weizmann cannot be listed.
    """
    _check_name(name)
    if name == "weizmann":
        return weizmann_people(root)
    return list({"ucf101": UCF101_SPLITS, "hmdb51": HMDB51_SPLITS}.get(name, ()))


def has_sides(name: str, annotations: _Path | None = None) -> bool:
    """Whether the data set says which of its videos are for training and which for the test.

    Kinetics and Sports-1M do with a folder of lists as ``annotations``; a single file is one side.
    """
    if name in ("kinetics", "sports1m"):
        return annotations is not None and os.path.isdir(annotations)
    return name in _SPLIT


def _check_name(name: str) -> None:
    if name not in DATASETS:
        raise ValueError(f"data set {name!r} is unknown; expected one of {', '.join(DATASETS)}")


def _check_arguments(name: str, annotations: _Path | None, split: str | None) -> None:
    _check_name(name)
    if name in _ANNOTATIONS and annotations is None:
        raise ValueError(f"{name} needs annotations: {_ANNOTATIONS[name]}")
    if name in _FOLDERS and annotations is not None and os.path.isfile(annotations):
        raise ValueError(f"{name}: {annotations} is a file; give {_ANNOTATIONS[name]}")
    if name in ("folder", "weizmann") and annotations is not None:
        raise ValueError(f"{name} takes no annotations, got {annotations}: its folders tell all")
    if name not in _SPLIT and split is not None:
        raise ValueError(f"{name} has no splits, got split {split!r}")
    if name in _SPLIT and split is None:
        raise ValueError(f"{name} has splits: name one")


def _kinetics_file(folder: Path, train: bool) -> Path:
    """The one CSV of a side, whatever the release calls it: train.csv, kinetics-600_val.csv."""
    side = "train" if train else "val(idate|idation)?"
    files = sorted(f for f in folder.glob("*.csv") if re.search(rf"(^|[-_. ]){side}$", f.stem))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(
            f"{folder}: expected one CSV named {'train' if train else 'val or validate'} in it,"
            f" found {found}; name the file itself"
        )
    return files[0]


def _sports1m_files(lists: Path, train: bool) -> tuple[Path, Path]:
    """The partition and the labels; the release has the partitions in a folder ``original``."""
    folder, file = lists.parent, lists
    if lists.is_dir():
        name = f"{'train' if train else 'test'}_partition.txt"
        inner = lists / "original" / name
        folder, file = lists, inner if inner.exists() else lists / name
    beside, above = folder / "labels.txt", folder.parent / "labels.txt"
    return file, above if above.exists() and not beside.exists() else beside

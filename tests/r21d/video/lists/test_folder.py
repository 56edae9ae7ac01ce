"""Folders of classes (well under a second)."""

from __future__ import annotations

from pathlib import Path

import pytest

from r21d.video.lists import list_folder


def test_classes_are_the_folders(touch) -> None:
    root = touch(["walk/b.mp4", "walk/a.MP4", "run fast/c.avi", "walk/notes.txt", "x.mp4"])
    touch([".cache/x.mp4", "walk/.b.mp4", "walk/deeper/x.mp4", "walk/folder.mp4/x.txt"])
    videos = list_folder(root)
    assert videos.classes == ["run fast", "walk"]
    assert [(str(item.path.relative_to(root)), item.labels) for item in videos.items] == [
        ("run fast/c.avi", (0,)),
        ("walk/a.MP4", (1,)),
        ("walk/b.mp4", (1,)),
    ]
    assert (videos.name, videos.root, videos.missing) == ("folder", root, [])
    assert (videos.multilabel, videos.split) == (False, None)


def test_classes_of_a_checkpoint(touch) -> None:
    root = touch(["walk/b.mp4", "run/c.avi"])
    videos = list_folder(root, ["walk", "jump", "run"])
    assert videos.classes == ["walk", "jump", "run"]
    assert [item.labels for item in videos.items] == [(2,), (0,)]


def test_a_class_folder_without_videos_is_a_class(touch) -> None:
    videos = list_folder(touch(["a/notes.txt", "b/x.mp4", "c/x.mp4"]))
    assert videos.classes == ["a", "b", "c"]
    assert [item.labels for item in videos.items] == [(1,), (2,)]


@pytest.mark.parametrize(
    ("files", "classes", "message"),
    [
        ([], None, "no class folders"),
        (["x.mp4"], None, "no class folders"),
        (["a/x.mp4"], None, r"a single class \(a\)"),
        (["a/notes.txt", "b/notes.txt"], None, "no video files in its class folders, a and so on"),
        (["a/x.mp4", "d/x.mp4"], ["b", "a", "c"], r"folders d are not among the 3 labels \(b, a"),
    ],
)
def test_bad_folders(touch, files, classes, message) -> None:
    with pytest.raises(ValueError, match=message):
        list_folder(touch(files), classes)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none: no such folder; expected"):
        list_folder(tmp_path / "none")

"""Weizmann, one person left out (well under a second)."""

from __future__ import annotations

from pathlib import Path

import pytest

from r21d.video.lists import list_splits, list_weizmann

FLAT = ["daria_walk.avi", "lena_walk1.avi", "lena_walk2.avi", "lena_wave1.avi", "ido_wave2.avi"]
FOLDERS = ["walk/daria_walk.mp4", "walk/lena_walk.mp4", "wave2/ido_wave2.mp4"]


def _names(root: Path, split: str, train: bool) -> list[tuple[str, str]]:
    videos = list_weizmann(root, split, train)
    assert (videos.name, videos.split) == ("weizmann", split)
    return [(item.path.name, videos.classes[item.labels[0]]) for item in videos.items]


def test_the_authors_names(touch) -> None:
    root = touch(FLAT)
    assert list_splits("weizmann", root) == ["daria", "ido", "lena"]
    assert _names(root, "lena", False) == [
        ("lena_walk1.avi", "walk"),
        ("lena_walk2.avi", "walk"),
        ("lena_wave1.avi", "wave1"),
    ]
    assert _names(root, "lena", True) == [("daria_walk.avi", "walk"), ("ido_wave2.avi", "wave2")]


def test_folders_of_actions(touch) -> None:
    root = touch(FOLDERS)
    assert _names(root, "ido", False) == [("ido_wave2.mp4", "wave2")]
    assert [name for name, _ in _names(root, "ido", True)] == ["daria_walk.mp4", "lena_walk.mp4"]
    # Every side has the classes of the whole set.
    assert list_weizmann(root, "ido", True).classes == ["walk", "wave2"]


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        ([], "ido", "no video files in it"),
        (FLAT, "moshe", "split 'moshe' is none of the people in .*: daria, ido, lena"),
        ([*FLAT, "walk/eli_hop.mp4"], "ido", r"walk/eli_hop\.mp4: expected a name such as"),
        ([*FLAT, "walk.mp4"], "ido", r"walk\.mp4: expected a name"),
        ([*FLAT, "_walk.mp4"], "ido", r"_walk\.mp4: expected a name"),
        ([*FLAT, "eli_walk3.mp4"], "ido", r"eli_walk3\.mp4: expected a name"),
    ],
)
def test_bad_folders(touch, names: list[str], split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_weizmann(touch(names), split, True)


def test_the_real_set(test_data: Path) -> None:
    root = test_data / "weizmann"
    people = list_splits("weizmann", root)
    assert people == ["daria", "denis", "eli", "ido", "ira", "lena", "lyova", "moshe", "shahar"]
    seen = set()
    for person in people:
        test, train = (list_weizmann(root, person, side) for side in (False, True))
        assert (len(test.items), len(train.items), len(test.classes)) == (10, 80, 10)
        assert {item.path.stem.partition("_")[0] for item in test.items} == {person}
        for item in (*test.items, *train.items):
            assert test.classes[item.labels[0]] == item.path.parent.name
        seen |= {item.path for item in test.items}
    assert len(seen) == 90

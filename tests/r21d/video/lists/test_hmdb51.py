"""HMDB51's lists (well under a second)."""

from __future__ import annotations

from pathlib import Path

import pytest

from r21d.video.lists import list_hmdb51

ODD = "Brushing_Her_Hair__[_NEW_AUDIO_]_UPDATED!!!!_brush_hair_h_cm_np1_le_goo_1.avi"
HAIR = [ODD, "#437_How;_To&_brush_hair_u_cm_np1_ri_med_0.avi", "April 09_brush_hair_0.avi"]
SMILE = ["(Rad)Schlag_die_Bank!_smile_h_nm_np1_fr_goo_2.avi", "b_smile.avi"]


def _lines(names: list[str], uses: str) -> str:
    # As published, with a space at the end.
    return "".join(f"{name} {use} \n" for name, use in zip(names, uses, strict=True))


@pytest.fixture
def lists(write) -> Path:
    write("brush_hair_test_split1.txt", _lines(HAIR, "120"))
    write("smile_test_split1.txt", _lines(SMILE, "21"))
    write("brush_hair_test_split2.txt", _lines(HAIR, "012").replace("\n", "\r\n"))
    write("smile_test_split2.txt", _lines(SMILE, "12"))
    write("brush_hair_test_split3.txt", _lines(HAIR, "111"))
    return write("readme.txt", "not a list").parent


@pytest.fixture
def root(touch) -> Path:
    return touch([*(f"brush_hair/{name}" for name in HAIR), *(f"smile/{name}" for name in SMILE)])


@pytest.mark.parametrize(
    ("split", "train", "expected"),
    [
        ("1", True, [(HAIR[0], 0), (SMILE[1], 1)]),
        ("1", False, [(HAIR[1], 0), (SMILE[0], 1)]),
        ("2", True, [(HAIR[1], 0), (SMILE[0], 1)]),
        ("2", False, [(HAIR[2], 0), (SMILE[1], 1)]),
    ],
)
def test_sides_and_splits(root: Path, lists: Path, split: str, train: bool, expected) -> None:
    videos = list_hmdb51(root, lists, split, train)
    assert videos.classes == ["brush_hair", "smile"]
    assert [(item.path.name, *item.labels) for item in videos.items] == expected
    assert all(item.path.is_file() for item in videos.items)
    assert (videos.name, videos.split, videos.missing) == ("hmdb51", split, [])


def test_classes_are_sorted(touch, write) -> None:
    names = ["wave", "chew", "turn", "clap", "pick", "kick_ball", "kick"]
    lists = [write(f"{name}_test_split1.txt", "a.avi 1\n") for name in names]
    root = touch(f"{name}/a.avi" for name in names)
    videos = list_hmdb51(root, lists[0].parent, "1", True)
    assert videos.classes == sorted(names)
    assert [item.path.parent.name for item in videos.items] == videos.classes


def test_files_coded_anew_and_files_that_are_gone(root: Path, lists: Path) -> None:
    (root / "brush_hair" / ODD).rename(root / "brush_hair" / f"{ODD[:-4]}.mp4")
    (root / "smile" / SMILE[1]).unlink()
    paths = [item.path for item in list_hmdb51(root, lists, "1", True).items]
    assert paths == [root / "brush_hair" / f"{ODD[:-4]}.mp4", root / "smile" / SMILE[1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.avi 3\n", "line 1: 'a.avi 3'; expected a file's name and 0, 1 or 2"),
        ("a.avi 1\n\na.avi\n", "line 3: 'a.avi'; expected"),
        ("../a.avi 1\n", r"line 1: '\.\./a\.avi 1'; expected a file's name"),
        ("/a.avi 1\n", "line 1: '/a.avi 1'; expected"),
        ("a.avi 1\na.avi 2\n", "line 2: a.avi is listed twice"),
        ("", r"brush_hair_test_split1\.txt: the list is empty"),
    ],
)
def test_bad_lists(root: Path, lists: Path, write, text: str, message: str) -> None:
    write("brush_hair_test_split1.txt", text)
    with pytest.raises(ValueError, match=message):
        list_hmdb51(root, lists, "1", True)


def test_splits_and_lists_that_are_not_there(root: Path, lists: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split '0' is not one of HMDB51's"):
        list_hmdb51(root, lists, "0", True)
    with pytest.raises(ValueError, match=r"smile_test_split3\.txt: cannot be read"):
        list_hmdb51(root, lists, "3", True)
    with pytest.raises(ValueError, match="no <class>_test_split"):
        list_hmdb51(root, tmp_path, "1", True)
    with pytest.raises(ValueError, match="none: no such folder"):
        list_hmdb51(root, tmp_path / "none", "1", True)
    for file in lists.glob("*_split3.txt"):
        file.unlink()
    for name in ("brush_hair", "smile"):
        (lists / f"{name}_test_split3.txt").write_text("a.avi 0\n")
    with pytest.raises(ValueError, match="no video has the use 2 in split 3"):
        list_hmdb51(root, lists, "3", False)

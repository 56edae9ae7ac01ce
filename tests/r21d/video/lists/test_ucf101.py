"""UCF101's lists (well under a second)."""

from __future__ import annotations

from pathlib import Path

import pytest

from r21d.video.lists import list_ucf101

# As published: carriage returns in these two, none in the test lists.
CLASSES = "1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n3 YoYo\r\n"
TRAIN = (
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
    "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n"
    "YoYo/v_YoYo_g25_c05.avi 3\r\n"
)
TEST = "YoYo/v_YoYo_g01_c02.avi\nApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\n"


@pytest.fixture
def lists(write) -> Path:
    write("classInd.txt", CLASSES)
    write("trainlist01.txt", TRAIN)
    write("trainlist02.txt", TRAIN.replace("_c", "_c1"))
    return write("testlist01.txt", TEST).parent


@pytest.fixture
def root(touch) -> Path:
    return touch(line.split()[0] for line in (TRAIN + TEST).split("\n") if line)


def test_both_sides_of_a_split(root: Path, lists: Path) -> None:
    train, test = (list_ucf101(root, lists, "1", train=side) for side in (True, False))
    assert train.classes == test.classes == ["ApplyEyeMakeup", "HandstandPushups", "YoYo"]
    assert [item.labels for item in train.items] == [(0,), (1,), (2,)]
    assert [(item.path, item.labels) for item in test.items] == [
        (root / "YoYo" / "v_YoYo_g01_c02.avi", (2,)),
        (root / "ApplyEyeMakeup" / "v_ApplyEyeMakeup_g01_c01.avi", (0,)),
    ]
    assert all(item.path.is_file() for item in (*train.items, *test.items))
    assert (train.name, train.split, train.multilabel) == ("ucf101", "1", False)


def test_a_test_list_may_have_numbers(root: Path, lists: Path, write) -> None:
    write("testlist01.txt", "YoYo/v_YoYo_g01_c02.avi 3\n")
    assert [item.labels for item in list_ucf101(root, lists, "1", False).items] == [(2,)]


def test_a_file_that_is_not_there_stays_and_will_fail_to_open(root: Path, lists: Path) -> None:
    gone = root / "YoYo" / "v_YoYo_g25_c05.avi"
    gone.unlink()
    videos = list_ucf101(root, lists, "1", True)
    assert videos.items[2].path == gone
    assert videos.missing == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classInd.txt", "1 A\n3 B\n", r"classInd\.txt, line 2: '3 B'; expected number 2"),
        ("classInd.txt", "1\n", "line 1: '1'; expected number 1, a space and a name"),
        ("classInd.txt", "1 A\n2 A\n", "line 2: class A is named twice"),
        ("classInd.txt", "", r"classInd\.txt: the list is empty"),
        ("trainlist01.txt", "\r\n", r"trainlist01\.txt: the list is empty"),
        ("trainlist01.txt", "\nYoYo/a.avi 1\n", "line 2: YoYo is 1 here and 3 in classInd.txt"),
        ("trainlist01.txt", "YoYo/a.avi 3 3\n", "line 1: .*; expected <class>/<file> and the"),
        ("trainlist01.txt", "a.avi 3\n", "line 1: 'a.avi 3'; expected <class>/<file>"),
        ("trainlist01.txt", "YoYo/b/a.avi 3\n", "line 1: .*; expected <class>/<file>"),
        ("trainlist01.txt", "Yo/a.avi 3\n", "line 1: class Yo is not in classInd.txt"),
        ("trainlist01.txt", "../a.avi 3\n", r"line 1: \.\./a\.avi leads out of a folder"),
        ("trainlist01.txt", "/YoYo/a.avi 3\n", r"line 1: /YoYo/a\.avi is absolute"),
        ("trainlist01.txt", "YoYo/a.avi 3\nYoYo/a.avi 3\n", "line 2: YoYo/a.avi is listed twice"),
        ("trainlist01.txt", "YoYo/a.avi 3\n", "none of the 1 listed videos is there"),
    ],
)
def test_bad_lists(root: Path, lists: Path, write, name: str, text: str, message: str) -> None:
    write(name, text)
    with pytest.raises(ValueError, match=message):
        list_ucf101(root, lists, "1", True)


def test_unknown_splits_and_missing_lists(root: Path, lists: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split '4' is not one of UCF101's: 1, 2, 3"):
        list_ucf101(root, lists, "4", True)
    with pytest.raises(ValueError, match=r"testlist02\.txt: cannot be read: No such file"):
        list_ucf101(root, lists, "2", False)
    with pytest.raises(ValueError, match=r"classInd\.txt: cannot be read"):
        list_ucf101(root, tmp_path, "1", False)

"""Sports-1M's lists (well under a second)."""

from __future__ import annotations

from pathlib import Path

import pytest

from r21d.video.lists import list_sports1m

LABELS = "boomerang\nyağlı güreş\nfield hockey\nkyūdō\n"
LINES = """http://www.youtube.com/watch?v=UDqivjS-lpI 2,0
https://www.youtube.com/watch?v=-_aBsSS2uY0 3
http://www.youtube.com/watch?v=NotThere_01 1
"""


@pytest.fixture
def root(touch) -> Path:
    return touch(["0/UDqivjS-lpI.mp4.mkv", "x/y/-_aBsSS2uY0.mp4", "NotThere.mp4"])


@pytest.fixture
def labels(write) -> Path:
    return write("labels.txt", LABELS)


def test_videos_with_several_labels_of_which_some_are_missing(root, labels, write) -> None:
    videos = list_sports1m(root, write("test_partition.txt", LINES), labels)
    assert videos.classes == ["boomerang", "yağlı güreş", "field hockey", "kyūdō"]
    assert [(item.path.relative_to(root).as_posix(), item.labels) for item in videos.items] == [
        ("0/UDqivjS-lpI.mp4.mkv", (2, 0)),
        ("x/y/-_aBsSS2uY0.mp4", (3,)),
    ]
    assert videos.missing == [root / "NotThere_01.mp4"]
    assert (videos.name, videos.multilabel) == ("sports1m", True)


def test_a_video_on_several_lines_has_all_their_labels(root, labels, write) -> None:
    again = "http://www.youtube.com/watch?v=UDqivjS-lpI 0,1\n"
    videos = list_sports1m(root, write("all.txt", LINES + again), labels)
    assert [item.labels for item in videos.items] == [(2, 0, 1), (3,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list\.txt: the list is empty"),
        ("UDqivjS-lpI 1\n", "line 1: 'UDqivjS-lpI 1'; expected http"),
        ("http://www.youtube.com/watch?v=../x 1\n", "line 1: "),
        ("\nhttp://www.youtube.com/watch?v=x 1,\n", "line 2: "),
        ("http://www.youtube.com/watch?v=x\n", "line 1: "),
        ("http://www.youtube.com/watch?v=x a\n", "line 1: "),
        ("http://www.youtube.com/watch?v=x " + "9" * 5000, "line 1: "),
        ("http://www.youtube.com/watch?v=x 1,4\n", r"line 1: label 4 is outside 0\.\.3"),
        ("http://www.youtube.com/watch?v=x 1\n", "none of the 1 videos of .*such as x.mp4"),
    ],
)
def test_bad_lists(root, labels, write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_sports1m(root, write("list.txt", text), labels)


def test_bad_labels(root, write) -> None:
    partition = write("list.txt", LINES)
    with pytest.raises(ValueError, match=r"labels\.txt, line 3: class a is already on line 1"):
        list_sports1m(root, partition, write("labels.txt", "a\nb\na\n"))
    with pytest.raises(ValueError, match=r"none\.txt: cannot be read"):
        list_sports1m(root, partition, root / "none.txt")

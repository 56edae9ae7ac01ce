"""Lists in a text file (about a second)."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r21d.video.lists import VideoList, list_csv


def _read(videos: VideoList) -> list[tuple[str, list[str]]]:
    return [
        (item.path.relative_to(videos.root).as_posix(), [videos.classes[i] for i in item.labels])
        for item in videos.items
    ]


@pytest.mark.parametrize(
    "text",
    [
        "b/x.mp4,walk\na.mp4,run\n",
        "b/x.mp4\twalk\na.mp4\trun",
        "b/x.mp4 walk\na.mp4  run\n",
        "path,label\nb/x.mp4,walk\na.mp4,run\n",
        "Label,frames,Video\nwalk,12,b/x.mp4\nrun,9,a.mp4\n",
        "org_video label\nb/x.mp4 walk\na.mp4 run\n",
        "\ufeffpath,label\r\n\r\nb/x.mp4,walk\r\na.mp4,run\r\n",
        '"b/x.mp4", "walk"\n"a.mp4", "run"\n',
        "\n  \n./b//x.mp4,walk\n,\na.mp4,run\n",
    ],
)
def test_separators_headers_quotes_and_line_ends(write, text: str) -> None:
    videos = list_csv(write("list.txt", text))
    assert videos.classes == ["run", "walk"]
    assert _read(videos) == [("b/x.mp4", ["walk"]), ("a.mp4", ["run"])]
    assert (videos.name, videos.multilabel, videos.missing) == ("csv", False, [])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a clip, with.mp4 walk\nb.mp4 run", "a clip, with.mp4"),
        ('"a, b.mp4",walk\nb.mp4,run', "a, b.mp4"),
        ('"a ""b"".mp4",walk\nb.mp4,run', 'a "b".mp4'),
        ('"two\nlines.mp4",walk\nb.mp4,run', "two\nlines.mp4"),
        ('"two\r\nlines.mp4",walk\r\nb.mp4,run', "two\r\nlines.mp4"),
        ("#1 [x];&!.mp4,walk\nb.mp4,run", "#1 [x];&!.mp4"),
        ("a.mp4 copy.mp4 walk\nb.mp4 run", "a.mp4 copy.mp4"),
        ('"a.mp4 100" walk\nb.mp4 run', "a.mp4 100"),
    ],
)
def test_odd_names(write, text: str, name: str) -> None:
    assert _read(list_csv(write("list.csv", text)))[0] == (name, ["walk"])


def test_a_name_that_is_not_utf8_keeps_its_bytes(write) -> None:
    (item, _) = list_csv(write("list.csv", b"caf\xe9.mp4,walk\nb.mp4,run\n")).items
    assert os.fsencode(item.path).endswith(b"/caf\xe9.mp4")


def test_paths_are_relative_to_the_root_or_to_the_file(write, tmp_path: Path) -> None:
    file = write("list.csv", "a.mp4,x\nb.mp4,y\n")
    assert list_csv(file).items[0].path == tmp_path / "lists" / "a.mp4"
    assert list_csv(file, tmp_path).items[0].path == tmp_path / "a.mp4"
    elsewhere = write("list.csv", "/data/a.mp4,x\nb.mp4,y\n")
    assert list_csv(elsewhere).items[0].path == Path("/data/a.mp4")
    with pytest.raises(ValueError, match=r"list.csv, line 1: /data/a.mp4 is absolute"):
        list_csv(elsewhere, tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "found"),
    [
        (["2", "0"], None, ["0", "1", "2"], [(2,), (0,)]),
        (["walk", "0"], None, ["0", "walk"], [(1,), (0,)]),
        (["2", "0"], ["a", "b", "c"], ["a", "b", "c"], [(2,), (0,)]),
        (["c", "a"], ["a", "b", "c"], ["a", "b", "c"], [(2,), (0,)]),
        # Classes that are called by numbers are names.
        (["7", "5"], ["5", "7"], ["5", "7"], [(1,), (0,)]),
    ],
)
def test_labels_are_numbers_or_names(write, labels, classes, expected, found) -> None:
    file = write("list.csv", "".join(f"{i}.mp4,{label}\n" for i, label in enumerate(labels)))
    videos = list_csv(file, classes=classes)
    assert videos.classes == expected
    assert [item.labels for item in videos.items] == found


@pytest.mark.parametrize("classes", [None, ["a", "b", "c"]])
@pytest.mark.parametrize(("labels", "warned"), [("12", True), ("012", False), ("2", False)])
def test_numbers_that_begin_with_1(write, caplog, classes, labels, warned) -> None:
    file = write("list.csv", "".join(f"{i}.mp4,{label}\n" for i, label in enumerate(labels)))
    videos = list_csv(file, classes=classes)
    assert len(videos.classes) == 3
    assert [item.labels for item in videos.items] == [(int(label),) for label in labels]
    assert ("the class numbers begin with 1, so class 0 has no video" in caplog.text) == warned


def test_several_labels(write) -> None:
    videos = list_csv(write("list.csv", "a.mp4,run; jump;run\nb.mp4,walk\n"))
    assert videos.multilabel
    assert _read(videos) == [("a.mp4", ["run", "jump"]), ("b.mp4", ["walk"])]
    # The header's plural tells, too: this part of a list may have no video with several.
    assert list_csv(write("list.csv", "path,labels\na.mp4,run\nb.mp4,walk\n")).multilabel


BAD = {
    "": "the list is empty",
    " \n\n": "the list is empty",
    "path,label\n": "the list is empty but for its header",
    "a.mp4,x\nb.mp4\n": r"line 2: columns: 1; expected 2, a path and a label",
    "a.mp4,x\nb, c.mp4,x\n": r"line 2: columns: 3; expected 2, a path and a label",
    "path,label,frames\na.mp4,x\n": "line 2: columns: 2; expected 3 as in the first line",
    "a.mp4 x\nb.mp4\n": "line 2: columns: 1",
    "a.mp4 100 1\nb.mp4 90 0\n": "line 1: '100' stands between a video's path and its label",
    "a.mp4 x\na b.MKV 0 90 y\n": "line 2: '0 90' stands between a video's path and its label",
    "clip,kind\na.mp4,x\n": r"line 1: 'clip' is neither a file .* nor a column that is known",
    "a.mp4,x\n\nb.mp4,\n": "line 3: no class",
    "a.mp4,x\nb.mp4,x;;y\n": "line 2: no class",
    "a.mp4,x\n,y\n": "line 2: no path",
    "a.mp4,x\nb.mp4,y\n./a.mp4,x\n": "line 3: a.mp4 is already on line 1",
    "a.mp4,x\nb/../../c.mp4,y\n": r"line 2: b/../../c.mp4 leads out of a folder by '..'",
    "a.mp4,x\nb.mp4,x\n": r"a single class \(x\)",
    "a.mp4,0\nb.mp4,0\n": r"a single class \(0\)",
    "a.mp4,0\nb.mp4,-1\n": r"line 2: class number -1 is outside 0\.\.",
    "a.mp4,0\nb.mp4,31415926535\n": r"line 2: class number 31415926535 is outside 0\.\.",
    "path,label\na.mp4," + "9" * 5000: r"a single class \(999",
    'a.mp4,x\n"b.mp4,y\n': "line 2: malformed: unexpected end of data",
    'a.mp4,x\n"b.mp4"c,y\n': "line 2: malformed",
    b"a.mp4,x\nb.mp4,caf\xe9\n": r"line 2: class 'caf\\udce9' is not UTF-8",
    "a.mp4,x\n".encode("utf-16"): "it holds zero bytes",
    b"a\0.mp4,x\n": "it holds zero bytes",
}


@pytest.mark.parametrize("content", BAD)
def test_bad_lists(write, content) -> None:
    with pytest.raises(ValueError, match=r"list\.csv.*" + BAD[content]):
        list_csv(write("list.csv", content))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,run\nb.mp4,hop\n", r"line 2: class hop is not among the 2 labels \(run, walk\)"),
        ("a.mp4,0\nb.mp4,2\n", r"line 2: class number 2 is outside 0\.\.1"),
    ],
)
def test_unknown_classes(write, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list_csv(write("list.csv", text), classes=["run", "walk"])


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv: cannot be read: No such file"):
        list_csv(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        list_csv(tmp_path)


_NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0\r/;"), min_size=1)
_CLASS = _NAME.map(str.strip).filter(bool).map(lambda name: f"c{name}")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.dictionaries(
        _NAME.map(str.strip).map(lambda name: f"v{name}.mp4"),
        st.lists(_CLASS, min_size=1, max_size=2, unique=True),
        min_size=1,
        max_size=4,
    ),
    delimiter=st.sampled_from(",\t"),
)
def test_what_a_csv_writer_wrote_is_read_back(tmp_path_factory, rows, delimiter) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(["path", "labels"])
    writer.writerows([path, ";".join(labels)] for path, labels in rows.items())
    file = tmp_path_factory.mktemp("lists") / "list.csv"
    file.write_text(text.getvalue(), encoding="utf-8", newline="")
    names = sorted({label for labels in rows.values() for label in labels})
    videos = list_csv(file, classes=names)
    assert _read(videos) == list(rows.items())

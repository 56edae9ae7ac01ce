"""Kinetics' CSV files (well under a second)."""

from __future__ import annotations

from pathlib import Path

import pytest

from r21d.video.lists import list_kinetics

HEADER = "label,youtube_id,time_start,time_end,split\n"
ROWS_400 = """label,youtube_id,time_start,time_end,split,is_cc
"air drumming",-3B32lodo2M,59,69,val,0
abseiling,__NrybzYzUg,415,425,val,1
"petting animal (not cat)",aa-bb_cc.dd,7,17,val,0
abseiling,missing_one,0,10,val,0
"""
ROWS_700 = """label,youtube_id,time_start,time_end,split
air drumming,-3B32lodo2M,59.0,69.0,validate
abseiling,__NrybzYzUg,415,425,validate
"""


@pytest.fixture
def root(touch) -> Path:
    return touch(
        [
            "val/air_drumming/-3B32lodo2M_000059_000069.mp4",
            "val/__NrybzYzUg_000415_000425.mp4.mkv",
            "__NrybzYzUg_000415_000426.mp4",
            "missing_one_000001_000011.mp4",
        ]
    )


def test_clips_are_found_in_any_folder_and_others_are_missing(root: Path, write) -> None:
    videos = list_kinetics(root, write("val.csv", ROWS_400))
    assert videos.classes == ["abseiling", "air drumming", "petting animal (not cat)"]
    assert [(item.path.relative_to(root).as_posix(), item.labels) for item in videos.items] == [
        ("val/air_drumming/-3B32lodo2M_000059_000069.mp4", (1,)),
        ("val/__NrybzYzUg_000415_000425.mp4.mkv", (0,)),
    ]
    assert [path.relative_to(root).as_posix() for path in videos.missing] == [
        "aa-bb_cc.dd_000007_000017.mp4",
        "missing_one_000000_000010.mp4",
    ]
    assert (videos.name, videos.multilabel, videos.split) == ("kinetics", False, None)


def test_classes_are_sorted(touch, write) -> None:
    names = ["zumba", "abseiling", "yoga", "air drumming", "busking", "bowling", "krumping"]
    rows = "".join(f"{name},x,{start},10,val\n" for start, name in enumerate(names))
    videos = list_kinetics(touch(["x_000000_000010.mp4"]), write("val.csv", HEADER + rows))
    assert videos.classes == sorted(names)
    assert videos.items[0].labels == (6,)


@pytest.mark.parametrize("text", [ROWS_700, "\ufeff" + ROWS_700.replace("\n", "\r\n")])
def test_without_is_cc(root: Path, write, text: str) -> None:
    videos = list_kinetics(root, write("validate.csv", text))
    assert [item.labels for item in videos.items] == [(1,), (0,)]
    assert videos.missing == []


def test_classes_of_a_checkpoint(root: Path, write) -> None:
    names = ["air drumming", "zumba", "abseiling"]
    videos = list_kinetics(root, write("val.csv", ROWS_700), names)
    assert videos.classes == names
    assert [item.labels for item in videos.items] == [(0,), (2,)]
    with pytest.raises(ValueError, match=r"val\.csv, line 3: class abseiling is not among the 2"):
        list_kinetics(root, write("val.csv", ROWS_700), names[:2])


def test_a_clip_that_is_listed_twice_counts_once(root: Path, write, caplog) -> None:
    again = "air drumming,-3B32lodo2M,59,69,validate\n"
    videos = list_kinetics(root, write("val.csv", ROWS_700 + again))
    assert len(videos.items) == 2
    assert "1 clips are listed twice" in caplog.text
    other = "abseiling,-3B32lodo2M,59,69,validate\n"
    with pytest.raises(ValueError, match=r"line 4: .* is abseiling here and air drumming on"):
        list_kinetics(root, write("val.csv", ROWS_700 + other))


BAD = {
    "": "no column label, youtube_id, time_start, time_end",
    HEADER: "the list is empty",
    "youtube_id,time_start,time_end,split\nx,0,10,test\n": "no column 'label': a test list without",
    "a.mp4,walk\n": "line 1: no column label, youtube_id",
    HEADER + "run,x,0,10\n": "line 2: 4 columns; expected 5",
    HEADER + "run,x,0,ten,val\n": "line 2: time_start '0' and time_end 'ten' are no seconds",
    HEADER + "run,x,-1,10,val\n": "line 2: time_start '-1'",
    HEADER + "run,x,nan,10,val\n": "line 2: time_start 'nan'",
    HEADER + "run,x,0,1e999,val\n": "line 2: time_start '0' and time_end '1e999'",
    HEADER + "run,../x,0,10,val\n": "line 2: youtube_id '../x' names no video",
    HEADER + "run,,0,10,val\n": "line 2: youtube_id '' names no video",
    HEADER + ",x,0,10,val\n": "line 2: no class",
    HEADER + "run,x,0,10,val\nrun,y,0,10,train\n": "line 3: split train after val",
    HEADER + '"run,x,0,10,val\n': "malformed: unexpected end of data",
    HEADER
    + "run,x,0,10,val\n": r"none of the 1 clips of .* expected names such as x_000000_000010",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_files(root: Path, write, text: str) -> None:
    with pytest.raises(ValueError, match=BAD[text]):
        list_kinetics(root, write("val.csv", text))

"""Data sets by name, and what holds for all of them (about two seconds)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r21d.video.lists import DATASETS, VideoList, has_sides, list_splits, open_list

CSV_400 = "label,youtube_id,time_start,time_end,split\nrun,a,0,10,x\nwalk,b,0,10,x\n"
SPORTS = "http://www.youtube.com/watch?v=a 0\nhttp://www.youtube.com/watch?v=b 1\n"
FILES = {
    "folder": {},
    "csv": {"list.csv": "run/a_run.avi,run\nwalk/b_walk.avi,walk\n"},
    "kinetics": {"k_train.csv": CSV_400, "k_val.csv": CSV_400.replace("x", "val")},
    "ucf101": {
        "classInd.txt": "1 run\n2 walk\n",
        "trainlist01.txt": "run/a_run.avi 1\n",
        "testlist01.txt": "walk/b_walk.avi\n",
    },
    "hmdb51": {
        "run_test_split1.txt": "a_run.avi 1\n",
        "walk_test_split1.txt": "b_walk.avi 2\n",
    },
    "sports1m": {
        "labels.txt": "run\nwalk\n",
        "train_partition.txt": SPORTS,
        "test_partition.txt": SPORTS.splitlines()[1],
    },
    "weizmann": {},
}
VIDEOS = ["run/a_run.avi", "walk/b_walk.avi"]
CLIPS = ["a_000000_000010.mp4", "b_000000_000010.mp4", "a.mp4", "b.mp4"]


class Set:
    """A data set of two videos: how to open it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.root = folder / "videos"
        self.lists = folder / "lists"
        for file in [
            self.root / n for n in (CLIPS if name in ("kinetics", "sports1m") else VIDEOS)
        ]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        self.lists.mkdir()
        for file, text in FILES[name].items():
            (self.lists / file).write_text(text)
        self.options: dict[str, Any] = {}
        if FILES[name]:
            self.options["annotations"] = self.lists
        if name == "csv":
            self.options["annotations"] /= "list.csv"
        if name in ("ucf101", "hmdb51", "weizmann"):
            self.options["split"] = "b" if name == "weizmann" else "1"

    def open(self, **options: Any) -> VideoList:
        return open_list(self.name, self.root, **{**self.options, **options})


@pytest.fixture(params=DATASETS)
def dataset(request, tmp_path: Path) -> Set:
    return Set(request.param, tmp_path)


def test_every_set_opens_by_its_name_and_takes_classes(dataset: Set) -> None:
    videos = dataset.open(train=True)
    assert (videos.name, videos.root, videos.classes) == (
        dataset.name,
        dataset.root,
        ["run", "walk"],
    )
    assert videos.items[0].labels == (0,)
    assert videos.items[0].path.is_file()
    assert videos.split == dataset.options.get("split")
    classes = ["jump", "walk", "run"]
    renumbered = dataset.open(train=True, classes=classes)
    assert renumbered.classes == classes
    assert renumbered.items[0].labels == (2,)
    assert [item.path for item in renumbered.items] == [item.path for item in videos.items]
    with pytest.raises(ValueError, match="not among"):
        dataset.open(train=True, classes=["jump", "hop", "run"][:2])


def test_splits_are_numbers_too(tmp_path: Path) -> None:
    ucf = Set("ucf101", tmp_path)
    assert ucf.open(split=1) == ucf.open(split="1")


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_the_folder_of_the_lists_is_asked_for(name: str, tmp_path: Path) -> None:
    opened = Set(name, tmp_path)
    file = min(opened.lists.iterdir())
    with pytest.raises(ValueError, match=f"{file.name} is a file; give the folder of"):
        opened.open(annotations=file)


def test_sides(dataset: Set) -> None:
    sides = [{item.path for item in dataset.open(train=train).items} for train in (True, False)]
    if not has_sides(dataset.name, dataset.options.get("annotations")):
        assert dataset.name in ("folder", "csv")
        assert sides[0] == sides[1]
    elif dataset.name == "kinetics":
        assert sides[0] == sides[1]
    elif dataset.name == "sports1m":
        assert sides[1] < sides[0]
    else:
        assert len(sides[0]) == len(sides[1]) == 1 and sides[0] != sides[1]


def test_no_video_is_opened(dataset: Set) -> None:
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    dataset.open(train=True)
    list_splits(dataset.name, dataset.root)
    watching = False
    assert not [path for path in opened if Path(path).is_relative_to(dataset.root)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", [name for name in DATASETS if FILES[name]])
def test_any_bytes_give_a_list_or_a_clear_error(tmp_path_factory, name: str, data: Any) -> None:
    tried = Set(name, tmp_path_factory.mktemp("set"))
    file = data.draw(st.sampled_from(sorted(tried.lists.iterdir())))
    content = file.read_bytes()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    piece = st.binary(max_size=6) | st.sampled_from([b",", b"\n", b'"', b"\r", b" ", b"../", b"/"])
    file.write_bytes(content[:start] + data.draw(piece) + content[end:])
    for train in (True, False):
        try:
            videos = tried.open(train=train)
        except ValueError as error:
            assert str(tried.lists) in str(error) or str(tried.root) in str(error)
        else:
            assert videos.items
            assert all(tried.root in item.path.parents for item in videos.items)
            assert all(0 <= n < len(videos.classes) for item in videos.items for n in item.labels)


def test_splits(tmp_path: Path) -> None:
    assert list_splits("ucf101", tmp_path) == list_splits("hmdb51", tmp_path) == ["1", "2", "3"]
    for name in ("folder", "csv", "kinetics", "sports1m"):
        assert list_splits(name, tmp_path) == []


def test_a_csv_may_stand_in_the_place_of_the_root(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("a.mp4,run\nb.mp4,walk\n")
    assert open_list("csv", file).items[0].path == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    "name", ["train.csv", "kinetics-600_train.csv", "kinetics_700_train.csv", "k400.train.csv"]
)
def test_kinetics_names_of_releases(tmp_path: Path, name: str) -> None:
    made = Set("kinetics", tmp_path)
    for file in made.lists.iterdir():
        file.unlink()
    (made.lists / name).write_text(CSV_400)
    for val in ("val", "validate", "validation"):
        file = made.lists / name.replace("train", val)
        file.write_text(CSV_400.replace("\nwalk", "\nhop"))
        assert made.open(train=True).classes == ["run", "walk"]
        assert made.open(train=False).classes == ["hop", "run"]
        file.unlink()
    (made.lists / "retrain.csv").touch()
    assert made.open(train=True).classes == ["run", "walk"]
    with pytest.raises(
        ValueError, match="expected one CSV named val or validate in it, found none"
    ):
        made.open(train=False)
    (made.lists / "train.csv").touch()
    if name != "train.csv":
        with pytest.raises(ValueError, match=f"found {name}, train.csv|found train.csv, {name}"):
            made.open(train=True)


def test_one_file_is_one_side(tmp_path: Path) -> None:
    for name, file in (("kinetics", "k_val.csv"), ("sports1m", "test_partition.txt")):
        (tmp_path / name).mkdir()
        made = Set(name, tmp_path / name)
        assert has_sides(name, made.lists)
        assert not has_sides(name, made.lists / file)
        sides = [made.open(annotations=made.lists / file, train=side) for side in (True, False)]
        assert sides[0] == sides[1]


def test_sports1m_as_released_has_its_partitions_in_a_folder(tmp_path: Path) -> None:
    made = Set("sports1m", tmp_path)
    (made.lists / "original").mkdir()
    for side in ("train", "test"):
        name = f"{side}_partition.txt"
        (made.lists / name).rename(made.lists / "original" / name)
    assert len(made.open(train=True).items) == 2
    assert len(made.open(train=False).items) == 1
    inner = made.lists / "original" / "test_partition.txt"
    assert len(made.open(annotations=inner).items) == 1
    assert len(made.open(annotations=inner.parent, train=True).items) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ucf11", {}, "data set 'ucf11' is unknown; expected one of folder, csv"),
        ("ucf101", {"split": "1"}, "ucf101 needs annotations: the folder of classInd.txt"),
        ("kinetics", {}, "kinetics needs annotations: a CSV"),
        ("folder", {"annotations": "x"}, "folder takes no annotations, got x"),
        ("weizmann", {"annotations": "x", "split": "ido"}, "weizmann takes no annotations"),
        ("csv", {"split": "1"}, "csv has no splits, got split '1'"),
        ("hmdb51", {"annotations": "x"}, "hmdb51 has splits: name one"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, name: str, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_list(name, tmp_path, **options)

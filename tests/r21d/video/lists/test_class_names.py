"""Classes that lists and networks spell differently. Under a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from r21d.video.lists import VideoItem, VideoList, list_csv, list_folder, list_kinetics
from r21d.video.lists.class_names import match_classes, nearest

LABELS = ["flipping pancake", "Push-Up", "run"]


@pytest.mark.parametrize(
    ("names", "classes", "numbers"),
    [
        (["run", "Push-Up"], LABELS, [2, 1]),
        (["flipping_pancake", "push_up", "RUN"], LABELS, [0, 1, 2]),
        (["Flipping  Pancake"], LABELS, [0]),
        (["flippingpancake", "running"], LABELS, [None, None]),
        # Which of the two is meant, nobody knows; the exact one is itself.
        (["a b", "a-b"], ["a_b", "A b"], [None, None]),
        (["a_b", "a-b"], ["a_b", "c"], [0, None]),
        (["a_b", "A_B"], ["A_B", "a_b"], [1, 0]),
    ],
)
def test_matching(names: list[str], classes: list[str], numbers: list[int | None]) -> None:
    found = match_classes(names, classes)
    assert [found.get(name) for name in names] == numbers


def test_the_nearest_names() -> None:
    assert nearest(["runn", "flip_pancake"], LABELS) == (
        "; did you mean run for runn, flipping pancake for flip_pancake?"
    )
    assert nearest(["xyz"], LABELS) == ""


def test_every_list_matches(tmp_path: Path) -> None:
    for name in ("Flipping_Pancake/x_000001_000011.mp4", "run/b.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    videos = list_folder(tmp_path, LABELS)
    assert videos.classes == LABELS
    assert [(i.path.parent.name, i.labels) for i in videos.items] == [
        ("Flipping_Pancake", (0,)),
        ("run", (2,)),
    ]
    (tmp_path / "list.csv").write_text("a.mp4,push_up;Run\n")
    assert list_csv(tmp_path / "list.csv", None, LABELS).items[0].labels == (1, 2)
    (tmp_path / "kinetics.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nflipping_pancake,x,1,11,val\n"
    )
    found = list_kinetics(tmp_path, tmp_path / "kinetics.csv", LABELS)
    assert [item.labels for item in found.items] == [(0,)]
    item = VideoItem(tmp_path / "a.mp4", (1,))
    own = VideoList("csv", tmp_path, ["RUN", "push up"], [item], [])
    assert own.with_classes(LABELS).items[0].labels == (1,)


def test_every_list_offers_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "runn").mkdir()
    (tmp_path / "list.csv").write_text("a.mp4,runn\n")
    (tmp_path / "kinetics.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nrunn,x,1,11,val\n"
    )
    message = "did you mean run for runn"
    with pytest.raises(ValueError, match=message):
        list_folder(tmp_path, LABELS)
    with pytest.raises(ValueError, match=message):
        list_csv(tmp_path / "list.csv", None, LABELS)
    (tmp_path / "runn" / "x_000001_000011.mp4").touch()
    with pytest.raises(ValueError, match=message):
        list_kinetics(tmp_path, tmp_path / "kinetics.csv", LABELS)
    with pytest.raises(ValueError, match=message):
        VideoList("csv", tmp_path, ["runn", "run"], [], []).with_classes(LABELS)

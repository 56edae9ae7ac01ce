"""Finding videos below a folder, and numbering classes anew (well under a second)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r21d.video.lists import VideoItem, VideoList, find_videos, is_video
from r21d.video.lists.files import named_videos, videos_by_id


def test_videos_are_told_by_suffix_and_folders_are_none(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    assert not is_video(tmp_path / "folder.mp4")
    names = ("a.mp4", "b.MKV", "c.d.avi", "none.avi", "e.txt", ".f.mp4", "mp4", ".mp4")
    assert [n for n in names if is_video(tmp_path / n)] == ["a.mp4", "b.MKV", "c.d.avi", "none.avi"]


def test_every_video_below_in_order_of_names(touch) -> None:
    root = touch(["b/x.mp4", "a/z/y.mkv", "a/x.avi", "c.mp4", "a.mp4/in.mov"])
    touch([".hidden/x.mp4", "a/.y.mp4", "a/notes.txt", "b/x.mp4.part"])
    assert list(find_videos(root)) == ["a/x.avi", "a/z/y.mkv", "a.mp4/in.mov", "b/x.mp4", "c.mp4"]


def test_links_are_followed_and_a_loop_ends(touch, tmp_path: Path) -> None:
    root = touch(["a/x.mp4"])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.mp4").touch()
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again").symlink_to(root)
    (root / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    # A link that leads nowhere is a video that will not open, and should be told of.
    assert list(find_videos(root)) == ["a/x.mp4", "far/y.mp4", "gone.mp4"]


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = b"new\nline and \xff.mp4"
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).touch()
    assert [os.fsencode(path) for path in find_videos(tmp_path)] == [name]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none: no such folder"):
        find_videos(tmp_path / "none")


def test_downloads_are_found_by_what_stands_before_the_first_dot(touch) -> None:
    root = touch(["v/-a_B.mp4.webm", "w/-a_B.mp4", "w/other.mkv", "w/half.mp4.part"])
    assert videos_by_id(root) == {"-a_B": "v/-a_B.mp4.webm", "other": "w/other.mkv"}


def test_listed_files_may_lie_deeper_or_be_coded_anew(touch) -> None:
    root = touch(["run/a.avi", "run/a.mp4", "run/b.mp4", "UCF-101/jump/a.avi", "jump/c.avi"])
    names = ["run/a.avi", "run/a.mp4", "run/b.avi", "jump/a.avi", "run/c.avi"]
    found = [path.relative_to(root).as_posix() for path in named_videos(root, names)]
    assert found == ["run/a.avi", "run/a.mp4", "run/b.mp4", "UCF-101/jump/a.avi", "run/c.avi"]


def test_of_several_files_of_one_listed_name_the_nearest_is_taken(touch) -> None:
    root = touch(["x/y/A/1.avi", "z/A/1.avi", "A/1.mp4", "y/A/2.mp4", "z/A/2.avi", "A/2.mkv"])
    touch(["p/q/A/3.mkv", "r/A/3.mp4", "r/A/3.webm", "flow/B/1.avi", "rgb/B/1.avi", "B/1.avi"])
    names = ["A/1.avi", "A/2.avi", "A/3.avi", "B/1.avi"]
    found = [path.relative_to(root).as_posix() for path in named_videos(root, names)]
    assert found == ["z/A/1.avi", "z/A/2.avi", "r/A/3.mp4", "B/1.avi"]


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_equally_good_files_in_several_folders_are_refused(touch, suffix) -> None:
    root = touch([f"{kind}/A/1.{suffix}" for kind in ("flow", "rgb")])
    message = rf"A/1\.avi may be flow/A/1\.{suffix} or rgb/A/1\.{suffix}; name a folder"
    with pytest.raises(ValueError, match=message):
        named_videos(root, ["A/1.avi"])


def test_not_one_of_the_listed_files(touch) -> None:
    with pytest.raises(ValueError, match=r"none of the 2 listed videos is there; expected .*run/a"):
        named_videos(touch(["x.mp4"]), ["run/a.avi", "run/b.avi"])


def test_classes_numbered_anew(tmp_path: Path) -> None:
    items = [VideoItem(tmp_path / "x", (1,)), VideoItem(tmp_path / "y", (0, 1))]
    videos = VideoList("csv", tmp_path, ["run", "walk"], items, [tmp_path / "z"], True, "2")
    new = videos.with_classes(["walk", "jump", "run"])
    assert new.classes == ["walk", "jump", "run"]
    assert [item.labels for item in new.items] == [(0,), (2, 0)]
    assert [item.path for item in new.items] == [item.path for item in items]
    assert (new.name, new.root, new.missing) == ("csv", tmp_path, [tmp_path / "z"])
    assert (new.multilabel, new.split) == (True, "2")
    assert videos.items == items
    with pytest.raises(ValueError, match=r"classes run of csv are not among the 2 labels \(walk, "):
        videos.with_classes(["walk", "jump"])

"""Data sets in little, with videos and lists as the real ones have them."""

from __future__ import annotations

from pathlib import Path

import torch

from r21d.video import write_video

_CLIPS = "label,youtube_id,time_start,time_end,split\n"
_SPORTS = "http://www.youtube.com/watch?v="
_RUN, _WALK = ("a", "b", "c"), ("d", "e", "f")

# The lists of two classes, of which each has two videos to train on and one to test on.
_LISTS = {
    "folder": {},
    "weizmann": {},
    "kinetics": {
        "k_train.csv": _CLIPS + "run,a,0,10,x\nrun,b,0,10,x\nwalk,d,0,10,x\nwalk,e,0,10,x\n",
        "k_val.csv": _CLIPS + "run,c,0,10,val\nwalk,f,0,10,val\n",
    },
    "ucf101": {
        "classInd.txt": "1 run\n2 walk\n",
        "trainlist01.txt": "run/a.avi 1\nrun/b.avi 1\nwalk/d.avi 2\nwalk/e.avi 2\n",
        "testlist01.txt": "run/c.avi\nwalk/f.avi\n",
    },
    "hmdb51": {
        "run_test_split1.txt": "a.avi 1\nb.avi 1\nc.avi 2\n",
        "walk_test_split1.txt": "d.avi 1\ne.avi 1\nf.avi 2\n",
    },
    "sports1m": {
        "labels.txt": "run\nwalk\n",
        "train_partition.txt": "".join(f"{_SPORTS}{v} {v in _WALK:d}\n" for v in "abde"),
        "test_partition.txt": "".join(f"{_SPORTS}{v} {v in _WALK:d}\n" for v in "cf"),
    },
}


def _file(name: str, action: str, number: int, video: str) -> str:
    if name == "kinetics":
        return f"{video}_000000_000010.mp4"
    if name == "sports1m":
        return f"{video}.mp4"
    if name == "weizmann":
        return f"{action}/{'abc'[number]}_{action}.mp4"
    return f"{action}/{video}.mp4"


def small_set(name: str, folder: Path) -> list[str]:
    """Make the data set ``name`` below ``folder`` and return the options that open it, DATA first.

    Bright videos are of people who run, dark ones of those who walk: 8 frames of 20x26 pixels.
    """
    root, lists = folder / "videos", folder / "lists"
    generator = torch.Generator().manual_seed(0)
    for action, videos, brightness in (("run", _RUN, 160), ("walk", _WALK, 30)):
        for number, video in enumerate(videos):
            path = root / _file(name, action, number, video)
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = torch.randint(0, 60, (8, 20, 26, 3), generator=generator)
            write_video(path, (noise + brightness).to(torch.uint8), 10)
    options = [str(root), "--dataset", name]
    if _LISTS[name]:
        lists.mkdir()
        for file, text in _LISTS[name].items():
            (lists / file).write_text(text)
        options += ["--annotations", str(lists)]
    if name in ("ucf101", "hmdb51", "weizmann"):
        options += ["--split", "c" if name == "weizmann" else "1"]
    return options

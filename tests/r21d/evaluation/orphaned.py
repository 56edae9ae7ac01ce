"""Reads videos by a worker process, until it is killed: prints a line once a video is read."""

from __future__ import annotations

import signal

from evaluation.written import Scored

from r21d.evaluation.loading import group_parts

if __name__ == "__main__":
    videos = Scored([(0, [[0.7, 0.2, 0.1]])] * 100)
    groups = [range(number, number + 1) for number in range(len(videos))]
    loaded = group_parts(videos, groups, workers=1, fresh=True)
    list(next(loaded))
    print("read", flush=True)
    signal.pause()

"""Which clips stand for a video (about 1 s)."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

from r21d.video.clips import ClipSampling
from r21d.video.reader import VideoInfo
from r21d.video.transforms import InputSpec

SPEC = InputSpec(clip_len=8, frame_rate=15.0)


def _info(frames: int, rate: float = 30.0) -> VideoInfo:
    return VideoInfo(Path("a.mp4"), frames, frames / rate, rate, 64, 48, 0, "h264")


def test_even_clips_reach_both_ends() -> None:
    info = _info(300)
    starts = ClipSampling("even", 5).starts(info, SPEC, "a")
    assert starts == info.clip_starts(8, 15.0, 5)
    assert starts[0] == 0 and starts[-1] + 7 / 15 == pytest.approx(299 / 30)
    strided = ClipSampling("even", 2).starts(info, dataclasses.replace(SPEC, frame_stride=3), "a")
    assert strided[-1] + 7 * 3 / 15 == pytest.approx(299 / 30)
    assert ClipSampling("even", 1).starts(info, SPEC, "a") == [pytest.approx(starts[-1] / 2)]


def test_random_clips_depend_on_the_seed_and_the_name_alone() -> None:
    sampling, info = ClipSampling("random", 100, seed=7), _info(300)
    starts = sampling.starts(info, SPEC, "walk/a.mp4")
    sampling.starts(info, SPEC, "walk/b.mp4")
    assert sampling.starts(info, SPEC, "walk/a.mp4") == starts == sorted(starts)
    assert len(set(starts)) == 100
    drawn = [
        tuple(ClipSampling("random", 4, seed=seed).starts(info, SPEC, key))
        for seed in (*range(5), 2**32, 2**40)
        for key in ("walk/a.mp4", "walk/b.mp4", "walk/b\udcff.mp4", "walk/b\n.mp4")
    ]
    assert len(set(drawn)) == len(drawn)


def test_random_clips_lie_anywhere_within_the_video() -> None:
    starts = ClipSampling("random", 4000).starts(_info(300), SPEC, "a")
    latest = 10 - 7 / 15
    assert starts[0] >= 0 and starts[-1] < latest
    tenths = [sum(int(10 * start / latest) == tenth for start in starts) for tenth in range(10)]
    assert min(tenths) > 320 and max(tenths) < 480
    assert ClipSampling("random", 3).starts(_info(4), SPEC, "a") == [0, 0, 0]
    strided = dataclasses.replace(SPEC, frame_stride=10)
    latest = 10 - 70 / 15
    assert 0.9 * latest < ClipSampling("random", 400).starts(_info(300), strided, "a")[-1] < latest


def test_dense_clips_by_hand() -> None:
    def frames(count: int, spec: InputSpec, rate: float = 30.0) -> list[float]:
        starts = ClipSampling("dense").starts(_info(count, rate), spec, "a")
        return [round(start * rate, 6) for start in starts]

    native = InputSpec(clip_len=8, frame_rate=None)
    assert frames(24, native) == [0, 8, 16]
    assert frames(27, native) == [0, 8, 16, 19]
    assert frames(8, native) == frames(3, native) == [0]
    assert frames(9, native) == [0, 1]
    strided = dataclasses.replace(native, frame_stride=2)
    assert frames(32, strided) == [0, 16]
    assert frames(40, strided) == [0, 16, 25]  # 25, 27, ..., 39
    timed = dataclasses.replace(native, frame_rate=15.0)
    assert frames(32, timed) == frames(32, strided)
    assert frames(16, dataclasses.replace(native, frame_rate=60.0)) == [0, 4, 8, 12]


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 400),
    rate=st.sampled_from([5.0, 12.5, 24000 / 1001, 25.0, 30000 / 1001, 60.0]),
    frame_rate=st.sampled_from([None, 7.5, 15.0, 25.0, 30.0]),
    clip_len=st.integers(1, 40),
    stride=st.integers(1, 4),
)
def test_dense_clips_cover_the_video_and_nothing_twice_but_the_end(
    count: int, rate: float, frame_rate: float | None, clip_len: int, stride: int
) -> None:
    spec = InputSpec(clip_len, frame_rate, frame_stride=stride)
    starts = ClipSampling("dense", 3).starts(_info(count, rate), spec, "a")
    step = stride / (frame_rate or rate)
    length, end = clip_len * step, count / rate
    assert starts[0] == 0
    for first, second in itertools.pairwise(starts[:-1]):
        assert second - first == pytest.approx(length)
    if len(starts) > 1:
        assert 0 < starts[-1] - starts[-2] <= length + 1e-9
        last_instant = starts[-1] + length - step
        assert last_instant < end + 0.5 / rate  # of which rounding may be half a frame
        left_over = end - (starts[-1] + length)
        ends_on_the_last_frame = last_instant + 1 / rate >= end - 1e-9
        assert left_over <= 0.5 / rate + 1e-9 or ends_on_the_last_frame
    elif length < end - 1 / rate:
        pytest.fail("a video longer than a clip has more than one")


@pytest.mark.parametrize("mode", ["even", "random", "dense"])
@pytest.mark.parametrize(("crops", "normalized"), [(1, False), (3, False), (3, True)])
def test_parts_hold_as_many_clips_as_there_is_room_for(
    mode: str, crops: int, normalized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling, info = ClipSampling(mode, 10, crops), _info(300)
    spec = InputSpec(clip_len=4, resize=30, crop=(20, 24))
    starts = sampling.starts(info, spec, "a")
    assert sampling.parts(info, spec, "a") == [starts]
    # 64x48 scaled to 40x30.
    size = 4 * 3 * (40 * 30 + crops * 20 * 24 * (4 if normalized else 1))
    for room, length in ((3 * size, 3), (3 * size - 1, 2), (1, 1)):
        monkeypatch.setattr("r21d.video.clips._PART_BYTES", room)
        parts = sampling.parts(info, spec, "a", normalized=normalized)
        assert [start for part in parts for start in part] == starts
        assert {len(part) for part in parts[:-1]} == {length} and 0 < len(parts[-1]) <= length


def test_views() -> None:
    assert ClipSampling().views == 10
    assert ClipSampling("random", 100, crops=3).views == 300
    assert ClipSampling("dense", crops=3).views is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "uniform"}, "mode must be one of even, random, dense, got 'uniform'"),
        ({"clips": 0}, "clips must be at least 1, got 0"),
        ({"clips": 2.0}, "clips must be at least 1, got 2.0"),
        ({"crops": 2}, r"crops must be 1 \(the centre\) or 3"),
        ({"seed": "a"}, "seed must be a whole number"),
    ],
)
def test_bad_values(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        ClipSampling(**values)

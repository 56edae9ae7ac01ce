"""Clip sampling (about 3 s)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r21d.video.sampling import (
    TOLERANCE,
    Selection,
    clip_span,
    clip_starts,
    random_clip_start,
    select_frames,
)

seconds = st.floats(0, 1e4, allow_nan=False)
times = st.lists(st.floats(0, 10), min_size=1, max_size=40).map(sorted)
starts_list = st.lists(st.floats(0, 12), min_size=1, max_size=4)
clip_lens = st.integers(1, 20)
strides = st.integers(1, 4)


def _indices(times: list[float], starts: list[float], clip_len: int, rate: float | None, **more):
    pairs = list(zip(times, range(len(times)), strict=True))
    return select_frames(pairs, starts, clip_len, rate, int, **more)


def _shown_at(times: list[float], instant: float) -> int:
    """The definition: the last frame that has begun, else the first."""
    begun = [i for i, time in enumerate(times) if time <= instant + TOLERANCE]
    return begun[-1] if begun else 0


@given(times, starts_list, clip_lens, st.floats(0.5, 120), strides)
def test_selection_is_the_frame_on_display(times, starts, clip_len, rate, stride):
    expected = [[_shown_at(times, s + i * stride / rate) for i in range(clip_len)] for s in starts]
    assert _indices(times, starts, clip_len, rate, frame_stride=stride) == expected


@given(times, starts_list, clip_lens, strides)
def test_consecutive_selection_counts_on_from_the_frame_on_display(times, starts, clip_len, stride):
    last = len(times) - 1
    firsts = [_shown_at(times, start) for start in starts]
    expected = [[min(first + i * stride, last) for i in range(clip_len)] for first in firsts]
    assert _indices(times, starts, clip_len, None, frame_stride=stride) == expected


def _wrapped(instant: float, length: float) -> float:
    while instant + TOLERANCE >= length:
        instant -= length
    return instant


# Times and lengths in whole units: what is on display at a frame's very end is not in doubt.
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=9).map(sorted),
    st.lists(st.integers(0, 90), min_size=1, max_size=4),
    clip_lens,
    st.sampled_from([None, 0.25, 0.5, 1.0, 2.0]),
    strides,
    st.integers(1, 5),
)
def test_a_looped_video_begins_again_after_its_last_frame(
    ticks, starts, clip_len, rate, stride, period
):
    times = [float(tick - ticks[0]) for tick in ticks]
    length, count = times[-1] + period, len(times)
    options = {"frame_stride": stride, "short": "loop", "period": float(period)}
    found = _indices(times, [float(start) for start in starts], clip_len, rate, **options)
    for start, clip in zip(starts, found, strict=True):
        if rate is None:
            first = _shown_at(times, _wrapped(start, length))
            assert clip == [(first + i * stride) % count for i in range(clip_len)]
        else:
            instants = [_wrapped(start + i * stride / rate, length) for i in range(clip_len)]
            assert clip == [_shown_at(times, instant) for instant in instants]


def test_rounds_in_which_nothing_is_wanted_are_not_read():
    class Counted(list):
        rounds = 0

        def __iter__(self):
            self.rounds += 1
            return super().__iter__()

    frames = Counted([(0.0, 0), (1.0, 1)])
    options = {"short": "loop", "period": 1.0}
    assert select_frames(frames, [1e6 + 1], 3, 1.0, int, **options) == [[1, 0, 1]]
    assert frames.rounds <= 5
    assert select_frames(Counted(), [5.0], 2, 1.0, int, **options) == [[]]


@given(times, starts_list, clip_lens, st.none() | st.floats(0.5, 60), strides)
def test_frames_that_are_not_wanted_may_be_missing(times, starts, clip_len, rate, stride):
    """Whatever comes before the frame on display at `Selection.wanted`."""
    selection = Selection(starts, clip_len, rate, int, frame_stride=stride)
    seen = []

    def frames():
        for i, time in enumerate(times):
            following = times[i + 1] if i + 1 < len(times) else math.inf
            if selection.wanted() + TOLERANCE < following:
                seen.append(i)
                yield time, i

    expected = _indices(times, starts, clip_len, rate, frame_stride=stride)
    assert selection.run(frames()) == expected
    assert {i for clip in expected for i in clip} <= set(seen)


def test_selection_stops_reading_when_the_clips_are_complete():
    read = []

    def frames():
        for i in range(1000):
            read.append(i)
            yield i / 25, i

    select_frames(frames(), [0.0, 0.2], 4, 25.0, int)
    assert len(read) == 10  # frames 0..8 are used, 9 says when 8 ends


def test_selection_converts_each_frame_once():
    converted = []

    def convert(frame: int) -> int:
        converted.append(frame)
        return frame

    clips = select_frames(((i / 10, i) for i in range(5)), [0.0, 0.0], 10, 20.0, convert)
    assert clips == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]] * 2
    assert converted == [0, 1, 2, 3, 4]


def test_no_frames_give_empty_clips():
    assert _indices([], [0.0, 1.0], 4, 15.0) == [[], []]


@given(seconds, seconds, st.integers(1, 30))
def test_clip_starts_are_even_and_inside(duration, clip_duration, clips):
    starts = clip_starts(duration, clip_duration, clips)
    slack = max(0.0, duration - clip_duration)
    assert len(starts) == clips
    assert all(-1e-9 <= start <= slack + 1e-9 for start in starts)
    if clips == 1:
        assert starts[0] == pytest.approx(slack / 2)
    else:
        assert starts[0] == 0
        assert starts[-1] == pytest.approx(slack)
        gaps = [b - a for a, b in pairwise(starts)]
        assert gaps == pytest.approx([slack / (clips - 1)] * (clips - 1), abs=1e-8)


@given(seconds, seconds, st.integers(0, 2**31))
def test_random_start_is_inside_and_repeatable(duration, clip_duration, seed):
    draws = [
        random_clip_start(duration, clip_duration, torch.Generator().manual_seed(seed))
        for _ in range(2)
    ]
    assert draws[0] == draws[1]
    assert 0 <= draws[0] <= max(0.0, duration - clip_duration)


def test_random_start_covers_the_whole_range():
    generator = torch.Generator().manual_seed(0)
    draws = [random_clip_start(11.0, 1.0, generator) for _ in range(1000)]
    assert {int(draw) for draw in draws} == set(range(10))


def test_clip_span_lies_between_first_and_last_instant():
    assert clip_span(16, 15.0) == 1.0
    assert clip_span(1, 15.0) == 0.0
    assert clip_span(16, 15.0, 2) == 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_starts(1.0, 1.0, 0), "clips must be at least 1, got 0"),
        (lambda: clip_starts(-1.0, 1.0, 1), "duration must be a finite number"),
        (lambda: clip_starts(math.nan, 1.0, 1), "duration must be a finite number"),
        (lambda: random_clip_start(1.0, math.inf), "clip_duration must be a finite number"),
        (lambda: clip_span(0, 15.0), "clip_len must be a whole number"),
        (lambda: clip_span(2.5, 15.0), "clip_len must be a whole number"),
        (lambda: clip_span(16, 0.0), "frame_rate must be positive"),
        (lambda: clip_span(16, 15.0, 0), "frame_stride must be a whole number, at least 1, got 0"),
        (lambda: _indices([0.0], [0.0], 4, None, frame_stride=1.5), "frame_stride must be a whole"),
        (lambda: _indices([0.0], [0.0], 4, None, short="wrap"), "short must be 'pad' or 'loop'"),
        (lambda: _indices([0.0], [0.0], 4, None, short="loop"), "short='loop' needs the period"),
        (lambda: _indices([0.0], [0.0], 4, math.nan), "frame_rate must be positive"),
        (lambda: _indices([0.0], [0.0], 4, "15"), "frame_rate must be a number"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()

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
    clip_span,
    clip_starts,
    random_clip_start,
    select_frames,
)

seconds = st.floats(0, 1e4, allow_nan=False)
times = st.lists(st.floats(0, 10), min_size=1, max_size=40).map(sorted)
starts_list = st.lists(st.floats(0, 12), min_size=1, max_size=4)
clip_lens = st.integers(1, 20)


def _indices(times: list[float], starts: list[float], clip_len: int, rate: float | None):
    pairs = zip(times, range(len(times)), strict=True)
    return select_frames(pairs, starts, clip_len, rate, int)


def _shown_at(times: list[float], instant: float) -> int:
    """The definition: the last frame that has begun, else the first."""
    begun = [i for i, time in enumerate(times) if time <= instant + TOLERANCE]
    return begun[-1] if begun else 0


@given(times, starts_list, clip_lens, st.floats(0.5, 120))
def test_selection_is_the_frame_on_display(times, starts, clip_len, rate):
    expected = [[_shown_at(times, s + i / rate) for i in range(clip_len)] for s in starts]
    assert _indices(times, starts, clip_len, rate) == expected


@given(times, starts_list, clip_lens)
def test_consecutive_selection_counts_on_from_the_frame_on_display(times, starts, clip_len):
    last = len(times) - 1
    firsts = [_shown_at(times, start) for start in starts]
    expected = [[min(first + i, last) for i in range(clip_len)] for first in firsts]
    assert _indices(times, starts, clip_len, None) == expected


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
        (lambda: _indices([0.0], [0.0], 4, math.nan), "frame_rate must be positive"),
        (lambda: _indices([0.0], [0.0], 4, "15"), "frame_rate must be a number"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()

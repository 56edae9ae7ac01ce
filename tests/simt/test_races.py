"""Races are found where vector clocks define them, no more and no fewer (about 2 s).

Random sequences of accesses and barriers; a model that remembers every access tells which of them
race with an earlier one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from simt.library import simulator

Event = tuple[Any, ...]

BYTES = 32
ACTORS = 40
#: Of two warps, so that they share their entries or do not.
IDS = (0, 1, 5, 31, 32, 39)


@dataclass
class Model:
    """Every access so far, by granule of 2 bytes: (actor, its clock, whether it wrote, atomic)."""

    clocks: dict[int, dict[int, int]] = field(
        default_factory=lambda: {a: {b: int(a == b) for b in IDS} for a in IDS}
    )
    accesses: dict[int, list[tuple[int, int, bool, bool]]] = field(default_factory=dict)
    in_flight: set[int] = field(default_factory=set)

    def races(self, event: Event) -> bool:
        """Whether the event races with an earlier one; without, it is remembered."""
        kind = event[0]
        if kind == "join":
            self._join(*event[1:])
            return False
        actor, offset, size = event[1:]
        granules = range(offset // 2, (offset + size) // 2)
        if kind == "land":
            self.in_flight -= set(granules)
        elif any(self._conflicts(kind, actor, granule) for granule in granules):
            return True
        if kind == "copy":
            self.in_flight |= set(granules)
        access = (actor, self.clocks[actor][actor], kind != "read", kind == "atomic")
        for granule in granules:
            self.accesses.setdefault(granule, []).append(access)
        return False

    def _conflicts(self, kind: str, actor: int, granule: int) -> bool:
        if granule in self.in_flight:
            return True
        return any(
            (kind != "read" or wrote)
            and not (kind == "atomic" and atomic)
            and self.clocks[actor][other] < clock
            for other, clock, wrote, atomic in self.accesses.get(granule, ())
        )

    def _join(self, tell: list[int], learn: list[int]) -> None:
        known = {b: max(self.clocks[a][b] for a in tell) for b in IDS}
        for a in tell:
            self.clocks[a][a] += 1
        for a in learn:
            self.clocks[a] = {**known, a: self.clocks[a][a]}


def _draw_event(rng: random.Random, ids: tuple[int, ...], copies: list[tuple[int, int]]) -> Event:
    draw = rng.random()
    if draw < 0.3:
        tell = rng.sample(ids, rng.randint(2, len(ids)))
        return "join", tell, [a for a in tell if rng.random() < 0.8]
    if draw < 0.36 and copies:
        actor, offset = copies.pop(rng.randrange(len(copies)))
        return "land", actor, offset, 16
    actor = rng.choice(ids)
    if draw < 0.4:
        return "copy", actor, rng.randrange(0, BYTES, 16), 16
    if draw < 0.46:
        return "atomic", actor, rng.randrange(0, BYTES, 4), 4
    size = rng.choice((2, 4, 16))
    return "read" if draw < 0.8 else "write", actor, rng.randrange(0, BYTES, size), size


def _draw_trace(rng: random.Random, length: int) -> tuple[list[Event], list[bool]]:
    """Events, and of each whether it races; what does is as if it had not happened."""
    ids = tuple(rng.sample(IDS, rng.randint(2, len(IDS))))
    model = Model()
    events: list[Event] = []
    races: list[bool] = []
    copies: list[tuple[int, int]] = []
    for _ in range(length):
        event = _draw_event(rng, ids, copies)
        events.append(event)
        races.append(model.races(event))
        if event[0] == "copy" and not races[-1]:
            copies.append(event[1:3])
    return events, races


@pytest.mark.parametrize("length", [20, 60, 200])
def test_races_are_those_of_the_definition(length: int, seed: int) -> None:
    rng = random.Random(seed)
    races = 0
    for _ in range(20000 // length):
        events, wanted = _draw_trace(rng, length)
        found = simulator().races(BYTES, ACTORS, events)
        assert found == wanted, events
        races += sum(wanted)
    assert 2000 < races < 10000

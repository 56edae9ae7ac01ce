"""The videos that a run has begun with: it goes on with these, whatever becomes of some files."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r21d.atomic import write_atomically
from r21d.cli.errors import UserError, printable
from r21d.training.run_folder import VIDEOS_FILE

if TYPE_CHECKING:
    from r21d.video import ClipSampling, VideoDataset
    from r21d.video.dataset import Listed

_log = logging.getLogger(__name__)

_FEW, _MOST = 0.1, 0.5
"""Shares of a side's videos without which a run goes on unasked, and if asked to."""


@dataclass(frozen=True)
class RunVideos:
    """The classes, and names and labels of both sides, in the order in which they are numbered."""

    classes: list[str]
    training: list[Listed]
    validation: list[Listed]


def write_videos(out: Path, train_set: VideoDataset, val_set: VideoDataset) -> None:
    """Note in the run's folder what it trains and validates on."""
    found = RunVideos(train_set.classes, train_set.listed(), val_set.listed())
    write_atomically(out / VIDEOS_FILE, (json.dumps(vars(found), indent=0) + "\n").encode())


def read_videos(out: Path) -> RunVideos | None:
    """What `write_videos` noted; None where nothing can be read, with a warning if it is damaged.

    That it is what the run has begun with is for the digests in its states to tell.
    """
    path = out / VIDEOS_FILE
    try:
        found = json.loads(path.read_bytes())
        return RunVideos(
            [str(name) for name in found["classes"]],
            _listed(found["training"]),
            _listed(found["validation"]),
        )
    except FileNotFoundError:  # of a run of an earlier version
        return None
    except (ValueError, LookupError, TypeError) as error:
        _log.warning("%s cannot be read, the videos are taken as they are now: %r", path, error)
        return None


def _listed(rows: list[list[object]]) -> list[Listed]:
    found: list[Listed] = []
    for name, label in rows:
        labels = tuple(label) if isinstance(label, list) else label
        if not isinstance(name, str) or not isinstance(labels, (int, tuple)):
            raise TypeError(f"a name and a label were expected, got {name!r}, {label!r}")
        found.append((name, labels))
    return found


def as_begun(
    train_set: VideoDataset,
    val_set: VideoDataset | None,
    begun: RunVideos,
    sampling: ClipSampling,
    allow_changes: bool,
) -> tuple[VideoDataset, VideoDataset]:
    """Both sides as the run has begun with them, of the sets that are there now.

    ``val_set`` is None where validation holds videos out of ``train_set``. Those that are gone, or
    cannot be read any more, keep their place: training draws another instead each time, validation
    leaves them out. Those that have come since stay out.

    Raises:
        UserError: more than a tenth of a side is lost, with ``allow_changes`` more than half, or a
            single video of a strict set.
        ValueError: a video is of another class now.
    """
    held_out = val_set is None
    val_set = train_set if val_set is None else val_set
    known = {name for name, _ in (*begun.training, *begun.validation)}
    for dataset in [train_set] if held_out else [train_set, val_set]:
        new = [name for name, _ in dataset.listed() if name not in known]
        if new:
            names = new[0] + (f" and {len(new) - 1} more" if len(new) > 1 else "")
            _log.warning("%s: %s: not there when the run began, left out", dataset.root, names)
    found = (
        train_set.restored(begun.training, train=True),
        val_set.restored(begun.validation, train=False, sampling=sampling),
    )
    sides = {"training": "others are drawn instead", "validation": "they are left out of it"}
    for part, (side, told) in zip(found, sides.items(), strict=True):
        _check_lost(part, side, told, allow_changes)
    return found


def _check_lost(part: VideoDataset, side: str, told: str, allow_changes: bool) -> None:
    lost = part.unreadable
    if not lost:
        return
    path, reason = lost[0]
    message = (
        f"{len(lost)} of the run's {len(part)} {side} videos cannot be read ({path.name}: {reason})"
    )
    refusal = ""
    if part.strict:
        refusal = f"--no-strict goes on without: {told}"
    elif len(lost) > _MOST * len(part):
        refusal = "are these the videos of the run, and is it the same --split?"
    elif len(lost) > _FEW * len(part) and not allow_changes:
        refusal = f"that is more than a tenth; put them back, or say --allow-changes: {told}"
    if refusal:
        raise UserError(f"{printable(part.root)}: {message}; {refusal}")
    _log.warning("%s: %s; %s", part.root, message, told)

"""What one file holds and what is wrong with it."""

from __future__ import annotations

import dataclasses
import itertools
import stat
from pathlib import Path

from r21d.video.decoder import Decoder, VideoError
from r21d.video.index import IndexRow
from r21d.video.reader import probe
from r21d.video.sampling import TOLERANCE
from r21d.video.truncation import cut_short

_MOST_DAMAGE = 100
"""Places that a row names; a long file may be damaged everywhere."""


def examine(path: Path, name: str, full: bool = False) -> IndexRow:
    """Look at the file ``path``, whose row is to be called ``name``.

    Reads the header and the first frame, or decodes every frame if ``full``, in one thread.
    Whatever is wrong with the file is told in the row; only ImportError is raised, without PyAV.
    """
    row = IndexRow(name, size=-1, mtime_ns=-1, info=None, full=full)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            return dataclasses.replace(row, error="not a regular file")
        with path.open("rb"):  # may be forbidden, which changes neither size nor time
            row = dataclasses.replace(row, size=state.st_size, mtime_ns=state.st_mtime_ns)
        cut = tuple(filter(None, [cut_short(path)]))
        try:
            row = dataclasses.replace(row, info=probe(path, threads=1), damage=cut)
            return _decode(path, row) if full else row
        except VideoError as error:
            reason = str(error).removeprefix(f"{path}: ")
            reason += "".join(f"; {part}" for part in cut if part not in reason)
    except FileNotFoundError:
        reason = "no such file"
    except OSError as error:
        reason = f"cannot be opened as a video ({error.strerror or error})"
    except ImportError:
        raise
    except Exception as error:  # one file full of noise must not end a scan of a million
        reason = f"{type(error).__name__}: {error}"
    return dataclasses.replace(row, info=None, error=" ".join(reason.split()), damage=())


def _decode(path: Path, row: IndexRow) -> IndexRow:
    """``row`` with what decoding every frame tells."""
    times: list[float] = []
    with Decoder(path, threads=1) as decoder:
        times += (time for time, _ in decoder.frames())
        damage = tuple(dict.fromkeys((*row.damage, *decoder.failures)))[:_MOST_DAMAGE]
    if not times:
        raise VideoError(f"{path}: no frame can be decoded")
    return dataclasses.replace(
        row,
        damage=damage,
        frames=len(times),
        last=times[-1],
        # A frame that is missing leaves a longer step, too.
        variable_rate=None if damage else _steps_differ(times),
    )


def _steps_differ(times: list[float]) -> bool:
    steps = [after - before for before, after in itertools.pairwise(times)]
    # Twice, because containers round both the longest step and the shortest to their own tick.
    return len(steps) > 1 and max(steps) - min(steps) > 2 * TOLERANCE

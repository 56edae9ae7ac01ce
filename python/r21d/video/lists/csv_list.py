"""Lists in a text file of one's own: a video and its label a line."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from r21d.video.lists.class_names import match_classes, nearest
from r21d.video.lists.files import has_video_suffix
from r21d.video.lists.text import bad_line, check_class, check_path, read_text
from r21d.video.lists.video_list import VideoItem, VideoList, shortened

logger = logging.getLogger(__name__)

_PATH_COLUMNS = ("path", "file", "filename", "video", "video_path", "org_video")
_LABELS_COLUMNS = ("labels", "classes")
_LABEL_COLUMNS = ("label", "class", "category", "action", *_LABELS_COLUMNS)

_DELIMITERS = ("\t", ",")

# A larger one is a frame count or an identifier in the label's place.
_MOST_CLASSES = 1_000_000


class _Row(NamedTuple):
    line: int
    path: str
    labels: list[str]


def list_csv(
    file: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    classes: Sequence[str] | None = None,
) -> VideoList:
    """The videos of a text file that has a path and a label a line.

    They are separated by a tab, a comma or, after the path, by space; a cell that holds the
    separator is quoted. A first line that names the columns may stand above, in whatever order:
    ``path`` (or file, filename, video, video_path, org_video) and ``label`` (or class, category,
    action, labels, classes); other columns are not read. Paths are relative to ``root``, or to the
    file's own folder where that is None; there they may also be absolute.

    Labels are names or, where all are whole numbers, indices from 0; if they begin with 1, that is
    warned about. Several are joined by ``;``; then,
    or where the column is named ``labels`` or ``classes``, the list is multilabel. The classes are
    ``classes`` where given, else the sorted names, or the numbers from 0 to the largest.

    Raises:
        ValueError: the file cannot be read as a list; a line is malformed, repeats a path, names
            an unknown class or a path outside ``root``; or there is a single class.
    """
    file = Path(file)
    rows, multilabel = _read(file)
    base = file.parent if root is None else Path(root)
    lines: dict[str, int] = {}
    for row in rows:
        path = check_path(file, row.line, row.path, absolute=root is None)
        if (first := lines.setdefault(path, row.line)) != row.line:
            raise bad_line(file, row.line, f"{path} is already on line {first}")
    names, numbers = _number_classes(file, rows, classes)
    items = [
        VideoItem(base / path, tuple(dict.fromkeys(numbers[label] for label in row.labels)))
        for path, row in zip(lines, rows, strict=True)
    ]
    multilabel = multilabel or any(len(item.labels) > 1 for item in items)
    return VideoList("csv", base, names, items, [], multilabel)


def _read(file: Path) -> tuple[list[_Row], bool]:
    """The rows, and whether the header speaks of several labels."""
    cells = _cells(file, read_text(file))
    first = next(cells, None)
    if first is None:
        raise ValueError(f"{file}: the list is empty")
    columns = _columns(first[1])
    rows = []
    if columns is None:
        if len(first[1]) == 2 and not os.path.splitext(first[1][0])[1]:
            raise bad_line(
                file,
                first[0],
                f"{first[1][0]!r} is neither a file with a suffix nor a column that is known"
                f" ({', '.join(_PATH_COLUMNS)}; {', '.join(_LABEL_COLUMNS)})",
            )
        rows.append(_row(file, *first, 0, 1, 2))
    path, label, width = columns or (0, 1, 2)
    rows += [_row(file, line, row, path, label, width) for line, row in cells]
    if not rows:
        raise ValueError(f"{file}: the list is empty but for its header")
    return rows, columns is not None and first[1][label].lower() in _LABELS_COLUMNS


def _row(file: Path, line: int, cells: list[str], path: int, label: int, width: int) -> _Row:
    if len(cells) != width:
        raise bad_line(
            file,
            line,
            f"columns: {len(cells)}; expected {width}"
            + (", a path and a label" if width == 2 else " as in the first line")
            + " (quote a path that holds the separator)",
        )
    labels = [check_class(file, line, name.strip()) for name in cells[label].split(";")]
    return _Row(line, cells[path], labels)


def _cells(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of the lines that are not blank, with their line's number."""
    delimiter = _delimiter(file, text)
    if delimiter is not None:
        yield from _separated(file, text, delimiter)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            cells = line.strip().rsplit(None, 1)
            _check_spaced_path(file, number, cells[0])
            yield number, [cell.strip('"') for cell in cells]


def _check_spaced_path(file: Path, line: int, path: str) -> None:
    """Refuse ``a.mp4 100``: a third column, such as frame counts, and not a part of the name."""
    if path.startswith('"') or has_video_suffix(path):
        return
    words = path.split()
    for count in range(1, len(words)):
        if has_video_suffix(words[count - 1]):
            more = " ".join(words[count:])
            raise bad_line(
                file,
                line,
                f"{more!r} stands between a video's path and its label; expected a path and a"
                " label (quote a path that holds spaces)",
            )


def _separated(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield reader.line_num, stripped
    except csv.Error as error:
        raise bad_line(file, reader.line_num, f"malformed: {error}") from error


def _delimiter(file: Path, text: str) -> str | None:
    """What separates the columns, judging by the first line; None for space."""
    for delimiter in _DELIMITERS:
        try:
            _, cells = next(_separated(file, text, delimiter), (0, []))
        except ValueError:
            continue
        if len(cells) > 1 and (_columns(cells) or os.path.splitext(cells[0])[1]):
            return delimiter
    first = text.lstrip().partition("\n")[0]
    # A space-separated line may hold a comma in its path.
    spaced = os.path.splitext(first.rsplit(None, 1)[0])[1] if first else ""
    present = [delimiter for delimiter in _DELIMITERS if delimiter in first]
    return None if spaced or not present else present[0]


def _columns(cells: list[str]) -> tuple[int, int, int] | None:
    """Where the path and the label stand, and how many columns there are, if it is a header."""
    names = [cell.lower() for cell in cells]
    paths = [number for number, name in enumerate(names) if name in _PATH_COLUMNS]
    labels = [number for number, name in enumerate(names) if name in _LABEL_COLUMNS]
    return (paths[0], labels[0], len(cells)) if paths and labels else None


def _number_classes(
    file: Path, rows: list[_Row], classes: Sequence[str] | None
) -> tuple[list[str], dict[str, int]]:
    """The classes, and the index of each label that the file has."""
    lines = {label: row.line for row in reversed(rows) for label in row.labels}
    if not lines.keys() <= {*(classes or ())} and all(
        re.fullmatch(r"-?[0-9]{1,12}", s) for s in lines
    ):
        return _numbered(file, lines, classes)
    if classes is None:
        names = sorted(lines)
        if len(names) == 1:
            raise ValueError(f"{file}: a single class ({names[0]}) leaves nothing to tell apart")
        return names, {name: number for number, name in enumerate(names)}
    numbers = match_classes(lines, classes)
    for name, line in lines.items():
        if name not in numbers:
            raise bad_line(
                file,
                line,
                f"class {name} is not among the {len(classes)} labels ({shortened(classes)})"
                + nearest([name], classes),
            )
    return list(classes), numbers


def _numbered(
    file: Path, lines: dict[str, int], classes: Sequence[str] | None
) -> tuple[list[str], dict[str, int]]:
    most = _MOST_CLASSES if classes is None else len(classes)
    numbers = {text: int(text) for text in lines}
    for text, number in numbers.items():
        if not 0 <= number < most:
            raise bad_line(file, lines[text], f"class number {text} is outside 0..{most - 1}")
    if min(numbers.values()) == 1:
        logger.warning(
            "%s: the class numbers begin with 1, so class 0 has no video; if they were counted"
            " from 1, subtract one",
            file,
        )
    if classes is not None:
        return list(classes), numbers
    if not any(numbers.values()):
        raise ValueError(f"{file}: a single class (0) leaves nothing to tell apart")
    return [str(number) for number in range(max(numbers.values()) + 1)], numbers

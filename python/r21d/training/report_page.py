"""The HTML of a run's report: one file, without scripts, that needs nothing beside it."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from r21d.evaluation.progress import clock
from r21d.plots.run import best_epoch
from r21d.training import run_folder
from r21d.training.run_config import DEFAULT_SOURCE

if TYPE_CHECKING:
    from r21d.training.report import Run

_TEMPLATE = Path(__file__).with_name("report_page.html")

_SHARES = ("clip_top1", "clip_top5", "video_top1", "video_top5", "train_clip_top1")
_HEADINGS = {
    "epoch": "epoch",
    "step": "step",
    "clips": "clips",
    "lr": "learning rate",
    "train_loss": "loss, training",
    "train_clip_top1": "clip@1, training",
    "val_loss": "loss, held out",
    "clip_top1": "clip@1",
    "clip_top5": "clip@5",
    "video_top1": "video@1",
    "video_top5": "video@5",
    "skipped_steps": "skipped",
    "seconds": "time",
}
_MOST_ERRORS = 20
_ROWS_SHOWN = 15
"""Of the history; a longer one is folded."""


def page(run: Run, pictures: Mapping[str, bytes]) -> str:
    """The whole page. ``pictures`` are PNGs by their file's name."""
    name = run.folder.resolve().name
    model = str(run.config.get("model", {}).get("model", ""))
    sections = [
        _section("Curves", _picture(pictures.get(run_folder.CURVES_FILE), "loss and accuracy")),
        _section("Classes", _classes(run, pictures.get(run_folder.CONFUSION_FILE))),
        _section("Surest errors", _errors(run)),
        _section("Going on", _commands(run)),
        _section("Configuration", _configuration(run)),
        _section("Epochs", _history(run)),
        _section("Environment", _environment(run)),
    ]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(name),
        subtitle=escape(" · ".join(filter(None, (model, _data(run), _progress(run))))),
        result=_result(run),
        cards=_cards(run),
        sections="\n".join(filter(None, sections)),
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>" if content else ""


def _data(run: Run) -> str:
    dataset = run.config.get("data", {}).get("dataset", "")
    split = run.config.get("run", {}).get("split")
    return f"{dataset}, split {split}" if split else str(dataset)


def _progress(run: Run) -> str:
    epochs, done = _epochs(run), len(run.history)
    if epochs is None:
        return f"{done} epochs"
    return f"{done} epochs" if done >= epochs else f"{done} of {epochs} epochs so far"


def _epochs(run: Run) -> int | None:
    epochs = run.config.get("train", {}).get("epochs")
    return epochs if isinstance(epochs, int) else None


def _result(run: Run) -> str:
    best = best_epoch(run.history)
    if best is None:
        return "No epoch is validated yet." if run.history else "No epoch is finished yet."
    videos = f" of {run.best['videos']} videos" if run.best else ""
    return (
        f"Best: <strong>video@1 {_percent(best['video_top1'])}</strong>{videos}, "
        f"clip@1 {_percent(best['clip_top1'])}, at epoch {best['epoch']}."
    )


def _cards(run: Run) -> str:
    best, last = best_epoch(run.history), run.history[-1] if run.history else {}
    cards = []
    if best is not None:
        cards += [
            ("video@1", _percent(best["video_top1"]), f"best, epoch {best['epoch']}"),
            ("video@5", _percent(best["video_top5"]), "same epoch"),
            ("clip@1", _percent(best["clip_top1"]), "same epoch"),
        ]
    if run.best.get("mean_class") is not None:
        told = f"{len(run.best['per_class'])} classes"
        cards.append(("mean of classes", _percent(run.best["mean_class"]), told))
    if last:
        cards.append(("loss, training", f"{last['train_loss']:.3f}", f"epoch {last['epoch']}"))
    if "clips" in last:
        cards.append(("clips", f"{last['clips']:,}", f"{last['step']:,} steps"))
    if "seconds" in last:
        seconds = sum(row.get("seconds", 0) for row in run.history)
        cards.append(("time", clock(seconds), "of all epochs"))
    items = (
        f"<div class=card><span>{escape(name)}</span><b>{escape(value)}</b>"
        f"<small>{escape(told)}</small></div>"
        for name, value, told in cards
    )
    return "\n".join(items)


def _picture(png: bytes | None, description: str) -> str:
    if png is None:
        return ""
    content = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{content}">\n'


def _classes(run: Run, matrix: bytes | None) -> str:
    if not run.best:
        return ""
    totals = {
        name: (row[number], sum(row))
        for number, (name, row) in enumerate(
            zip(run.best["classes"], run.best["confusion"], strict=True)
        )
        if sum(row)
    }
    order = sorted(totals.items(), key=lambda item: item[1][0] / item[1][1])
    rows = "\n".join(
        f"<tr><td>{escape(name)}</td><td class=bar><i style='width:{100 * right / total:.1f}%'></i>"
        f"</td><td class=n>{_percent(right / total)}</td><td class='n faint'>{right} of {total}"
        "</td></tr>"
        for name, (right, total) in order
    )
    caption = "<caption class=faint>classes, from the least to the most often right</caption>"
    table = f"<div class=scroll><table>{caption}<tbody>{rows}</tbody></table></div>"
    return f"<div class=pair>{_picture(matrix, 'confusion matrix')}{table}</div>\n"


def _errors(run: Run) -> str:
    """The videos whose wrong class has most more score than the right one."""
    wrong = [
        video
        for video in run.best.get("predictions", [])
        if video["predicted"] not in video["labels"]
    ]
    if not wrong:
        return ""
    wrong.sort(key=lambda video: video["label_score"] - video["score"])
    rows = [
        (
            video["name"],
            ", ".join(video["labels"]),
            _percent(video["label_score"]),
            video["predicted"],
            _percent(video["score"]),
        )
        for video in wrong[:_MOST_ERRORS]
    ]
    shown = f"the {len(rows)} surest of them" if len(wrong) > len(rows) else "the surest first"
    told = f"{len(wrong)} of {run.best['videos']} videos are taken for another class; {shown}."
    headings = ("video", "true class", "score", "taken for", "score")
    return f"<p>{told}</p>\n{_table(headings, rows, numbers=(2, 4))}"


def _commands(run: Run) -> str:
    """How to resume, evaluate, use and repeat the run, to be copied."""
    folder = str(run.folder)
    checkpoint = f"{folder}/{run_folder.BEST_FILE if run.best else run_folder.LAST_FILE}"
    epochs = _epochs(run)
    lines = []
    if epochs is None or len(run.history) < epochs:
        resume = ["r21d", "train", "--resume", "--out", folder]
        if isinstance(run.config.get("train", {}).get("max_steps"), int):
            resume += ["--max-steps", "none"]
        lines.append(("go on where it stopped", resume))
    if run.history:
        told, videos = _held_out(run)
        lines.append((told, ["r21d", "eval", *videos, "--checkpoint", checkpoint]))
        predict = ["r21d", "predict", "VIDEO", "--checkpoint", checkpoint]
        lines.append(("name the action in a video", predict))
    if run.config:
        again = ["r21d", "train", "--config", f"{folder}/{run_folder.CONFIG_FILE}"]
        lines.append(("the same again", [*again, "--out", "ANOTHER_FOLDER"]))
    content = "\n".join(f"# {escape(told)}\n{escape(shlex.join(words))}\n" for told, words in lines)
    return f"<pre>{content}</pre>\n" if content else ""


def _held_out(run: Run) -> tuple[str, list[str]]:
    """What an evaluation of the run would be, and the arguments that name its videos."""
    from r21d.video.lists import has_sides

    paths, dataset = run.config.get("run", {}), run.config.get("data", {}).get("dataset", "folder")
    data, annotations, own = paths.get("data"), paths.get("annotations"), paths.get("val")
    if data is None or (own is None and not has_sides(dataset, annotations)):
        # Of one folder some videos were held out at random, the others trained on.
        return "evaluate on videos it was not trained on", ["OTHER_VIDEOS"]
    if own is not None:
        data, annotations = (own, None) if annotations is None else (data, own)
    options = {"dataset": dataset, "annotations": annotations, "split": paths.get("split")}
    words = [str(data)]
    for name, value in options.items():
        if value is not None and (name, value) != ("dataset", "folder"):
            words += [f"--{name}", str(value)]
    return "evaluate on all videos it was validated on", words


def _configuration(run: Run) -> str:
    """What somebody chose, and folded beneath it what has its default."""
    chosen, defaults = [], []
    for table, values in run.config.items():
        for name, value in values.items():
            source = run.sources.get(name, "")
            if source == DEFAULT_SOURCE:
                defaults.append((table, name, _plain(value)))
            else:
                chosen.append((table, name, _plain(value), source))
    content = _table(("table", "key", "value", "source"), chosen) if chosen else ""
    if defaults:
        folded = _table(("table", "key", "value"), defaults)
        content += f"<details><summary>{len(defaults)} defaults</summary>\n{folded}</details>\n"
    return content + _changes(run)


def _changes(run: Run) -> str:
    """What was another on the way here."""
    rows = [
        (str(change["step"]), name, _plain(old), _plain(new))
        for change in run.changes
        for name, (old, new) in change["changed"].items()
    ]
    if not rows:
        return ""
    table = _table(("after step", "key", "was", "is"), rows, numbers=(0,))
    return f"<p>Changed when the run went on (--allow-changes):</p>\n{table}"


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " x ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={factor}" for name, factor in value.items()) or "–"
    return str(value)


def _history(run: Run) -> str:
    if not run.history:
        return ""
    names = [name for name in _HEADINGS if any(name in row for row in run.history)]
    best = best_epoch(run.history)
    rows = [[_cell(name, row.get(name)) for name in names] for row in run.history]
    marked = None if best is None else run.history.index(dict(best))
    table = _table(
        [_HEADINGS[name] for name in names], rows, numbers=range(len(names)), marked=marked
    )
    if len(rows) <= _ROWS_SHOWN:
        return table
    return f"<details><summary>{len(rows)} epochs</summary>\n{table}</details>\n"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in _SHARES:
        return _percent(value)
    if name == "seconds":
        return clock(value)
    if name == "lr":
        return f"{value:.3g}"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _environment(run: Run) -> str:
    if not run.environments:
        return ""
    starts = [
        (str(start.get("started", "")), str(start.get("command", ""))) for start in run.environments
    ]
    told = [(name, _flat(value)) for name, value in run.environments[-1].items()]
    facts = [(name, text) for name, text in told if text and name not in ("started", "command")]
    commands = _table(("started (UTC)", "command"), starts)
    return f"{commands}\n{_table(('of the last start', ''), facts)}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _table(
    headings: Iterable[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Iterable[int] = (),
    marked: int | None = None,
) -> str:
    """Columns in ``numbers`` align right; the row ``marked`` stands out."""
    right = set(numbers)

    def cells(kind: str, row: Iterable[str]) -> str:
        return "".join(
            f"<{kind}{' class=n' if place in right else ''}>{escape(text)}</{kind}>"
            for place, text in enumerate(row)
        )

    body = "\n".join(
        f"<tr{' class=best' if place == marked else ''}>{cells('td', row)}</tr>"
        for place, row in enumerate(rows)
    )
    head = f"<thead><tr>{cells('th', headings)}</tr></thead>"
    return f"<div class=wide><table>{head}<tbody>{body}</tbody></table></div>\n"


def _percent(share: float) -> str:
    return f"{share:.1%}"

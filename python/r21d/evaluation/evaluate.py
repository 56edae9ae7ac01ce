"""Clip and video accuracy of a network on a set of videos."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from r21d.evaluation import metrics
from r21d.evaluation.distributed import Ranks, current_ranks
from r21d.evaluation.forward import clip_logits, evaluating
from r21d.evaluation.loading import Part, group_parts, worker_deaths
from r21d.evaluation.progress import progress_bar
from r21d.evaluation.scores import Scores
from r21d.evaluation.tally import Tally, merge

_log = logging.getLogger(__name__)

# Processes learn of another's failure after at most this many forward passes.
_ROUNDS = 16


class ClipDataset(Protocol):
    """What training and evaluation ask of a dataset; :class:`r21d.video.VideoDataset` has it.

    Item i is ``(clips, label, video)``: float32 or uint8 (K, 3, T, h, w), the class index or a
    multi-hot (classes,) tensor, and the number of the video. Optional attributes: ``clips`` (K,
    where it is the same for all), ``classes`` (names), ``spec`` (the InputSpec; uint8 clips need
    it), ``sampling``, ``multilabel``, ``samples`` (``(path, label)`` by video), ``root`` (what
    names are relative to), ``failed`` (files found undecodable as ``(path, reason)``) and
    ``missing`` (files that a list names and that are not there). Where an item may be too large to
    be held at once: ``part_count(i)`` and ``read_part(i, part)``, the item with some of its clips.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Any, int]: ...


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Accuracies as fractions of one.

    Clip@k counts clips (each crop of a clip is one), video@k counts videos by the mean of their
    clips' softmax scores (the paper's Table 2 measures; averaging after softmax is VMZ's). With
    fewer than five classes the top-5 figures are one by definition. Equal scores rank the lower
    class index first. Where videos have several labels a hit at k is Sports-1M's: one of them is
    among the k best.
    """

    clip_top1: float
    clip_top5: float
    video_top1: float
    video_top5: float
    loss: float
    """Mean cross-entropy over clips, several labels being equal parts of the truth."""
    clips: int
    videos: int
    per_class: dict[str, float]
    """video@1 of each class that has videos: the share of them whose top class it is."""
    confusion: Tensor
    """int64 (classes, classes): videos by true class (row) and top class (column); a video of
    several labels counts in the row of each."""
    classes: list[str]
    failed: list[tuple[str, str]]
    """Files left out, as (path, reason)."""
    missing: list[str] = dataclasses.field(default_factory=list)
    """Files that the list names and that are not there; a few are the rule with Kinetics."""
    multilabel: bool = False
    protocol: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How the clips were made and averaged, as far as the dataset tells."""
    scores: Scores | None = dataclasses.field(default=None, repr=False)

    @property
    def mean_class(self) -> float:
        """Mean of ``per_class``: every class counts the same, however many videos it has."""
        return sum(self.per_class.values()) / max(1, len(self.per_class))

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, without ``scores``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["scores"]
        failed = [{"path": path, "reason": reason} for path, reason in self.failed]
        return {
            **values,
            "mean_class": self.mean_class,
            "confusion": self.confusion.tolist(),
            "failed": failed,
        }


def evaluate(
    model: nn.Module,
    dataset: ClipDataset,
    *,
    batch_size: int = 32,
    workers: int = 0,
    clip_scores: bool = False,
    strict: bool = False,
) -> EvalResult:
    """Classify every clip of every video of ``dataset`` with ``model`` in eval mode.

    Runs on the device and in the dtype of the model's first parameter; the model's mode is put
    back. A video that cannot be decoded is left out and listed in ``failed``.

    Where torch.distributed has a default group, its processes share the videos, each runs its own
    ``model``, and all return the same result: no video counts twice, and videos meet in the same
    forward passes however many processes and workers there are. So the figures are the same to the
    last digit, where torch computes with the same number of threads: of those the order of its sums
    depends, and torchrun sets OMP_NUM_THREADS=1 where nobody has set it. All processes must call
    this, with equal arguments.

    Args:
        model: Maps (N, 3, T, H, W) to logits (N, classes).
        dataset: See :class:`ClipDataset`. Where both name ``classes``, other than by plain
            numbers, these must be the model's, in its order: a label is an output's number.
        batch_size: Clips a forward pass, at most.
        workers: Decoding processes; 0 decodes in this one. In a group of several processes these
            start afresh: ``dataset`` must be picklable then, and a script keeps its own code under
            ``if __name__ == "__main__"``.
        clip_scores: Keep every clip's scores in ``scores``, not only every video's.
        strict: Stop at the first video that cannot be decoded.

    Raises:
        ValueError: no video could be decoded, the classes are not the model's, a label is not
            among its outputs, or the processes' datasets differ.
        FloatingPointError: a score is infinite or NaN; the message names the video.
        VideoError: ``strict``, and a video cannot be decoded.
        ChildProcessError: a decoding process failed, for lack of memory as a rule.
        RankFailed: another process failed.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    groups = _groups(dataset, batch_size)
    with evaluating(model), current_ranks() as ranks:
        with ranks.together():
            _check_classes(dataset, model)
            _check_strict(dataset, strict)
        _check_same(dataset, groups, ranks)
        own = groups[ranks.rank :: ranks.world]
        loaded = group_parts(dataset, own, workers, fresh=ranks.world > 1)
        tally = Tally()
        with _progress(ranks, own) as advance:
            for number in range(-(-len(groups) // ranks.world)):
                try:
                    # In the last round some processes have nothing left to do.
                    if number < len(own):
                        with worker_deaths():
                            parts = next(loaded)
                            _classify(model, dataset, parts, batch_size, tally, clip_scores, strict)
                        advance(len(own[number]))
                except Exception as error:
                    ranks.agree(error)
                if number % _ROUNDS == _ROUNDS - 1:
                    ranks.agree()
        ranks.agree()
        tallies = ranks.gather(tally.packed())
    return _result(model, dataset, merge(tallies))


def class_names(dataset: object, model: object, classes: int | None = None) -> list[str]:
    """Names of the classes: the dataset's, else the model's, else their numbers."""
    for owner in (dataset, model):
        names = getattr(owner, "classes", None)
        if names is not None and classes in (None, len(names)):
            return [str(name) for name in names]
    if classes is None:
        config = getattr(model, "config", {})
        classes = int(config.get("num_classes", 0))
    return [str(number) for number in range(classes)]


def _groups(dataset: ClipDataset, batch_size: int) -> list[range]:
    """The numbers of the videos that go through the network together, as many as fit a batch."""
    clips = getattr(dataset, "clips", None)
    size = 1 if clips is None else max(1, batch_size // clips)
    videos = len(dataset)
    return [range(start, min(start + size, videos)) for start in range(0, videos, size)]


def _check_classes(dataset: ClipDataset, model: nn.Module) -> None:
    """Labels of other classes than the model's would count wrong without a word."""
    given, known = _stated_classes(dataset), _stated_classes(model)
    if not given or not known or given == known:
        return
    pairs = enumerate(zip_longest(given, known))
    number, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    raise ValueError(
        f"the dataset's {len(given)} classes are not the model's {len(known)} in their order"
        f" (number {number} is {ours!r}, the model's {theirs!r}): make the dataset with"
        " labels=model.classes (VideoFolder) or classes=model.classes (open_list)"
    )


def _stated_classes(owner: object) -> list[str]:
    """Names of the classes; none where they are numbers, which is what outputs go by anyway."""
    names = [str(name) for name in getattr(owner, "classes", None) or ()]
    return [] if names == [str(number) for number in range(len(names))] else names


def _check_strict(dataset: ClipDataset, strict: bool) -> None:
    from r21d.video.reader import VideoError

    failed = getattr(dataset, "failed", [])
    if strict and failed:
        raise VideoError(
            f"{len(failed)} of {len(dataset) + len(failed)} videos cannot be decoded,"
            f" the first: {failed[0][1]}"
        )


def _check_same(dataset: ClipDataset, groups: list[range], ranks: Ranks) -> None:
    if ranks.world == 1:
        return
    names = "\0".join(_name(dataset, video) for video in range(len(dataset)))
    digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
    found = ranks.gather((len(dataset), len(groups), digest))
    if len(set(found)) > 1:
        counts = ", ".join(str(videos) for videos, _, _ in found)
        raise ValueError(
            f"the processes have different videos or batch sizes ({counts} videos); make the"
            " dataset in one of them and send it to the others"
        )


def _progress(
    ranks: Ranks, groups: list[range]
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """A bar over the first process's share; the others' grow alike."""
    if ranks.rank:
        return contextlib.nullcontext(lambda n: None)
    return progress_bar("evaluating", sum(map(len, groups)))


def _classify(
    model: nn.Module,
    dataset: ClipDataset,
    parts: Iterable[Part],
    batch_size: int,
    tally: Tally,
    clip_scores: bool,
    strict: bool,
) -> None:
    """Add a group of videos, each of which may come in several parts, to ``tally``."""
    from r21d.video.reader import VideoError

    labels: dict[int, tuple[int, ...]] = {}
    counts: dict[int, int] = {}
    broken: set[int] = set()

    def readable() -> Iterator[Tensor]:
        for part in parts:
            if part.video in broken:
                continue
            if part.reason is None:
                labels[part.video] = tuple(part.labels)
                counts[part.video] = counts.get(part.video, 0) + len(part.clips)
                yield part.clips
                continue
            if strict:
                raise VideoError(part.reason)
            _log.warning("left out: %s", part.reason)
            tally.failed.append((part.video, _path(dataset, part.video), part.reason))
            broken.add(part.video)

    logits = clip_logits(model, readable(), batch_size, getattr(dataset, "spec", None))
    for video, rows in zip(counts, logits.split(list(counts.values())), strict=True):
        if video not in broken:
            tally.add(video, _path(dataset, video), labels[video], rows, clip_scores)


def _result(model: nn.Module, dataset: ClipDataset, tally: Tally) -> EvalResult:
    failed = [(str(path), reason) for path, reason in getattr(dataset, "failed", [])]
    failed += [(path, reason) for _, path, reason in tally.failed]
    if not tally.videos:
        first = f", the first: {failed[0][1]}" if failed else ""
        raise ValueError(f"no video could be evaluated ({len(failed)} failed{first})")
    protocol = _protocol(dataset)
    # Ranked in float64: float32 has no room for what comes far behind the best.
    means = torch.stack(tally.means)
    scores = Scores(
        names=[_name(dataset, video) for video in tally.videos],
        classes=class_names(dataset, model, len(tally.means[0])),
        labels=tally.labels,
        video_scores=means.float(),
        clip_counts=torch.tensor([len(ranks) for ranks in tally.ranks]),
        clip_scores=torch.cat(tally.scores) if tally.scores else None,
        protocol=protocol,
    )
    clip_ranks = torch.cat(tally.ranks)
    video_ranks = metrics.label_ranks(means, scores.labels)
    confusion = metrics.confusion_matrix(means, scores.labels)
    shares = metrics.per_class_accuracy(confusion)
    return EvalResult(
        clip_top1=metrics.accuracy(clip_ranks, 1),
        clip_top5=metrics.accuracy(clip_ranks, 5),
        video_top1=metrics.accuracy(video_ranks, 1),
        video_top5=metrics.accuracy(video_ranks, 5),
        loss=sum(tally.losses) / len(clip_ranks),
        clips=len(clip_ranks),
        videos=len(video_ranks),
        per_class={scores.classes[number]: share for number, share in shares.items()},
        confusion=confusion,
        classes=scores.classes,
        failed=failed,
        missing=[str(path) for path in getattr(dataset, "missing", [])],
        multilabel=bool(getattr(dataset, "multilabel", False)),
        protocol=protocol,
        scores=scores,
    )


def _protocol(dataset: object) -> dict[str, Any]:
    """How the dataset makes clips, as far as it tells, as JSON values."""
    protocol: dict[str, Any] = {"averaged": "softmax"}
    if (sampling := getattr(dataset, "sampling", None)) is not None:
        dense = sampling.mode == "dense"
        protocol |= {
            "sampling": sampling.mode,
            "clips": None if dense else sampling.clips,
            "crops": sampling.crops,
        }
        if sampling.mode == "random":
            protocol["seed"] = sampling.seed
    if (spec := getattr(dataset, "spec", None)) is not None:
        normalisation = ("mean", "std")
        protocol |= {k: v for k, v in spec.to_dict().items() if k not in normalisation}
    return protocol


def _path(dataset: object, video: int) -> str:
    samples: Sequence[tuple[Any, Any]] | None = getattr(dataset, "samples", None)
    return f"video {video}" if samples is None else str(samples[video][0])


def _name(dataset: object, video: int) -> str:
    """The video's path relative to the dataset's root, the same wherever that lies."""
    from r21d.video.index import relative_name

    path, root = _path(dataset, video), getattr(dataset, "root", None)
    return path if root is None else relative_name(path, root) or path

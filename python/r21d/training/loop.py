"""Training: SGD over a folder of videos, able to stop and go on without a trace."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from r21d.atomic import write_atomically
from r21d.evaluation.evaluate import ClipDataset, EvalResult, class_names, evaluate
from r21d.evaluation.progress import progress_bar
from r21d.models.base import VideoModel
from r21d.seeds import text_seed
from r21d.training.config import TrainConfig, learning_rate
from r21d.training.state import STATE_FILE, load_state, restore, save_state

_log = logging.getLogger(__name__)

LAST_FILE = "last.safetensors"
BEST_FILE = "best.safetensors"
HISTORY_FILE = "history.jsonl"

History = list[dict[str, Any]]


class TrainingDiverged(RuntimeError):
    """The loss or a gradient is no longer finite; the files of the last good epoch stand."""


def train(
    model: nn.Module,
    train_set: ClipDataset,
    val_set: ClipDataset | None,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> History:
    """Train ``model`` in place with SGD and Nesterov momentum; its classes become ``train_set``'s.

    On one machine and one set of versions, equal seeds give equal runs, and a resumed run equals
    an uninterrupted one bit for bit: each epoch draws its random numbers from the seed and its
    own number. Each item draws from a seed of its own, so any number of workers gives the same
    run, as long as ``train_set`` draws from nothing but torch's global generator. The caller's
    random state is left as it was.

    Args:
        model: Maps float32 (N, 3, T, H, W) to logits (N, classes).
        train_set: Items ``(clips (K, 3, T, H, W), label, video index)``. Clips are float32, or
            uint8, which are normalised on the device by ``train_set.spec``. A label is a class
            index, or float32 (classes,) of ones and zeros; the loss is then the cross-entropy
            against all ones alike, and a clip counts as right by any of them.
        val_set: The same with the clips to test on, or None.
        config: Settings.
        out: Folder for ``last.safetensors``, ``best.safetensors`` (best video@1, then clip@1;
            only with ``val_set``), ``state.safetensors`` (what ``resume`` reads) and
            ``history.jsonl``, each written atomically after every epoch. None writes nothing.
        resume: Go on from ``out``, whenever the run was interrupted; the other files are made to
            agree with the state first. A complete run then returns its history.
        overwrite: Replace a run that ``out`` already holds.
        on_epoch: Called with the epoch's row once its files are written.

    Returns:
        A row per epoch: ``epoch`` (from 1), ``lr`` (of its last step), ``train_loss`` and
        ``train_clip_top1`` (mean over its clips); with ``val_set`` also ``val_loss``,
        ``clip_top1``, ``clip_top5``, ``video_top1``, ``video_top5``.

    Raises:
        TrainingDiverged: a loss or gradient became infinite or NaN.
        ResumeError: ``resume`` and the state is missing, damaged or of another run.
        FileExistsError: ``out`` holds a run and neither ``resume`` nor ``overwrite`` is given.
        ValueError: the training set is empty, or of uint8 clips without a ``spec``, or ``resume``
            comes without ``out``.
    """
    if len(train_set) == 0:
        raise ValueError("train_set is empty: there is nothing to train on")
    folder = _prepare_folder(out, resume, overwrite)
    device = torch.device(config.device)
    layout = torch.channels_last_3d if config.channels_last else torch.contiguous_format
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )
    history: History = []
    if resume and folder is not None:
        state = load_state(folder / STATE_FILE)
        restore(state, model, optimizer, config.to_dict())
        history = state.history
        _write_results(folder, model, train_set, state.config, history)

    names = getattr(train_set, "classes", None)
    if names is not None and isinstance(model, VideoModel):
        # Another set's, where the weights are a checkpoint's.
        model.classes = list(names)
    devices = [device] if device.type == "cuda" else []
    for epoch in range(len(history), config.epochs):
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(epoch_seed(config.seed, epoch))
            row = _run_epoch(model, optimizer, train_set, config, epoch)
        if val_set is not None:
            row |= _validate(model, val_set, config, epoch)
        history.append(row)
        _log.info("epoch %d: %s", epoch + 1, json.dumps(row))
        if folder is not None:
            # The state first: resuming makes the others from it.
            save_state(folder / STATE_FILE, model, optimizer, config.to_dict(), history)
            _write_results(folder, model, train_set, config.to_dict(), history)
        if on_epoch is not None:
            on_epoch(row)
    return history


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of one epoch's random numbers."""
    return text_seed(f"{seed} {epoch}")


def held_run(folder: str | Path) -> list[Path]:
    """The files of a run that ``folder`` holds."""
    files = (Path(folder) / name for name in (STATE_FILE, HISTORY_FILE, LAST_FILE, BEST_FILE))
    return [file for file in files if file.exists()]


def _prepare_folder(out: str | Path | None, resume: bool, overwrite: bool) -> Path | None:
    if out is None:
        if resume:
            raise ValueError("resume needs out, the folder of the run to go on with")
        return None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if resume:
        return folder
    held = held_run(folder)
    if held and not overwrite:
        raise FileExistsError(
            f"{folder} already holds a run ({held[0].name}): resume=True goes on with it, "
            "overwrite=True replaces it; or choose another folder"
        )
    for file in held:
        file.unlink()
    return folder


def _run_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: ClipDataset,
    config: TrainConfig,
    epoch: int,
) -> dict[str, Any]:
    """One pass over the training set; expects the epoch's seed to be set."""
    loader = _loader(dataset, config, epoch)
    # Sums stay on the device: each number read back makes the host wait for a GPU, and a step
    # reads one already, whether it may update the weights.
    loss_sum = torch.zeros((), dtype=torch.float64, device=config.device)
    correct = torch.zeros((), dtype=torch.int64, device=config.device)
    seen = 0
    normalize = _normalizer(dataset)
    model.train()
    with progress_bar(f"epoch {epoch + 1}/{config.epochs}", len(loader)) as advance:
        for index, (clips, labels, _) in enumerate(loader):
            step = epoch * len(loader) + index
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, len(loader))
            # (B, K, 3, T, H, W) -> (B * K, 3, T, H, W): every clip of a video has its label.
            labels = labels.repeat_interleave(clips.shape[1], dim=0).to(config.device)
            clips = normalize(clips.flatten(0, 1).to(config.device))
            logits = _forward(model, clips, config)
            loss = nn.functional.cross_entropy(logits, _targets(labels))
            _step(model, optimizer, loss, epoch, index)
            loss_sum += loss.detach() * len(labels)
            correct += _hits(logits.detach(), labels)
            seen += len(labels)
            advance(1)
    return {
        "epoch": epoch + 1,
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": loss_sum.item() / seen,
        "train_clip_top1": correct.item() / seen,
    }


def _normalizer(dataset: ClipDataset) -> Callable[[Tensor], Tensor]:
    """What makes the network's input of a batch: nothing, but for uint8 clips."""
    from r21d.video.transforms import Normalize

    spec = getattr(dataset, "spec", None)
    made: list[Normalize] = []

    def normalize(clips: Tensor) -> Tensor:
        if clips.dtype != torch.uint8:
            return clips
        if spec is None:
            raise ValueError("train_set gives uint8 clips and has no spec to normalise them by")
        if not made:
            made.append(Normalize(spec))
        return made[0](clips)

    return normalize


def _targets(labels: Tensor) -> Tensor:
    """Class indices as they are; ones and zeros as a distribution over the ones."""
    return labels / labels.sum(1, keepdim=True) if labels.is_floating_point() else labels


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many clips have their (or one of their) labels as top class."""
    top = logits.argmax(1)
    if labels.is_floating_point():
        return (labels.gather(1, top[:, None]) > 0).sum()
    return (top == labels).sum()


def _loader(dataset: ClipDataset, config: TrainConfig, epoch: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(epoch_seed(config.seed, epoch))
    # Batch statistics of a single clip do not exist where the last group is down to 1x1x1.
    lonely_last = len(dataset) > config.batch_size and len(dataset) % config.batch_size == 1
    return DataLoader(
        _SeededItems(dataset, generator),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=lonely_last,
        num_workers=config.workers,
        generator=generator,
        pin_memory=torch.device(config.device).type == "cuda",
    )


class _SeededItems(Dataset[Any]):
    """``dataset``, each item drawn from a seed of its own, whichever process draws it."""

    def __init__(self, dataset: ClipDataset, generator: torch.Generator) -> None:
        self.dataset = dataset
        self.seeds = torch.randint(2**32, (len(dataset),), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reset a GPU's generator, too, which dropout draws from.
            torch.default_generator.manual_seed(self.seeds[index])
            return self.dataset[index]


def _forward(model: nn.Module, clips: Tensor, config: TrainConfig) -> Tensor:
    """Logits in float32, the network under autocast where the settings ask for it."""
    if config.channels_last:
        clips = clips.contiguous(memory_format=torch.channels_last_3d)
    kind = torch.device(config.device).type
    with torch.autocast(kind, torch.bfloat16, enabled=config.dtype == "bfloat16"):
        logits: Tensor = model(clips)
    return logits.float()


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, epoch: int, index: int
) -> None:
    """Backward and update, refusing whatever would write a non-finite number into the weights."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not (loss.isfinite() & norm.isfinite()):
        name, value = ("gradient norm", norm) if math.isfinite(loss.item()) else ("loss", loss)
        raise TrainingDiverged(
            f"the {name} is {value.item()} in epoch {epoch + 1}, step {index + 1}, at learning "
            f"rate {optimizer.param_groups[0]['lr']:.3g}; lower lr or raise warmup_epochs"
        )
    optimizer.step()


def _validate(
    model: nn.Module, val_set: ClipDataset, config: TrainConfig, epoch: int
) -> dict[str, float]:
    try:
        result: EvalResult = evaluate(
            model, val_set, batch_size=config.eval_batch_size, workers=config.workers
        )
    except FloatingPointError as error:
        raise TrainingDiverged(
            f"validation after epoch {epoch + 1}: {error}; lower lr or raise warmup_epochs"
        ) from error
    return {
        "val_loss": result.loss,
        "clip_top1": result.clip_top1,
        "clip_top5": result.clip_top5,
        "video_top1": result.video_top1,
        "video_top5": result.video_top5,
    }


def _write_results(
    folder: Path,
    model: nn.Module,
    train_set: ClipDataset,
    config: dict[str, Any],
    history: History,
) -> None:
    """Write what follows from the last epoch's state: the history and the checkpoints."""
    from r21d.weights.checkpoint import save_checkpoint

    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(folder / HISTORY_FILE, lines.encode())
    names = [LAST_FILE, BEST_FILE] if _is_best(history) else [LAST_FILE]
    spec = getattr(train_set, "spec", None)
    for name in names:
        save_checkpoint(
            folder / name,
            model,
            classes=class_names(train_set, model),
            input=spec.to_dict() if spec is not None else {},
            extra={"epoch": str(len(history)), "train_config": json.dumps(config)},
        )


def _is_best(history: Sequence[dict[str, Any]]) -> bool:
    """Whether the last epoch is strictly better on validation than each one before."""
    if "video_top1" not in history[-1]:
        return False
    scores = [(row["video_top1"], row["clip_top1"]) for row in history]
    return all(scores[-1] > score for score in scores[:-1])

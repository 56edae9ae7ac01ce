"""A run on its way: its steps, its epochs, and what it saves of them."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r21d.evaluation.distributed import Ranks
from r21d.evaluation.evaluate import ClipDataset, EvalResult
from r21d.evaluation.loading import worker_deaths
from r21d.models.base import VideoModel
from r21d.seeds import text_seed
from r21d.training import endings
from r21d.training.config import TrainConfig
from r21d.training.logs import RunLog, StepTimer
from r21d.training.parallel import same_buffers
from r21d.training.recalibrate import recalibrate
from r21d.training.results import History, write_checkpoint, write_epoch, write_history
from r21d.training.run_folder import LAST_FILE, ResumeError
from r21d.training.schedule import learning_rate
from r21d.training.signals import StopRequest
from r21d.training.state import States, TrainState, check_resumable, momentum_buffers, restore
from r21d.training.step import Learner, TrainingDiverged, enough_values, network_input, place
from r21d.training.stream import ClipLoader, ClipStream, recalibration_clips
from r21d.training.validation import ValidationLeft, figures, validate

_log = logging.getLogger(__name__)


class Run:
    """A run, and how far it is; see `train`.

    Attributes:
        step: steps done.
        history: rows of the epochs done.
        states: where the first process saves the state; None in the others, and without a folder.
    """

    def __init__(
        self,
        model: nn.Module,
        train_set: ClipDataset,
        val_set: ClipDataset | None,
        config: TrainConfig,
        ranks: Ranks,
        stop: StopRequest,
        description: Mapping[str, Any] | None,
    ) -> None:
        self.model, self.train_set, self.val_set, self.config = model, train_set, val_set, config
        self.ranks, self.stop = ranks, stop
        self.states: States | None = None
        # As it comes back from a state.
        self.description = None if description is None else json.loads(json.dumps(description))
        classes = getattr(train_set, "classes", None)
        self.data: dict[str, Any] = {
            "videos": len(train_set),
            "classes": None if classes is None else [str(name) for name in classes],
        }
        place(model, config)
        self.input = network_input(train_set, config)
        self.learner = Learner(model, config, ranks, self.input)
        self.global_batch = config.global_batch(ranks.world)
        self.epoch_steps = config.steps_per_epoch(len(train_set), ranks.world)
        self.total = config.total_steps(len(train_set), ranks.world)
        self.step = 0
        self.history: History = []
        self.skipped = 0
        self.changes: list[dict[str, Any]] = []
        self._began = time.perf_counter()
        self._saved: int | None = None
        self._start = 0
        self._timer = StepTimer()

    def restore(self, allow_changes: bool) -> None:
        """Go on from the newest state."""
        state = None
        with self.ranks.together():
            if self.states is not None:
                state = self.states.load()
        # One process's is enough: others may be on machines without the folder.
        state = self.ranks.from_first(state)
        changed = check_resumable(
            state, self.config, self.ranks.world, self.data, self.description, allow_changes
        )
        if state.step > self.total:
            raise ResumeError(
                f"{state.step} steps are done already: epochs and max_steps would end the run "
                f"after {self.total}; raise them"
            )
        restore(state, self.model, self.learner.optimizer)
        self.description = self.description or state.description
        self.step, self.history, self.skipped = state.step, list(state.history), state.skipped
        self._saved, self.changes = state.step, state.changes
        for name, (old, new) in changed.items():
            _log.warning("from step %d on %s is %r; it was %r", self.step, name, new, old)
        if changed:
            self.changes = [*state.changes, {"step": self.step, "changed": changed}]
            # Whatever interrupts the run next, it goes on with these settings.
            self._saved = None
        self.learner.lr = state.lr
        self._began -= state.seconds
        if state.scaler:
            self.learner.scaler.load_state_dict(state.scaler)
        self.learner.sums.copy_(state.sums_of(self.ranks.rank, self.ranks.world))
        with self._writing() as folder:
            if folder is not None:
                write_history(folder, self.history)

    def go(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> History:
        """Train to the end."""
        if isinstance(self.model, VideoModel) and self.data["classes"] is not None:
            # Another set's, where the weights are a checkpoint's.
            self.model.classes = list(self.data["classes"])
        if self._saved is None:
            # An epoch at its end is still to be validated.
            self._save(proven=self.step != self.epoch_steps * (len(self.history) + 1))
        self._start = self.step
        stream = ClipStream(
            len(self.train_set),
            self.config.seed,
            self.global_batch,
            batch_size=self.config.batch_size,
            rank=self.ranks.rank,
            world=self.ranks.world,
            start=self.step,
            stop=self.total,
        )
        on_gpu = torch.device(self.config.device).type == "cuda"
        with self._telling(), contextlib.ExitStack() as stack:
            with self._writing() as folder:
                log = RunLog(
                    folder,
                    self.total,
                    self.epoch_steps,
                    self.step,
                    history=self.history,
                    bar=self.ranks.rank == 0,
                )
                stack.enter_context(log)
            loader = ClipLoader(self.train_set, stream, self.config.workers, on_gpu)
            batches = stack.enter_context(loader)
            while len(self.history) < self.config.epochs:
                end = self.epoch_steps * (len(self.history) + 1)
                self._train_until(min(end, self.total), log, batches)
                if self.step < end:
                    self._end_early()
                    break
                self._end_epoch(log)
                with self.ranks.together():
                    if on_epoch is not None and self.ranks.rank == 0:
                        on_epoch(self.history[-1])
        return self.history

    def _train_until(self, end: int, log: RunLog, batches: Iterator[Any]) -> None:
        self.model.train()
        self._timer.restart()
        while self.step < end:
            lr = learning_rate(self.config, self.step, self.epoch_steps, self.ranks.world)
            try:
                updated, number = self.learner.step(
                    self.step, lr, batches, self._timer, lambda: self.stop.requested
                )
            except TrainingDiverged as error:
                epoch, place = divmod(self.step, self.epoch_steps)
                told = f"{error} in epoch {epoch + 1}, step {place + 1}, at learning rate {lr:.3g}"
                raise endings.diverged(told, self._newest) from error
            self.step += 1
            self._timer.count(self.global_batch)
            if not updated:
                self.skipped += 1
                log.skipped(self.step)
            log.advance(self.step, self.global_batch)
            if self._is_logged():
                self._log_step(log)
            if number:
                self._save()
                raise endings.stopped(number, self.step, self.total, self._newest)
            # At an epoch's end a state follows in any case.
            every = self.config.checkpoint_steps
            if every and self.step % every == 0 and self.step % self.epoch_steps:
                self._save()

    def _is_logged(self) -> bool:
        """Whether a row of the steps' log is due: also of the first, and of each epoch's last."""
        every = self.step % self.config.log_steps == 0
        return every or self.step in (1, self.total) or self.step % self.epoch_steps == 0

    def _log_step(self, log: RunLog) -> None:
        sums = torch.tensor(self.ranks.gather(self.learner.found.tolist()), dtype=torch.float64)
        loss, right, clips = sums.sum(0).tolist()
        values = {
            "loss": loss / clips,
            "clip_top1": right / clips,
            "lr": self.learner.lr,
            "grad_norm": self.learner.norm.item(),
        }
        rates = self._timer.rates()
        if self.step > self._start + 1:  # The first one waits for workers to start, and compiles.
            values |= rates
        with self._writing():
            log.step(self.step, values)

    def _end_epoch(self, log: RunLog) -> None:
        """Validate, and write what an epoch leaves."""
        epoch = len(self.history) + 1
        last = epoch == self.config.epochs
        due = self.val_set is not None and (last or epoch % self.config.validate_epochs == 0)
        if due or self.config.bn_recalibration:
            # The epoch's training is not lost if what follows is interrupted.
            self._save(proven=False)
        row = self._row(epoch)
        if self.config.bn_recalibration:
            clips = recalibration_clips(self.train_set, self.config, self.ranks)
            with enough_values():
                recalibrate(self.model, (self.input(batch) for batch in clips), self.ranks)
        same_buffers(self.model, self.ranks)
        result = self._validate(epoch) if due else None
        if result is not None:
            row |= figures(result)
        seconds = self.ranks.from_first(time.perf_counter() - self._began)
        self.history.append(row | {"seconds": round(seconds, 3)})
        _log.info("epoch %d: %s", epoch, json.dumps(self.history[-1]))
        with self._writing() as folder:
            if folder is not None:
                notes = self._notes()
                write_epoch(folder, self.model, self.train_set, self.history, result, notes)
            log.epoch(self.history[-1])
        self.learner.sums.zero_()
        self.skipped = 0
        self._began = time.perf_counter()
        self._save()

    def _row(self, epoch: int) -> dict[str, Any]:
        sums = torch.tensor(self.ranks.gather(self.learner.sums.tolist()), dtype=torch.float64)
        loss, right, clips = sums.sum(0).tolist()
        row = {
            "epoch": epoch,
            "step": self.step,
            "clips": self.step * self.global_batch,
            "lr": self.learner.lr,
            "train_loss": loss / clips,
            "train_clip_top1": right / clips,
        }
        return row | ({"skipped_steps": self.skipped} if self.config.dtype == "float16" else {})

    def _validate(self, epoch: int) -> EvalResult:
        assert self.val_set is not None
        seed = text_seed(f"{self.config.seed} validation {epoch}")
        try:
            return validate(self.model, self.val_set, self.config, self.ranks, self.stop, seed)
        except ValidationLeft as left:
            raise endings.stopped(left.signal, self.step, self.total, self._newest) from None
        except TrainingDiverged as error:
            told = f"validation after epoch {epoch}: {error}"
            before = None if self.states is None else self.states.before_newest()
            raise endings.unusable(told, self._newest, before) from error

    def _end_early(self) -> None:
        """At ``max_steps``, amid an epoch: the weights may be looked at, and the run can go on."""
        if self._saved != self.step:
            self._save()
        with self._writing() as folder:
            if folder is not None:
                last = folder / LAST_FILE
                write_checkpoint(last, self.model, self.train_set, self._notes())

    def _notes(self) -> dict[str, Any]:
        """What the checkpoints say about the run."""
        notes: dict[str, Any] = {
            "epoch": len(self.history),
            "step": self.step,
            "train_config": self.config.to_dict(),
        }
        notes |= {"changes": self.changes} if self.changes else {}
        return notes | ({} if self.description is None else {"description": self.description})

    def _save(self, proven: bool = True) -> None:
        """Save the state; collective. ``proven``: see `States.save`."""
        sums = self.ranks.gather(self.learner.sums.tolist())
        self._saved = self.step
        with self._writing():
            if self.states is not None:
                self.states.save(
                    TrainState(
                        model=self.model.state_dict(),
                        momentum=momentum_buffers(self.model, self.learner.optimizer),
                        step=self.step,
                        config=self.config.to_dict(),
                        global_batch=self.global_batch,
                        data=self.data,
                        description=self.description,
                        history=self.history,
                        sums=torch.tensor(sums, dtype=torch.float64),
                        seconds=time.perf_counter() - self._began,
                        skipped=self.skipped,
                        lr=self.learner.lr,
                        changes=self.changes,
                        scaler=self.learner.scaler.state_dict(),
                    ),
                    proven,
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path | None]:
        """A block in which the first process writes into its folder; None in the others.

        Raises:
            TrainingInterrupted: it cannot.
        """
        with self.ranks.together():
            try:
                yield None if self.states is None else self.states.folder
            except OSError as error:
                raise endings.interrupted(error, self.step, self._newest) from error

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """A block that may fail for lack of videos, memory, a decoding process or a compiler.

        Raises:
            VideoError, MemoryError, ChildProcessError, ValueError: it did; the message says what is
                saved.
        """
        try:
            with worker_deaths():
                yield
        except Exception as error:
            # The other processes do not know what the first one has saved.
            saved = None if self.ranks.rank else endings.kept(self._newest, "resume")
            strict = getattr(self.train_set, "strict", False)
            told = endings.failed(error, self.step, strict, saved)
            if told is None:
                raise
            raise told from error

    @property
    def _newest(self) -> tuple[int, Path] | None:
        """Step and file of the newest good state."""
        return None if self.states is None else self.states.newest

"""``r21d train``: a network for the classes of a data set of videos."""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r21d.atomic import write_atomically
from r21d.cli.arguments import Subcommands, device_kind, fraction, rank_device
from r21d.cli.data import add_data, check_index
from r21d.cli.errors import (
    USAGE_EXIT,
    UserError,
    one_line,
    print_error,
    printable,
    say,
    user_errors,
)
from r21d.cli.peers import fail_after_the_first, is_first, speak_of_own_files_alone
from r21d.cli.train_data import (
    VAL_FRACTION,
    data_options,
    describe_run,
    described_start,
    located,
    open_datasets,
)
from r21d.cli.train_folder import (
    DEFAULT_OUT,
    check_new,
    check_videos,
    chosen_device,
    go_on,
    launched_by,
    resumes,
    run_folder,
    settings,
    write_launch,
)
from r21d.cli.train_videos import RunVideos, read_videos, write_videos
from r21d.cli.training_options import ListConfigs, add_settings
from r21d.training.protocol import dump_config
from r21d.training.run_config import DEFAULT_SOURCE, RunConfig
from r21d.training.run_folder import (
    BEST_FILE,
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    LAST_FILE,
    state_files,
)

if TYPE_CHECKING:
    from r21d.evaluation.distributed import Ranks
    from r21d.models import VideoModel
    from r21d.video import VideoDataset
    from r21d.weights import Checkpoint

_log = logging.getLogger(__name__)

_STOPPING = (
    "r21d: stopping: the step at hand is finished, or the validation left, and the state saved; "
    "Ctrl-C now ends at once, without saving"
)


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``train`` to the command line."""
    parser = commands.add_parser(
        "train",
        parents=[common],
        usage="r21d train [DATA] [--config NAME|FILE] [option ...]",
        help="train a network on a folder of videos or a published data set",
        description="Train on DATA/<class>/<video files>, the folders' names being the classes, or "
        "on the data set that --dataset names. Validates on the data set's own test or validation "
        "side where it has one (ucf101, hmdb51 and weizmann, of one --split; kinetics and "
        "sports1m, with a folder of --annotations), else on --val, or on some videos of each "
        "class that are held out. A configuration sets all options at once, and options given "
        "beside it come before it. Everything is written into --out: states to go on from, the "
        "best and the last checkpoint, logs and report.html. Ctrl-C, SIGTERM or a closed "
        "terminal end the step at hand and save; --resume goes on, also after a crash. "
        "Started by torchrun, each process takes --batch-size clips (a GPU each), and after a "
        "restart goes on by itself.",
        epilog="examples: r21d train videos --clip-len 8 --resize 64x85 --crop 56x56 --epochs 10 "
        "--batch-size 8 --out runs/mine (small enough for a CPU); r21d train --resume --out "
        "runs/mine; r21d train UCF-101 --config kinetics_to_ucf101 --annotations "
        "ucfTrainTestlist --split 1",
    )
    parser.add_argument(
        "--config", metavar="NAME|FILE", help="a protocol of --list-configs, or a TOML file"
    )
    parser.add_argument(
        "--list-configs", action=ListConfigs, help="print the protocols that have a name, and end"
    )
    parser.add_argument(
        "--out", help=f"folder of the run (default: runs/NAME of --config NAME, else {DEFAULT_OUT})"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out; DATA and options are those of the run unless given",
    )
    again.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="with --resume: go on with other settings of the optimisation than the run had, such "
        "as a lower --lr, or without a good part of its videos",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="open the data, print what would be done, try a step and a validation; write nothing",
    )
    add_data(parser, optional=True)
    held = parser.add_mutually_exclusive_group()
    held.add_argument(
        "--val",
        metavar="PATH",
        help="what to validate on, same classes: a folder like DATA or, of the other data sets, a "
        "list like DATA's",
    )
    held.add_argument(
        "--val-fraction",
        type=fraction,
        metavar="X",
        help=f"share of each class's training videos to hold out (default: {VAL_FRACTION}, where "
        "there is nothing else to validate on)",
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; 128 and the signal's number where one has stopped the run."""
    from r21d.evaluation.distributed import RankFailed
    from r21d.training.parallel import training_ranks
    from r21d.training.signals import TrainingStopped

    out = run_folder(args)
    training = None
    try:
        if args.allow_changes and not args.resume:
            raise UserError("--allow-changes is for a run that goes on: say --resume, too")
        config = settings(args, out)
        with training_ranks(device_kind(chosen_device(config))) as ranks:
            if ranks.rank:
                speak_of_own_files_alone()
            if args.resume and getattr(args, "weights", None) is not None:
                _log.warning("--weights is not read: the run goes on with its own")
            launch = launched_by(ranks)
            resume = resumes(args, out, launch, ranks)
            # The folder may be on the first one's machine alone, and with it the run's settings.
            config = ranks.from_first(config)
            training = _Training(args, config, out, resume, launch, ranks)
            training.run(chosen_device(config))
            return 0
    except TrainingStopped as stopped:
        if not is_first():
            return 0
        print_error(f"{stopped}{_go_on(training)}")
        return 128 + stopped.signal
    except KeyboardInterrupt:
        if training is None or not training.started:
            raise
        training.started = False  # Whoever presses Ctrl-C twice does not wait for a report.
        newest = max(state_files(out), default=0)
        print_error(f"interrupted; the newest state is that after step {newest}; {go_on(out)}")
        return 128 + signal.SIGINT
    except user_errors() as error:
        if not is_first():
            return fail_after_the_first(error)
        if not isinstance(error, (RankFailed, *_from_outside())):
            raise
        less = _less_memory(training) if isinstance(error, MemoryError) else ""
        print_error(one_line(error) + _go_on(training) + less)
        return USAGE_EXIT
    finally:
        # Last: torchrun ends this process soon after another has died.
        if training is not None:
            training.report()


def _go_on(training: _Training | None) -> str:
    """How to go on with the run, where there is one already."""
    begun = training is not None and (training.started or training.resume)
    return f"; {go_on(training.out)}" if training is not None and begun else ""


def _less_memory(training: _Training | None) -> str:
    """Options that halve the clips of a forward pass, where that can be."""
    if not _go_on(training) or training is None or training.config.train.batch_size % 2:
        return ""
    train = training.config.train
    return f" --batch-size {train.batch_size // 2} --accumulate {2 * train.accumulate}"


def _from_outside() -> tuple[type[Exception], ...]:
    """Errors that are no fault of the run, which can go on once their cause is gone."""
    from r21d.training import TrainingInterrupted

    kinds: list[type[Exception]] = [TrainingInterrupted, ChildProcessError, MemoryError]
    with contextlib.suppress(ImportError):
        from r21d.video import VideoError

        kinds.append(VideoError)
    return tuple(kinds)


class _Training:
    """One call of the command, in one of its processes."""

    def __init__(
        self,
        args: argparse.Namespace,
        config: RunConfig,
        out: Path,
        resume: bool,
        launch: list[str],
        ranks: Ranks,
    ) -> None:
        self.args, self.config, self.out, self.resume = args, config, out, resume
        self.launch, self.ranks = launch, ranks
        self.begun: RunVideos | None = None
        self.sets: tuple[VideoDataset, VideoDataset] | None = None
        self.description: dict[str, Any] = {}
        # Whether the folder is this run's.
        self.started = False

    def run(self, device: str | None) -> None:
        """Open everything, then train or, for ``--dry-run``, try."""
        with self.ranks.together():
            if self.ranks.rank == 0 and not self.resume and not self.args.dry_run:
                check_new(self.out, self.config, self.args.overwrite)
            check_index(data_options(self.config))
            if self.resume and self.args.data is None:
                check_videos(self.out, self.config)
        with self.ranks.together():
            own = rank_device(device, self.ranks)
        if device is None:
            self.config = self.config.changed({"device": own.partition(":")[0]}, DEFAULT_SOURCE)
        train_set, val_set, model = self._open()
        if self.ranks.rank == 0:
            say(
                f"{self.config.model.model}: {len(train_set)} videos to train on, {len(val_set)} "
                f"to validate on, {len(train_set.classes)} classes"
            )
        if self.args.dry_run:
            from r21d.cli.dry_run import try_run

            try_run(self.config, own, train_set, val_set, model, self.ranks)
        else:
            self._train(own, train_set, val_set, model)

    def _open(self) -> tuple[VideoDataset, VideoDataset, VideoModel]:
        """Both sets and the network; the first process opens files for all."""
        import torch

        from r21d.training import network

        found = None
        start = self._start_again() if self.resume else self._start()
        self.config = network.completed(self.config, start)
        with self.ranks.together():
            if self.ranks.rank == 0:
                spec = self.config.input.spec(network.normalisation(start))
                self.begun = read_videos(self.out) if self.resume else None
                found = open_datasets(self.config, spec, self.begun, self.args.allow_changes)
        self.sets = train_set, val_set = self.ranks.from_first(found)
        with self.ranks.together():
            torch.manual_seed(self.config.train.seed)
            # A state holds every weight: what the run has once started from may be gone.
            asked = self.config.changed({"weights": None}, "") if self.resume else self.config
            model = network.build_model(asked, train_set.classes, start)
        if start is not None and not self.resume and self.ranks.rank == 0:
            told = network.describe_start(self.config, start, train_set.classes)
            say(printable(told))
        self.description = describe_run(self.config, start, train_set, val_set)
        return train_set, val_set, model

    def _start(self) -> Checkpoint | None:
        """The weights to start from."""
        from r21d.training import network

        start = None
        # Published weights are fetched once.
        for turn in (self.ranks.rank == 0, self.ranks.rank > 0):
            with self.ranks.together():
                if turn:
                    start = network.load_start(self.config)
        return start

    def _start_again(self) -> Checkpoint | None:
        """What there is to know of the weights that the run has started from."""
        from r21d.training.state import States

        description = None
        with self.ranks.together():
            if self.ranks.rank == 0:
                description = States(self.out, self.config.train.keep).load().description
        return described_start(self.ranks.from_first(description))

    def _train(
        self, device: str, train_set: VideoDataset, val_set: VideoDataset, model: VideoModel
    ) -> None:
        from r21d.training import StopRequest, train

        with StopRequest(_STOPPING if self.ranks.rank == 0 else None) as stop:
            history = train(
                model,
                train_set,
                val_set,
                replace(self.config.train, device=device),
                out=self.out,
                resume=self.resume,
                overwrite=self.args.overwrite and not self.resume,
                allow_changes=self.args.allow_changes,
                on_start=self._on_start,
                on_epoch=self._on_epoch,
                description=self.description,
                stop=stop,
            )
        if self.ranks.rank == 0:
            self._conclude(history)

    def _on_start(self) -> None:
        """Write what the run is, now that the folder is its own."""
        from r21d.training.environment import append_environment

        config = located(self.config)
        write_atomically(self.out / CONFIG_FILE, dump_config(config).encode())
        append_environment(self.out / ENVIRONMENT_FILE, anew=not self.resume)
        write_launch(self.out, self.launch)
        # A run that goes on has not noted them if it is of an earlier version.
        if self.sets is not None and self.begun is None:
            write_videos(self.out, *self.sets)
        self.started = True

    def _on_epoch(self, row: dict[str, Any]) -> None:
        epochs = self.config.train.epochs
        say(epoch_line(row, epochs))
        if row["epoch"] < epochs:  # The last one's is written at the end.
            self.report()

    def report(self) -> None:
        """Write how the run is: after each epoch, and however the command ends."""
        if not self.started:
            return
        from r21d.training import report

        # It is made of files that are there already, and not worth a run.
        try:
            report.write_report(self.out)
        except (ImportError, OSError) as error:
            _log.warning("the report could not be written: %s", error)

    def _conclude(self, history: list[dict[str, Any]]) -> None:
        epochs = self.config.train.epochs
        if len(history) < epochs:
            say(
                f"ended after step {self.config.train.max_steps}, as --max-steps says, in epoch "
                f"{len(history) + 1} of {epochs}; {go_on(self.out)} --max-steps none"
            )
        for name in (BEST_FILE, LAST_FILE):
            if (file := self.out / name).is_file():
                kind = name.partition(".")[0]
                say(f"{kind} checkpoint: {printable(file)}")
                say(f"next: r21d predict VIDEO --checkpoint {printable(file)}")
                break


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """One epoch's row of the history as a line of text, of about 80 columns."""
    line = (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs} loss {row['train_loss']:.3f} "
        f"clip@1 {row['train_clip_top1']:5.1%}"
    )
    if "val_loss" in row:
        line += (
            f" | val loss {row['val_loss']:.3f} clip@1 {row['clip_top1']:5.1%} "
            f"video@1 {row['video_top1']:5.1%}"
        )
    return line

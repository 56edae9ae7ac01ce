"""The folder of a run: where it is, whether the run there goes on, and with which settings."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r21d.atomic import write_atomically
from r21d.cli.errors import UserError, printable
from r21d.cli.outputs import check_folder
from r21d.cli.training_options import given_settings
from r21d.training.protocol import list_configs, load_config
from r21d.training.run_config import RunConfig
from r21d.training.run_folder import (
    CONFIG_FILE,
    LAUNCH_FILE,
    OLD_STATE_FILE,
    held_run,
    state_files,
)

if TYPE_CHECKING:
    from r21d.evaluation.distributed import Ranks

DEFAULT_OUT = "runs/r21d"


def run_folder(args: argparse.Namespace) -> Path:
    """Where the run goes, or is."""
    named = f"runs/{args.config}" if args.config in list_configs() else DEFAULT_OUT
    return Path(args.out or named)


def go_on(out: Path) -> str:
    """How to go on with the run in ``out``, to be said beside why it has ended."""
    return f"go on with: r21d train --resume --out {printable(out)}"


def settings(args: argparse.Namespace, out: Path) -> RunConfig:
    """The settings: of a run that goes on its own, unless the command line says otherwise."""
    given, source = given_settings(args), args.config
    own = out / CONFIG_FILE
    # A configuration that names the folder says no more than where the run is.
    found_by_name = source is None or (args.out is None and source in list_configs())
    if args.resume and found_by_name and os.path.isfile(own):
        source = own
        held = load_config(own)
        # What only repeats the run's settings keeps their sources.
        given = {k: v for k, v in given.items() if v != _value(held, k)}
        # Its states hold them all.
        given.pop("weights", None)
    return load_config(source, given)


def _value(config: RunConfig, name: str) -> Any:
    return config.values()[name] if name in config.values() else getattr(config.run, name)


def chosen_device(config: RunConfig) -> str | None:
    """The device that somebody has chosen."""
    return config.train.device if "device" in config.sources else None


def launched_by(ranks: Ranks) -> list[str]:
    """What has started these processes and would restart them: a torchrun on each machine.

    Hashes, so that no file tells the names of machines and users.
    """
    # torchrun names a new folder at each start, in which each restart has one of its own.
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    starter = str(Path(file).parent.parent.parent) if file else str(os.getppid())
    name = f"{platform.node()} {os.environ.get('TORCHELASTIC_RUN_ID')} {starter}"
    own = hashlib.sha256(os.fsencode(name)).hexdigest()
    return sorted(set(ranks.gather(own)))


def write_launch(out: Path, launch: list[str]) -> None:
    """Note in the run's folder what `launched_by` has told."""
    write_atomically(out / LAUNCH_FILE, "".join(f"{line}\n" for line in launch).encode())


def _is_own(out: Path, launch: list[str]) -> bool:
    """Whether one of those that started the run in ``out`` is among ``launch``."""
    try:
        started = (out / LAUNCH_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return not set(launch).isdisjoint(started.splitlines())


def resumes(args: argparse.Namespace, out: Path, launch: list[str], ranks: Ranks) -> bool:
    """Whether to go on with the run that ``out`` holds, for all processes alike.

    That is asked for by ``--resume``, or torchrun has started the processes anew and the run there
    is one that it has begun or gone on with (``launch``, see `launched_by`).

    Raises:
        UserError: ``--resume``, and it holds none; or it cannot be a folder.
    """
    # Not its number, which each machine has for itself, and which leaves out new machines' coming.
    launched = any(ranks.gather("TORCHELASTIC_RESTART_COUNT" in os.environ))
    holds = own = False
    with ranks.together():
        if ranks.rank == 0:
            check_folder("--out", out)
            holds = bool(state_files(out))
            own = holds and _is_own(out, launch)
            if args.resume and not holds and not (out / OLD_STATE_FILE).exists():
                raise UserError(
                    f"there is no run to resume in {printable(out)}: --out names the folder of "
                    "one; without --resume a new run starts"
                )
    own = ranks.from_first(own)
    return args.resume or (launched and own)


def check_new(out: Path, config: RunConfig, overwrite: bool) -> None:
    """Refuse to begin a run in ``out`` before the work, as training would after it.

    Raises:
        UserError: it holds a run, and not one to ``overwrite``, or what the new one starts from.
    """
    held = held_run(out)
    if not held:
        return
    named = f"--out {printable(out)}"
    if not overwrite:
        raise UserError(
            f"{named} already holds a run ({held[0].name}): --resume goes on with it, "
            "--overwrite replaces it; or choose another folder"
        )
    from r21d.training.network import weights_file

    weights = weights_file(config.model.weights)
    if weights is not None and os.path.realpath(weights) in map(os.path.realpath, held):
        raise UserError(
            f"{named} is to be replaced and holds what the new run would start from, "
            f"--weights {printable(weights)}; choose another folder"
        )


def check_videos(out: Path, config: RunConfig) -> None:
    """Refuse to go on with a run whose videos are no longer where it has found them.

    Raises:
        UserError: they are not.
    """
    data = config.run.data
    if data is not None and not os.path.exists(data):
        raise UserError(
            f"the videos of the run are no longer in {printable(data)}: say where they are, "
            f"r21d train DATA --resume --out {printable(out)}"
        )

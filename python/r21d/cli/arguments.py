"""Argument types and groups that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from r21d.cli.errors import UserError

if TYPE_CHECKING:
    from r21d.evaluation.distributed import Ranks

Subcommands = Any
"""What ``ArgumentParser.add_subparsers`` returns; argparse keeps the class private."""


def sizes(count: int, example: str) -> Any:
    """An argparse type: ``count`` positive integers joined by x, as in ``example``."""

    def parse(text: str) -> tuple[int, ...]:
        parts = text.lower().split("x")
        if len(parts) != count or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {count} positive numbers joined by x, like {example}"
            )
        return tuple(int(part) for part in parts)

    return parse


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def count(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def fraction(text: str) -> float:
    """An argparse type: a number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")
    return value


def frame_rate(text: str) -> float | None:
    """An argparse type: frames a second, or "native" for the video's own (None)."""
    if text == "native":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a rate above 0 nor 'native'")
    return value


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``, by default the GPU where there is one."""
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: cuda where available, else cpu)"
    )


def resolve_device(name: str | None) -> str:
    """The device to use.

    Raises:
        UserError: torch does not know the device or cannot use it here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from error
    if torch.device(name).type == "meta":
        raise UserError("--device meta computes nothing; use cpu or cuda")
    return name


def device_kind(name: str | None) -> str:
    """``"cuda"`` where `resolve_device` would choose a GPU, or refuse one, else ``"cpu"``."""
    import torch

    on_gpu = torch.cuda.is_available() if name is None else name.startswith("cuda")
    return "cuda" if on_gpu else "cpu"


def rank_device(name: str | None, ranks: Ranks) -> str:
    """`resolve_device`, or among the processes of torchrun a GPU each.

    Raises:
        UserError: as `resolve_device`, or there are fewer GPUs than processes.
    """
    import torch

    from r21d.evaluation.distributed import local_rank

    each = ranks.world > 1 and name in (None, "cuda") and torch.cuda.is_available()
    if not each:
        return resolve_device(name)
    number, count = local_rank(), torch.cuda.device_count()
    if number >= count:
        raise UserError(
            f"torchrun started more processes here than there are GPUs ({count}); lower "
            "--nproc-per-node or say --device cpu"
        )
    torch.cuda.set_device(number)
    return f"cuda:{number}"

"""The options of ``r21d train``: one for each setting of a run, with the settings' own names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from r21d.cli.arguments import count, frame_rate, positive, sizes
from r21d.training.config import DTYPES, SCHEDULES
from r21d.training.protocol import list_configs
from r21d.training.run_config import KEYS, Key, none_of
from r21d.video.clips import MODES


def _frames_size(text: str) -> int | tuple[int, ...]:
    """An argparse type: HxW, or the shorter side alone."""
    return int(text) if text.isdecimal() and int(text) > 0 else _pair(text)


_pair = sizes(2, "128x171")
_crop = sizes(2, "112x112")

# What each option says, by group; the settings' defaults are added. Those of [run] and --dataset
# are the data options that other commands have, too.
_HELP: dict[str, dict[str, str]] = {
    "network": {
        "model": "a network that r21d info lists",
        "weights": "start from these: a name that r21d info --weights lists, a file, a URL or the "
        "folder of a run; the head is new where the classes are others, and what no option and no "
        "configuration says is the weights' (network, clips, frame size)",
        "midplanes": "M of the (2+1)D convolutions; none: paper, or the weights'",
        "width": "channels of the first two groups, doubled in each later one; none: the paper's "
        "64, or the weights'",
        "dropout": "before the classifier; none: the network's own",
        "eps": "of every BatchNorm; none: 1e-5, or the weights'",
        "fused": "run (2+1)D convolutions by the fused operators, or as stock layers",
        "recompute": "make their intermediates again in backward: less memory, more time",
    },
    "input": {
        "clip_len": "frames a clip",
        "frame_rate": "frames a second, or native for consecutive frames",
        "frame_stride": "take every N-th of these frames",
        "resize": "frames are scaled to this: HxW, or S for the shorter side",
        "crop": "and cropped to this, HxW",
        "short": "videos shorter than a clip repeat their last frame (pad) or all frames (loop)",
        "flip": "mirror half of the clips; not for classes in which left and right matter",
    },
    "validation": {
        "val_clips": "clips a validation video",
        "val_sampling": "which: evenly spaced, random, or densely all",
        "validate_epochs": "validate after every N-th epoch, and after the last",
    },
    "optimisation": {
        "epochs": "how many",
        "epoch_clips": "clips an epoch; none: one of each training video",
        "batch_size": "clips a forward pass, of each process",
        "accumulate": "passes a step, whose gradients are averaged",
        "lr": "learning rate, at its peak",
        "lr_batch": "the clips a step for which --lr is meant: with n times as many it is n times "
        "as high; none: as it is",
        "schedule": "step: --lr-gamma times as high every --lr-step epochs; cosine: to zero",
        "lr_step": "epochs",
        "lr_gamma": "factor",
        "warmup_epochs": "epochs in which the learning rate rises to its value",
        "warmup_start": "share of that value from which it rises",
        "momentum": "of SGD",
        "nesterov": "Nesterov's momentum",
        "weight_decay": "of all parameters",
        "label_smoothing": "share of the truth spread over all classes",
        "clip_gradients": "largest norm of the gradients; none: any",
        "freeze": "keep the first N stages as they are (conv1 is the first)",
        "lr_scales": "learning rate of the parameters under NAME, times F; may be repeated",
        "sync_bn": "BatchNorm over the clips of all processes",
        "bn_recalibration": "training clips from which BatchNorm's statistics are taken anew "
        "after each epoch",
        "seed": "of weights, order, moments, crops, flips and dropout",
    },
    "running": {
        "device": "cpu, cuda, cuda:1, ... (default: cuda where available, else cpu)",
        "workers": "decoding processes of each process",
        "dtype": "float32, or autocast to bfloat16 or float16",
        "compile": "compile the network",
        "channels_last": "memory format of activations and weights",
        "eval_batch_size": "clips a forward pass in validation (default: --batch-size)",
        "max_steps": "end after N steps, resumed ones counted; none: after the last epoch",
        "checkpoint_steps": "save the state every N steps, and after each epoch; 0: then alone",
        "keep": "states kept",
        "log_steps": "steps between two lines of the logs",
    },
}
_CHOICES: dict[str, Sequence[str]] = {
    "midplanes": ("paper", "torchvision"),
    "short": ("pad", "loop"),
    "val_sampling": MODES,
    "schedule": SCHEDULES,
    "dtype": DTYPES,
}
_TYPES: dict[str, Callable[[str], Any]] = {
    "clip_len": positive,
    "frame_rate": frame_rate,
    "frame_stride": positive,
    "resize": _frames_size,
    "crop": _crop,
    "val_clips": positive,
    "workers": count,
    "seed": count,
}
_METAVARS = {"resize": "HxW|S", "crop": "HxW", "weights": "NAME|FILE|FOLDER"}
_NO_DEFAULT = ("device", "eval_batch_size")
# The options of cli.data, and --val beside --val-fraction.
ELSEWHERE = ("data", "dataset", "annotations", "split", "val", "val_fraction", "index", "strict")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for every setting, absent from the arguments where it is not given."""
    for title, options in _HELP.items():
        group = parser.add_argument_group(title)
        for name, text in options.items():
            _add(group, KEYS[name], text)
            if name == "dtype":
                group.add_argument(
                    "--bf16",
                    dest="dtype",
                    action="store_const",
                    const="bfloat16",
                    default=argparse.SUPPRESS,
                    help="short for --dtype bfloat16",
                )


def _add(group: Any, key: Key, text: str) -> None:
    options: dict[str, Any] = {"dest": key.name, "default": argparse.SUPPRESS}
    if key.name not in _NO_DEFAULT:
        text = f"{text} (default: {_shown(key)})"
    if key.name == "lr_scales":
        options |= {"action": _AddScale, "metavar": "NAME=F", "type": _scale}
        group.add_argument("--lr-scale", help=text.replace("{}", "1"), **options)
        return
    if key.kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options |= {"type": _type(key), "metavar": _METAVARS.get(key.name, _metavar(key))}
    group.add_argument(f"--{key.name.replace('_', '-')}", help=text, **options)


def _metavar(key: Key) -> str:
    if key.name in _CHOICES:
        return "|".join(_CHOICES[key.name])
    return {int: "N", float: "X"}.get(key.kind, key.name.upper())


def _shown(key: Key) -> str:
    value = key.default
    if value is None:
        return none_of(key)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(key: Key) -> Callable[[str], Any]:
    """What turns the text of an option into the setting."""

    def parse(text: str) -> Any:
        if key.optional and text == none_of(key):
            return None
        if key.name in _TYPES:
            return _TYPES[key.name](text)
        choices = _CHOICES.get(key.name)
        if choices is not None and text not in choices:
            none = [none_of(key)] if key.optional else []
            raise argparse.ArgumentTypeError(
                f"{text!r} is not one of {', '.join([*choices, *none])}"
            )
        try:
            return key.kind(text)
        except ValueError as error:
            kind = "whole number" if key.kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {kind}") from error

    return parse


def _scale(text: str) -> tuple[str, float]:
    """An argparse type: NAME=FACTOR."""
    name, equals, factor = text.rpartition("=")
    try:
        if name and equals:
            return name, float(factor)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FACTOR, like fc=10")


class _AddScale(argparse.Action):
    """Collects the pairs of a repeated option in a table."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest, {}), values[0]: values[1]})


class ListConfigs(argparse.Action):
    """Prints the names of the configurations and ends."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        configs = list_configs()
        width = max(map(len, configs))
        for name, text in configs.items():
            print(f"{name:<{width}}  {text}")
        parser.exit()


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names, by key."""
    given = {name: getattr(args, name) for name in KEYS if getattr(args, name, None) is not None}
    # An option that says "none" is given, too; the data options' None is theirs for absence.
    given |= {
        name: None
        for name in KEYS
        if name not in ELSEWHERE and hasattr(args, name) and getattr(args, name) is None
    }
    if "split" in given:
        given["split"] = " ".join(given["split"])
    return given

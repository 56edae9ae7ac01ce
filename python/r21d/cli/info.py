"""``r21d info``: layers, parameters and multiply-adds of a network."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from r21d.cli.arguments import Subcommands, sizes
from r21d.cli.tables import print_table
from r21d.models import ModelInfo, create_model, list_models, model_info


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``info`` to the command line."""
    parser = commands.add_parser(
        "info",
        parents=[common],
        help="parameters, multiply-adds and layers of a network",
        description="Show a network's parameters and its multiply-adds for one clip, or those of "
        "every network when none is named. Nothing is computed or downloaded.",
        epilog="example: r21d info r2plus1d_18 --clip 3x16x112x112 --layers",
    )
    parser.add_argument("model", nargs="?", help="a network (default: a table of all)")
    parser.add_argument(
        "--clip",
        type=sizes(4, "3x8x112x112"),
        default=(3, 8, 112, 112),
        metavar="CxTxHxW",
        help="size of the clip (default: 3x8x112x112, the paper's)",
    )
    parser.add_argument(
        "--midplanes",
        choices=("paper", "torchvision"),
        default="paper",
        help="M per convolution as in the paper, or once a block as in torchvision's weights",
    )
    parser.add_argument("--classes", type=int, default=400, help="outputs (default: 400)")
    parser.add_argument("--layers", action="store_true", help="a row for each layer, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    names = [args.model] if args.model else list_models()
    infos = {name: _examine(name, args) for name in names}
    if args.json:
        print(json.dumps({name: _to_dict(i, args.layers) for name, i in infos.items()}, indent=2))
        return 0
    rows = [
        (name, f"{i.parameters:,}", f"{i.gmacs:.2f}", _shape(i.last_conv))
        for name, i in infos.items()
    ]
    print_table(("network", "parameters", "GMAC", "last conv"), rows, right=(1, 2, 3))
    if args.layers:
        for name, i in infos.items():
            print(f"\n{name}, clip {_shape(args.clip)}")
            _print_layers(i)
    return 0


def _examine(name: str, args: argparse.Namespace) -> ModelInfo:
    import torch

    # Meta tensors: counting needs no weights.
    with torch.device("meta"):
        model = create_model(
            name,
            args.classes,
            midplanes=args.midplanes,
            in_channels=args.clip[0],
            clip_len=args.clip[1],
        )
    return model_info(model, args.clip)


def _to_dict(info: ModelInfo, layers: bool) -> dict[str, object]:
    values = dataclasses.asdict(info)
    return values if layers else {key: values[key] for key in values if key != "layers"}


def _print_layers(info: ModelInfo) -> None:
    rows = [
        (
            layer.name,
            layer.kind,
            _shape(layer.input),
            _shape(layer.output),
            f"{layer.parameters:,}",
            f"{layer.macs / 1e9:.3f}",
        )
        for layer in info.layers
    ]
    headers = ("layer", "kind", "input", "output", "parameters", "GMAC")
    print_table(headers, rows, right=(2, 3, 4, 5))


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))

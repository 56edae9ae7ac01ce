"""``r21d info``: parameters and multiply-adds of a network, or of all beside the paper's."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from r21d.cli.arguments import Subcommands, sizes
from r21d.cli.errors import UserError
from r21d.cli.tables import print_table
from r21d.models import ModelInfo, create_model, list_models, model_info
from r21d.models.registry import check_name

if TYPE_CHECKING:
    from r21d.models.paper import Claim, Network

_CLIP = (3, 8, 112, 112)
_CLASSES = 400
_I3D_CLIP = (64, 224)
"""Frames and size of the clips that I3D is trained on (arXiv:1705.07750, Table 1 and section 2)."""


def add_command(commands: Subcommands, common: argparse.ArgumentParser) -> None:
    """Add ``info`` to the command line."""
    parser = commands.add_parser(
        "info",
        parents=[common],
        help="parameters, multiply-adds and layers of a network",
        description="Show a network's parameters and its multiply-adds for one clip, or those of "
        "every network when none is named. Nothing is computed or downloaded.",
        epilog="examples: r21d info r2plus1d_18 --clip 3x16x112x112 --layers; r21d info --all; "
        "r21d info r2plus1d_34 --weights",
    )
    parser.add_argument("model", nargs="?", help="a network (default: a table of all)")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument(
        "--weights", action="store_true", help="the published weights that are known by name"
    )
    tables.add_argument(
        "--all",
        action="store_true",
        help="every network at 8, 16 and 32 frames beside the figures that the paper and its "
        "authors' code print, and the paper's claims checked",
    )
    parser.add_argument(
        "--clip",
        type=sizes(4, "3x8x112x112"),
        metavar="CxTxHxW",
        help="size of the clip (default: 3x8x112x112, the paper's)",
    )
    parser.add_argument(
        "--midplanes",
        choices=("paper", "torchvision"),
        help="M per convolution as in the paper (the default), or once a block as in "
        "torchvision's weights",
    )
    parser.add_argument("--classes", type=int, help=f"outputs (default: {_CLASSES})")
    parser.add_argument("--layers", action="store_true", help="a row for each layer, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.all:
        return _run_all(args)
    if args.weights:
        return _run_weights(args)
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
            print(f"\n{name}, clip {_shape(args.clip or _CLIP)}")
            _print_layers(i)
    return 0


def _examine(name: str, args: argparse.Namespace) -> ModelInfo:
    import torch

    clip = args.clip or _CLIP
    # I3D has no M; in the table of all it is not to blame for a wish that the others can serve.
    midplanes = args.midplanes if args.model or name != "i3d" else None
    # Meta tensors: counting needs no weights.
    with torch.device("meta"):
        model = create_model(
            name,
            _CLASSES if args.classes is None else args.classes,
            midplanes=midplanes,
            in_channels=clip[0],
            clip_len=clip[1],
        )
    return model_info(model, clip)


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


def _run_all(args: argparse.Namespace) -> int:
    from r21d.models import paper

    if args.model:
        raise UserError(f"--all is a table of all networks: leave out {args.model} or --all")
    _refuse_options(args, "--all")
    networks = paper.count_networks()
    claims = paper.check_claims(networks)
    if args.json:
        print(json.dumps(_all_to_dict(networks, claims), indent=2))
        return 0
    _print_counts(networks)
    _print_accuracy(networks)
    print("\nClaims on sizes, costs and gains; found: counted here, or from the paper's Table 2\n")
    rows = [(c.where, c.says, c.found, "holds" if c.holds else "NO") for c in claims]
    print_table(("where", "the paper says", "found", ""), rows)
    return 0


def _run_weights(args: argparse.Namespace) -> int:
    from r21d.weights.registry import list_weights, published

    _refuse_options(args, "--weights")
    if args.model:
        check_name(args.model)
    entries = {name: published(name) for name in list_weights(args.model)}
    if args.json:
        print(json.dumps({n: dataclasses.asdict(e) for n, e in entries.items()}, indent=2))
        return 0
    if not entries:
        print(f"no published weights of {args.model} are known")
        return 0
    rows = [
        (
            name,
            str(entry.clip_len or ""),
            _rate(entry.frame_rate, entry.frame_stride),
            entry.classes or "",
            *(str(entry.metrics.get(measure, "")) for measure in ("clip@1", "video@1")),
            (entry.member_sha256 or entry.sha256 or "")[:8],
        )
        for name, entry in entries.items()
    ]
    headers = ("weights", "frames", "a second", "classes", "clip@1", "video@1", "sha256")
    print_table(headers, rows, right=(1, 2, 4, 5))
    print(
        "\nAccuracies are the publishers', in percent on Kinetics-400; --json has the protocol of"
    )
    print("each, its licence, source and URL. Give a name to r21d predict --weights.")
    return 0


def _rate(frame_rate: float | str | None, frame_stride: int | None) -> str:
    rate = frame_rate or "" if isinstance(frame_rate, str | None) else f"{frame_rate:g}"
    return rate if frame_stride in (None, 1) else f"{rate}/{frame_stride}"


def _refuse_options(args: argparse.Namespace, table: str) -> None:
    """UserError where an option was given that ``table`` would silently pass over."""
    options = {
        "--clip": args.clip,
        "--midplanes": args.midplanes,
        "--classes": args.classes,
        "--layers": args.layers or None,
    }
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise UserError(f"{table} takes no {', '.join(given)}: leave out either")


def _print_counts(networks: Mapping[str, Network]) -> None:
    """The networks in the paper's order, sizes beside those of Table 2."""
    from r21d.models import paper

    print("400 classes, clips of 112x112, GMAC = 10^9 multiply-adds; Table 2 is in millions\n")
    rows = []
    for family, row in paper.TABLE_2.items():
        deep = networks[f"{family}_34"].infos[8]
        shallow = networks[f"{family}_18"]
        beside = _beside(shallow.infos[8].parameters / 1e6, row.parameters)
        rows.append(
            (family, *_counts(shallow), beside, f"{deep.parameters:,}", f"{deep.gmacs:.2f}")
        )
    rows.append(("i3d", *_counts(networks["i3d"]), "", "", ""))
    frames = [f"{clip_len}f" for clip_len in paper.CLIP_LENS]
    print_table(
        (
            *("network", "_18 params", f"GMAC {frames[0]}", *frames[1:], f"conv out {frames[0]}"),
            *("Table 2", "_34 params", "GMAC 8f"),
        ),
        rows,
        right=(1, 2, 3, 4, 5, 7, 8),
    )
    length, size = _I3D_CLIP
    own = paper.count_network("i3d", (length,), size).infos[length]
    print("\ncut: rounded down; the other figures of Table 2 are rounded to the nearest")
    print(f"i3d at {length} frames of {size}x{size}, its own clip: {own.gmacs:.2f} GMAC")


def _counts(network: Network) -> tuple[str, ...]:
    first, *_ = network.infos.values()
    gmacs = [f"{info.gmacs:.2f}" for info in network.infos.values()]
    return (f"{first.parameters:,}", *gmacs, _shape(first.last_conv))


def _print_accuracy(networks: Mapping[str, Network]) -> None:
    """Figure 3 in numbers: accuracy by cost."""
    from r21d.models import paper

    print(
        "\nBy cost, as Figure 3: 18 layers, clip@1 / video@1 on Kinetics-400 in percent. Table 2 is"
    )
    print("the paper's, VMZ are its authors' later runs; no accuracy is measured here.\n")
    rows = []
    for family in _by_cost(networks):
        table_2 = paper.TABLE_2[family]
        cells = [family]
        for clip_len, printed in paper.VMZ_GMACS.items():
            gmacs = networks[f"{family}_18"].infos[clip_len].gmacs
            cells += [f"{gmacs:.2f}", _beside(gmacs, printed[family])]
            if clip_len == 8:
                cells.append(_accuracy(table_2.clip_top1, table_2.video_top1))
            cells.append(_accuracy(*paper.vmz_accuracy(family, clip_len)))
        rows.append(cells)
    headers = ("network", "GMAC 8f", "VMZ's", "Table 2", "VMZ", "GMAC 16f", "VMZ's", "VMZ")
    print_table(headers, rows, right=range(1, 8))


def _by_cost(networks: Mapping[str, Network]) -> list[str]:
    from r21d.models import paper

    return sorted(paper.TABLE_2, key=lambda family: networks[f"{family}_18"].infos[8].gmacs)


def _accuracy(clip_top1: float, video_top1: float) -> str:
    return f"{clip_top1} / {video_top1}"


def _beside(value: float, printed: str) -> str:
    """A published figure, marked unless it is ``value`` rounded."""
    from r21d.models.paper import printed_as

    how = printed_as(value, printed)
    return printed if how == "rounded" else f"{printed} {how}"


def _all_to_dict(networks: Mapping[str, Network], claims: Sequence[Claim]) -> dict[str, Any]:
    return {
        "networks": {name: _network_to_dict(network) for name, network in networks.items()},
        "order": _by_cost(networks),
        "claims": [dataclasses.asdict(claim) for claim in claims],
    }


def _network_to_dict(network: Network) -> dict[str, Any]:
    from r21d.models import paper

    infos = network.infos
    values: dict[str, Any] = {
        "parameters": {clip_len: info.parameters for clip_len, info in infos.items()},
        "gmacs": {clip_len: info.gmacs for clip_len, info in infos.items()},
        "last_conv": {clip_len: info.last_conv for clip_len, info in infos.items()},
    }
    family, _, depth = network.name.partition("_")
    if depth == "18":
        row = paper.TABLE_2[family]
        values["table_2"] = {
            **dataclasses.asdict(row),
            "parameters_printed": paper.printed_as(infos[8].parameters / 1e6, row.parameters),
        }
        values["vmz"] = {}
        for clip_len, printed in paper.VMZ_GMACS.items():
            clip_top1, video_top1 = paper.vmz_accuracy(family, clip_len)
            values["vmz"][clip_len] = {
                "gmacs": printed[family],
                "clip_top1": clip_top1,
                "video_top1": video_top1,
            }
    return values


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))

"""``r21d doctor --plan``: how each (2+1)D convolution of a network would run on a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from r21d.cli.errors import UserError, one_line
from r21d.cli.tables import print_table

if TYPE_CHECKING:
    from torch import Tensor, nn

    from r21d_ops.dispatch import Route
    from r21d_ops.problem import Problem

Clip = tuple[int, int, int, int]


class Convolution(NamedTuple):
    """A (2+1)D convolution of a network: the path of its four layers, and what it computes."""

    name: str
    problem: Problem


#: Ways of inference in the CUDA kernels, the last being the faster of the others.
_WAYS = ("fused", "two", "chosen")


def convolutions(name: str, clip: Clip, batch: int) -> list[Convolution]:
    """The (2+1)D convolutions of the network ``name`` for ``batch`` clips of (C, T, H, W).

    Raises:
        UserError: it has none.
        ValueError: the network is not known, or takes no such clips.
    """
    import torch
    from torch import nn

    from r21d.models import create_model, model_info
    from r21d_ops.modules import matched_runs

    # Meta tensors: shapes need no weights.
    with torch.device("meta"):
        model = create_model(name, in_channels=clip[0], clip_len=clip[1])
    inputs = {layer.name: layer.input for layer in model_info(model, clip).layers}
    found = []
    for path, module in model.named_modules():
        if isinstance(module, nn.Sequential):
            layers = dict(module.named_children())
            for start in matched_runs(list(layers.values())):
                spatial, _, _, temporal = list(layers)[start : start + 4]
                x = torch.empty(batch, *inputs[f"{path}.{spatial}"], device="meta")
                problem = _problem(x.bfloat16(), layers[spatial], layers[temporal])
                found.append(Convolution(path, problem))
    if not found:
        raise UserError(f"{name} has no (2+1)D convolutions; r2plus1d_18 and r2plus1d_34 have")
    return found


def _problem(x: Tensor, spatial: nn.Module, temporal: nn.Module) -> Problem:
    from torch import nn

    from r21d_ops.problem import problem_of, triple

    assert isinstance(spatial, nn.Conv3d) and isinstance(temporal, nn.Conv3d)
    stride = (temporal.stride[0], *spatial.stride[1:])
    padding = (temporal.padding[0], *spatial.padding[1:])
    problem = problem_of(
        x,
        spatial.weight,
        temporal.weight,
        triple(stride, "stride"),
        triple(padding, "padding"),
    )
    return problem._replace(device="cuda")


def examine(name: str, clip: Clip, batch: int, gpu: str, elsewhere: bool) -> dict[str, Any]:
    """The routes and plans as JSON values.

    Raises:
        UserError: the network has no (2+1)D convolutions, the GPU's rates are unknown, or the
            native library, which plans, is not there.
        ValueError: the network is not known, or takes no such clips.
    """
    from r21d_ops import native
    from r21d_ops.dispatch.cuda_plan import cuda_plan
    from r21d_ops.dispatch.estimate import ASSUMPTIONS, GPUS

    if native.load_error is not None:
        raise UserError(f"the plan is the native library's: {native.load_error}")
    if gpu not in GPUS:
        raise UserError(f"the rates of {gpu} are not known; --gpu takes one of: {', '.join(GPUS)}")
    rows = []
    for convolution in convolutions(name, clip, batch):
        problem = convolution.problem
        plan = cuda_plan(problem, GPUS[gpu].planned)
        assert plan is not None
        del plan["tiles"]
        rows.append(
            {
                "layer": convolution.name,
                "channels": problem[3:6],
                "size": problem.size,
                "kernel": problem.kernel,
                "stride": problem.stride,
                "route": route(problem, False, gpu, elsewhere)._asdict(),
                "training_route": route(problem, True, gpu, elsewhere)._asdict(),
                "plan": plan,
            }
        )
    return {
        "network": name,
        "clip": clip,
        "batch": batch,
        "dtype": "bfloat16",
        "gpu": gpu,
        "assumptions": ASSUMPTIONS,
        "layers": rows,
        "seconds": {way: _total(rows, way) for way in (*_WAYS, "training")},
    }


def route(problem: Problem, training: bool, gpu: str, elsewhere: bool) -> Route:
    """How ``problem`` is served; a route without a backend where the environment forbids it."""
    from r21d_ops.backends import BackendError, route_on_gpu
    from r21d_ops.dispatch import Route

    try:
        return route_on_gpu(problem, training, gpu, elsewhere)
    except (BackendError, ValueError) as error:
        return Route("", "", "none", None, one_line(error))


def _total(rows: list[dict[str, Any]], way: str) -> float | None:
    """Seconds of all layers in the CUDA kernels; None where one cannot run so."""
    seconds = [_seconds(row["plan"], way) for row in rows]
    return None if None in seconds else sum(filter(None, seconds))


def _seconds(plan: dict[str, Any], way: str) -> float | None:
    if plan["refusal"] is not None:
        return None
    if way == "training":
        step: float | None = plan["training"].get("seconds")
        return step
    found: float | None = plan[f"{plan['kernels'] if way == 'chosen' else way}_seconds"]
    return found


def show(report: dict[str, Any], as_json: bool) -> None:
    """Print what :func:`examine` found."""
    if as_json:
        print(json.dumps(report, indent=2))
        return
    sizes = "x".join(map(str, report["clip"]))
    print(f"{report['network']} on {report['gpu']}, {report['batch']} clips of {sizes}, bfloat16\n")
    routes = [_route_row(row) for row in report["layers"]]
    totals = [_microseconds(report["seconds"][way]) for way in _WAYS]
    routes.append(("total", *[""] * 6, *totals))
    headers = ("layer", "C>M>O", "input", "stride", "served by", "", "source")
    estimates = ("CUDA fused us", "two us", "faster us")
    print_table((*headers, *estimates), routes, right=(7, 8, 9))
    print("\nTraining, forward and backward, the gradient of x included:\n")
    trained = [_training_row(row) for row in report["layers"]]
    trained.append(("total", "", "", _microseconds(report["seconds"]["training"])))
    print_table(("layer", "served by", "source", "CUDA us"), trained, right=(3,))
    print("\nThe CUDA kernels' plans; of layers alike, the first:\n")
    plans: dict[str, list[tuple[str, ...]]] = {}
    for row in report["layers"]:
        plans.setdefault(json.dumps(row["plan"]), _plan_rows(row))
    tile = ("layer", "kernel", "tile", "depth", "slices", "chunks", "stages")
    block = ("shared KB", "registers", "grid", "per SM", "GFLOP", "us")
    lines = [line for lines in plans.values() for line in lines]
    print_table((*tile, *block), lines, right=(3, 4, 6, 7, 8, 10, 11, 12))
    print(f"\nEstimates are no measurements. Assumed: {report['assumptions']}.")


def _microseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:.0f}"


def _route_row(row: dict[str, Any]) -> tuple[str, ...]:
    served = row["route"]
    times = [_seconds(row["plan"], way) for way in _WAYS]
    return (
        row["layer"],
        ">".join(map(str, row["channels"])),
        "x".join(map(str, row["size"])),
        "x".join(map(str, row["stride"])),
        served["backend"] or served["detail"],
        served["kernels"],
        served["source"],
        *map(_microseconds, times),
    )


def _training_row(row: dict[str, Any]) -> tuple[str, ...]:
    served = row["training_route"]
    seconds = _microseconds(_seconds(row["plan"], "training"))
    return row["layer"], served["backend"] or served["detail"], served["source"], seconds


def _plan_rows(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """A line for the fused kernel, and one for each of the two convolutions."""
    plan = row["plan"]
    if plan["refusal"] is not None:
        return [(row["layer"], "none", plan["refusal"], *[""] * 10)]
    fused, lines = plan["fused"], []
    if fused["refusal"] is not None:
        lines.append((row["layer"], "fused", f"not: {fused['refusal']}", *[""] * 10))
    else:
        tile = f"{fused['pixels']} pixels x {fused['mids']} of M x 64 of O"
        chunks = f"{fused['chunks']} of {fused['chunk']}"
        walk = (str(fused["depth"]), str(fused["slices"]), chunks)
        lines.append((row["layer"], "fused", tile, *walk, *_block(fused, "xyz")))
    for name in ("spatial", "temporal"):
        conv = plan[name]
        tile = f"{conv['pixels']} pixels x {conv['columns']}"
        lines.append(("", name, tile, str(conv["depth"]), "", "", *_block(conv, "xy")))
    step = plan["training"]
    if step["refusal"] is not None:
        return [*lines, ("", "training", f"not: {step['refusal']}", *[""] * 10)]
    for name, kernel in step.items():
        if isinstance(kernel, dict):
            down = f"{kernel['rows']}" if "rows" in kernel else f"{kernel['pixels']} pixels"
            parts = f"{kernel['parts']} parts" if kernel["parts"] > 1 else ""
            words = name.replace("_", " ")
            tile = f"{down} x {kernel['columns']}"
            lines.append(("", words, tile, "", "", parts, *_block(kernel, "xyz")))
    return lines


def _block(part: dict[str, Any], axes: str) -> tuple[str, ...]:
    return (
        str(part["stages"]),
        f"{part['shared_bytes'] / 1024:.1f}",
        str(part["registers"]),
        "x".join(str(part[f"grid_{axis}"]) for axis in axes),
        str(part["blocks_per_multiprocessor"]),
        f"{part['flops'] / 1e9:.1f}",
        _microseconds(part["seconds"]),
    )

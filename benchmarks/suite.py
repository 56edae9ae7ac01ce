"""Measures a case: check every peer, then time all of them interleaved, then their memory."""

from __future__ import annotations

import copy
import gc
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.cases import Case, Settings, list_cases
from benchmarks.ceilings import Ceilings, measure_ceilings
from benchmarks.check import OWN_LIMIT, PEER_LIMIT, Accuracy, accuracy
from benchmarks.measure import Sampler, device_sampler, host_sampler, interleave
from benchmarks.peers import PEERS, Peer, Prepared, Unavailable
from benchmarks.workloads import Workload, to_layout
from r21d_ops.dispatch import arithmetic
from r21d_ops.problem import Problem

_logger = logging.getLogger(__name__)


@dataclass
class PeerResult:
    """What became of one peer in one case.

    Attributes:
        peer: its name.
        ours: a backend of r21d_ops.
        status: ``timed``; ``unavailable`` (it cannot serve the case), ``failed`` (it raised) or
            ``wrong`` (its values are off), which are not timed; ``reason`` says why.
        accuracy: error in units of stock PyTorch's, where it was checked.
        timing: ``host``, ``graph`` or ``stream: …`` (see :mod:`benchmarks.measure`).
        samples: seconds, one a round.
        peak_bytes: peak extra memory of a call, None where it cannot be told.
        note: what a reader must know.
    """

    peer: str
    ours: bool
    status: str = "timed"
    reason: str = ""
    accuracy: Accuracy | None = None
    timing: str = ""
    samples: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    note: str = ""


@dataclass
class CaseResult:
    """One case: its cost, its floor in seconds by the run's own ceilings, and its peers."""

    case: Case
    flops: int
    fused_bytes: int
    eager_bytes: int | None
    output_bytes: int
    floor: float
    rows: list[PeerResult]

    def row(self, peer: str) -> PeerResult:
        """The row of ``peer``."""
        return next(row for row in self.rows if row.peer == peer)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.case.name,
            "dtype": _name(self.case.dtype),
            "shape": self.case.shape,
            "training": self.case.training,
            "problem": _problem_values(self.case.problem),
            "arithmetic": arithmetic(self.case.dtype),
            "flops": self.flops,
            "fused_bytes": self.fused_bytes,
            "eager_bytes": self.eager_bytes,
            "output_bytes": self.output_bytes,
            "floor_s": self.floor,
            "peers": [asdict(row) for row in self.rows],
        }


class Suite:
    """Runs cases when they are asked for, each once, and keeps what they gave."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cases = {case.name: case for case in list_cases(settings)}
        self.results: dict[str, CaseResult] = {}
        self._ceilings: Ceilings | None = None
        self.started = datetime.now(timezone.utc)
        #: Processes that wanted the CPU in the minute before the run: others disturb the timing.
        self.load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    @property
    def ceilings(self) -> Ceilings:
        """The machine's ceilings, measured when they are first needed."""
        if self._ceilings is None:
            memory.settle_allocator()
            self._ceilings = measure_ceilings(
                self.settings.device, quick=self.settings.quick, shrink=self.settings.shrink
            )
        return self._ceilings

    def result(self, name: str) -> CaseResult:
        """Result of the case called ``name``."""
        if name not in self.results:
            ceilings = self.ceilings
            self.results[name] = _measure(self.cases[name], self.settings, ceilings)
        return self.results[name]


@dataclass
class _Ready:
    """A peer that gave the right values."""

    row: PeerResult
    prepared: Prepared
    call: Callable[[Any], Any]


def _measure(case: Case, settings: Settings, ceilings: Ceilings) -> CaseResult:
    work = case.build()
    upstream = _upstream(work)
    exact, stock = _references(work, upstream)
    rows, ready = [], []
    for name in case.peers:
        row = PeerResult(name, PEERS[name].ours)
        rows.append(row)
        # Shrunk problems sum too few terms for the largest error's ratio to settle, and where
        # gradients jump, stock's own error is a matter of which values do.
        strict = row.ours and settings.shrink == 1 and not (work.training and work.kinks)
        limit = OWN_LIMIT if strict else PEER_LIMIT
        peer = _check(PEERS[name], row, work, upstream, exact, stock, limit)
        if peer is not None:
            ready.append(peer)
    _time(ready, settings)
    for peer in ready:
        peer.row.peak_bytes = _peak(peer, settings.device)
    output_bytes = _bytes(stock[0]["output"]) * len(work.inputs[0]) // len(exact["output"])
    del ready, exact, stock
    torch._dynamo.reset()
    gc.collect()
    return CaseResult(
        case,
        sum(cost.flops for cost in work.costs),
        sum(cost.traffic for cost in work.costs),
        work.eager_traffic,
        output_bytes,
        sum(ceilings.floor(c.flops, c.traffic, _unit(case, work)) for c in work.costs),
        rows,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _problem_values(problem: Problem | None) -> dict[str, Any] | None:
    """The geometry as JSON values."""
    if problem is None:
        return None
    fields = problem._asdict()
    return {name: fields[name] for name in fields if name not in ("device", "dtype")}


def _unit(case: Case, work: Workload) -> str:
    """Whose ceiling counts: float32 convolutions run in tf32 where cuDNN may."""
    return arithmetic(case.dtype) if work.device == "cuda" else _name(case.dtype)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _upstream(work: Workload) -> Tensor | None:
    """A random gradient of the output, for training."""
    if not work.training:
        return None
    with torch.no_grad():
        return torch.randn_like(work.stock(work.inputs[0]))


def _step(
    forward: Callable[[Any], Any], parameters: Sequence[Tensor], upstream: Tensor, x: Tensor
) -> tuple[Tensor, ...]:
    """Output, then gradients of the input, where it asks for one, and of every parameter."""
    y = forward(x)
    targets = [x, *parameters] if x.requires_grad else parameters
    return (y, *torch.autograd.grad(y, targets, upstream))


def _call(
    prepared: Prepared, upstream: Tensor | None, input_gradient: bool
) -> tuple[Callable[[Any], Any], list[Any]]:
    """What is timed, and the inputs it takes."""
    if upstream is None:

        def forward(x: Any) -> Any:
            with torch.no_grad():
                return prepared.forward(x)

        return forward, list(prepared.inputs)
    inputs = [x.detach().requires_grad_(input_gradient) for x in prepared.inputs]
    if upstream.dim() == 5 and inputs[0].is_contiguous(memory_format=torch.channels_last_3d):
        # The layer behind would hand on a gradient in the peer's own layout.
        upstream = upstream.contiguous(memory_format=torch.channels_last_3d)
    step = partial(_step, prepared.forward, list(prepared.parameters.values()), upstream)
    return step, inputs


def _ends(clips: Tensor) -> Tensor:
    """The first and the last of a batch."""
    return clips if len(clips) < 3 else torch.cat([clips[:1], clips[-1:]])


def _named(prepared: Prepared, result: Any, work: Workload) -> dict[str, Tensor]:
    if not work.training:
        return {"output": prepared.to_tensor(result)}
    names = ["output", *["gradient of x"] * work.input_gradient]
    names += [f"gradient of {name}" for name in prepared.parameters]
    return dict(zip(names, result, strict=True))


def _references(
    work: Workload, upstream: Tensor | None
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Stock layers on the first input: in float64, and in the workload's dtype in both layouts.

    In inference the first and the last clip alone are compared: with frozen BatchNorm they know
    nothing of the others, and float64 is slow.
    """
    x = work.inputs[0] if work.training else _ends(work.inputs[0])

    def run(dtype: torch.dtype, layout: torch.memory_format) -> dict[str, Tensor]:
        module = to_layout(copy.deepcopy(work.stock), layout)
        if dtype == torch.float64:
            module = module.double()
        inputs = [x.to(dtype).contiguous(memory_format=layout)]
        prepared = Prepared(module, inputs, dict(module.named_parameters()))
        given = None if upstream is None else upstream.to(dtype)
        call, inputs = _call(prepared, given, work.input_gradient)
        result = _named(prepared, call(inputs[0]), work)
        return {name: tensor.detach() for name, tensor in result.items()}

    layouts = (torch.contiguous_format, torch.channels_last_3d)
    search = torch.backends.cudnn.benchmark
    # Looking for the fastest algorithm takes longer than what is run once.
    torch.backends.cudnn.benchmark = False
    try:
        exact = run(torch.float64, torch.contiguous_format)
        return exact, [run(work.dtype, layout) for layout in layouts]
    finally:
        torch.backends.cudnn.benchmark = search


def _check(
    peer: Peer,
    row: PeerResult,
    work: Workload,
    upstream: Tensor | None,
    exact: dict[str, Tensor],
    stock: list[dict[str, Tensor]],
    limit: float,
) -> _Ready | None:
    """Prepares a peer and compares its values; None, with the reason in ``row``, if it is out."""
    try:
        prepared = peer.prepare(work)
        call, inputs = _call(prepared, upstream, work.input_gradient)
        result = _named(prepared, call(inputs[0]), work)
    except Unavailable as error:
        row.status, row.reason = "unavailable", str(error)
        return None
    except Exception as error:
        # A foreign compiler or runtime may raise anything; the others are still to be measured.
        _logger.warning("%s failed", peer.name, exc_info=True)
        row.status, row.reason = "failed", f"{type(error).__name__}: {str(error)[:300]}"
        return None
    got = {name: tensor.detach() for name, tensor in result.items()}
    if not work.training:
        got["output"] = _ends(got["output"])
    # Padding M adds rows to the gradients of a layer's weights that the reference has not.
    got = {name: _cut(t, exact[name]) for name, t in got.items()}
    row.accuracy = accuracy(got, exact, stock, work.dtype)
    row.note = prepared.note
    if not row.accuracy.within(limit):
        row.status = "wrong"
        row.reason = (
            f"{row.accuracy.tensor} is off by {row.accuracy.rms_ratio:.3g} (RMS) and "
            f"{row.accuracy.max_ratio:.3g} (maximum) times stock PyTorch's own error against "
            f"float64; at most {limit:g} and {PEER_LIMIT:g} are accepted"
        )
        return None
    return _Ready(row, Prepared(**{**vars(prepared), "inputs": inputs}), call)


def _cut(tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.dim() != like.dim():
        return tensor
    return tensor[tuple(slice(0, n) for n in like.shape)]


def _time(ready: Sequence[_Ready], settings: Settings) -> None:
    samplers: dict[str, Sampler] = {}
    for peer in ready:
        if settings.device == "cuda":
            samplers[peer.row.peer], peer.row.timing = device_sampler(
                peer.call, peer.prepared.inputs
            )
        else:
            samplers[peer.row.peer] = host_sampler(peer.call, peer.prepared.inputs)
            peer.row.timing = "host"
    samples = interleave(samplers, settings.measuring)
    for peer in ready:
        peer.row.samples = samples[peer.row.peer]


def _peak(peer: _Ready, device: str) -> int | None:
    if peer.prepared.keeps_memory is not None:
        note = f"memory not told: {peer.prepared.keeps_memory}"
        peer.row.note = f"{peer.row.note}; {note}" if peer.row.note else note
        return None
    call = partial(peer.call, peer.prepared.inputs[0])
    return memory.device_peak(call) if device == "cuda" else memory.host_peak(call)

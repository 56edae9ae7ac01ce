"""The peers: each a small function that prepares a workload to be called its own way.

A peer that cannot serve a workload raises :class:`Unavailable` with the reason, which the results
report. r21d's own backends are peers like the others, marked as ours.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import r21d_ops
from benchmarks.workloads import (
    ViewSequential,
    Workload,
    pad_mid_channels,
    stock_twin,
    to_layout,
)
from r21d_ops.dispatch import INFERENCE_VARIABLE

_ONNX_OPSET = 17


class Unavailable(RuntimeError):
    """This peer cannot serve this workload; the message is the reason."""


@dataclass(frozen=True)
class Prepared:
    """A peer ready to be timed.

    Attributes:
        forward: one call's arguments to its output.
        inputs: the workload's inputs in the peer's own layout.
        parameters: by name, what a training step differentiates for.
        to_tensor: the output as a tensor, for the check.
        keeps_memory: why a call's memory cannot be told, or None.
        note: what a reader of the figures must know, or empty.
    """

    forward: Callable[[Any], Any]
    inputs: Sequence[Any]
    parameters: dict[str, Tensor]
    to_tensor: Callable[[Any], Tensor] = lambda output: output
    keeps_memory: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """``prepare`` raises :class:`Unavailable` where the peer cannot serve the workload."""

    name: str
    ours: bool
    prepare: Callable[[Workload], Prepared]


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters())


def _ndhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _stock_ndhwc(work: Workload) -> tuple[nn.Module, list[Tensor]]:
    module = to_layout(copy.deepcopy(work.stock), torch.channels_last_3d)
    return module, [_ndhwc(x) for x in work.inputs]


def _eager(work: Workload) -> Prepared:
    return Prepared(work.stock, work.inputs, _parameters(work.stock))


def _eager_channels_last(work: Workload) -> Prepared:
    module, inputs = _stock_ndhwc(work)
    return Prepared(module, inputs, _parameters(module))


@contextlib.contextmanager
def _forced(backend: str, kernels: str) -> Iterator[None]:
    """``backend`` with ``kernels`` in inference; empty: its own choice."""
    wanted = {"R21D_BACKEND": backend, INFERENCE_VARIABLE: kernels}
    before = {name: os.environ.get(name, "") for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value:
                os.environ[name] = value


def _r21d(
    work: Workload,
    backend: str,
    mid_multiple: int = 1,
    recompute: bool = False,
    kernels: str = "",
) -> Prepared:
    if work.device == "cuda" and backend == "cpu":
        raise Unavailable("it serves CPU tensors, not cuda")
    status = {row.name: row for row in r21d_ops.backends()}
    if backend not in status:
        raise Unavailable(f"this version of r21d_ops has no backend {backend!r}")
    if not status[backend].available:
        raise Unavailable(status[backend].reason)
    if kernels and work.training:
        raise Unavailable("training has one way")
    module = copy.deepcopy(work.fused)
    if mid_multiple > 1:
        module = pad_mid_channels(module, mid_multiple)
    if recompute:
        if not work.training:
            raise Unavailable("recompute is for training")
        for conv in module.modules():
            if isinstance(conv, r21d_ops.Conv2Plus1D):
                conv.recompute = True

    def forward(x: Tensor) -> Tensor:
        with _forced(backend, kernels):
            return module(x)

    return Prepared(forward, [_ndhwc(x) for x in work.inputs], _parameters(module))


def _conv2d_views(work: Workload, mid_multiple: int = 1) -> Prepared:
    """Stock layers on views. In inference BatchNorm is folded, as the ``eager`` backend does."""
    if not work.training:
        return _r21d(work, "eager", mid_multiple)
    module = stock_twin(pad_mid_channels(work.fused, mid_multiple), ViewSequential)
    module = to_layout(module, torch.channels_last_3d)
    return Prepared(module, [_ndhwc(x) for x in work.inputs], _parameters(module))


def _inductor(work: Workload, max_autotune: bool = False) -> Prepared:
    module, inputs = _stock_ndhwc(work)
    options: dict[str, Any] = {} if work.training else {"freezing": True}
    if max_autotune:
        if work.device != "cuda":
            raise Unavailable("max-autotune has no convolution templates for the CPU")
        options["max_autotune"] = True
    compiled = torch.compile(module, dynamic=False, options=options)
    return Prepared(compiled, inputs, _parameters(module))


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} is not installed (pip install 'r21d[bench]'): {error}") from None


def _inference_on_host(work: Workload) -> None:
    if work.training:
        raise Unavailable("inference only")
    if work.device != "cpu":
        raise Unavailable("measured on the CPU only")


def _onnx_bytes(module: nn.Module, example: Tensor) -> bytes:
    _import("onnx")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=_ONNX_OPSET,
        )
    return buffer.getvalue()


def _onnxruntime(work: Workload) -> Prepared:
    _inference_on_host(work)
    runtime = _import("onnxruntime")
    if work.dtype != torch.float32:
        raise Unavailable(f"its CPU provider has no convolution in {work.dtype}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would go on spinning, on the cores of the peer that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(
        _onnx_bytes(copy.deepcopy(work.stock), work.inputs[0]),
        options,
        providers=["CPUExecutionProvider"],
    )
    name = session.get_inputs()[0].name
    return Prepared(
        lambda x: session.run(None, {name: x})[0],
        [x.numpy() for x in work.inputs],
        {},
        torch.from_numpy,
        keeps_memory="its arena keeps memory between calls",
    )


def _openvino(work: Workload) -> Prepared:
    _inference_on_host(work)
    openvino = _import("openvino")
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[work.dtype]
    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("this CPU has no bfloat16 instructions that OpenVINO uses")
    stock = copy.deepcopy(work.stock).float()
    model = core.read_model(model=_onnx_bytes(stock, work.inputs[0].float()))
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # It would pin the calling thread, and with it the threads of every other peer.
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    return Prepared(
        lambda x: request.infer([x], share_inputs=True, share_outputs=True)[0],
        [x.float().numpy() for x in work.inputs],
        {},
        lambda output: torch.from_numpy(output).clone(),
        keeps_memory="it keeps its buffers between calls",
        note="float32 input and output" if precision == "bf16" else "",
    )


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("r21d cuda", True, partial(_r21d, backend="cuda")),
        Peer("r21d cuda fused", True, partial(_r21d, backend="cuda", kernels="fused")),
        Peer("r21d cuda two kernels", True, partial(_r21d, backend="cuda", kernels="two")),
        Peer("r21d cuda recompute", True, partial(_r21d, backend="cuda", recompute=True)),
        Peer("r21d triton", True, partial(_r21d, backend="triton")),
        Peer("r21d triton fused", True, partial(_r21d, backend="triton", kernels="fused")),
        Peer("r21d triton two kernels", True, partial(_r21d, backend="triton", kernels="two")),
        Peer("r21d triton recompute", True, partial(_r21d, backend="triton", recompute=True)),
        Peer("r21d cpu", True, partial(_r21d, backend="cpu")),
        Peer("r21d cpu recompute", True, partial(_r21d, backend="cpu", recompute=True)),
        Peer("eager", False, _eager),
        Peer("eager channels_last_3d", False, _eager_channels_last),
        Peer("r21d eager", True, partial(_r21d, backend="eager")),
        Peer("conv2d views", False, _conv2d_views),
        Peer("conv2d views M to 8", False, partial(_conv2d_views, mid_multiple=8)),
        Peer("inductor", False, _inductor),
        Peer("inductor max-autotune", False, partial(_inductor, max_autotune=True)),
        Peer("onnxruntime", False, _onnxruntime),
        Peer("openvino", False, _openvino),
    )
}

_CPU = ("r21d cpu", "eager", "eager channels_last_3d", "conv2d views", "inductor")
_CUDA = ("eager", "eager channels_last_3d", "conv2d views", "conv2d views M to 8", "inductor")


def default_peers(device: str, training: bool) -> list[str]:
    """The names of every peer that could serve such a workload, ours first.

    ``r21d eager`` trains with the autograd of r21d_ops; its inference is ``conv2d views``.
    """
    if device == "cuda":
        if training:
            ways = ("", " recompute")
            ours = [f"r21d {name}{way}" for name in ("cuda", "triton") for way in ways]
            ours.append("r21d eager")
        else:
            ways = ("", " fused", " two kernels")
            ours = [f"r21d {name}{way}" for name in ("cuda", "triton") for way in ways]
        return [*ours, *_CUDA, "inductor max-autotune"]
    if training:
        return ["r21d cpu", "r21d cpu recompute", "r21d eager", *_CPU[1:]]
    return [*_CPU, "onnxruntime", "openvino"]

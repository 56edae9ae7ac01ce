"""What the peers are: which code each runs, on what layout, and that all of it is checked (3 s)."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from torch import nn

from benchmarks import peers, suite
from benchmarks.cases import Settings, list_cases
from benchmarks.ceilings import Ceilings
from benchmarks.measure import Rounds
from benchmarks.workloads import Workload
from r21d_ops import dispatch, functional
from r21d_ops.backends import BackendStatus


def test_a_peer_forces_its_backend_and_kernels_while_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("R21D_BACKEND", "eager")
    monkeypatch.delenv("R21D_INFERENCE", raising=False)
    seen = []

    def available() -> list[BackendStatus]:
        return [BackendStatus("triton", True, "")]

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((os.environ["R21D_BACKEND"], dispatch.forced_kernels()))
            return x

    monkeypatch.setattr(peers.r21d_ops, "backends", available)
    work = Workload(Spy(), Spy(), [torch.zeros(1, 1, 1, 1, 1)], False, [], None)
    for name in ("r21d triton", "r21d triton fused", "r21d triton two kernels"):
        prepared = peers.PEERS[name].prepare(work)
        prepared.forward(prepared.inputs[0])
        assert os.environ["R21D_BACKEND"] == "eager" and "R21D_INFERENCE" not in os.environ
    assert seen == [("triton", None), ("triton", "fused"), ("triton", "two")]
    trained = dataclasses.replace(work, training=True)
    with pytest.raises(peers.Unavailable, match="training has one way"):
        peers.PEERS["r21d triton fused"].prepare(trained)


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("name", ["conv3_1a/train/fp32", "r2plus1d_18/train/fp32"])
def test_trained_views_are_stock_layers(
    name: str, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of conv3d by torch's own autograd, M as it is and rounded up."""
    torch.manual_seed(0)
    (case,) = list_cases(Settings(batch=2, shrink=8, cases=(name,)))
    built = case.build()
    doubles = [x.double() for x in built.inputs]
    work = dataclasses.replace(
        built, stock=built.stock.double(), fused=built.fused.double(), inputs=doubles
    )
    monkeypatch.setattr(functional, "run", None)
    label = "conv2d views" if multiple == 1 else "conv2d views M to 8"
    prepared = peers.PEERS[label].prepare(work)
    upstream = suite._upstream(work)
    stock = peers.Prepared(work.stock, work.inputs, dict(work.stock.named_parameters()))
    results = []
    for peer in (prepared, stock):
        call, inputs = suite._call(peer, upstream, work.input_gradient)
        results.append(suite._named(peer, call(inputs[0]), work))
    mine, expected = results
    assert mine.keys() == expected.keys()
    for key, exact in expected.items():
        torch.testing.assert_close(suite._cut(mine[key], exact), exact)
    mids = [m.num_features for m in work.fused.modules() if isinstance(m, nn.BatchNorm3d)]
    norms = [p for n, p in prepared.parameters.items() if p.dim() == 1 and n.endswith("weight")]
    assert len(norms) == len(mids)
    assert (sum(p.numel() for p in norms) > sum(mids)) == (multiple == 8)


def test_a_gradient_comes_in_the_peers_own_layout() -> None:
    seen = []

    def spy(x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        y.register_hook(seen.append)
        return y

    x = torch.randn(2, 4, 3, 5, 6)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        prepared = peers.Prepared(spy, [x.contiguous(memory_format=layout)], {})
        call, inputs = suite._call(prepared, torch.randn_like(x), True)
        call(inputs[0])
        assert seen.pop().is_contiguous(memory_format=layout)
    # What is no clip has one layout.
    prepared = peers.Prepared(lambda x: x.mean((2, 3, 4)), prepared.inputs, {})
    call, inputs = suite._call(prepared, torch.randn(2, 4), True)
    assert [tuple(t.shape) for t in call(inputs[0])] == [(2, 4), tuple(x.shape)]


class LastClipOff(nn.Sequential):
    """Stock layers but for the last of several clips."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        y[-1] += 1
        return y


def test_the_last_clip_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(work: Workload) -> peers.Prepared:
        return peers.Prepared(LastClipOff(*work.stock), work.inputs, {})

    monkeypatch.setitem(peers.PEERS, "eager", peers.Peer("eager", False, prepare))
    rounds = Rounds(least=2, most=2, seconds=0.0)
    settings = Settings(
        batch=5, shrink=8, cases=("conv5_x/fp32",), peers=("eager", "conv2d views"), rounds=rounds
    )
    run = suite.Suite(settings)
    run._ceilings = Ceilings({"float32": 1e11}, 1e10)
    result = run.result("conv5_x/fp32")
    assert [row.status for row in result.rows] == ["wrong", "timed"]
    work = run.cases["conv5_x/fp32"].build()
    assert result.output_bytes == work.stock(work.inputs[0]).numel() * 4


def test_inference_runtimes_do_not_train() -> None:
    case = next(c for c in list_cases(Settings(shrink=8)) if c.name == "conv2_x/train/fp32")
    work = case.build()
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(peers.Unavailable, match="inference only"):
            peers.PEERS[name].prepare(work)

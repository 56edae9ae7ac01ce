"""Bad input, each with its message; which backend serves, and why not (about 1 s)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops.chosen_backend import Backend
from ops.problems import case_named, fused, make_operands
from torch import Tensor

import r21d_ops
from r21d_ops import native
from r21d_ops.backends import BackendError, _warned

_NATIVE = pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
Arguments = dict[str, Any]


def _arguments() -> Arguments:
    """x (2, 5, 3, 7, 11), M = 13, O = 7, kernel 3, and y (2, 7, 3, 7, 11)."""
    operands = make_operands(case_named("primes"), torch.default_generator)
    x, spatial, temporal = operands.tensors()
    return {
        "x": x, "spatial_weight": spatial, "temporal_weight": temporal, **operands.keywords()
    }  # fmt: skip


def _call(arguments: Arguments) -> Tensor:
    given = dict(arguments)
    positional = [given.pop(name) for name in ("x", "spatial_weight", "temporal_weight")]
    y: Tensor = r21d_ops.conv2plus1d(*positional, **given)
    return y


#: What is changed, and what the message must hold: the argument, its value, what was expected.
_BAD: dict[str, tuple[Callable[[Arguments], Arguments], list[str]]] = {
    "x no tensor": (lambda a: {"x": [1.0]}, ["x must be a tensor", "list"]),
    "x of rank 4": (lambda a: {"x": a["x"][0]}, ["x must have 5 dimensions", "(5, 3, 7, 11)"]),
    "x of integers": (lambda a: {"x": a["x"].long()}, ["x must be floating point", "int64"]),
    "x complex": (lambda a: {"x": a["x"].cfloat()}, ["x must be floating point", "complex64"]),
    "x of 8 bits": (
        lambda a: {"x": a["x"].to(torch.float8_e4m3fn)},
        ["x must be floating point", "float32, bfloat16, float16 or float64", "float8_e4m3fn"],
    ),
    "x sparse": (lambda a: {"x": a["x"].to_sparse()}, ["x must be a dense", "sparse_coo"]),
    "x with other channels": (
        lambda a: {"x": a["x"][:, :4]},
        ["x has 4 channels", "(2, 4, 3, 7, 11)", "spatial_weight expects 5"],
    ),
    "x without channels": (
        lambda a: {"x": a["x"][:, :0]}, ["x has an empty dimension", "(2, 0, 3, 7, 11)"],
    ),
    "x without frames": (
        lambda a: {"x": a["x"][:, :, :0]}, ["x has an empty dimension", "(2, 5, 0, 7, 11)"],
    ),
    "x too small": (
        lambda a: {"x": a["x"][..., :2], "padding": 0}, ["x has T=3", "W=2", "kernel of 3"],
    ),
    "no spatial weight": (
        lambda a: {"spatial_weight": None}, ["spatial_weight must be a tensor", "None"]
    ),
    "no temporal weight": (
        lambda a: {"temporal_weight": None}, ["temporal_weight must be a tensor", "None"]
    ),
    "weight sparse": (
        lambda a: {"spatial_weight": a["spatial_weight"].to_sparse()},
        ["spatial_weight must be a dense", "sparse_coo"],
    ),
    "weight of rank 4": (
        lambda a: {"spatial_weight": a["spatial_weight"][0]},
        ["spatial_weight must have 5 dimensions", "(5, 1, 3, 3)"],
    ),
    "weight deep": (
        lambda a: {"spatial_weight": a["spatial_weight"].expand(-1, -1, 3, -1, -1)},
        ["spatial_weight must be (M, C, 1, d, d)", "(13, 5, 3, 3, 3)"],
    ),
    "temporal weight wide": (
        lambda a: {"temporal_weight": a["temporal_weight"].expand(-1, -1, -1, 3, 3)},
        ["temporal_weight must be (O, M, t, 1, 1)", "(7, 13, 3, 3, 3)"],
    ),
    "other mid channels": (
        lambda a: {"temporal_weight": a["temporal_weight"][:, :12]},
        ["temporal_weight expects 12 mid channels", "spatial_weight makes 13"],
    ),
    "weight of another dtype": (
        lambda a: {"spatial_weight": a["spatial_weight"].bfloat16()},
        ["spatial_weight is torch.bfloat16", "x is torch.float32"],
    ),
    "temporal weight of another dtype": (
        lambda a: {"temporal_weight": a["temporal_weight"].double()},
        ["temporal_weight is torch.float64", "x is torch.float32"],
    ),
    "weight on another device": (
        lambda a: {"spatial_weight": a["spatial_weight"].to("meta")},
        ["spatial_weight is on meta", "x is on cpu"],
    ),
    "weight without outputs": (
        lambda a: {"temporal_weight": a["temporal_weight"][:0]},
        ["temporal_weight has an empty dimension", "(0, 13, 3, 1, 1)"],
    ),
    "mean of another length": (
        lambda a: {"running_mean": a["running_mean"][:12]},
        ["running_mean must have shape (13,)", "(12,)"],
    ),
    "variance of rank 2": (
        lambda a: {"running_var": a["running_var"][None]},
        ["running_var must have shape (13,)", "(1, 13)"],
    ),
    "bn_weight of integers": (
        lambda a: {"bn_weight": a["bn_weight"].int()}, ["bn_weight must be floating point", "int32"]
    ),
    "bn_bias on another device": (
        lambda a: {"bn_bias": a["bn_bias"].to("meta")}, ["bn_bias is on meta", "x is on cpu"],
    ),
    "bn_bias a number": (
        lambda a: {"bn_bias": 0.5}, ["bn_bias must be a tensor or None", "float"]
    ),
    "out_scale of another length": (
        lambda a: {"out_scale": torch.ones(13)}, ["out_scale must have shape (7,)", "(13,)"]
    ),
    "out_shift a number": (
        lambda a: {"out_shift": 1.0}, ["out_shift must be a tensor or None", "float"]
    ),
    "residual a number": (
        lambda a: {"residual": 3}, ["residual must be a tensor or None", "int"]
    ),
    "residual of another shape": (
        lambda a: {"residual": torch.zeros(2, 7, 3, 7, 10)},
        ["residual must have shape (2, 7, 3, 7, 11)", "(2, 7, 3, 7, 10)"],
    ),
    "residual of another dtype": (
        lambda a: {"residual": torch.zeros(2, 7, 3, 7, 11).double()},
        ["residual is torch.float64", "x is torch.float32"],
    ),
    "stride of two values": (
        lambda a: {"stride": (1, 2)}, ["stride must be an int or three ints", "(1, 2)"]
    ),
    "stride 0": (lambda a: {"stride": (1, 0, 1)}, ["stride must be at least 1", "(1, 0, 1)"]),
    "stride of floats": (
        lambda a: {"stride": (1.0, 1.0, 1.0)}, ["stride must be an int or three ints", "1.0"]
    ),
    "stride a float": (lambda a: {"stride": 1.5}, ["stride must be an int or three ints", "1.5"]),
    "stride a truth value": (
        lambda a: {"stride": True}, ["stride must be an int or three ints", "True"]
    ),
    "stride with a truth value": (
        lambda a: {"stride": (1, True, 1)}, ["stride must be an int or three ints", "True"]
    ),
    "padding negative": (lambda a: {"padding": -1}, ["padding must be at least 0", "-1"]),
    "padding a string": (
        lambda a: {"padding": "same"}, ["padding must be an int or three ints", "'same'"]
    ),
    "eps a string": (lambda a: {"eps": "a"}, ["eps must be a number", "at least 0", "'a'"]),
    "eps negative": (lambda a: {"eps": -5.0}, ["eps must be a number", "at least 0", "-5.0"]),
    "eps NaN": (lambda a: {"eps": float("nan")}, ["eps must be a number", "at least 0", "nan"]),
    "no eps": (lambda a: {"eps": None}, ["eps must be a number", "None"]),
    "momentum a string": (lambda a: {"momentum": "a"}, ["momentum must be a number", "'a'"]),
    "no momentum": (lambda a: {"momentum": None}, ["momentum must be a number", "None"]),
    "only one running statistic": (
        lambda a: {"running_var": None}, ["running_mean and running_var must both"]
    ),
    "no running statistics in eval": (
        lambda a: {"running_mean": None, "running_var": None}, ["are needed with training=False"]
    ),
    "one value a channel in training": (
        lambda a: {"x": a["x"][:1, :, :1, :1, :1], "training": True},
        ["Expected more than 1 value per channel", "(1, 13, 1, 1, 1)"],
    ),
    "a clip of 2^31 elements": (
        lambda a: {"x": torch.zeros(1).expand(1, 5, 1 << 15, 1 << 8, 1 << 8)},
        ["one clip of x would have 5x32768x256x256 elements", "2147483647", "split the clip"],
    ),
    "an intermediate of 2^31 elements": (
        lambda a: {"x": torch.zeros(1).expand(1, 5, 4096, 256, 256)},
        ["one clip of the intermediate would have 13x4096x256x256 elements", "split the clip"],
    ),
    "unknown backend": (
        lambda a: {"backend": "tpu"}, ["backend 'tpu' is not known", "cpu", "eager"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", _BAD)
def test_bad_input(what: str) -> None:
    arguments = _arguments()
    change, parts = _BAD[what]
    changed = change(arguments)
    if what == "x too small":
        parts = ["too small for a kernel of 3", "padding 0", "x has W=2"]
    with pytest.raises(ValueError) as raised:
        _call({**arguments, **changed})
    for part in parts:
        assert part in str(raised.value), str(raised.value)


def test_good_input_of_the_table_is_good() -> None:
    assert _call(_arguments()).shape == (2, 7, 3, 7, 11)


@pytest.mark.parametrize("what", [w for w, (_, p) in _BAD.items() if p[0].startswith("x ")])
def test_bad_input_changes_no_running_statistics(what: str) -> None:
    arguments = _arguments()
    before = arguments["running_mean"].clone(), arguments["running_var"].clone()
    changed = _BAD[what][0](arguments)
    with pytest.raises(ValueError):
        _call({**arguments, "training": True, **changed})
    assert torch.equal(arguments["running_mean"], before[0])
    assert torch.equal(arguments["running_var"], before[1])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "what", ["x no tensor", "no spatial weight", "residual a number", "x sparse"]
)
def test_bad_input_under_autocast(what: str, autocast: bool) -> None:
    """What autocast would cast is checked before it is."""
    change, parts = _BAD[what]
    arguments = _arguments()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(ValueError) as raised,
    ):
        _call({**arguments, **change(arguments)})
    assert parts[0] in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((4, 4, 0), {}, r"midplanes must be at least 1, got 0"),
        ((0, 4), {}, r"in_planes must be at least 1, got 0"),
        ((4, -1, 4), {}, r"out_planes must be at least 1, got -1"),
        # The paper's formula gives M = 1·1·1·1 // (1 + 1) = 0.
        ((1, 1), {"kernel_size": 1}, r"midplanes must be at least 1, got 0"),
        ((4, 4), {"stride": True}, r"stride must be an int or three ints .*, got True"),
        ((4, 4), {"padding": (1, 1)}, r"padding must be an int or three ints .*, got \(1, 1\)"),
        ((4, 4), {"kernel_size": 1.5}, r"kernel_size must be an int or three ints .*, got 1.5"),
    ],
)  # fmt: skip
def test_module_checks_its_arguments(
    arguments: tuple[int, ...], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        r21d_ops.Conv2Plus1D(*arguments, **keywords)


@_NATIVE
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_forced_backend_that_cannot_run_says_why(dtype: torch.dtype) -> None:
    operands = make_operands(case_named("primes"), torch.default_generator, dtype)
    with pytest.raises(BackendError, match=rf"backend 'cpu' was asked for .* not {dtype}"):
        r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(), backend="cpu")


@_NATIVE
def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = make_operands(case_named("primes"), torch.default_generator, torch.float16)
    monkeypatch.setenv("R21D_BACKEND", "cpu")
    with pytest.raises(BackendError, match="backend 'cpu' was asked for"):
        r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords())
    # The argument is nearer than the environment.
    y = r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(), backend="eager")
    assert y.dtype == torch.float16
    monkeypatch.setenv("R21D_BACKEND", "")
    assert r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords()).dtype == torch.float16
    monkeypatch.setenv("R21D_BACKEND", "abacus")
    with pytest.raises(ValueError, match="backend 'abacus' is not known"):
        r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords())


@_NATIVE
def test_fall_back_warns_once_per_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("R21D_BACKEND", raising=False)
    before = set(_warned)
    _warned.clear()
    try:
        with caplog.at_level(logging.WARNING, logger="r21d_ops"):
            for dtype in (torch.float16, torch.float64, torch.float16, torch.float32):
                operands = make_operands(case_named("primes"), torch.default_generator, dtype)
                assert fused(operands, Backend("eager", None, "cpu", ())).dtype == dtype
    finally:
        _warned.clear()
        _warned.update(before)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "float16" in messages[0] and "float64" in messages[1]
    assert all("'cpu'" in message for message in messages)


def test_backends_are_listed_in_the_order_they_are_asked() -> None:
    rows = r21d_ops.backends()
    assert [row.name for row in rows] == ["cpu", "cuda", "triton", "eager"]
    assert all(row.available == (row.reason == "") for row in rows)
    assert rows[-1].available


@_NATIVE
def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = make_operands(case_named("primes"), torch.default_generator)
    monkeypatch.setenv("R21D_CPU_ISA", "mmx")
    with pytest.raises(BackendError, match=r"R21D_CPU_ISA=mmx is not one of .*generic"):
        r21d_ops.conv2plus1d(*operands.tensors(), **operands.keywords(), backend="cpu")


@_NATIVE
def test_chosen_instruction_set_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in native.build_info()["cpu"]["available"]:
        monkeypatch.setenv("R21D_CPU_ISA", isa)
        assert native.build_info()["cpu"]["isa"] == isa


@_NATIVE
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(2, 5, 3, 7, 11)}, "x must be NDHWC"),
        ({3: torch.ones(12)}, "scale must be a contiguous float32 vector of length 13"),
        ({4: torch.ones(13).double()}, "shift must be a contiguous float32 vector of length 13"),
        ({2: torch.randn(7, 12, 3, 1, 1)}, "mid channels"),
        ({9: [1, 1]}, "stride must hold three values"),
        ({9: [0, 1, 1]}, "stride must be at least 1"),
        ({10: [0, -1, 0]}, "padding must be at least 0"),
        ({11: "two"}, "the CPU has one way, kernels='' or 'fused', not 'two'"),
    ],
)
def test_raw_operator_checks_its_arguments(change: dict[int, Any], message: str) -> None:
    """Called directly, wrong arguments raise too; nothing is read out of bounds."""
    o = make_operands(case_named("primes"), torch.default_generator).channels_last()
    arguments: list[Any] = [*o.tensors(), torch.ones(13), torch.zeros(13), None, None, None, False]
    arguments += [[1, 1, 1], [1, 1, 1], ""]
    assert torch.ops.r21d.conv2plus1d(*arguments).shape == (2, 7, 3, 7, 11)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.r21d.conv2plus1d(*arguments)

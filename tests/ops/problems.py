"""Problems that the operator is tested on, their random operands, and what stock PyTorch makes of
them in any dtype."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ops.chosen_backend import Backend
from ops.extended_reference import WIDER, extended_reference
from torch import Tensor

import r21d_ops
from r21d_ops.problem import output_size
from r21d_ops.reference import conv2plus1d_reference

Triple = tuple[int, int, int]

_VECTORS = ("running_mean", "running_var", "bn_weight", "bn_bias", "out_scale", "out_shift")
_ALL = ("x", "spatial_weight", "temporal_weight", *_VECTORS, "residual")


@dataclass(frozen=True)
class Case:
    """Sizes, kernel, stride and padding of one problem; triples are (t, h, w)."""

    name: str
    n: int = 2
    c: int = 5
    m: int = 13
    o: int = 7
    size: Triple = (3, 7, 11)
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple = (1, 1, 1)

    @property
    def out_size(self) -> Triple:
        """(T', H', W') of the output."""
        t, h, w = (
            output_size(*axis)
            for axis in zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        )
        return t, h, w

    def __str__(self) -> str:
        return self.name


#: Odd shapes: lengths of one, primes, M beside multiples of 8 and 16, every stride and padding.
CASES = (
    Case("primes"),
    Case("one-frame", size=(1, 7, 9)),
    Case("one-row", size=(5, 1, 13)),
    Case("one-column", size=(5, 13, 1)),
    Case("one-pixel", n=3, size=(7, 1, 1), m=33, o=17),
    Case("one-channel", c=1, m=1, o=1, size=(5, 9, 9)),
    Case("whole-vectors", n=1, c=16, m=48, o=32, size=(4, 8, 8)),
    Case("four-vectors-and-one", n=1, c=8, m=65, o=49, size=(3, 6, 7)),
    Case("paper-stem", n=1, c=3, m=45, o=16, size=(3, 15, 17), kernel=(3, 7, 7),
         stride=(1, 2, 2), padding=(1, 3, 3)),
    Case("paper-downsample", n=1, c=12, m=41, o=24, size=(5, 9, 9), stride=(2, 2, 2)),
    Case("stride-3", size=(8, 13, 16), stride=(3, 3, 3)),
    Case("mixed", size=(6, 9, 14), kernel=(2, 4, 5), stride=(2, 1, 3), padding=(0, 2, 1)),
    Case("no-padding", size=(6, 9, 8), padding=(0, 0, 0)),
    Case("kernel-1", size=(4, 6, 9), kernel=(1, 1, 1), padding=(0, 0, 0)),
    Case("kernel-7", size=(9, 10, 11), kernel=(7, 7, 7), padding=(2, 1, 3)),
    Case("only-padding-outside", size=(2, 3, 4), kernel=(1, 1, 1), padding=(3, 3, 3)),
    Case("frames-in-padding", size=(2, 6, 5), kernel=(2, 3, 3), padding=(3, 3, 3)),
    Case("stride-beyond-kernel", size=(10, 11, 13), kernel=(1, 2, 2), stride=(3, 3, 3),
         padding=(0, 1, 0)),
    Case("long-temporal-kernel", size=(5, 4, 5), kernel=(17, 3, 3), padding=(8, 1, 1)),
    Case("wide-rows", n=1, size=(3, 4, 131)),
    Case("many-frames", n=1, size=(23, 4, 5), o=3),
    Case("tall", n=1, size=(2, 41, 3), m=24),
    Case("sliced-m", n=1, c=2, m=2500, o=4, size=(7, 2, 9), kernel=(15, 1, 1),
         padding=(7, 0, 0)),
    Case("sliced-m-strided", n=1, c=2, m=2501, o=35, size=(9, 1, 9), kernel=(17, 1, 3),
         stride=(3, 1, 1), padding=(8, 0, 1)),
)  # fmt: skip

#: A few of them, for properties that do not depend on the shape.
FEW_CASES = tuple(c for c in CASES if c.name in ("primes", "paper-downsample", "mixed"))


def case_named(name: str, **changes: Any) -> Case:
    """The case called ``name``, with fields replaced."""
    (found,) = (case for case in CASES if case.name == name)
    return replace(found, **changes)


@dataclass
class Operands:
    """The tensors of one call. Vectors are float32, or float64 beside float64 tensors."""

    case: Case
    x: Tensor
    spatial_weight: Tensor
    temporal_weight: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    bn_weight: Tensor | None
    bn_bias: Tensor | None
    out_scale: Tensor | None = None
    out_shift: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def keywords(self) -> dict[str, Any]:
        """Every argument after the three tensors."""
        values = {name: getattr(self, name) for name in (*_VECTORS, "residual", "relu")}
        return {**values, "stride": self.case.stride, "padding": self.case.padding, **self.extra}

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """x and the two weights."""
        return self.x, self.spatial_weight, self.temporal_weight

    def to(self, dtype: torch.dtype) -> Operands:
        """Copies in ``dtype``: all in float64, else the vectors in float32 at the least."""
        vector_dtype = dtype if dtype == torch.float64 else torch.float32

        def cast(name: str) -> Tensor | None:
            value = getattr(self, name)
            wanted = vector_dtype if name in _VECTORS else dtype
            return None if value is None else value.detach().to(wanted, copy=True)

        return replace(self, **{name: cast(name) for name in _ALL})

    def on(self, device: str) -> Operands:
        """The same on ``device``; tensors that are there already are not copied."""
        values = {name: getattr(self, name) for name in _ALL}
        return replace(self, **{n: None if v is None else v.to(device) for n, v in values.items()})

    def channels_last(self) -> Operands:
        """The same with the 5-d tensors in NDHWC."""
        names = ("x", "spatial_weight", "temporal_weight", "residual")
        return replace(self, **{
            name: None if (value := getattr(self, name)) is None
            else value.contiguous(memory_format=torch.channels_last_3d)
            for name in names
        })  # fmt: skip


def make_operands(
    case: Case, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Operands:
    """Random operands whose values are of order one everywhere, rounded to ``dtype``."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    (kt, kh, kw), (t, h, w) = case.kernel, case.size
    signs = torch.randint(2, (case.m,), generator=generator, dtype=torch.float64) * 2 - 1
    fan_spatial, fan_temporal = case.c * kh * kw, case.m * kt
    operands = Operands(
        case,
        x=normal(case.n, case.c, t, h, w),
        spatial_weight=normal(case.m, case.c, 1, kh, kw, scale=fan_spatial**-0.5),
        temporal_weight=normal(case.o, case.m, kt, 1, 1, scale=fan_temporal**-0.5),
        running_mean=normal(case.m, scale=0.5),
        running_var=torch.rand(case.m, generator=generator, dtype=torch.float64) + 0.5,
        bn_weight=signs * (torch.rand(case.m, generator=generator, dtype=torch.float64) + 0.5),
        bn_bias=normal(case.m, scale=0.5),
    )
    return operands.to(dtype)


def with_epilogue(
    operands: Operands, generator: torch.Generator, scale: bool, shift: bool, residual: bool,
    relu: bool,
) -> Operands:  # fmt: skip
    """``operands`` with the parts of the epilogue that are asked for."""
    o, dtype = operands.case.o, operands.x.dtype
    vector_dtype = dtype if dtype == torch.float64 else torch.float32

    def vector() -> Tensor:
        return torch.randn(o, generator=generator, dtype=torch.float64).to(vector_dtype)

    shape = (operands.x.shape[0], o, *operands.case.out_size)
    added = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return replace(
        operands,
        out_scale=vector() if scale else None,
        out_shift=vector() if shift else None,
        residual=added if residual else None,
        relu=relu,
    )


@dataclass(frozen=True)
class Prepared:
    """Operands with what the definition makes of them; shared between tests, so never changed."""

    operands: Operands
    exact: Tensor
    stock: list[Tensor]


@functools.lru_cache(maxsize=1024)
def prepare(
    case: Case, dtype: torch.dtype, seed: int, epilogue: tuple[bool, ...] = (False,) * 4
) -> Prepared:
    """Random operands of ``seed``; ``epilogue`` as for :func:`with_epilogue`."""
    generator = torch.Generator().manual_seed(seed)
    operands = make_operands(case, generator, dtype)
    operands = with_epilogue(operands, generator, *epilogue)
    return Prepared(operands, exact(operands), stock(operands))


def reference(operands: Operands) -> Tensor:
    """The definition, in stock PyTorch, in the dtype of ``operands``."""
    return conv2plus1d_reference(*operands.tensors(), **operands.keywords())


def reference_on_views(operands: Operands) -> Tensor:
    """The definition with both convolutions as 2-D ones on views: stock PyTorch at its fastest."""
    (st, sh, sw), (pt, ph, pw) = operands.case.stride, operands.case.padding
    given = operands.channels_last()
    n, t = given.x.shape[0], given.x.shape[2]
    images = given.x.transpose(1, 2).flatten(0, 1)
    u = F.conv2d(images, given.spatial_weight.squeeze(2), None, (sh, sw), (ph, pw))
    u = u.unflatten(0, (n, t)).transpose(1, 2)
    training, momentum = given.extra.get("training", False), given.extra.get("momentum", 0.1)
    z = F.batch_norm(
        u, given.running_mean, given.running_var, given.bn_weight, given.bn_bias, training, momentum
    )
    weight = given.temporal_weight.squeeze(4)
    y = F.conv2d(F.relu(z).flatten(3), weight, None, (st, 1), (pt, 0)).unflatten(3, u.shape[3:])
    if given.out_scale is not None:
        y = y * given.out_scale.to(y.dtype).view(1, -1, 1, 1, 1)
    if given.out_shift is not None:
        y = y + given.out_shift.to(y.dtype).view(1, -1, 1, 1, 1)
    y = y if given.residual is None else y + given.residual
    return F.relu(y) if given.relu else y


def exact(operands: Operands) -> Tensor:
    """The definition in float64; for float64 operands from extended precision."""
    if operands.x.dtype != torch.float64:
        return reference(operands.to(torch.float64))
    if not WIDER:
        pytest.skip("no floating type here is wider than float64")
    return extended_reference(operands)


def stock(operands: Operands) -> list[Tensor]:
    """The definition in the operands' own dtype, several times with the sums in another order.

    Once in each memory format that stock PyTorch has (they round differently, and NDHWC is the
    operator's own), and again in both with the input and the mid channels reversed: the same
    values, summed in the opposite order. The worst of one evaluation would be a single draw.
    """
    given = operands.to(operands.x.dtype)
    backwards = reversed_channels(given)
    return [
        reference(o) for ordered in (given, backwards) for o in (ordered, ordered.channels_last())
    ]


def reversed_channels(operands: Operands) -> Operands:
    return replace(
        operands,
        x=operands.x.flip(1),
        spatial_weight=operands.spatial_weight.flip(0, 1),
        temporal_weight=operands.temporal_weight.flip(1),
        **{
            name: None if (value := getattr(operands, name)) is None else value.flip(0)
            for name in ("running_mean", "running_var", "bn_weight", "bn_bias")
        },
    )


def fused(operands: Operands, backend: Backend, **options: Any) -> Tensor:
    """The operator under test without gradients, on the backend's device; the result on the CPU."""
    moved = operands.on(backend.device)
    with torch.no_grad():
        y = r21d_ops.conv2plus1d(*moved.tensors(), **moved.keywords(), **options)
    return y.cpu()

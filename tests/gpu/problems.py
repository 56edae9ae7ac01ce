"""Problems for a CUDA device and what stock PyTorch makes of them in any dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r21d_ops.problem import Triple, output_size
from r21d_ops.reference import conv2plus1d_reference

_LAST = torch.channels_last_3d
_MID_VECTORS = ("running_mean", "running_var", "bn_weight", "bn_bias")


@dataclass(frozen=True)
class GpuCase:
    """Sizes, kernel, stride and padding, each (t, h, w)."""

    name: str
    batch: int
    channels: Triple
    size: Triple
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    padding: Triple = (1, 1, 1)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(N, O, T', H', W')."""
        axes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        return (self.batch, self.channels[2], *(output_size(*axis) for axis in axes))

    def __str__(self) -> str:
        return self.name


#: The paper's layers at a size that float64 checks in milliseconds, and odd shapes beside them.
CASES = (
    GpuCase("stem", 2, (3, 45, 64), (4, 40, 36), (3, 7, 7), (1, 2, 2), (1, 3, 3)),
    GpuCase("conv2_x", 2, (64, 144, 64), (4, 17, 15)),
    GpuCase("conv3_1a", 2, (64, 230, 128), (5, 15, 14), stride=(2, 2, 2)),
    GpuCase("conv5_x", 2, (512, 1152, 512), (1, 7, 7)),
    GpuCase("primes", 3, (5, 13, 7), (3, 7, 11)),
    GpuCase("one-frame", 2, (8, 17, 9), (1, 9, 13)),
    GpuCase("one-row", 2, (16, 24, 8), (5, 1, 31)),
    GpuCase("mixed", 2, (6, 21, 10), (6, 9, 14), (2, 4, 5), (2, 1, 3), (0, 2, 1)),
    GpuCase("stride-beyond-kernel", 1, (4, 9, 5), (10, 11, 13), (1, 2, 2), (3, 3, 3), (0, 1, 0)),
    GpuCase("no-padding", 2, (12, 31, 16), (6, 9, 8), padding=(0, 0, 0)),
)
(SMALL,) = (case for case in CASES if case.name == "primes")


def _kernel_case(k: int, channels: Triple) -> GpuCase:
    """Temporal kernels of ``k``, spatial ones of 8 - k and ``k``; every stride and remainder."""
    frames = 1 if k < 4 else 2 if k < 7 else 3  # at most three output frames see one
    stride = (frames, 1 + k % 3, 1 + (k + 1) % 3)
    padding = (k // 2, (8 - k) // 2, k % 2)
    return GpuCase(f"kernel-{k}", 2, channels, (k + 3, 11, 13), (k, 8 - k, k), stride, padding)


#: For kernels that need not be compiled for each: channels that are no multiples of 8, several
#: slices of M, several tiles of O and of pixels.
MORE_CASES = (
    _kernel_case(1, (3, 11, 8)),
    _kernel_case(2, (5, 40, 66)),
    _kernel_case(3, (12, 150, 70)),
    _kernel_case(4, (20, 17, 9)),
    _kernel_case(5, (8, 48, 130)),
    _kernel_case(6, (16, 300, 64)),
    _kernel_case(7, (24, 145, 72)),
    GpuCase("conv2_x-full", 2, (64, 144, 64), (8, 56, 56)),
    GpuCase("conv4_1a", 1, (128, 460, 256), (4, 28, 28), stride=(2, 2, 2)),
)


@dataclass
class Operands:
    """One call's tensors: ``main`` in the dtype under test, ``vectors`` in float32."""

    case: GpuCase
    main: dict[str, Tensor]
    vectors: dict[str, Tensor]

    def to(self, dtype: torch.dtype) -> Operands:
        """The same values in ``dtype``; float64 takes the vectors along."""
        vectors = {k: v.double() if dtype == torch.float64 else v for k, v in self.vectors.items()}
        return Operands(self.case, {k: v.to(dtype) for k, v in self.main.items()}, vectors)

    def keywords(self, training: bool, epilogue: bool) -> dict[str, Any]:
        """Everything after the three tensors of the operator's call; statistics are copies."""
        words: dict[str, Any] = {k: self.vectors[k].clone() for k in _MID_VECTORS[:2]}
        words |= {k: self.vectors[k] for k in _MID_VECTORS[2:]}
        words |= {"stride": self.case.stride, "padding": self.case.padding, "training": training}
        if epilogue:
            words |= {k: self.vectors[k] for k in ("out_scale", "out_shift")}
            words |= {"residual": self.main["residual"], "relu": True}
        return words

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, spatial weight, temporal weight."""
        return self.main["x"], self.main["spatial_weight"], self.main["temporal_weight"]

    def reference(self, epilogue: bool = False) -> Tensor:
        """The definition's output in eval, in the dtype of these operands."""
        return conv2plus1d_reference(*self.tensors(), **self.keywords(False, epilogue))

    def stock(self, epilogue: bool = False) -> list[Tensor]:
        """:meth:`reference` in both memory layouts, which round differently."""
        last = {k: v.contiguous(memory_format=_LAST) for k, v in self.main.items()}
        return [
            operands.reference(epilogue)
            for operands in (self, Operands(self.case, last, self.vectors))
        ]


def draw(case: GpuCase, dtype: torch.dtype, device: str = "cuda") -> Operands:
    """Fresh random operands; the values are representable in ``dtype``."""
    c, m, o = case.channels
    kt, kh, kw = case.kernel
    rand = {"device": device}
    main = {
        "x": torch.randn(case.batch, c, *case.size, **rand),
        "spatial_weight": torch.randn(m, c, 1, kh, kw, **rand) / (c * kh * kw) ** 0.5,
        "temporal_weight": torch.randn(o, m, kt, 1, 1, **rand) / (m * kt) ** 0.5,
        "residual": torch.randn(*case.out_shape, **rand),
    }
    vectors = {
        "running_mean": torch.randn(m, **rand) / 4,
        "running_var": torch.rand(m, **rand) + 0.5,
        "bn_weight": torch.randn(m, **rand),
        "bn_bias": torch.randn(m, **rand),
        "out_scale": torch.rand(o, **rand) + 0.5,
        "out_shift": torch.randn(o, **rand),
    }
    return Operands(case, {k: v.to(dtype) for k, v in main.items()}, vectors)


def with_layout(x: Tensor, layout: str) -> Tensor:
    """The values of ``x`` with the strides, or the address, that ``layout`` names."""
    if layout == "channels_last_3d":
        return x.contiguous(memory_format=_LAST)
    if layout == "sliced":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"), device=x.device)
        view = wide.to(x.dtype)[..., ::2]
    elif layout == "misaligned":
        # In the order of NDHWC, one value behind a boundary of 16 bytes.
        n, c, t, h, w = x.shape
        flat = torch.full((x.numel() + 1,), float("nan"), dtype=x.dtype, device=x.device)
        view = flat[1:].view(n, t, h, w, c).permute(0, 4, 1, 2, 3)
    else:
        return x.contiguous()
    view.copy_(x)
    return view

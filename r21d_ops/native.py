"""The native library: loaded once, without which ``eager`` serves; and its operators' shapes.

The signatures are in ``csrc/schema.cpp``. Each operator has a fake implementation here, so that
``torch.compile`` and ``torch.export`` see shapes, dtypes and strides without running it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r21d_ops.shapes import like_ndhwc, padded, spatial_shape, temporal_shape


def _load() -> str | None:
    """Loads the library beside this file; the reason why not, where it cannot."""
    library = Path(__file__).with_name("_native.so")
    if not library.exists():
        return (
            "the native library is not built; `pip install --no-build-isolation .` builds it "
            "where CMake and a C++20 compiler (GCC or Clang) are installed"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"the native library {library.name} does not load: {error}"
    return None


#: Why the native library is not loaded, or None.
load_error: str | None = _load()


def build_info() -> dict[str, Any]:
    """What the library was built with and what it found on this machine; empty if not loaded.

    ``cpu`` names the instruction set in use, those this machine can run and the size of the L2
    cache in bytes; ``cuda`` the toolkit it was built with (or None) and the devices it sees.
    """
    if load_error is not None:
        return {}
    info: dict[str, Any] = json.loads(torch.ops.r21d.build_info())
    return info


def cuda_info(device: int = -1) -> dict[str, Any] | None:
    """The ``cuda`` of :func:`build_info`, of a loaded library; None where it is built without.

    ``toolkit``, ``driver`` (or None) and ``devices``, each with its ``name``, ``capability``,
    ``memory`` in bytes, and whether the library holds code that ``runs`` on it; None in the place
    of one that cannot be asked. ``device`` is the index of the one to ask; -1 asks all.
    """
    info: dict[str, Any] | None = json.loads(torch.ops.r21d.cuda_info(device))
    return info


def isa_error() -> str | None:
    """Why ``R21D_CPU_ISA`` cannot be served by this build on this CPU, or None."""
    forced = os.environ.get("R21D_CPU_ISA")
    if not forced or torch.compiler.is_compiling() or forced in _usable_isas():
        return None
    return f"R21D_CPU_ISA={forced} is not one of {', '.join(_usable_isas())}, which run here"


@functools.cache
def _usable_isas() -> tuple[str, ...]:
    return tuple(torch.ops.r21d.cpu_isas().split())


def _register_fakes() -> None:
    fake = torch.library.register_fake

    @fake("r21d::conv2plus1d")
    def _(
        x: Tensor,
        spatial_weight: Tensor,
        temporal_weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        out_scale: Tensor | None,
        out_shift: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        stride: Sequence[int],
        padding: Sequence[int],
        kernels: str = "",
        force: str = "",
    ) -> Tensor:
        mid = spatial_shape(x, spatial_weight, stride, padding)
        return like_ndhwc(x, temporal_shape(mid, temporal_weight, stride, padding))

    @fake("r21d::spatial_forward")
    def _(
        x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], statistics: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        u = like_ndhwc(x, spatial_shape(x, weight, stride, padding))
        return u, *_statistics(u, weight.shape[0] if statistics else 0)

    @fake("r21d::temporal_forward")
    def _(
        u: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
    ) -> Tensor:
        return like_ndhwc(u, temporal_shape(u.shape, weight, stride, padding))

    @fake("r21d::norm_relu")
    def _(u: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return like_ndhwc(u, u.shape)

    @fake("r21d::norm_relu_backward")
    def _(
        grad: Tensor, u: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, invstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return like_ndhwc(u, u.shape), torch.empty_like(scale), torch.empty_like(scale)

    @fake("r21d::norm_backward")
    def _(
        g: Tensor, u: Tensor, g_factor: Tensor, u_factor: Tensor | None, offset: Tensor | None
    ) -> Tensor:
        return like_ndhwc(u, u.shape)


def _statistics(like: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    mean = like.new_empty(channels, dtype=torch.float32)
    return mean, torch.empty_like(mean)


def _weight_gradient(weight: Tensor, wanted: bool) -> Tensor:
    return like_ndhwc(weight, weight.shape) if wanted else weight.new_empty(0)


def _register_training_fakes() -> None:
    """The operators of a training step on a GPU."""
    fake = torch.library.register_fake

    @fake("r21d::train_spatial")
    def _(
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        statistics: bool,
        in_scale: Tensor | None,
        in_shift: Tensor | None,
        force: str = "",
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, mid, *size = spatial_shape(x, weight, stride, padding)
        u = like_ndhwc(x, [n, padded(mid), *size])
        return u, *_statistics(u, mid if statistics else 0)

    @fake("r21d::train_temporal")
    def _(
        u: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        statistics: bool,
        force: str = "",
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = like_ndhwc(u, temporal_shape(u.shape, weight, stride, padding))
        return y, *_statistics(y, weight.shape[0] if statistics else 0)

    @fake("r21d::train_temporal_backward")
    def _(
        grad: Tensor, u: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, invstd: Tensor,
        weight: Tensor, stride: Sequence[int], padding: Sequence[int], need_weight: bool,
        y: Tensor | None, grad_factor: Tensor | None, y_factor: Tensor | None,
        offset: Tensor | None, force: str = "",
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        g = like_ndhwc(u, u.shape)
        return g, _weight_gradient(weight, need_weight), *_statistics(u, weight.shape[1])

    @fake("r21d::train_spatial_backward")
    def _(
        g: Tensor, u: Tensor, x: Tensor, weight: Tensor, g_factor: Tensor,
        u_factor: Tensor | None, offset: Tensor | None, stride: Sequence[int],
        padding: Sequence[int], need_x: bool, need_weight: bool, in_scale: Tensor | None,
        in_shift: Tensor | None, in_mean: Tensor | None, in_invstd: Tensor | None,
        residual: Tensor | None, force: str = "",
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        grad_x = like_ndhwc(x, x.shape) if need_x else x.new_empty(0)
        sums = _statistics(x, 0 if in_scale is None else x.shape[1])
        return grad_x, _weight_gradient(weight, need_weight), *sums

    @fake("r21d::join")
    def _(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
        return like_ndhwc(y, y.shape)

    @fake("r21d::join_backward")
    def _(
        grad: Tensor, out: Tensor, y: Tensor, mean: Tensor, invstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return like_ndhwc(y, y.shape), *_statistics(y, y.shape[1])


if load_error is None:
    _register_fakes()
    _register_training_fakes()

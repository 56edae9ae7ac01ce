"""The CUDA training operators on CPU tensors: ``torch.ops.r21d.train_*`` and ``join*``, simulated.

Importing this module registers the simulator as their implementation on the CPU. So the backend's
own code, ``torch.compile`` and ``opcheck`` run over them as on a GPU.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from simt.library import simulator
from simt.random_problems import TRAINING_TILES, WEIGHT_TILES
from simt.simulated import Halves, halves, rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from r21d_ops import native
from r21d_ops.shapes import like_ndhwc, padded, spatial_shape, temporal_shape

#: The kernels of a training step, by the names of their plans.
KERNELS = (
    "spatial_forward", "temporal_forward", "temporal_gradient", "temporal_weight",
    "spatial_gradient", "spatial_weight",
)  # fmt: skip

Force = dict[str, dict[str, int]]

#: What the last operator launched, and its plans.
last: dict[str, Any] = {}

#: With the simulator's option ``traffic``: kernel, buffer, bytes of it read and written.
traffic: list[tuple[str, str, int, int]] = []

_options: dict[str, Any] = {}


@contextlib.contextmanager
def simulated(**options: Any) -> Iterator[None]:
    """How the simulator runs inside: mode, order, seed, mutate, traffic."""
    traffic.clear()
    _options.update(options)
    try:
        yield
    finally:
        _options.clear()


class Forced(TorchDispatchMode):
    """Inside, the training operators are given these tiles and parts; on any device."""

    def __init__(self, force: Force) -> None:
        super().__init__()
        self._text = " ".join(
            f"{kernel}.{name}={value}"
            for kernel, values in force.items()
            for name, value in values.items()
        )

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        keywords = dict(keywords or {})
        if str(function).startswith("r21d.train_"):
            keywords["force"] = self._text
        return function(*arguments, **keywords)


def tiles_of(index: int, parts: int) -> Force:
    """The ``index``-th choice of tiles: by kernel another place in its list."""
    force = {}
    for place, name in enumerate(KERNELS):
        tiles = WEIGHT_TILES if name.endswith("weight") else TRAINING_TILES
        warps, columns = tiles[(index + place * (1 + index // len(TRAINING_TILES))) % len(tiles)]
        force[name] = {"pixel_warps": warps, "columns": columns, "parts": parts}
    return force


def _parsed(force: str) -> Force:
    found: Force = {}
    for word in force.split():
        name, value = word.split("=")
        kernel, field = name.split(".")
        found.setdefault(kernel, {})[field] = int(value)
    return found


class UninitialisedReadError(Exception):
    """A kernel has read shared memory that it had not written: poison."""


class _Call:
    """One operator's problem in the simulator; tiles by its shape where nothing is forced, so that
    tests meet every tile and a call is the same twice."""

    def __init__(
        self,
        sizes: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dtype: torch.dtype,
        force: str,
    ) -> None:
        rng = random.Random(str((tuple(sizes), tuple(kernel), tuple(stride), tuple(padding))))
        chosen = _parsed(force) if force else tiles_of(rng.randrange(12), rng.randint(1, 3))
        library = simulator()
        library.options(**_options)
        self.dtype = dtype
        self._call = library.Training(
            list(sizes), list(kernel), list(stride), list(padding),
            dtype=str(dtype).removeprefix("torch."), force=chosen,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        def run(*arguments: Any) -> tuple[Any, ...]:
            given = [self._given(value) for value in arguments]
            found = getattr(self._call, name)(*given)
            last.clear()
            last.update(self._call.ran)
            if last["uninitialised_reads"] > 0:
                raise UninitialisedReadError(f"{name}: {last['uninitialised_reads']} reads")
            traffic.extend(last["traffic"])
            return found if isinstance(found, tuple) else (found,)

        return run

    @staticmethod
    def _given(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dim() == 1:
            return value.detach().numpy()
        return rows(value.detach())

    def tensor(self, values: Halves) -> Tensor:
        """(N, T, H, W, C) as (N, C, T, H, W)."""
        found = torch.from_numpy(values.view(np.int16)).view(self.dtype).permute(0, 4, 1, 2, 3)
        return like_ndhwc(found, found.shape).copy_(found)

    def weight(self, values: Halves, like: Tensor) -> Tensor:
        """(outputs, taps..., inputs) as ``like``, or empty."""
        found = torch.from_numpy(values.view(np.int16)).view(self.dtype)
        if found.numel() == 0:
            return like.new_empty(0)
        outputs, inputs, *kernel = like.shape
        shaped = found.reshape(outputs, *kernel, inputs).permute(0, 4, 1, 2, 3)
        return like_ndhwc(like, like.shape).copy_(shaped)


def _vectors(*values: Any) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(value) for value in values)


def _spatial(x: Tensor, weight: Tensor, stride: Any, padding: Any, force: str) -> _Call:
    m, c, _, kh, kw = weight.shape
    n, _, t, h, w = x.shape
    geometry = ((1, kh, kw), (1, *stride[1:]), (0, *padding[1:]))
    return _Call((n, c, t, h, w, m, m), *geometry, x.dtype, force)


def _temporal(u: Tensor, weight: Tensor, stride: Any, padding: Any, force: str) -> _Call:
    o, m, kt, _, _ = weight.shape
    n, _, t, h, w = u.shape
    assert u.shape[1] == padded(m)
    geometry = ((kt, 1, 1), (stride[0], 1, 1), (padding[0], 0, 0))
    return _Call((n, m, t, h, w, m, o), *geometry, u.dtype, force)


def _zeros(count: int, channels: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(channels) for _ in range(count))


def _no_gradient(weight: Tensor) -> Tensor:
    return torch.zeros_like(like_ndhwc(weight, weight.shape))


def _train_spatial(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, statistics: bool,
    in_scale: Tensor | None, in_shift: Tensor | None, force: str = "",
) -> tuple[Tensor, ...]:  # fmt: skip
    if x.shape[0] == 0:
        n, m, *size = spatial_shape(x, weight, stride, padding)
        return like_ndhwc(x, (n, padded(m), *size)), *_zeros(2, m if statistics else 0)
    call = _spatial(x, weight, stride, padding, force)
    u, *sums = call.spatial_forward(x, halves(weight), statistics, in_scale, in_shift)
    return call.tensor(u), *_vectors(*sums)


def _train_temporal(
    u: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, stride: Any, padding: Any,
    statistics: bool, force: str = "",
) -> tuple[Tensor, ...]:  # fmt: skip
    if u.shape[0] == 0:
        shape = temporal_shape(u.shape, weight, stride, padding)
        return like_ndhwc(u, shape), *_zeros(2, shape[1] if statistics else 0)
    call = _temporal(u, weight, stride, padding, force)
    y, *sums = call.temporal_forward(u, scale, shift, halves(weight), statistics)
    return call.tensor(y), *_vectors(*sums)


def _train_temporal_backward(
    grad: Tensor, u: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, invstd: Tensor,
    weight: Tensor, stride: Any, padding: Any, need_weight: bool, y: Tensor | None,
    grad_factor: Tensor | None, y_factor: Tensor | None, offset: Tensor | None, force: str = "",
) -> tuple[Tensor, ...]:  # fmt: skip
    if u.shape[0] == 0:
        grad_weight = _no_gradient(weight) if need_weight else weight.new_empty(0)
        return like_ndhwc(u, u.shape), grad_weight, *_zeros(2, weight.shape[1])
    call = _temporal(u, weight, stride, padding, force)
    vectors = (scale, shift, mean, invstd)
    g, grad_weight, *sums = call.temporal_backward(
        grad, u, *vectors, halves(weight), need_weight, y, grad_factor, y_factor, offset
    )
    return call.tensor(g), call.weight(grad_weight, weight), *_vectors(*sums)


def _train_spatial_backward(
    g: Tensor, u: Tensor, x: Tensor, weight: Tensor, g_factor: Tensor, u_factor: Tensor | None,
    offset: Tensor | None, stride: Any, padding: Any, need_x: bool, need_weight: bool,
    in_scale: Tensor | None, in_shift: Tensor | None, in_mean: Tensor | None,
    in_invstd: Tensor | None, residual: Tensor | None, force: str = "",
) -> tuple[Tensor, ...]:  # fmt: skip
    summed = 0 if in_scale is None else x.shape[1]
    if x.shape[0] == 0:
        grad_x = like_ndhwc(x, x.shape) if need_x else x.new_empty(0)
        grad_weight = _no_gradient(weight) if need_weight else weight.new_empty(0)
        return grad_x, grad_weight, *_zeros(2, summed)
    call = _spatial(x, weight, stride, padding, force)
    grad_x, grad_weight, *sums = call.spatial_backward(
        g, u, x, halves(weight), g_factor, u_factor, offset, need_x, need_weight, in_scale,
        in_shift, in_mean, in_invstd, residual,
    )  # fmt: skip
    found = call.tensor(grad_x) if need_x else x.new_empty(0)
    return found, call.weight(grad_weight, weight), *_vectors(*sums)


def _block_end(y: Tensor) -> _Call:
    n, o, t, h, w = y.shape
    return _Call((n, 8, t, h, w, 16, o), (1, 1, 1), (1, 1, 1), (0, 0, 0), y.dtype, "")


def _join(y: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
    if y.numel() == 0:
        return like_ndhwc(y, y.shape)
    call = _block_end(y)
    (out,) = call.join(y, scale, shift, residual)
    return call.tensor(out)


def _join_backward(
    grad: Tensor, out: Tensor, y: Tensor, mean: Tensor, invstd: Tensor
) -> tuple[Tensor, ...]:
    if y.numel() == 0:
        return like_ndhwc(y, y.shape), *_zeros(2, y.shape[1])
    call = _block_end(y)
    g, *sums = call.join_backward(grad, out, y, mean, invstd)
    return call.tensor(g), *_vectors(*sums)


_IMPLEMENTATIONS = {
    "train_spatial": _train_spatial,
    "train_temporal": _train_temporal,
    "train_temporal_backward": _train_temporal_backward,
    "train_spatial_backward": _train_spatial_backward,
    "join": _join,
    "join_backward": _join_backward,
}

if native.load_error is None:
    _library = torch.library.Library("r21d", "IMPL")
    for _name, _implementation in _IMPLEMENTATIONS.items():
        _library.impl(_name, _implementation, "CPU")


def mid(tensor: Tensor) -> Tensor:
    """(N, M, T, H, W) with M rounded up to 16 channels of zeros, as u and g are held."""
    missing = padded(tensor.shape[1]) - tensor.shape[1]
    return torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, 0, 0, missing))

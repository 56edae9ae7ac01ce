"""The operator written a second time, without PyTorch and in extended precision.

NumPy's ``longdouble`` (80 bits on x86) makes it the oracle for float64, and as it shares nothing
with ``r21d_ops.reference``, a check of that definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ops.problems import Operands

#: Whether ``longdouble`` is wider than float64 here (not on Windows and most ARM machines).
WIDER = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps

Array = np.ndarray[Any, Any]


def _wide(tensor: Tensor | None) -> Array:
    assert tensor is not None
    return tensor.double().contiguous().numpy().astype(np.longdouble)


def _convolve(x: Array, weight: Array, stride: tuple[int, ...], padding: tuple[int, ...]) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3, 4))
    st, sh, sw = stride
    return np.einsum("ncthwijk,ocijk->nothw", windows[:, :, ::st, ::sh, ::sw], weight)


def extended_reference(operands: Operands) -> Tensor:
    """y of the operator in eval with every per-channel vector given, rounded to float64."""
    (st, sh, sw), (pt, ph, pw) = operands.case.stride, operands.case.padding

    def per_channel(vector: Tensor | None) -> Array:
        return _wide(vector).reshape(1, -1, 1, 1, 1)

    u = _convolve(_wide(operands.x), _wide(operands.spatial_weight), (1, sh, sw), (0, ph, pw))
    invstd = 1 / np.sqrt(per_channel(operands.running_var) + np.longdouble(1e-5))
    normalized = (u - per_channel(operands.running_mean)) * invstd
    z = normalized * per_channel(operands.bn_weight) + per_channel(operands.bn_bias)
    v = np.maximum(z, 0)
    y = _convolve(v, _wide(operands.temporal_weight), (st, 1, 1), (pt, 0, 0))
    if operands.out_scale is not None:
        y = y * per_channel(operands.out_scale)
    if operands.out_shift is not None:
        y = y + per_channel(operands.out_shift)
    if operands.residual is not None:
        y = y + _wide(operands.residual)
    return torch.from_numpy((np.maximum(y, 0) if operands.relu else y).astype(np.float64))

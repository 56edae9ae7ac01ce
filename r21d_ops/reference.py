"""The definition of the operator, in plain PyTorch. Everything else is measured against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from r21d_ops.problem import triple


def conv2plus1d_reference(
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    *,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 1,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out_scale: Tensor | None = None,
    out_shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """u = spatial(x); v = relu(bn(u)); y = temporal(v); relu(y*out_scale + out_shift + residual).

    Arguments and shapes are those of :func:`r21d_ops.conv2plus1d` (paper, section 3.5, Fig. 2b).
    In training, ``running_mean`` and ``running_var`` are updated in place, as by ``F.batch_norm``.
    """
    st, sh, sw = triple(stride, "stride")
    pt, ph, pw = triple(padding, "padding")
    u = F.conv3d(x, spatial_weight, stride=(1, sh, sw), padding=(0, ph, pw))
    z = F.batch_norm(u, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    y = F.conv3d(F.relu(z), temporal_weight, stride=(st, 1, 1), padding=(pt, 0, 0))
    if out_scale is not None:
        y = y * out_scale.to(y.dtype).view(1, -1, 1, 1, 1)
    if out_shift is not None:
        y = y + out_shift.to(y.dtype).view(1, -1, 1, 1, 1)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y

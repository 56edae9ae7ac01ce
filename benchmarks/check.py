"""Is a peer's result right? Measured against float64, in units of stock PyTorch's own error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: r21d's own backends: an RMS error of at most twice that of stock PyTorch in the same dtype.
OWN_LIMIT = 2.0
#: Other peers may round differently (Winograd transforms, weights folded in 16 bits); four bits
#: worse than stock is no rounding any more. It also bounds everybody's maximum error, which is a
#: matter of luck within a factor of a few.
PEER_LIMIT = 16.0


@dataclass(frozen=True)
class Accuracy:
    """The worst tensor of a result.

    Attributes:
        tensor: its name.
        max_ratio, rms_ratio: its maximum and RMS error over stock PyTorch's (of its layouts the
            one further off), which counts as at least one ulp of the largest exact value;
            infinite where a value is missing.
    """

    tensor: str
    max_ratio: float
    rms_ratio: float

    @property
    def worst(self) -> float:
        """The larger of the two ratios."""
        return max(self.max_ratio, self.rms_ratio)

    def within(self, rms_limit: float) -> bool:
        """Whether the RMS error is within ``rms_limit`` and the maximum within PEER_LIMIT."""
        return self.rms_ratio <= rms_limit and self.max_ratio <= PEER_LIMIT


def _errors(actual: Tensor, exact: Tensor) -> tuple[float, float]:
    if actual.shape != exact.shape or not bool(torch.isfinite(actual).all()):
        return math.inf, math.inf
    difference = actual.double() - exact
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def _ulp(exact: Tensor, dtype: torch.dtype) -> float:
    largest = exact.abs().max().item()
    if largest == 0:
        return torch.finfo(dtype).tiny
    return float(2.0 ** math.floor(math.log2(largest)) * torch.finfo(dtype).eps)


def accuracy(
    actual: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    stock: Sequence[Mapping[str, Tensor]],
    dtype: torch.dtype,
) -> Accuracy:
    """How far ``actual`` is from ``exact`` (float64), compared with ``stock`` in ``dtype``.

    ``stock`` holds what stock layers gave, once for each memory layout. All hold the same names;
    every tensor is compared, and the worst is returned.
    """
    worst: Accuracy | None = None
    for name, reference in exact.items():
        ulp = _ulp(reference, dtype)
        got_max, got_rms = _errors(actual[name], reference)
        stock_max, stock_rms = zip(*(_errors(s[name], reference) for s in stock), strict=True)
        row = Accuracy(name, got_max / max(*stock_max, ulp), got_rms / max(*stock_rms, ulp))
        if worst is None or row.worst > worst.worst:
            worst = row
    if worst is None:
        raise ValueError("exact must hold at least one tensor to compare with, got none")
    return worst

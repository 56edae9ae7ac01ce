"""Frozen BatchNorms that people write themselves: four vectors, and an affine ``forward``.

torchvision's and detectron2's have two dimensions, and everyone has made their own for video.
They are known by what they hold and by what they compute: the forward is traced, which fixes its
branches, and the traced operations are compared with ``F.batch_norm`` in float64.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from r21d_ops.symbolic import StandIn, StandInTracer

_VECTORS = ("running_mean", "running_var", "weight", "bias")
#: Two correct orders of a handful of float64 operations differ by some 1e-15; any other formula
#: differs by far more on random operands.
_SAME = 1e-11


def frozen_eps(module: nn.Module) -> float:
    """What the norm adds to its variance; those without an ``eps`` add nothing."""
    eps = getattr(module, "eps", 0.0)
    return float(eps) if isinstance(eps, (int, float)) else float("nan")


def looks_frozen(module: nn.Module) -> bool:
    """Whether ``module`` holds the four vectors of a BatchNorm and is not one of ``torch.nn``."""
    if type(module).__module__.startswith("torch.nn.") or any(True for _ in module.children()):
        return False
    held = {**module._parameters, **module._buffers}
    vectors = [held.get(name) for name in _VECTORS]
    shapes = {v.shape for v in vectors if v is not None}
    return all(v is not None and v.dim() == 1 for v in vectors) and len(shapes) == 1


@torch.no_grad()
def why_not_frozen(module: nn.Module) -> str | None:
    """Why ``module`` is not BatchNorm with constant statistics in every mode, or None."""
    kind = type(module).__name__
    if "forward" in module.__dict__:
        return f"{kind} has a forward of its own"
    try:
        twin = copy.deepcopy(module).cpu().double()
    except Exception as error:
        return f"{kind} cannot be copied: {error}"
    held = {**twin._parameters, **twin._buffers}
    vectors = [v for v in (held[name] for name in _VECTORS) if v is not None]
    # Not the global source of random numbers, which is the user's.
    source = torch.Generator().manual_seed(0)
    for vector in vectors:
        # Positive, for one of them is a variance.
        vector.data = torch.rand(vector.shape, dtype=torch.float64, generator=source) + 0.5
    mean, variance, weight, bias = vectors
    before = [vector.clone() for vector in vectors]
    for training in (False, True):
        twin.train(training)
        for requires_grad in (False, True):
            try:
                graph = fx.GraphModule(twin, _FrozenTracer(requires_grad).trace(twin))
                for size in ((2, 3, 2, 4), (1, 1, 1, 1), (3, 2, 5, 1)):
                    shape = (size[0], mean.numel(), *size[1:])
                    x = torch.randn(shape, dtype=torch.float64, generator=source)
                    given = x.clone()
                    y = graph(given)
                    exact = F.batch_norm(
                        x, mean, variance, weight, bias, False, 0.0, frozen_eps(module)
                    )
                    if not torch.equal(given, x):
                        return f"{kind} changes its input"
                    if not _same(y, exact):
                        return f"{kind} does not compute BatchNorm with constant statistics"
            except Exception as error:
                return f"{kind}'s forward cannot be followed: {type(error).__name__}"
    if not all(torch.equal(v, b) for v, b in zip(vectors, before, strict=True)):
        return f"{kind} changes its statistics"
    return None


def _same(y: object, exact: Tensor) -> bool:
    return (
        isinstance(y, Tensor)
        and y.shape == exact.shape
        and bool(((y - exact).abs() <= _SAME * (1 + exact.abs())).all())
    )


class _Input(StandIn):
    """A stand-in of which the forward may ask whether it wants a gradient."""

    @property
    def requires_grad(self) -> bool:
        return bool(getattr(self.tracer, "requires_grad", False))


class _FrozenTracer(StandInTracer):
    """Every branch of the forward is decided by ``requires_grad`` alone, or tracing fails."""

    stand_in = _Input

    def __init__(self, requires_grad: bool) -> None:
        super().__init__()
        self.requires_grad = requires_grad

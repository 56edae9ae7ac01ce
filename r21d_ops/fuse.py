"""``fuse``: swap the (2+1)D sequences of a model that somebody already has.

Recognised by structure, not by class name: an ``nn.Sequential`` (or a subclass that keeps its
``forward`` and adds no members of its own) that contains Conv3d(1×d×d), BatchNorm3d or
SyncBatchNorm, ReLU, Conv3d(t×1×1) in a row. torchvision's ``Conv2Plus1D`` and the stem of its
R(2+1)D are two such.
"""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeGuard

from torch import nn

from r21d_ops.modules import Conv2Plus1D, FusedSequential, matched_runs, why_not_fused


class FuseRow(NamedTuple):
    """One candidate: its qualified name, its class, whether it runs fused, and if not, why."""

    name: str
    kind: str
    fused: bool
    reason: str


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """``model`` with every (2+1)D sequence that is recognised run as one operator.

    Parameters, buffers, state-dict keys, hooks and training flags stay; with ``inplace=True`` they
    are the same objects, so an optimizer that holds them keeps working. Without it, a copy is
    changed and ``model`` left alone. :func:`fuse_report` tells what was recognised.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    model = model if inplace else copy.deepcopy(model)
    replaced: dict[int, nn.Module] = {}
    if _is_candidate(model):
        model = _swap(model)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is None or not _is_candidate(child):
                continue
            if id(child) not in replaced:
                replaced[id(child)] = _swap(child)
            parent._modules[name] = replaced[id(child)]
    return model


def fuse_report(model: nn.Module) -> list[FuseRow]:
    """A row per candidate in ``model``: every sequence with a spatial and a later temporal conv.

    Rows of an already fused model tell what runs fused now; rows of a stock model tell what
    :func:`fuse` would do (``fused`` False, with the reason).
    """
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and (
            _looks_like_one(module) or matched_runs(tuple(module))
        ):
            reason = _reason(module)
            rows.append(FuseRow(name, type(module).__name__, reason is None, reason or ""))
    return rows


def _why_kept(module: nn.Sequential) -> str | None:
    """Why a sequence of stock layers must stay of its own class, or None."""
    kind = type(module)
    if kind.forward is not nn.Sequential.forward or "forward" in module.__dict__:
        return f"{kind.__name__} has a forward of its own"
    own = [
        name
        for ancestor in kind.__mro__[: kind.__mro__.index(nn.Sequential)]
        for name in vars(ancestor)
        if not name.startswith("_")
        and (not hasattr(Conv2Plus1D, name) or hasattr(nn.Sequential, name))
    ]
    # The swapped sequence is of our class: what only the user's class has would be gone.
    return f"{kind.__name__} has members of its own: {', '.join(own)}" if own else None


def _is_candidate(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return (
        isinstance(module, nn.Sequential)
        and not isinstance(module, (Conv2Plus1D, FusedSequential))
        and _why_kept(module) is None
        and bool(matched_runs(tuple(module)))
    )


def _swap(module: nn.Sequential) -> nn.Sequential:
    """``module``'s children, hooks and flags in the class that runs them fused."""
    children = tuple(module)
    kind = Conv2Plus1D if len(children) == 4 else FusedSequential
    fused = kind.__new__(kind)
    fused.__dict__.update(module.__dict__)
    return fused


def _looks_like_one(module: nn.Sequential) -> bool:
    """A convolution over space alone, and later one over time alone."""
    seen_spatial = False
    for child in module:
        kernel = getattr(child, "kernel_size", None)
        if not isinstance(child, nn.Conv3d) or kernel is None:
            continue
        if seen_spatial and kernel[0] > 1 and tuple(kernel[1:]) == (1, 1):
            return True
        seen_spatial = seen_spatial or (kernel[0] == 1 and tuple(kernel[1:]) != (1, 1))
    return False


def _reason(module: nn.Sequential) -> str | None:
    children = tuple(module)
    if isinstance(module, FusedSequential):
        if matched_runs(children):
            return None
    elif isinstance(module, Conv2Plus1D):
        return why_not_fused(children)
    elif matched_runs(children):
        return _why_kept(module) or "stock layers; fuse(model) would run them fused"
    reasons = [why_not_fused(children[i : i + 4]) for i in range(max(1, len(children) - 3))]
    return min((r for r in reasons if r is not None), key=len, default=None)

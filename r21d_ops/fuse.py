"""``fuse``: swap the (2+1)D convolutions of a model that somebody already has.

Recognised by structure, not by class name:

- an ``nn.Sequential`` (or a subclass that keeps its ``forward`` and adds no members of its own)
  that contains Conv3d(1×d×d), BatchNorm3d or SyncBatchNorm, ReLU, Conv3d(t×1×1) in a row:
  torchvision's, VMZ's and ig65m's ``Conv2Plus1D``, the stem of their R(2+1)D, a sequence by hand;
- any other module that holds the four layers, if its ``forward``, followed by ``torch.fx``, runs
  them in this order: mmaction2's and pytorchvideo's, and those with a frozen BatchNorm;
- a module around them, such as a residual block, whose outer BatchNorm, shortcut and ReLU are the
  operator's epilogue in eval without gradients.

The last two keep the module itself: it becomes an instance of a subclass of its class.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, fx, nn

from r21d_ops.frozen import looks_frozen
from r21d_ops.modules import NORMS, Conv2Plus1D, FusedSequential, matched_runs, why_not_fused
from r21d_ops.plan import Plan, is_spatial, is_temporal, make_plan
from r21d_ops.planned import Planned, plan_into, why_not_as_planned, why_not_extended
from r21d_ops.trace import DiffersByMode, Untraceable, is_stock_layer, trace

#: A block of the public models holds two convolutions and a shortcut; what holds more than this,
#: or is further from them than two modules of somebody's class, is a group of blocks or a network.
_MOST_RUNS = 4
_FURTHEST = 2
#: Layers of a network's head, which no block holds.
_NOT_IN_A_BLOCK = (nn.Linear, nn.Flatten, nn.Embedding)


_EVERY_CLASS_HAS = (
    *("__module__", "__qualname__", "__doc__", "__annotations__", "__init__", "__dict__"),
    *("__weakref__", "__static_attributes__", "__firstlineno__", "__annotate__"),
    *("__annotate_func__", "__annotations_cache__", "__parameters__", "__orig_bases__"),
)


class FuseRow(NamedTuple):
    """One candidate: its qualified name, its class, whether it runs fused, and if not, why.

    A ``reason`` of one that is fused tells when it is.
    ``epilogue`` tells of a fused block what else is part of its convolutions' operators in eval
    without gradients, by the temporal convolution's name.
    """

    name: str
    kind: str
    fused: bool
    reason: str
    epilogue: str = ""


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """``model`` with every (2+1)D convolution that is recognised run as one operator.

    Parameters, buffers, state-dict keys, hooks and training flags stay; with ``inplace=True`` they
    are the same objects, so an optimizer that holds them keeps working. Without it, a copy is
    changed and ``model`` left alone. :func:`fuse_report` tells what was recognised.

    What runs fused returns ``torch.channels_last_3d`` tensors, of which ``view`` may refuse what
    ``reshape`` does. While this function looks at a model, no other thread may run one.

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
    # Inner ones first: a plan holds for the classes of the modules inside.
    for found in _survey(model, anew=True):
        if isinstance(found.plan, Plan) and not found.in_force:
            # A class that cannot be extended is left alone, and reported.
            with contextlib.suppress(TypeError):
                plan_into(found.module, found.plan)
    return model


def fuse_report(model: nn.Module) -> list[FuseRow]:
    """A row per candidate in ``model``: what holds a spatial and a temporal conv, and its block.

    Rows of an already fused model tell what runs fused now; rows of a stock model tell what
    :func:`fuse` would do (``fused`` False, with the reason).
    """
    plans = {id(found.module): found for found in _survey(model, anew=False)}
    rows = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if id(module) in plans:
            rows.append(_planned_row(name, kind, plans[id(module)]))
        elif isinstance(module, nn.Sequential) and (
            _looks_like_one(module) or matched_runs(tuple(module))
        ):
            reason = _reason(module)
            rows.append(FuseRow(name, kind, reason is None, reason or ""))
    return rows


class _Found(NamedTuple):
    """A module with a plan, or with the reason why there is none.

    ``in_force``: it runs by this plan already.
    """

    module: nn.Module
    plan: Plan | str
    in_force: bool


def _planned_row(name: str, kind: str, found: _Found) -> FuseRow:
    if isinstance(found.plan, str):
        return FuseRow(name, kind, False, found.plan)
    if not found.in_force and (reason := why_not_extended(type(found.module))):
        return FuseRow(name, kind, False, reason)
    if not found.in_force:
        epilogue = found.plan.epilogue
        part = f", in eval with {epilogue}" if epilogue else ""
        return FuseRow(name, kind, False, f"stock layers; fuse(model) would run them fused{part}")
    reason = why_not_as_planned(found.module, found.plan)
    return FuseRow(name, kind, reason is None, reason or found.plan.note, found.plan.epilogue)


class _Inside(NamedTuple):
    """What is known of a module once everything inside it has been looked at.

    Attributes:
        runs: (2+1)D convolutions.
        folded: what their epilogues take already, without a block around.
        distance: how many modules of somebody's class lie around them.
        joined: whether a shortcut has been added to one.
        convs: convolutions that belong to no smaller module of somebody's class.
        norms: BatchNorms that belong to no (2+1)D convolution.
        in_a_block: whether a block may hold it.
    """

    runs: int = 0
    folded: int = 0
    distance: int = 0
    joined: bool = False
    convs: tuple[nn.Module, ...] = ()
    norms: int = 0
    in_a_block: bool = True


def _survey(model: nn.Module, anew: bool) -> Iterator[_Found]:
    """Modules that run, or may run, by a plan: inner ones before those around them.

    What the caller does to a module when it is given counts for those that follow. With ``anew``, a
    module that has changed since its plan was made gets another.
    """
    tensors: dict[int, Tensor] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    known: dict[int, _Inside] = {}
    for module in _innermost_first(model):
        # A module inside itself is not known yet.
        inside = _sum_up([known.get(id(child), _Inside()) for child in module.children()])
        if isinstance(module, nn.Conv3d):
            inside = inside._replace(convs=(module,))
        elif isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
            inside = _Inside(in_a_block=False)
        elif is_stock_layer(module) or looks_frozen(module):
            allowed = inside.in_a_block and not isinstance(module, _NOT_IN_A_BLOCK)
            norms = int(isinstance(module, NORMS) or looks_frozen(module))
            inside = inside._replace(in_a_block=allowed, norms=norms)
        elif isinstance(module, nn.Sequential) and _runs_by_itself(module):
            runs = len(matched_runs(tuple(module)))
            inside = _Inside(runs, _sequence_folds(module))
        elif _looks_like_one(module) and not _needs_a_plan(module):
            inside = inside._replace(convs=())
        elif not _is_container(module) or _looks_like_one(module):
            found = _look_at(module, inside, tensors, anew)
            inside = _around(inside, found)
            if found is not None:
                yield found
        known[id(module)] = inside


def _innermost_first(model: nn.Module) -> Iterator[nn.Module]:
    """Every module once, after its children, also where several share one."""
    seen: set[int] = set()
    waiting = [(model, False)]
    while waiting:
        module, done = waiting.pop()
        if done:
            yield module
        elif id(module) not in seen:
            seen.add(id(module))
            waiting.append((module, True))
            waiting += [(child, False) for child in module.children()]


def _sum_up(children: list[_Inside]) -> _Inside:
    return _Inside(
        sum(c.runs for c in children),
        sum(c.folded for c in children),
        max((c.distance for c in children), default=0),
        any(c.joined for c in children),
        tuple(conv for c in children for conv in c.convs),
        sum(c.norms for c in children),
        all(c.in_a_block for c in children),
    )


def _is_container(module: nn.Module) -> bool:
    """Whether ``module`` does nothing but hold its children."""
    kept = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return any(isinstance(module, k) and type(module).forward is k.forward for k in kept)


def _runs_by_itself(module: nn.Sequential) -> bool:
    fused = isinstance(module, (Conv2Plus1D, FusedSequential))
    return (fused or _why_kept(module) is None) and bool(matched_runs(tuple(module)))


def _needs_a_plan(module: nn.Module) -> bool:
    """Whether a sequence is more than its layers, or has a norm that must be looked into."""
    ours = isinstance(module, (Conv2Plus1D, FusedSequential))
    kept = isinstance(module, nn.Sequential) and not ours and _why_kept(module) is not None
    return kept or any(looks_frozen(child) for child in module.children())


def _sequence_folds(module: nn.Sequential) -> int:
    layers = tuple(module)
    followed = [layers[i + 4 : i + 6] for i in matched_runs(layers)]
    return sum(
        2
        for two in followed
        if len(two) == 2 and isinstance(two[0], nn.BatchNorm3d) and isinstance(two[1], nn.ReLU)
    )


def _look_at(
    module: nn.Module, inside: _Inside, tensors: dict[int, Tensor], anew: bool
) -> _Found | None:
    """The plan for ``module`` if it is worth one, or why not if it should have one."""
    if getattr(type(module), "fused_by_itself", False):
        return None
    old = module.__dict__.get("_fused_plan") if isinstance(module, Planned) else None
    if old is not None and not (anew and why_not_as_planned(module, old)):
        return _Found(module, old, True)
    pairs = [
        (first, second)
        for first in inside.convs
        for second in inside.convs
        if first is not second and is_spatial(first) and is_temporal(second)
    ]
    # 1×1×1 convolutions count as both, but nobody would ask why theirs are not fused.
    certain = any(not is_temporal(first) and not is_spatial(second) for first, second in pairs)
    block = (
        0 < inside.runs <= _MOST_RUNS
        and inside.distance < _FURTHEST
        and inside.in_a_block
        and not inside.joined
    )
    if not pairs and not block:
        return None
    plan = _plan(module, tensors, every_mode=bool(pairs))
    if isinstance(plan, Plan) and plan.is_block and not plan.every_mode:
        # Such a block trains as one function.
        trained = _plan(module, tensors, every_mode=True)
        plan = trained if isinstance(trained, Plan) and trained.every_mode else plan
    if isinstance(plan, str):
        return _Found(module, plan, False) if certain or (block and inside.norms) else None
    more = len(plan.runs) - inside.runs
    worth = more > 0 or (more == 0 and plan.folded > inside.folded)
    return _Found(module, plan, False) if worth else None


def _plan(module: nn.Module, tensors: dict[int, Tensor], every_mode: bool) -> Plan | str:
    """A plan, or why there is none."""
    if "forward" in module.__dict__:
        return f"{type(module).__name__} has a forward of its own"
    if any(hasattr(type(child), "__del__") for child in module.modules()):
        return "a class inside has a __del__, which a copy to be looked at would run"
    try:
        return make_plan(module, trace(module, tensors, every_mode), every_mode)
    except DiffersByMode as error:
        plan = _plan(module, tensors, every_mode=False) if every_mode else None
        note = "in eval without gradients alone"
        return plan._replace(note=note) if isinstance(plan, Plan) else str(error)
    except Untraceable as error:
        return str(error)
    except Exception as error:
        # Somebody's class may do anything when it is copied, extended or run.
        return f"it cannot be looked at: {type(error).__name__}: {error}"


def _around(inside: _Inside, found: _Found | None) -> _Inside:
    """What is known of a module of somebody's class."""
    distance = inside.distance + 1 if inside.runs else 0
    if found is None or isinstance(found.plan, str):
        return inside._replace(distance=distance, convs=())
    return inside._replace(
        runs=len(found.plan.runs),
        folded=found.plan.folded,
        distance=distance,
        joined=found.plan.joins,
        convs=(),
        norms=inside.norms if inside.runs else 0,
    )


def _why_kept(module: nn.Sequential) -> str | None:
    """Why a sequence of stock layers must stay of its own class, or None."""
    kind = type(module)
    if kind.forward is not nn.Sequential.forward or "forward" in module.__dict__:
        return f"{kind.__name__} has a forward of its own"
    own = [
        name
        for ancestor in kind.__mro__[: kind.__mro__.index(nn.Sequential)]
        for name in vars(ancestor)
        if name not in _EVERY_CLASS_HAS
        and (not hasattr(Conv2Plus1D, name) or hasattr(nn.Sequential, name))
    ]
    # The swapped sequence is of our class: what only the user's class has would be gone.
    return f"{kind.__name__} has members of its own: {', '.join(own)}" if own else None


def _is_candidate(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return (
        isinstance(module, nn.Sequential)
        and not isinstance(module, (Conv2Plus1D, FusedSequential, Planned))
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


def _looks_like_one(module: nn.Module) -> bool:
    """A sequence with a convolution over space alone, and later one over time alone."""
    seen_spatial = False
    for child in module if isinstance(module, nn.Sequential) else ():
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
        return "stock layers; fuse(model) would run them fused"
    reasons = [why_not_fused(children[i : i + 4]) for i in range(max(1, len(children) - 3))]
    return min((r for r in reasons if r is not None), key=len, default=None)

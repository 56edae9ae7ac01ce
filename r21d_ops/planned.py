"""The class that runs a module by its plan: as long as the plan holds, and else as ever.

A :class:`~r21d_ops.plan.Plan` holds while the module is what it was made from, which is looked at
at every call: classes, layers, hooks and whatever the forward reads.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from r21d_ops.arguments import autocast_dtype
from r21d_ops.basic_block import run_block
from r21d_ops.modules import (
    NORMS,
    TENSORS,
    Conv2Plus1D,
    FusedSequential,
    folds,
    is_plain_relu,
    run_fused,
    run_with_norm,
    why_not_fused,
    why_not_plain,
)
from r21d_ops.plain import ABSENT, Child, Guard
from r21d_ops.plan import Plan, Record, Run, at, children_of, settings_of
from r21d_ops.problem import output_size
from r21d_ops.trace import users_class

# Stands for a ReLU that was called as a function.
_RELU = nn.ReLU()


def why_not_as_planned(root: nn.Module, plan: Plan) -> str | None:
    """What has changed since ``plan`` was made, so that it cannot be carried out, or None."""
    try:
        for record in plan.records:
            reason = _why_changed(at(root, record.path), record, plan.frozen)
            if reason is not None:
                return reason
        for guard in plan.guards:
            if not _holds(root, guard):
                return f"{type(at(root, guard.path)).__name__}.{guard.name} has changed"
        for run in plan.runs:
            reason = why_not_fused(_layers(root, run), (*NORMS, *plan.frozen))
            if reason is not None:
                return reason
    except KeyError as error:
        return f"{error.args[0]} is gone"
    return None


def _why_changed(module: nn.Module, record: Record, frozen: tuple[type, ...]) -> str | None:
    kind = users_class(module)
    if kind is not record.kind and not (kind in NORMS and record.kind in NORMS):
        return f"{kind.__name__} in place of {record.kind.__name__}"
    if record.path and not record.called:
        reason = why_not_plain(module, (type(module),))
        if reason is not None:
            return reason
    if kind is record.kind and kind.forward is not record.forward:
        return f"{kind.__name__}.forward is another now"
    if children_of(module) != record.children:
        return f"the layers of {kind.__name__} are others now"
    if settings_of(module, type(module) in frozen) != record.settings:
        return f"{kind.__name__} has changed"
    if type(module) in frozen and isinstance(module, nn.BatchNorm3d) and module.training:
        return f"{kind.__name__} is in training"  # somebody set what its train() keeps off
    return None


def _holds(root: nn.Module, guard: Guard) -> bool:
    now = getattr(at(root, guard.path), guard.name, ABSENT)
    if isinstance(guard.value, Child):
        return now is at(root, guard.value.path)
    return now is guard.value or (type(now) is type(guard.value) and now == guard.value)


def holds_now(root: nn.Module, plan: Plan) -> bool:
    """Whether this is a mode for which ``plan`` was made."""
    if plan.every_mode:
        return True
    return not torch.is_grad_enabled() and not any(m.training for m in root.modules())


def _layers(root: nn.Module, run: Run) -> tuple[nn.Module, ...]:
    relu = at(root, run.relu) if run.relu else _RELU
    return at(root, run.spatial), at(root, run.norm), relu, at(root, run.temporal)


def carry_out(root: nn.Module, plan: Plan, x: Tensor) -> Tensor:
    """The result of ``plan`` for x (N, C, T, H, W), where :func:`why_not_as_planned` is None."""
    values: list[Any] = [None] * plan.values
    values[0] = x
    norms = (*NORMS, *plan.frozen)
    pair, waiting = _block_of(root, plan), None
    for place, op in enumerate(plan.operations):
        inputs = [values[i] for i in op.inputs]
        if pair is not None and place == pair[0]:
            y, waiting = None, inputs[0]  # one function with the second convolution
        elif pair is not None and place == pair[1]:
            first = plan.operations[pair[0]].run
            assert first is not None and op.run is not None and waiting is not None
            y = _carry_out_block(root, first, op.run, waiting, inputs[1])
            if y is None:
                y = _carry_out_run(root, first, norms, waiting)
                y = _carry_out_run(root, op.run, norms, y, inputs[1])
            waiting = None
        elif op.run is not None:
            y = _carry_out_run(root, op.run, norms, *inputs)
        elif op.kind == "layer":
            y = at(root, op.path)(*inputs)
        elif op.kind in ("add", "add_"):
            y = _sum(inputs[0], inputs[1], op.kind == "add_")
        else:
            y = torch.relu(inputs[0])
        del inputs
        for i in op.done:
            values[i] = None
        values[op.output] = y
    return values[plan.result]


def _block_of(root: nn.Module, plan: Plan) -> tuple[int, int] | None:
    """The places of two runs that are a residual block: the first, with BatchNorm and ReLU behind
    it, goes into the second alone, to which a shortcut is added before the last ReLU.

    Between them there may be the shortcut's own layers, none of which changes the block's input.
    """
    for first, op in enumerate(plan.operations):
        if op.run is None or op.run.epilogue != "norm, ReLU":
            continue
        for second in range(first + 1, len(plan.operations)):
            then = plan.operations[second]
            if then.run is not None:
                joined = then.run.epilogue == "norm, shortcut, ReLU"
                # The shortcut is another value: nothing but the second run's input is put off.
                alone = then.inputs[0] == op.output and op.output not in then.inputs[1:]
                if joined and alone and op.output in then.done:
                    return first, second
                break
            reads_x = op.inputs[0] in then.inputs
            keeps_x = then.kind == "layer" and isinstance(at(root, then.path), nn.Conv3d)
            if op.output in then.inputs or (reads_x and not keeps_x):
                break
    return None


def _carry_out_block(
    root: nn.Module, first: Run, second: Run, x: Tensor, residual: Tensor
) -> Tensor | None:
    """The two runs as one function, or None where they do not run so."""
    for relu in (first.outer_relu, second.outer_relu):
        if relu and not is_plain_relu(at(root, relu)):
            return None
    if type(residual) not in TENSORS:
        return None
    assert first.outer_norm is not None and second.outer_norm is not None
    return run_block(
        _layers(root, first),
        at(root, first.outer_norm),
        _layers(root, second),
        at(root, second.outer_norm),
        x,
        None if residual is x else residual,
        (_recomputes(root, first), _recomputes(root, second)),
    )


def _recomputes(root: nn.Module, run: Run) -> bool:
    """Whether the run belongs to a sequence that is told to keep its input alone."""
    parent, _, _ = run.spatial.rpartition(".")
    sequence = at(root, parent)
    return isinstance(sequence, Conv2Plus1D | FusedSequential) and sequence.recompute


def _carry_out_run(
    root: nn.Module,
    run: Run,
    norms: tuple[type[nn.Module], ...],
    x: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    layers, recompute = _layers(root, run), _recomputes(root, run)
    assert run.joins == (residual is not None)
    if run.outer_norm is None:
        return run_fused(layers, x, recompute=recompute)
    norm = at(root, run.outer_norm)
    relu = None if run.outer_relu is None else at(root, run.outer_relu) if run.outer_relu else _RELU
    dtype = _conv_dtype(x)
    if not folds(norm, norms) or not _keeps(norm, dtype):
        y = norm(run_fused(layers, x, recompute=recompute))
        y = y if residual is None else _sum(y, residual, run.in_place)
        return y if relu is None else relu(y)
    joins = residual is not None and residual.dtype == dtype and _fits(residual, layers, x)
    last = relu is not None and is_plain_relu(relu) and (residual is None or joins)
    y = run_with_norm(layers, norm, x, residual if joins else None, last)
    if residual is not None and not joins:
        y = _sum(y, residual, run.in_place)
    return y if relu is None or last else relu(y)


def _sum(y: Tensor, other: Tensor, in_place: bool) -> Tensor:
    return y.add_(other) if in_place else y + other


def _conv_dtype(x: Tensor) -> torch.dtype:
    """The dtype of what a convolution makes of ``x``."""
    dtype = autocast_dtype(x.device)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def _keeps(norm: nn.Module, dtype: torch.dtype) -> bool:
    """Whether ``norm`` makes ``dtype`` of ``dtype``; a frozen one may promote to its vectors'."""
    vectors = (*norm._parameters.values(), *norm._buffers.values())
    return type(norm) in NORMS or all(v is None or v.dtype == dtype for v in vectors)


def _fits(residual: Tensor, layers: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether ``residual`` has the shape of what the four layers make: no broadcasting."""
    spatial, temporal = layers[0], layers[3]
    assert isinstance(spatial, nn.Conv3d) and isinstance(temporal, nn.Conv3d)
    sizes = [
        output_size(x.shape[2 + i], conv.kernel_size[i], conv.stride[i], int(conv.padding[i]))
        for i, conv in enumerate((temporal, spatial, spatial))
    ]
    expected = (x.shape[0], temporal.out_channels, *sizes)
    return residual.device == x.device and tuple(residual.shape) == expected


class Planned(nn.Module):
    """Before a user's class in a class of its own: carries out the plan while it holds.

    The module keeps its attributes, parameters, hooks and methods, and is an instance of its class
    as before; called in another way than with one 5-D tensor, it runs its own forward.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the class's own forward returns."""
        if len(args) == 1 and not kwargs and type(args[0]) in TENSORS and args[0].dim() == 5:
            # A slice of a Sequential is of its class, and has no plan.
            plan = self.__dict__.get("_fused_plan")
            if plan is None:
                return super().forward(*args, **kwargs)
            if holds_now(self, plan) and why_not_as_planned(self, plan) is None:
                return carry_out(self, plan, args[0])
        return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = type(self)
        function, arguments, *state = cast(Any, super().__reduce_ex__(max(2, protocol)))
        if "_planned_base" not in kind.__dict__:
            return (function, arguments, *state)
        base = kind.__dict__["_planned_base"]
        function = base if function is kind else function
        arguments = tuple(base if argument is kind else argument for argument in arguments)
        return (_rebuild, (function, arguments), *state)


def _rebuild(function: Any, arguments: tuple[Any, ...]) -> nn.Module:
    module = function(*arguments)
    module.__class__ = planned_class(type(module))
    return module


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
_REFUSING: dict[type[nn.Module], str] = {}


def why_not_extended(base: type[nn.Module]) -> str | None:
    """Why :func:`planned_class` failed for ``base``, if it did."""
    return _REFUSING.get(base)


def planned_class(base: type[nn.Module]) -> type[nn.Module]:
    """The class that runs a module of class ``base`` by its plan, of the same name."""
    if issubclass(base, Planned):
        return base
    if base not in _CLASSES:
        try:
            _CLASSES[base] = _extended(base)
        except Exception as error:  # somebody's __init_subclass__ or metaclass
            _REFUSING[base] = f"{base.__name__} cannot be extended: {error}"
            raise TypeError(_REFUSING[base]) from error
    return _CLASSES[base]


def _extended(base: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(base.forward)  # whose parameters export and others ask for
    def forward(self: Planned, *args: Any, **kwargs: Any) -> Any:
        return Planned.forward(self, *args, **kwargs)

    def fill(namespace: dict[str, Any]) -> None:
        namespace.update(
            __module__=base.__module__,
            __qualname__=base.__qualname__,
            __doc__=base.__doc__,
            _planned_base=base,
            forward=forward,
        )

    return types.new_class(base.__name__, (Planned, base), {}, fill)


def plan_into(module: nn.Module, plan: Plan) -> None:
    """Let ``module`` run by ``plan``, as the same object.

    Raises:
        TypeError: its class cannot be extended.
    """
    kind = planned_class(type(module))
    # Past a __setattr__ that the class may have.
    object.__setattr__(module, "__class__", kind)
    module.__dict__["_fused_plan"] = plan

"""A forward as a list of operations, (2+1)D convolutions as one each, and the class that runs it.

:func:`make_plan` finds in a :class:`~r21d_ops.trace.Trace` every run of Conv3d(1×d×d), BatchNorm,
ReLU, Conv3d(t×1×1) on values that nothing else uses, and what of BatchNorm, shortcut and ReLU
follows it: in eval without gradients that is the operator's epilogue. A :class:`Planned` module
carries out its plan as long as it is what the plan was made from, and its own forward otherwise.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from r21d_ops.arguments import autocast_dtype
from r21d_ops.modules import (
    NORMS,
    TENSORS,
    folds,
    is_plain_relu,
    run_fused,
    run_with_norm,
    why_not_fused,
    why_not_plain,
)
from r21d_ops.plain import ABSENT, Child, Guard
from r21d_ops.problem import output_size
from r21d_ops.trace import Step, Trace, is_stock_layer, users_class

#: In the place of a layer's path: ReLU was called as a function.
_FUNCTION = ""
_RELU = nn.ReLU()


class Run(NamedTuple):
    """A (2+1)D convolution and what follows it, as paths of layers.

    Attributes:
        spatial, norm, relu, temporal: the four layers; ``relu`` is empty where it is a function.
        outer_norm: the BatchNorm after them, or None.
        joins: whether a shortcut is added next; it is the operation's second input.
        in_place: whether it is added in place, so that the sum has the dtype of the first term.
        outer_relu: the ReLU after that, empty where it is a function, or None.
    """

    spatial: str
    norm: str
    relu: str
    temporal: str
    outer_norm: str | None = None
    joins: bool = False
    in_place: bool = False
    outer_relu: str | None = None

    @property
    def epilogue(self) -> str:
        """What follows, in words."""
        parts = (
            ("norm", self.outer_norm is not None),
            ("shortcut", self.joins),
            ("ReLU", self.outer_relu is not None),
        )
        return ", ".join(name for name, follows in parts if follows)


class Operation(NamedTuple):
    """One operation of a plan.

    Attributes:
        kind: ``"layer"``, ``"add"``, ``"add_"`` (in place), ``"relu"`` or ``"run"``.
        inputs, output: values by number; 0 is the module's input.
        path: of a layer.
        run: of a run.
        done: values that nothing uses afterwards.
    """

    kind: str
    inputs: tuple[int, ...]
    output: int
    path: str
    run: Run | None
    done: tuple[int, ...]


class Record(NamedTuple):
    """A module inside the one that is planned, as it was when its forward was traced.

    Attributes:
        path: where it is; empty for the planned module itself.
        kind: its class, before fuse put one of its own before it.
        forward: that class's.
        children: names of its children.
        settings: what it does beside its kind: whether a layer works in place, what the constants
            of a frozen BatchNorm are.
        called: whether the plan calls it, so that what hangs on it runs as ever.
    """

    path: str
    kind: type
    forward: object
    children: tuple[tuple[str, bool], ...]
    settings: tuple[tuple[str, object], ...]
    called: bool


class Plan(NamedTuple):
    """What a :class:`Planned` module does in place of its own forward.

    Attributes:
        operations: in order.
        values: how many there are, the input included.
        result: the value that is returned.
        records: the modules inside, and the module itself.
        guards: what their forwards read of them.
        frozen: classes of the frozen BatchNorms that were verified.
        every_mode: whether it holds in training and with gradients, or in eval without alone.
        note: what the report adds.
    """

    operations: tuple[Operation, ...]
    values: int
    result: int
    records: tuple[Record, ...]
    guards: tuple[Guard, ...]
    frozen: tuple[type[nn.Module], ...]
    every_mode: bool
    note: str = ""

    @property
    def runs(self) -> list[Run]:
        """The (2+1)D convolutions in it."""
        return [op.run for op in self.operations if op.run is not None]

    @property
    def folded(self) -> int:
        """How many layers and additions epilogues can take."""
        return sum(run.epilogue.count(",") + 1 for run in self.runs if run.epilogue)

    @property
    def joins(self) -> bool:
        """Whether shortcut and convolutions come together in it."""
        kinds = [op.kind for op in self.operations]
        return "add" in kinds or "add_" in kinds or any(run.joins for run in self.runs)

    @property
    def epilogue(self) -> str:
        """What runs in which operator's epilogue in eval without gradients."""
        return "; ".join(f"{run.temporal}: {run.epilogue}" for run in self.runs if run.epilogue)


def at(root: nn.Module, path: str) -> nn.Module:
    """The module at ``path`` inside ``root``.

    Raises:
        KeyError: there is none.
    """
    module = root
    for name in path.split(".") if path else ():
        child = module._modules[name]
        if child is None:
            raise KeyError(path)
        module = child
    return module


def make_plan(module: nn.Module, trace: Trace, every_mode: bool) -> Plan | str:
    """The plan for ``module`` whose forward is ``trace``, or why there is none."""
    matcher = _Matcher(module, trace)
    if not all(matcher.owns(step) for step in trace.steps if step.inplace):
        return "its forward changes in place what can be seen elsewhere"
    runs = matcher.runs()
    if not runs:
        return matcher.why_no_run()
    operations = _operations(trace, runs)
    return Plan(
        operations,
        len(trace.steps) + 1,
        trace.result,
        tuple(_records(module, operations, matcher.frozen)),
        trace.guards,
        matcher.frozen,
        every_mode,
    )


class _Matcher:
    """Finds the runs in a trace."""

    def __init__(self, module: nn.Module, trace: Trace) -> None:
        self._module = module
        self._steps = trace.steps
        # Which steps use a value; the caller's use of the result is numbered -1.
        self._uses: list[list[int]] = [[] for _ in range(len(trace.steps) + 1)]
        for index, step in enumerate(trace.steps):
            for value in step.inputs:
                self._uses[value].append(index)
        self._uses[trace.result].append(-1)
        layers = [self._layer(step) for step in trace.steps if step.kind == "layer"]
        self._calls = [id(layer) for layer in layers if not isinstance(layer, nn.ReLU)]
        #: A trace stops at what torch.nn has, and else at frozen BatchNorms that were verified.
        self.frozen = tuple({type(m) for m in layers if m is not None and not is_stock_layer(m)})
        self.norms = (*NORMS, *self.frozen)

    def _layer(self, step: Step) -> nn.Module | None:
        return at(self._module, step.path) if step.kind == "layer" else None

    def owns(self, step: Step) -> bool:
        """Whether nothing but ``step`` can see the memory that its first input lies in."""
        value = step.inputs[0]
        if value == 0 or len(self._uses[value]) != 1:
            return False
        maker = self._steps[value - 1]
        layer = self._layer(maker)
        # Other layers may hand on their input, as Identity does, and Dropout in eval.
        makers = (nn.Conv3d, *self.norms)
        makes_new = not maker.inplace if layer is None else type(layer) in makers
        return makes_new or self.owns(maker)

    def _next(self, index: int) -> int | None:
        """The step that alone uses what step ``index`` makes, or None."""
        uses = self._uses[index + 1]
        return uses[0] if len(uses) == 1 and uses[0] >= 0 else None

    def _relu(self, index: int | None) -> nn.Module | None:
        """The ReLU at step ``index``; where it is a function, one that stands for it."""
        if index is None:
            return None
        step = self._steps[index]
        return _RELU if step.kind == "relu" else self._layer(step)

    def _four(self, index: int) -> tuple[list[int], list[nn.Module]]:
        """Up to four layers in a row, of which a function that is ReLU may be the third."""
        steps: list[int] = []
        layers: list[nn.Module] = []
        following: int | None = index
        while following is not None and len(steps) < 4:
            layer = (
                self._relu(following) if len(steps) == 2 else self._layer(self._steps[following])
            )
            if layer is None:
                break
            steps.append(following)
            layers.append(layer)
            following = self._next(following)
        return steps, layers

    def runs(self) -> dict[int, tuple[Run, list[int]]]:
        """By its last step, each run with all its steps."""
        found = {}
        taken: set[int] = set()
        for index in range(len(self._steps)):
            steps, layers = self._four(index)
            if taken.intersection(steps) or self.why_not(layers) is not None:
                continue
            spatial, norm, relu, temporal = (self._steps[i].path for i in steps)
            run, tail = self._with_tail(Run(spatial, norm, relu, temporal), steps[-1], taken)
            found[(steps + tail)[-1]] = (run, steps + tail)
            taken.update(steps, tail)
        return found

    def why_not(self, layers: Sequence[nn.Module]) -> str | None:
        """Why ``layers`` are no (2+1)D convolution, or None."""
        reason = why_not_fused(layers, self.norms)
        if reason is None and any(self._calls.count(id(layer)) > 1 for layer in layers):
            return "one of its layers is called again elsewhere"
        if reason is None and is_temporal(layers[0]) != is_spatial(layers[3]):
            # A bottleneck's. Both may be 1×1×1, as in mmaction2's shortcut.
            return "one of its convolutions is 1×1×1 and the other is not"
        return reason

    def _with_tail(self, run: Run, last: int, taken: set[int]) -> tuple[Run, list[int]]:
        norm = self._next(last)
        layer = None if norm is None else self._layer(self._steps[norm])
        if norm is None or type(layer) not in self.norms:
            return run, []
        tail = [norm]
        run = run._replace(outer_norm=self._steps[norm].path)
        following = self._next(norm)
        # Where the shortcut is a (2+1)D convolution too, the sum belongs to one of the two.
        if following in taken:
            return run, tail
        if following is not None and self._steps[following].kind == "add":
            step = self._steps[following]
            # In place, the sum lies in its first term, which must be this convolution's own.
            if not step.inplace or step.inputs[0] == norm + 1:
                tail.append(following)
                run = run._replace(joins=True, in_place=step.inplace)
                following = self._next(following)
        relu = self._relu(following)
        if following is not None and type(relu) is nn.ReLU:
            tail.append(following)
            run = run._replace(outer_relu=self._steps[following].path)
        return run, tail

    def why_no_run(self) -> str:
        """What stands in the way, told by the first two convolutions in the order they run."""
        convs = [i for i, step in enumerate(self._steps) if type(self._layer(step)) is nn.Conv3d]
        for index in convs:
            layers = self._four(index)[1]
            if len(layers) == 4 and type(layers[3]) is nn.Conv3d:
                first, last = layers[0], layers[3]
                if is_temporal(first) and is_spatial(last) and not is_spatial(first):
                    return "its temporal convolution comes before the spatial one"
                return self.why_not(layers) or "its layers are shared"
        names = [type(self._layer(s)).__name__ if s.path else s.kind for s in self._steps]
        return f"its layers run as {', '.join(names)}"


def is_spatial(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution whose kernel covers one frame."""
    return isinstance(module, nn.Conv3d) and module.kernel_size[0] == 1


def is_temporal(module: nn.Module) -> bool:
    """Whether ``module`` is a convolution whose kernel covers one pixel of a frame."""
    return isinstance(module, nn.Conv3d) and tuple(module.kernel_size[1:]) == (1, 1)


def _operations(trace: Trace, runs: dict[int, tuple[Run, list[int]]]) -> tuple[Operation, ...]:
    inside = {i for _, steps in runs.values() for i in steps}
    rows: list[tuple[str, tuple[int, ...], int, str, Run | None]] = []
    for index, step in enumerate(trace.steps):
        if index in runs:
            run, steps = runs[index]
            inputs = [trace.steps[steps[0]].inputs[0]]
            made = {i + 1 for i in steps}
            inputs += [v for i in steps for v in trace.steps[i].inputs if v not in made][1:]
            rows.append(("run", tuple(inputs), index + 1, "", run))
        elif index not in inside:
            kind = "add_" if step.kind == "add" and step.inplace else step.kind
            rows.append((kind, step.inputs, index + 1, step.path, None))
    last = {value: number for number, row in enumerate(rows) for value in row[1]}
    last.pop(trace.result, None)
    return tuple(
        Operation(*row, tuple(sorted(v for v in set(row[1]) if last.get(v) == number)))
        for number, row in enumerate(rows)
    )


def _records(
    module: nn.Module, operations: Sequence[Operation], frozen: tuple[type, ...]
) -> Iterator[Record]:
    called = {op.path for op in operations if op.kind == "layer"}
    # These are called wherever they are no epilogue.
    called.update(
        p for op in operations if op.run for p in (op.run.outer_norm, op.run.outer_relu) if p
    )
    for path, child in module.named_modules(remove_duplicate=False):
        kind = users_class(child)
        settings = _settings(child, type(child) in frozen)
        yield Record(path, kind, kind.forward, _children(child), settings, path in called)


def _children(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    return tuple((name, child is None) for name, child in module._modules.items())


def _settings(module: nn.Module, frozen: bool) -> tuple[tuple[str, object], ...]:
    if not frozen:
        return (("inplace", getattr(module, "inplace", None)),)
    own = ((n, v) for n, v in module.__dict__.items() if not n.startswith("_") or n not in _MODULE)
    return tuple((name, value) for name, value in own if name != "training")


_MODULE = frozenset(nn.Module().__dict__)


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
    if _children(module) != record.children:
        return f"the layers of {kind.__name__} are others now"
    if _settings(module, type(module) in frozen) != record.settings:
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
    for op in plan.operations:
        inputs = [values[i] for i in op.inputs]
        if op.run is not None:
            y = _carry_out_run(root, op.run, (*NORMS, *plan.frozen), *inputs)
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


def _carry_out_run(
    root: nn.Module,
    run: Run,
    norms: tuple[type[nn.Module], ...],
    x: Tensor,
    residual: Tensor | None = None,
) -> Tensor:
    layers = _layers(root, run)
    if run.outer_norm is None:
        return run_fused(layers, x)
    norm = at(root, run.outer_norm)
    relu = None if run.outer_relu is None else at(root, run.outer_relu) if run.outer_relu else _RELU
    dtype = _conv_dtype(x)
    if not folds(norm, norms) or not _keeps(norm, dtype):
        y = norm(run_fused(layers, x))
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

"""A forward as a list of operations, (2+1)D convolutions as one each.

:func:`make_plan` finds in a :class:`~r21d_ops.trace.Trace` every run of Conv3d(1×d×d), BatchNorm,
ReLU, Conv3d(t×1×1) on values that nothing else uses, and what of BatchNorm, shortcut and ReLU
follows it: in eval without gradients that is the operator's epilogue.
:class:`~r21d_ops.planned.Planned` modules carry plans out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from r21d_ops.frozen import own_attributes
from r21d_ops.modules import (
    NORMS,
    why_not_fused,
)
from r21d_ops.plain import Guard
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
    """What a :class:`~r21d_ops.planned.Planned` module does in place of its own forward.

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
    def is_block(self) -> bool:
        """Whether it holds a residual block: a run with BatchNorm and ReLU behind it, then one to
        which a shortcut is added as well."""
        ends = [run.epilogue for run in self.runs]
        return ("norm, ReLU", "norm, shortcut, ReLU") in itertools.pairwise(ends)

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
        settings = settings_of(child, type(child) in frozen)
        yield Record(path, kind, kind.forward, children_of(child), settings, path in called)


def children_of(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """Names of the children, and whether each is None."""
    return tuple((name, child is None) for name, child in module._modules.items())


def settings_of(module: nn.Module, frozen: bool) -> tuple[tuple[str, object], ...]:
    """What a layer does beside its kind; of a verified frozen BatchNorm, all its constants."""
    if not frozen:
        return (("inplace", getattr(module, "inplace", None)),)
    return tuple(own_attributes(module).items())

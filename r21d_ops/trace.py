"""What a module's ``forward`` does, as data: which layers run, in which order, on which values.

``fuse`` believes no class name. Where the source of a forward is plain (:mod:`r21d_ops.plain`), it
lets ``torch.fx`` follow the forward of a copy of the module with a stand-in for the input, and
accepts what it sees only if nothing but layers, additions and ReLUs happens, whatever the grad
mode and autocast are. The copy shares the module's tensors, holds none of its hooks and is thrown
away, so that nothing of the module itself changes.
"""

from __future__ import annotations

import copy
import itertools
import operator
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from r21d_ops.frozen import looks_frozen, why_not_frozen
from r21d_ops.modules import Conv2Plus1D, FusedSequential
from r21d_ops.plain import Guard, NotPlain, guards, is_constant

_ADD = {operator.add: False, torch.add: False, operator.iadd: True, "add": False, "add_": True}
_RELU = {torch.relu: False, F.relu: False, torch.relu_: True, "relu": False, "relu_": True}
#: What a forward may ask and not use, as in ``n, c, t, h, w = x.shape``.
_QUERIES = (getattr, operator.getitem)
_AUTOCAST_DEVICES = ("cpu", "cuda")


class Step(NamedTuple):
    """One operation; step i makes value i + 1, and value 0 is the module's input.

    Attributes:
        kind: ``"layer"``, ``"add"`` or ``"relu"``.
        inputs: the values it takes.
        path: for a layer, where in the module it is; empty for an operation.
        inplace: whether it writes to its first input.
    """

    kind: str
    inputs: tuple[int, ...]
    path: str = ""
    inplace: bool = False


class Trace(NamedTuple):
    """The steps of a forward, the value that it returns, and what it has to read again for that."""

    steps: tuple[Step, ...]
    result: int
    guards: tuple[Guard, ...] = ()


class Untraceable(Exception):
    """The forward does something else; the message says what."""


class DiffersByMode(Untraceable):
    """The forward does not do the same in every mode."""


def is_stock_class(kind: type) -> bool:
    """Whether ``kind`` is a layer of ``torch.nn``, rather than a container or somebody's class."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return kind.__module__.startswith("torch.nn.") and not issubclass(kind, containers)


def is_stock_layer(module: nn.Module) -> bool:
    """Whether ``module`` is a layer of ``torch.nn``."""
    return is_stock_class(type(module))


def trace(module: nn.Module, tensors: dict[int, Tensor], every_mode: bool) -> Trace:
    """The steps of ``module.forward``.

    Args:
        module: what to look at; it is left as it is.
        tensors: parameters and buffers by id, of which no copy is to be made.
        every_mode: ask for the same steps in training and eval, with and without gradients;
            otherwise only eval without gradients is looked at.

    Raises:
        Untraceable: the forward does what is not known, or not the same in every mode.
    """
    frozen, unverified = _frozen_norms(module)
    modes = [(False, False)]
    if every_mode:
        modes += [(True, True), (False, True), (True, False)]
    found = []
    asks = False
    for (training, gradients), autocast in itertools.product(modes, (False, True)):
        twin = _twin(module, tensors)
        twin.train(training)
        with torch.set_grad_enabled(gradients), _autocast(autocast):
            try:
                traced, flags = _trace_once(twin, frozen)
            except Untraceable as error:
                raise Untraceable("; ".join([*unverified, str(error)])) from error
        found.append(traced)
        asks = asks or flags
    if any(other != found[0] for other in found):
        raise DiffersByMode("its forward does not do the same in training, eval and autocast")
    if every_mode and asks:
        raise DiffersByMode("its forward asks whether it, or a layer, is in training")
    return found[0]


def _twin(module: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """A copy that shares tensors and process groups and has no hooks."""
    memo: dict[int, Any] = dict(tensors)
    for child in module.modules():
        group = getattr(child, "process_group", None)
        if group is not None:
            memo[id(group)] = group
        for name, value in child.__dict__.items():
            if "hook" in name and isinstance(value, dict):
                memo[id(value)] = OrderedDict()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise Untraceable(f"it cannot be copied to be looked at: {_line(error)}") from error


def _trace_once(twin: nn.Module, frozen: frozenset[str]) -> tuple[Trace, bool]:
    before = _state(twin)
    tracer = _Tracer(frozen)
    try:
        graph = tracer.trace(_OneInput(twin))
    except Untraceable:
        raise
    except NotPlain as error:
        raise Untraceable(str(error)) from error
    except fx.proxy.TraceError as error:
        raise Untraceable(
            "its forward depends on the values, the shape or the flags of its input"
        ) from error
    except Exception as error:
        raise Untraceable(f"its forward cannot be followed: {_line(error)}") from error
    if _state(twin) != before:
        raise Untraceable("its forward changes the module's own attributes")
    return _steps(graph, twin)._replace(guards=tuple(tracer.guards)), tracer.flags


def _frozen_norms(module: nn.Module) -> tuple[frozenset[str], list[str]]:
    """Paths of the frozen BatchNorms inside, and why others that look like one are none."""
    paths, unverified = [], []
    for path, child in module.named_modules():
        if child is not module and looks_frozen(child):
            reason = why_not_frozen(child)
            if reason is None:
                paths.append(path)
            else:
                unverified.append(reason)
    return frozenset(paths), unverified


def _line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    return text if len(text) <= 120 else text[:117] + "..."


def _state(module: nn.Module) -> list[Any]:
    """Attributes of every module inside, as far as they can be compared."""
    return [
        (key, value if is_constant(value) else id(value), _length(value))
        for child in module.modules()
        for key, value in child.__dict__.items()
    ]


def _length(value: object) -> int:
    return len(value) if isinstance(value, (list, dict, set)) else 0


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    # Not torch.autocast, which warns and stays off where there is no such device.
    before = [torch.is_autocast_enabled(device) for device in _AUTOCAST_DEVICES]
    for device in _AUTOCAST_DEVICES:
        torch.set_autocast_enabled(device, enabled)
    try:
        yield
    finally:
        for device, was in zip(_AUTOCAST_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, was)


def _modes_in_force() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in _AUTOCAST_DEVICES)
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast)


class _OneInput(nn.Module):
    """Calls the module with one input, so that its other arguments have their defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


class _StandIn(fx.Proxy):
    """Stands for a (N, C, T, H, W) tensor; remembers what is written in place."""

    ndim = 5

    def dim(self) -> int:
        return 5

    def __iadd__(self, other: Any) -> fx.Proxy:
        # fx would take ``x += y`` for ``x = x + y``.
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Stops at the layers of ``torch.nn`` and at frozen BatchNorms, steps through all else."""

    proxy_buffer_attributes = True

    def __init__(self, frozen: frozenset[str]) -> None:
        super().__init__()
        self._frozen = frozen
        self._modes = _modes_in_force()
        self.guards: list[Guard] = []
        self.flags = False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _StandIn(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        path = module_qualified_name.removeprefix("module.")
        return path != "module" and (is_stock_layer(m) or path in self._frozen)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return self.create_proxy("call_module", path, args, kwargs)
        if not _runs_its_children(m):
            root = self.root.get_submodule("module")
            found, flags = guards(root, path.removeprefix("module").removeprefix("."), m)
            self.guards += found
            self.flags = self.flags or flags
        # Not through __call__: nothing that the user hung on the class may run.
        return own_forward(m)(*args, **kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes_in_force() != self._modes:
            raise Untraceable("its forward changes the grad mode or autocast")
        return super().create_node(*args, **kwargs)


def _runs_its_children(module: nn.Module) -> bool:
    """Whether ``module`` is a sequence with the forward of one, fused or not."""
    ours = type(module) in (Conv2Plus1D, FusedSequential)
    return ours or users_class(module).forward is nn.Sequential.forward


def users_class(module: nn.Module) -> type[nn.Module]:
    """The class of ``module`` as it was before it got a plan of its own."""
    kind: type[nn.Module] = getattr(type(module), "_planned_base", type(module))
    return kind


def own_forward(module: nn.Module) -> Any:
    """The forward that ``module`` had before :func:`r21d_ops.fuse`."""
    from r21d_ops.planned import Planned

    own: Any = module
    if isinstance(module, (Conv2Plus1D, FusedSequential)):
        # Ours, or planned for a frozen norm inside: its layers one by one.
        return types.MethodType(nn.Sequential.forward, module)
    if isinstance(module, Planned):
        own = super(Planned, module)
    return own.forward


def _steps(graph: fx.Graph, twin: nn.Module) -> Trace:
    nodes = list(graph.nodes)
    for node in reversed(nodes):
        if node.op == "call_function" and node.target in _QUERIES and not node.users:
            graph.erase_node(node)
    values: dict[fx.Node, int] = {}
    steps: list[Step] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = 0
        elif node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise Untraceable("its forward does not return one tensor")
            return Trace(tuple(steps), values[node.args[0]])
        else:
            step = _step(node, values, twin)
            if step is None:
                raise Untraceable(_unknown(node))
            steps.append(step)
            values[node] = len(steps)
    raise Untraceable("its forward does not return")


def _step(node: fx.Node, values: dict[fx.Node, int], twin: nn.Module) -> Step | None:
    kwargs = {k: v for k, v in node.kwargs.items() if (k, v) != ("inplace", False)}
    inplace = kwargs.pop("inplace", False) is True
    if kwargs or not all(isinstance(a, fx.Node) and a in values for a in node.args):
        return None
    inputs = tuple(values[a] for a in node.args if isinstance(a, fx.Node))
    if node.op == "call_module" and len(inputs) == 1:
        path = str(node.target).removeprefix("module.")
        layer = twin.get_submodule(path)
        return Step("layer", inputs, path, getattr(layer, "inplace", False) is True)
    if node.op in ("call_function", "call_method"):
        for kind, table, arity in (("add", _ADD, 2), ("relu", _RELU, 1)):
            if node.target in table and len(inputs) == arity:
                return Step(kind, inputs, "", table[node.target] or inplace)
    return None


def _unknown(node: fx.Node) -> str:
    if node.op == "get_attr":
        name = str(node.target).removeprefix("module.")
        return f"its forward uses the tensor {name} outside of a layer"
    if node.op == "call_module":
        name = str(node.target).removeprefix("module.")
        return f"its forward calls {name} with more than one tensor"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    given = [*(("", a) for a in node.args), *((f"{k}=", a) for k, a in node.kwargs.items())]
    arguments = (k + ("a tensor" if isinstance(a, fx.Node) else str(a)) for k, a in given)
    return (
        f"its forward calls {name}({', '.join(arguments)}), which is no layer, sum of two or ReLU"
    )

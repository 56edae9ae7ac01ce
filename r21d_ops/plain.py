"""Which forwards ``fuse`` may follow: those that do nothing but call layers, add and rectify.

A forward is Python, and may do anything: draw random numbers, keep what it computes, ask for a
global switch.  Its source is read before it is followed, and must consist of calls of layers, of
ReLU and of sums, of branches and loops over the module's own settings, and of nothing else.  What
it reads of the module is noted as a :class:`Guard`, and has to be the same whenever the module
runs fused.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import textwrap
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

#: Functions a forward may call. The last one is never followed, but stands in branches that are
#: not taken.
_FUNCTIONS = (
    *(torch.relu, torch.relu_, torch.add, F.relu, F.relu_, operator.add, operator.iadd),
    *(range, len, enumerate, zip, reversed, checkpoint),
)
_TENSOR_METHODS = ("relu", "relu_", "add", "add_", "size", "dim")
_TENSOR_ATTRIBUTES = ("shape", "ndim", "requires_grad")
_STATEMENTS = (
    *(ast.Assign, ast.AnnAssign, ast.Return, ast.If, ast.For, ast.Expr, ast.Assert, ast.Pass),
)
_EXPRESSIONS = (ast.Name, ast.Constant, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple)


class NotPlain(Exception):
    """A forward does something else; the message says what."""


class Child(NamedTuple):
    """A module by its path from the root."""

    path: str


class Guard(NamedTuple):
    """What a forward reads of its module: ``name`` of the module at ``path`` is ``value``.

    ``value`` is a constant, a function, a :class:`Child`, or :data:`ABSENT`.
    """

    path: str
    name: str
    value: object


class _Absent:
    """Stands for an attribute that is not there; one object, also after pickling."""

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


class Reads(NamedTuple):
    """What a function reads.

    Attributes:
        attributes: names read of ``self``.
        flags: whether it asks a module whether it is in training.
    """

    attributes: frozenset[str]
    flags: bool


def is_constant(value: object) -> bool:
    """Whether ``value`` is None, a bool, a number, a string or a tuple of such."""
    if isinstance(value, tuple):
        return all(is_constant(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def guards(root: nn.Module, path: str, module: nn.Module) -> tuple[list[Guard], bool]:
    """The guards for ``module`` at ``path`` inside ``root``, and whether it asks for flags.

    Raises:
        NotPlain: its forward, or a method that this calls, may do what is not known.
    """
    where = {id(child): child_path for child_path, child in root.named_modules()}
    found: list[Guard] = []
    flags = False
    # Past the class that fuse puts before the user's.
    kind = getattr(type(module), "_planned_base", type(module))
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        reads = _reads(_function(kind, waiting.pop()))
        flags = flags or reads.flags
        for name in sorted(reads.attributes):
            value = getattr(module, name, ABSENT)
            if isinstance(value, nn.Module):
                if id(value) not in where:
                    raise NotPlain(f"its forward uses {name}, which is no layer inside it")
                found.append(Guard(path, name, Child(where[id(value)])))
            elif isinstance(value, types.MethodType) and value.__self__ is module:
                if name not in seen:
                    seen.add(name)
                    waiting.append(name)
            elif value is ABSENT or is_constant(value) or _is_arithmetic(value):
                found.append(Guard(path, name, value))
            else:
                raise NotPlain(f"its forward reads {name}, a {type(value).__name__}")
    return found, flags


def _is_arithmetic(value: object) -> bool:
    """Whether ``value`` is a function that can reach nothing but its arguments."""
    if isinstance(value, types.FunctionType):
        code = value.__code__
        inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
        return not (code.co_names or code.co_freevars or inner)
    return any(value is known for known in _FUNCTIONS)


def _function(kind: type, name: str) -> types.FunctionType:
    function = getattr(kind, name, None)
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        raise NotPlain(f"{kind.__name__}.{name} is not a plain method")
    return function


@functools.cache
def _reads(function: types.FunctionType) -> Reads:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        runs = _is_source_of(function)
    except (OSError, TypeError, SyntaxError, ValueError) as error:
        raise NotPlain(f"the source of {function.__qualname__} cannot be read") from error
    if not isinstance(tree, ast.FunctionDef) or not tree.args.args:
        raise NotPlain(f"{function.__qualname__} is not a plain method")
    if not runs:
        raise NotPlain(f"the source of {function.__qualname__} is not what runs")
    reader = _Reader(function, tree)
    reader.read()
    return Reads(frozenset(reader.attributes), reader.flags)


def _is_source_of(function: types.FunctionType) -> bool:
    """Whether the file compiles to ``function``: it may have been edited since its import."""
    lines, _ = inspect.findsource(function)
    code = function.__code__
    # The whole file, because what a module imports has a part in how its functions are compiled.
    waiting = [compile("".join(lines), code.co_filename, "exec", dont_inherit=True)]
    while waiting:
        compiled = waiting.pop()
        if (compiled.co_name, compiled.co_firstlineno) == (code.co_name, code.co_firstlineno):
            return _same(compiled, code)
        waiting += [c for c in compiled.co_consts if isinstance(c, types.CodeType)]
    return False


def _same(one: types.CodeType, other: types.CodeType) -> bool:
    if one.co_code != other.co_code or one.co_names != other.co_names:
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _same(a, b)
        if isinstance(a, types.CodeType) and isinstance(b, types.CodeType)
        else type(a) is type(b) and a == b
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


class _Reader:
    """Walks through the source of a method."""

    def __init__(self, function: types.FunctionType, tree: ast.FunctionDef) -> None:
        self._function = function
        self._tree = tree
        self._self = tree.args.args[0].arg
        self._functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        self._functions.discard(tree.name)
        self._locals = {
            *(a.arg for n in ast.walk(tree) if isinstance(n, ast.arguments) for a in n.args),
            *(
                n.id
                for n in ast.walk(tree)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            ),
            *self._functions,
        }
        self.attributes: set[str] = set()
        self.flags = False

    def read(self) -> None:
        self._definition(self._tree)

    def _refuse(self, node: ast.AST) -> NotPlain:
        text = ast.unparse(node).splitlines()[0]
        text = text if len(text) <= 60 else text[:57] + "..."
        return NotPlain(
            f"its forward does what is not known to be a layer, a sum or a ReLU: {text}"
        )

    def _definition(self, node: ast.FunctionDef) -> None:
        arguments = node.args
        plain = not (arguments.vararg or arguments.kwarg or arguments.posonlyargs)
        if node.decorator_list or not plain:
            raise self._refuse(node)
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None and not isinstance(default, ast.Constant):
                raise self._refuse(node)
        for statement in node.body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef):
            self._definition(node)
        elif isinstance(node, ast.AugAssign):
            if not isinstance(node.target, ast.Name) or not isinstance(node.op, ast.Add):
                raise self._refuse(node)
            self._expression(node.value)
        elif isinstance(node, _STATEMENTS):
            for child in _children(node):
                if isinstance(child, ast.stmt):
                    self._statement(child)
                elif isinstance(child, ast.expr):
                    self._expression(child)
        else:
            raise self._refuse(node)

    def _expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.BinOp):
            if not isinstance(node.op, ast.Add):
                raise self._refuse(node)
            self._expression(node.left)
            self._expression(node.right)
        elif isinstance(node, ast.UnaryOp):
            if not isinstance(node.op, ast.Not):
                raise self._refuse(node)
            self._expression(node.operand)
        elif isinstance(node, ast.Subscript):
            if not isinstance(node.ctx, ast.Load):
                raise self._refuse(node)
            self._expression(node.value)
            self._expression(node.slice)
        elif isinstance(node, ast.Name):
            if node.id == self._self or node.id not in self._locals:
                raise self._refuse(node)
        elif isinstance(node, _EXPRESSIONS):
            for child in _children(node):
                if isinstance(child, ast.expr):
                    self._expression(child)
        else:
            raise self._refuse(node)

    def _attribute(self, node: ast.Attribute) -> None:
        root = node.value
        if not isinstance(node.ctx, ast.Load):
            raise self._refuse(node)
        if isinstance(root, ast.Name) and root.id == self._self:
            if node.attr == "training":
                self.flags = True
            else:
                self.attributes.add(node.attr)
        elif isinstance(root, ast.Attribute) and node.attr == "training":
            self.flags = True
            self._attribute(root)
        elif isinstance(root, ast.Name) and root.id in self._locals:
            if node.attr not in _TENSOR_ATTRIBUTES:
                raise self._refuse(node)
        else:
            raise self._refuse(node)

    def _call(self, node: ast.Call) -> None:
        called = node.func
        if isinstance(called, ast.Attribute) and _root(called) == self._self:
            self._attribute(called)
            if called.attr == "training":
                raise self._refuse(node)
        elif isinstance(called, ast.Attribute) and _root(called) in self._locals:
            if called.attr not in _TENSOR_METHODS or not isinstance(called.value, ast.Name):
                raise self._refuse(node)
        elif isinstance(called, ast.Attribute) and called.attr in _TENSOR_METHODS:
            if not self._is_known(called):  # a method of what an expression gives
                self._expression(called.value)
        elif isinstance(called, ast.Name) and called.id in self._functions:
            pass
        elif not self._is_known(called):
            raise self._refuse(node)
        for argument in node.args:
            self._expression(argument)
        for keyword in node.keywords:
            self._expression(keyword.value)

    def _is_known(self, node: ast.expr) -> bool:
        """Whether ``node`` names one of the functions that a forward may call."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self._locals:
            return False
        value: Any = self._function.__globals__.get(node.id, ABSENT)
        if value is ABSENT:
            builtins = self._function.__globals__.get("__builtins__", {})
            value = getattr(builtins, node.id, ABSENT)
            if isinstance(builtins, dict):
                value = builtins.get(node.id, ABSENT)
        for name in reversed(names):
            if not isinstance(value, types.ModuleType):
                return False
            value = getattr(value, name, ABSENT)
        return any(value is known for known in _FUNCTIONS)


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _children(node: ast.AST) -> Iterator[ast.AST]:
    """The statements and expressions of ``node`` that are run: no annotations, no targets."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "target", "targets"):
            if not all(_is_name(target) for target in _as_list(value)) and field != "annotation":
                raise NotPlain(f"its forward keeps something: {ast.unparse(node).splitlines()[0]}")
        else:
            yield from (child for child in _as_list(value) if isinstance(child, ast.AST))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_name(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple):
        return all(_is_name(item) for item in node.elts)
    return isinstance(node, ast.Name)

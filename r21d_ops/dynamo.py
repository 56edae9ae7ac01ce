"""What ``torch.compile`` is told of a function, without the second that importing it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def constant_result(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A tracer calls ``function`` and takes what it returns for a constant.

    This is ``torch.compiler.assume_constant_result``, which makes the same mark and imports all of
    ``torch._dynamo``: longer than all else that a process needs before its first operator.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function

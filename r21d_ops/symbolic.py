"""A stand-in for the input of a module, and the tracer that follows it through a forward."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")


class StandIn(fx.Proxy):
    """Stands for a (N, C, T, H, W) tensor; remembers what is written in place."""

    ndim = 5

    def dim(self) -> int:
        return 5


def _in_place(name: str) -> Any:
    operation = getattr(operator, name)

    def record(self: StandIn, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return record


# fx would take ``x += y`` for ``x = x + y``.
for _name in _IN_PLACE:
    setattr(StandIn, f"__{_name}__", _in_place(_name))


class StandInTracer(fx.Tracer):
    """``fx.Tracer`` whose proxies are :class:`StandIn`, also for parameters and buffers."""

    proxy_buffer_attributes = True
    stand_in: type[fx.Proxy] = StandIn

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return self.stand_in(node, self)

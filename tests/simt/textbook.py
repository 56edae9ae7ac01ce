"""The simulator's textbook kernels (``csrc/simt/textbook``) beside numpy.

Numbers are small and whole, so that sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simt.library import simulator

Array = NDArray[Any]
#: What a kernel with a planted bug (``none``: as it should be) put out, and what it should have.
Run = Callable[[np.random.Generator, str], tuple[Array, Array]]

MODES = ("late", "early")
ORDERS = ("forward", "reversed", "shuffled")


def _whole(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.integers(-4, 5, shape).astype(np.float32)


def _unset(*shape: int) -> NDArray[np.float32]:
    return np.full(shape, np.nan, np.float32)


def _bug(name: str) -> Any:
    return simulator().Bug.__members__[name]


def reduce(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, sums = _whole(rng, 3, 700), _unset(3)
    simulator().reduce(x, sums, _bug(bug))
    return sums, x.sum(axis=1)


def transpose(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, y = _whole(rng, 70, 45), _unset(45, 70)
    simulator().transpose(x, y, _bug(bug))
    return y, x.T


def stencil(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, y = _whole(rng, 300), _unset(300)
    simulator().stencil(x, y, _bug(bug))
    return y, np.convolve(x, np.ones(3, np.float32), "same")


def pipeline(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, sums = _whole(rng, 7, 256), _unset(256)
    simulator().pipeline(x, sums, _bug(bug))
    return sums, x.sum(axis=0)


def _halves(x: NDArray[np.float32], bfloat16: bool) -> NDArray[np.uint16]:
    """The bits of numbers that the format holds."""
    if bfloat16:
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(np.float16).view(np.uint16)


def _matmul(bfloat16: bool, transposed: bool) -> Run:
    def run(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
        a, b, c = _whole(rng, 100, 72), _whole(rng, 72, 80), _unset(100, 80)
        given = np.ascontiguousarray(b if transposed else b.T)
        operands = (_halves(a, bfloat16), _halves(given, bfloat16))
        simulator().matmul(*operands, c, bfloat16, transposed, _bug(bug))
        return c, a @ b

    return run


def producer(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, y = _whole(rng, 5, 64), _unset(5, 64)
    simulator().producer(x, y, _bug(bug))
    return y, (x * x)[:, ::-1]


def histogram(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, counts = rng.integers(0, 40, (3, 500), dtype=np.uint32), np.zeros(40, np.uint32)
    simulator().histogram(x, counts, _bug(bug))
    return counts, np.bincount(x.ravel(), minlength=40)


def rotate(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, y = _whole(rng, 2, 32), _unset(2, 32)
    simulator().rotate(x, y, 3, _bug(bug))
    return y, np.roll(x, -3, axis=1)


def relay(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    x, y = _whole(rng, 3, 32), _unset(3, 32)
    simulator().relay(x, y, _bug(bug))
    return y, x[:, ::-1]


def slots(rng: np.random.Generator, bug: str) -> tuple[Array, Array]:
    assert bug == "none"
    x, y = rng.integers(0, 1000, 64, dtype=np.uint16), np.zeros(64, np.uint32)
    simulator().slots(x, y)
    return y, 3 * x.astype(np.uint32) + x[::-1]


KERNELS: dict[str, Run] = {
    "reduce": reduce,
    "transpose": transpose,
    "stencil": stencil,
    "pipeline": pipeline,
    "matmul": _matmul(True, False),
    "matmul, float16": _matmul(False, False),
    "matmul, transposed": _matmul(True, True),
    "producer": producer,
    "histogram": histogram,
    "rotate": rotate,
    "relay": relay,
    "slots": slots,
}

"""The rule by which an output is accurate enough: no tolerance is picked by hand.

An output passes when its error, maximum and root mean square both, is at most twice the error that
stock PyTorch makes in the same dtype on the same input, or one ulp of the largest exact value.
Stock PyTorch means its own layers, never the operator under test by another route. A large maximum
may be luck, which :func:`assert_accurate_over_draws` takes into account.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: What one draw of inputs gave: the tensor under test, the float64 one, stock PyTorch's.
Draw = tuple[Tensor, Tensor, list[Tensor]]

#: The root mean square of fewer errors than this is as much a matter of luck as the largest.
_FEW = 64


def one_ulp(exact: Tensor, dtype: torch.dtype) -> float:
    """The spacing of ``dtype``'s numbers at the largest finite magnitude of ``exact``."""
    finite = exact[exact.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    _, exponent = math.frexp(largest)
    return math.ldexp(torch.finfo(dtype).eps, exponent - 1)


def assert_accurate(
    actual: Tensor, exact: Tensor, stock: Tensor | Sequence[Tensor], what: str = "output"
) -> None:
    """Asserts that ``actual`` is as accurate as stock PyTorch, within a factor of two.

    Args:
        actual: the tensor under test, of any floating dtype.
        exact: the same in float64, computed from the same (rounded) inputs.
        stock: stock PyTorch's result in ``actual``'s dtype; where several are given (memory
            formats differ in how they round), the worst of them counts.
        what: what is compared, for the message.

    NaN, +inf and -inf must stand exactly where ``exact`` has them, which is more than stock
    PyTorch keeps (its bfloat16 convolutions spread NaN to pixels that do not see it); errors are
    of the rest.
    """
    errors = _check(actual, exact, [stock] if isinstance(stock, Tensor) else list(stock), what)
    for name, error, allowed in errors:
        assert error <= allowed, f"{what}: {name} error {error:.3g} is above {allowed:.3g}"


def assert_accurate_over_draws(draw: Callable[[], Draw], what: str = "output") -> None:
    """:func:`assert_accurate` on fresh inputs, the maximum by two draws of three.

    The largest of a thousand rounding errors is a matter of luck: between two equally good float32
    convolutions it differs by more than a factor of two about once in five hundred draws
    (measured). So a first draw whose maximum is above the bound must be outvoted by two further
    ones, while the root mean square and the places of NaN and infinity must be right in each. The
    root mean square of fewer than 64 values is as much luck, and goes into the vote as well.
    """
    votes = {True: 0, False: 0}
    while votes[False] < 2 and votes[True] < (1 if votes[False] == 0 else 2):
        actual, exact, stock = draw()
        (_, largest, bound), (_, mean, mean_bound) = _check(actual, exact, stock, what)
        votes[largest <= bound and mean <= mean_bound] += 1
        assert mean <= mean_bound or exact.numel() < _FEW, (
            f"{what}: RMS error {mean:.3g} is above {mean_bound:.3g}"
        )
    assert votes[False] < 2, (
        f"{what}: maximum error {largest:.3g} is above {bound:.3g}, or RMS error {mean:.3g} above "
        f"{mean_bound:.3g}, in two draws of three"
    )


def _check(
    actual: Tensor, exact: Tensor, stock: list[Tensor], what: str
) -> list[tuple[str, float, float]]:
    """(measure, error, the error allowed) for both measures, after shapes, dtypes, NaN and inf."""
    assert exact.dtype == torch.float64, f"{what}: exact is {exact.dtype}, not float64"
    assert actual.shape == exact.shape, (
        f"{what}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    )
    for output in stock:
        assert output.dtype == actual.dtype, f"{what}: {actual.dtype}, stock is {output.dtype}"
    _assert_same_specials(actual, exact, what)
    ulp = one_ulp(exact, actual.dtype)
    errors = []
    for name, measure in (("maximum", _maximum), ("RMS", _root_mean_square)):
        error = measure(actual, exact)
        stock_error = max(measure(output, exact) for output in stock)
        print(f"{what}: {name} error {error:.3g}, stock {stock_error:.3g}, one ulp {ulp:.3g}")
        errors.append((name, error, max(2 * stock_error, ulp)))
    return errors


def _assert_same_specials(output: Tensor, exact: Tensor, what: str) -> None:
    for name, test in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        differs = test(output) != test(exact)
        assert not differs.any(), (
            f"{what}: {name} differs from the exact result at {int(differs.sum())} of "
            f"{differs.numel()} places, first {differs.nonzero()[0].tolist()}"
        )


def _errors(output: Tensor, exact: Tensor) -> Tensor:
    finite = exact.isfinite() & output.isfinite()
    return (output.double()[finite] - exact[finite]).abs()


def _maximum(output: Tensor, exact: Tensor) -> float:
    errors = _errors(output, exact)
    return errors.max().item() if errors.numel() else 0.0


def _root_mean_square(output: Tensor, exact: Tensor) -> float:
    errors = _errors(output, exact)
    return errors.square().mean().sqrt().item() if errors.numel() else 0.0

"""Inputs of a training step's operators, of a drop-in convolution and in a residual block, and what
any backend makes of them.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accuracy import Draw, assert_accurate_over_draws
from ops.problems import Case, make_operands
from simt import training
from simt.training import Force, Forced, mid
from torch import Tensor

from r21d_ops.backends import cuda, eager
from r21d_ops.backends.eager import Norm, NormGradient

Results = dict[str, Tensor]

#: Values that are compared at once, of at most so many draws.
_ENOUGH, _MOST_POOLED = 200, 5


def _any_layout(rng: random.Random, weight: Tensor) -> Tensor:
    """The same values contiguous, channels last, or as a part of a larger weight."""
    layout = rng.choice(("contiguous", "channels last", "sliced"))
    if layout == "contiguous":
        return weight
    if layout == "channels last":
        return weight.contiguous(memory_format=torch.channels_last_3d)
    larger = torch.full((2 * weight.shape[0], *weight.shape[1:]), torch.nan, dtype=weight.dtype)
    return larger[::2].copy_(weight)


class Inputs:
    """What the operators of one problem are given: 5-d tensors in a dtype, vectors in float32.

    ``of_x``, ``of_u`` and ``of_y`` are the vectors of BatchNorms: scale, shift, mean and invstd;
    ``at_u`` and ``at_y`` the three factors of their backward passes.
    """

    def __init__(
        self, case: Case, rng: random.Random, generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def norm(channels: int) -> list[Tensor]:
            return [*(normal(channels) for _ in range(3)), normal(channels).abs() + 0.5]

        operands = make_operands(case, generator, dtype)
        mid_shape = (case.n, case.m, case.size[0], *case.out_size[1:])
        out_shape = (case.n, case.o, *case.out_size)
        self.case = case
        self.x = operands.x
        self.spatial = _any_layout(rng, operands.spatial_weight)
        self.temporal = _any_layout(rng, operands.temporal_weight)
        self.u, self.g = (normal(*mid_shape).to(dtype) for _ in range(2))
        self.y, self.grad, self.out = (normal(*out_shape).to(dtype) for _ in range(3))
        self.residual = normal(*self.x.shape).to(dtype)
        self.of_x, self.of_u, self.of_y = norm(case.c), norm(case.m), norm(case.o)
        self.at_u = [normal(case.m) for _ in range(3)]
        self.at_y = [normal(case.o) for _ in range(3)]

    def _map(self, change: Any) -> Inputs:
        changed = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(changed, name, change(value))
            elif isinstance(value, list):
                setattr(changed, name, [change(v) for v in value])
        return changed

    def wide(self) -> Inputs:
        """The same in float64."""
        return self._map(Tensor.double)

    def on_gpu(self) -> Inputs:
        """The same on the GPU, with the strides that they have."""

        def moved(tensor: Tensor) -> Tensor:
            there = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda"
            )
            return there.copy_(tensor)

        return self._map(moved)

    def results(self, ops: Any, held: Any = None) -> Results:
        """Everything that the operators of the backend ``ops`` return.

        ``held`` makes u and g what the backend holds; by default they stay as they are.
        """
        held = held or (lambda tensor: tensor)
        u, g = held(self.u), held(self.g)
        geometry = (self.case.stride, self.case.padding)
        of_x, at_y = Norm(*self.of_x), NormGradient(self.y, *self.at_y)
        frozen = NormGradient(self.y, self.at_y[0], None, None)
        scale, shift = self.of_u[:2]
        forward = (self.spatial, *geometry, True)
        temporal = (u, *self.of_u, self.temporal, *geometry, True)
        spatial = (g, u, self.x, self.spatial, *self.at_u, *geometry, True, True)
        sums = ("sum of g", "sum of g normalized")
        calls: dict[str, tuple[tuple[str, ...], Any]] = {
            "": (("u", "mean", "m2"), ops.spatial_forward(self.x, *forward)),
            "norm, ": (("u", "mean", "m2"), ops.spatial_forward(self.x, *forward, of_x)),
            "y: ": (
                ("y", "mean", "m2"),
                ops.temporal_forward(u, scale, shift, self.temporal, *geometry, True),
            ),
            "back: ": (
                ("g", "temporal weight", *sums), ops.temporal_backward(self.grad, *temporal)
            ),
            "norm, back: ": (
                ("g", "temporal weight", *sums), ops.temporal_backward(self.grad, *temporal, at_y)
            ),
            "frozen, back: ": (
                ("g", "temporal weight", *sums),
                ops.temporal_backward(self.grad, *temporal, frozen),
            ),
            "to x: ": (("x", "spatial weight"), ops.spatial_backward(*spatial)[:2]),
            "residual, to x: ": (
                ("x", "spatial weight"), ops.spatial_backward(*spatial, None, self.residual)[:2]
            ),
            "norm, to x: ": (
                ("x", "spatial weight", *sums), ops.spatial_backward(*spatial, of_x)
            ),
            "end: ": (("out",), (ops.join(self.y, *self.of_y[:2], self.grad),)),
            "end, back: ": (
                ("g at y", *sums), ops.join_backward(self.grad, self.out, self.y, *self.of_y[2:])
            ),
        }  # fmt: skip
        return {
            what + name: value
            for what, (names, values) in calls.items()
            for name, value in zip(names, values, strict=True)
        }


def run_step(inputs: Inputs, force: Force, **options: Any) -> Results:
    """:meth:`Inputs.results` of the CUDA kernels, on whichever device the inputs are."""
    with Forced(force), training.simulated(**options):
        return inputs.results(cuda, mid)


def real_channels(found: Results, mid_channels: int) -> Results:
    """Without the channels of u and g beyond M, which must hold zeros."""
    real = dict(found)
    for name, value in found.items():
        if name.split(" ")[-1] in ("u", "g") and value.dim() == 5:
            assert torch.count_nonzero(value[:, mid_channels:]) == 0, f"{name} beyond M"
            real[name] = value[:, :mid_channels]
    return real


def assert_step_accurate(
    case: Case,
    dtype: torch.dtype,
    rng: random.Random,
    generator: torch.Generator,
    run: Callable[[Inputs], Results],
) -> None:
    """Each result of ``run``, on the CPU, is as accurate as stock PyTorch's in ``dtype``.

    Of few values the error is luck, so that those of several draws are compared at once.
    """
    made: list[tuple[Results, Results, Results]] = []

    def results(number: int) -> tuple[Results, Results, Results]:
        while len(made) <= number:
            inputs = Inputs(case, rng, generator, dtype)
            found = real_channels(run(inputs), case.m)
            made.append((found, inputs.wide().results(eager), inputs.results(eager)))
        return made[number]

    for key in results(0)[0]:
        numbers = itertools.count()

        def draw(key: str = key, numbers: Iterator[int] = numbers) -> Draw:
            pool = [results(next(numbers))]
            while sum(one[0][key].numel() for one in pool) < _ENOUGH and len(pool) < _MOST_POOLED:
                pool.append(results(next(numbers)))
            ours, exact, stock = (
                torch.cat([one[place][key].flatten() for one in pool]) for place in range(3)
            )
            return ours, exact, [stock]

        assert_accurate_over_draws(draw, key)

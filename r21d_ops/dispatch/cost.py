"""What a problem costs whoever runs it: arithmetic and the sizes of its tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

from r21d_ops.problem import Problem


class ProblemCost(NamedTuple):
    """Floating-point operations (two for each multiply-add) and bytes, each tensor once."""

    spatial_flops: int
    temporal_flops: int
    input: int
    mid: int
    output: int
    spatial_weight: int
    temporal_weight: int

    @property
    def flops(self) -> int:
        """Both convolutions."""
        return self.spatial_flops + self.temporal_flops

    @property
    def weights(self) -> int:
        """Bytes of both weights."""
        return self.spatial_weight + self.temporal_weight

    @property
    def fused_bytes(self) -> int:
        """Input, weights and output once each: the least that any version moves."""
        return self.input + self.output + self.weights

    @property
    def two_kernel_bytes(self) -> int:
        """BatchNorm folded: the intermediate is written once and read once."""
        return self.fused_bytes + 2 * self.mid

    @property
    def eager_bytes(self) -> int:
        """Four kernels: the intermediate is written and read around BatchNorm and around ReLU."""
        return self.fused_bytes + 6 * self.mid


def problem_cost(problem: Problem) -> ProblemCost:
    """The cost of one forward pass of ``problem``."""
    n, c, m, o = problem[2:6]
    kt, kh, kw = problem.kernel
    mid, out = math.prod(problem.mid_size), math.prod(problem.out_size)
    size = problem.dtype.itemsize
    return ProblemCost(
        spatial_flops=2 * n * mid * m * c * kh * kw,
        temporal_flops=2 * n * out * o * m * kt,
        input=n * c * math.prod(problem.size) * size,
        mid=n * m * mid * size,
        output=n * o * out * size,
        spatial_weight=m * c * kh * kw * size,
        temporal_weight=o * m * kt * size,
    )

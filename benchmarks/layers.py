"""The (2+1)D layers of R(2+1)D-18 as problems of any batch, clip length and size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r21d.models.layers import LAYERS, Layer
from r21d_ops.dispatch.cost import ProblemCost, problem_cost
from r21d_ops.problem import Problem, Triple

__all__ = ["LAYERS", "Layer", "LayerProblem"]


@dataclass(frozen=True)
class LayerProblem:
    """A layer at one clip length, batch size and pixel size (``shrink`` divides every extent)."""

    layer: Layer
    batch: int
    frames: int
    shrink: int = 1

    def problem(self, device: str, dtype: torch.dtype) -> Problem:
        """As the operator sees it."""
        full = self.layer.problem(self.batch, self.frames, dtype, device)
        c, m, o = (n if n < 8 else max(8, n // self.shrink) for n in full[3:6])
        side = max(1, self.layer.side // self.shrink)
        return full._replace(
            in_channels=c, mid_channels=m, out_channels=o, size=(full.size[0], side, side)
        )

    @property
    def channels(self) -> Triple:
        """(C, M, O)."""
        problem = self.problem("cpu", torch.float32)
        return problem.in_channels, problem.mid_channels, problem.out_channels

    @property
    def size(self) -> Triple:
        """(T, H, W) of the input."""
        return self.problem("cpu", torch.float32).size

    def cost(self, dtype: torch.dtype) -> ProblemCost:
        """Arithmetic of one forward pass, and the bytes of each tensor."""
        return problem_cost(self.problem("cpu", dtype))

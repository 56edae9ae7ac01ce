"""The operators in Triton: one file per operator, its kernel and its launcher together.

=====================  ====================================================================
``fused.py``           inference in one kernel; v never leaves the chip
``spatial.py``         spatial convolution; BatchNorm's statistics, or BatchNorm and ReLU, behind it
``temporal.py``        temporal convolution; BatchNorm and ReLU before it, the epilogue behind it
``temporal_dgrad.py``  its gradient to BatchNorm's output: ReLU mask, both reductions behind it
``temporal_wgrad.py``  its weight gradient, v rebuilt on the way in
``spatial_dgrad.py``   gradient of x, BatchNorm's backward applied on the way in
``spatial_wgrad.py``   weight gradient of the spatial convolution, likewise
``tiles.py``           what they share on the device: the implicit matrix product and its prologues
``launch.py``          what they share on the host: layouts, tiles, grids, split-K
``operators.py``       ``torch.ops.r21d_triton.*``
``tuning.py``          the autotuner; ``cache.py`` is what it keeps on disk
=====================  ====================================================================

Every convolution here is an implicit matrix product over NDHWC tensors: a 2-D convolution over
*images* of rows and columns, which are frames of H×W pixels for the spatial convolution and clips
of T×(H·W) for the temporal one (``docs/kernels.md``). Intermediates have M rounded up to a multiple
of 16, the channels beyond M being zero.

Importing this package does not import Triton.
"""

from __future__ import annotations

import os

#: Whether Triton's interpreter runs the kernels, on the CPU: decided when they are first imported.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")

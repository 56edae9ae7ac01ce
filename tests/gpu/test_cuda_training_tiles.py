"""Every tile of the CUDA training kernels, its sums whole and in parts (seconds on one GPU).

The operators are given the same inputs as those of the simulator (tests/simt/test_training.py).
"""

from __future__ import annotations

import random

import pytest
import torch
from ops.problems import Case
from simt.random_problems import TRAINING_TILES
from simt.training import tiles_of
from simt.training_steps import Inputs, Results, assert_step_accurate, run_step

from r21d_ops.backends import get_backend

_CASES = (
    Case("whole", n=2, c=64, m=144, o=64, size=(4, 28, 28)),
    Case("odd", n=2, c=24, m=83, o=41, size=(5, 9, 11), stride=(2, 2, 2)),
    Case("stem", n=2, c=3, m=45, o=64, size=(4, 29, 31), kernel=(3, 7, 7), stride=(1, 2, 2),
         padding=(1, 3, 3)),
    Case("deep", n=1, c=128, m=230, o=256, size=(2, 7, 7)),
)  # fmt: skip


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("index", range(3 * len(TRAINING_TILES)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", _CASES, ids=str)
def test_every_tile(case: Case, dtype: torch.dtype, index: int, parts: int, seed: int) -> None:
    reason = get_backend("cuda").unavailable()
    if reason is not None:
        pytest.skip(f"cuda: {reason}")

    def on_gpu(inputs: Inputs) -> Results:
        there = run_step(inputs.on_gpu(), tiles_of(index, parts))
        return {name: value.cpu() for name, value in there.items()}

    generator = torch.Generator().manual_seed(seed)
    assert_step_accurate(case, dtype, random.Random(seed), generator, on_gpu)

"""Each instruction of ``csrc/cuda/ptx.cuh`` on this GPU does what the PTX manual says (a second).

With ``R21D_GOLDEN_DIR`` the outputs are written there, for ``tests/gpu/golden``, to which
``tests/simt/test_probes.py`` holds the simulator.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from instruction_probes import PROBES, Probe, canonical, write_golden

from r21d_ops.backends import get_backend


def _machine() -> dict[str, str]:
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {"gpu": torch.cuda.get_device_name(), "compute capability": capability}


@pytest.mark.parametrize("probe", PROBES, ids=str)
def test_as_the_manual_says(probe: Probe) -> None:
    if (reason := get_backend("cuda").unavailable()) is not None:
        pytest.skip(reason)
    words = torch.from_numpy(probe.input().ravel().view(np.int32)).cuda()
    output = torch.ops.r21d.cuda_probe(words, probe.name).cpu().numpy().view(np.uint32)
    if folder := os.environ.get("R21D_GOLDEN_DIR"):
        write_golden(Path(folder), probe, output, _machine())
    np.testing.assert_array_equal(canonical(output, probe.numbers), probe.expected())

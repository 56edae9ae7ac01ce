"""Each Triton kernel on its own, in the interpreter: every option, several programs and parts.

float16 and float32 against float64 (about 30 s). Block sizes are forced small, so that problems of
some hundred pixels make several tiles in each direction, several chunks of the sum and several
slices of M.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.problems import Case

from r21d_ops.triton import INTERPRETED

pytest.importorskip("triton", reason="Triton is not installed")
if not INTERPRETED:
    pytest.skip("tests/gpu runs the kernels on the GPU", allow_module_level=True)

from ops.triton_kernels import KERNELS, Kernel, check_kernel

from r21d_ops.triton import fused, launch
from r21d_ops.triton.fused import FusedTile
from r21d_ops.triton.launch import Tile

pytestmark = pytest.mark.usefixtures("poisoned")

#: M of two or three slices, sizes that no tile divides, strides whose phases differ, few channels
#: and many, kernels that padding or strides leave without a tap.
CASES = (
    Case("primes", n=1, c=40, m=41, o=19, size=(3, 5, 7)),
    Case("few-channels", n=1, c=3, m=45, o=18, size=(3, 11, 13), kernel=(3, 7, 7),
         stride=(1, 2, 2), padding=(1, 3, 3)),
    Case("strided", n=1, c=33, m=50, o=20, size=(4, 6, 7), stride=(2, 2, 2)),
    Case("mixed", n=1, c=6, m=35, o=17, size=(7, 6, 10), kernel=(2, 3, 4), stride=(2, 1, 3),
         padding=(1, 0, 2)),
    Case("stride-beyond-kernel", n=1, c=40, m=18, o=33, size=(10, 7, 9), kernel=(1, 1, 2),
         stride=(3, 2, 3), padding=(0, 0, 1)),
    Case("frames-in-padding", n=1, c=4, m=20, o=5, size=(2, 5, 4), kernel=(4, 3, 3),
         stride=(1, 1, 1), padding=(3, 2, 2)),
)  # fmt: skip

_DTYPES = {"float32": torch.float32, "float16": torch.float16}

#: Each problem in both dtypes, one of them whole and the other in parts, turn by turn. Through
#: frozen statistics only the prologue differs, which two problems show.
_EACH = [
    pytest.param(kernel, case, dtype, (i + j) % 2 == 0, id=f"{kernel}-{case}-{name}")
    for kernel in KERNELS
    for i, case in enumerate(CASES)
    if "frozen" not in kernel.name or case.name in ("primes", "mixed")
    for j, (name, dtype) in enumerate(_DTYPES.items())
]


def _way(kernel: Kernel, case: Case, whole: bool) -> dict[str, Any]:
    """Larger tiles, weights through descriptors where they may; or parts over smaller tiles."""
    described = kernel.describable == "m" or (
        kernel.describable == "c" and case.c % 8 == 0 and case.c >= launch.FLAT_BELOW
    )
    if kernel.module is fused:
        tile = FusedTile(64, 32, 16, 32, 4, 2, described) if whole else FusedTile(
            32, 16, 16, 64, 4, 2
        )  # fmt: skip
        return {"tile": tile, "chunk": None if whole else 2}
    tile = Tile(64, 32, 32, 4, 2, described) if whole else Tile(64, 16, 32, 4, 2)
    return {"tile": tile, "parts": 1 if whole else 3}


@pytest.mark.parametrize(("kernel", "case", "dtype", "whole"), _EACH)
def test_every_kernel(
    kernel: Kernel, case: Case, dtype: torch.dtype, whole: bool, generator: torch.Generator
) -> None:
    check_kernel(kernel, case, dtype, generator, **_way(kernel, case, whole))


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_special_values(kernel: Kernel, special: float, generator: torch.Generator) -> None:
    """NaN and infinity come out where the definition has them, and nowhere else."""
    case = Case("narrow", n=1, c=5, m=18, o=5, size=(3, 5, 4))
    way = _way(kernel, case, whole=special > 0)
    check_kernel(kernel, case, torch.float32, generator, special=special, **way)


def test_more_pixels_than_indices_are_refused() -> None:
    """Exported programs with symbolic sizes meet no other check."""
    x = torch.empty(1, dtype=torch.float16).expand(2**17, 8, 4, 64, 64)
    with pytest.raises(RuntimeError, match="2147483648 pixels"):
        launch.guard(x)

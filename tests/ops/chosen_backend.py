"""The backends that can run on this machine, as values of the ``backend`` fixture."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import r21d_ops
from r21d_ops import native
from r21d_ops.triton import INTERPRETED

_EVERY_DTYPE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_CPU_DTYPES = (torch.float32, torch.bfloat16)
#: What Triton's interpreter multiplies rightly.
_INTERPRETED_DTYPES = (torch.float32, torch.float16)
#: What the CUDA kernels take.
_SIMULATED_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """One backend: its name, its instruction set (None: the machine's best) and its device.

    ``kernels``: the way of running inference that is in force, ``fused`` or ``two``; None: its own.
    """

    name: str
    isa: str | None
    device: str
    dtypes: tuple[torch.dtype, ...]
    kernels: str | None = None

    @property
    def is_simulated(self) -> bool:
        """Whether its CUDA kernels run on the CPU (tests/simt)."""
        return self.name == "cuda" and self.device == "cpu"

    def __str__(self) -> str:
        return "-".join(part for part in (self.name, self.isa, self.kernels) if part is not None)


def available_backends(every_isa: bool) -> list[Backend]:
    """Each backend that can run here; ``cpu`` once, or once for each instruction set."""
    names = [row.name for row in r21d_ops.backends() if row.available]
    found = []
    if "cpu" in names:
        isas = native.build_info()["cpu"]["available"] if every_isa else [None]
        found += [Backend("cpu", isa, "cpu", _CPU_DTYPES) for isa in isas]
    if "triton" in names and INTERPRETED:
        found.append(Backend("triton", None, "cpu", _INTERPRETED_DTYPES))
    if "eager" in names:
        found.append(Backend("eager", None, "cpu", _EVERY_DTYPE))
    return found


def simulated_backends() -> list[Backend]:
    """``cuda`` on CPU tensors (tests/simt/backend.py), once for each way of inference."""
    return [Backend("cuda", None, "cpu", _SIMULATED_DTYPES, way) for way in ("fused", "two")]

"""What the launchers share: layouts, tiles, precision, grids, and where a sum is split."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from r21d_ops import dispatch
from r21d_ops.shapes import ndhwc
from r21d_ops.triton import tuning
from r21d_ops.triton.operators import MOST_INDEX
from r21d_ops.triton.tiles import FINISH, PART, WHOLE

#: Below this many input channels a chunk of the sum holds several taps (``multiply_flat``).
FLAT_BELOW = 32

#: Programs that keep a large GPU busy; fewer, and the sum is split over several.
ENOUGH_PROGRAMS = 256

#: A part of a split sum has at least this many steps.
STEPS_A_PART = 8


class Tile(NamedTuple):
    """Block sizes of a kernel: pixels × columns of output, ``depth`` of the sum at a time.

    With ``descriptors`` weights come by bulk copies through tensor descriptors (TMA, from compute
    capability 9.0). In the weight gradients the columns are those of the gradient's matrix,
    ``pixels`` its rows, and the sum runs over ``depth`` pixels at a time.
    """

    pixels: int
    columns: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False

    @property
    def name(self) -> str:
        """As in the tuner's cache and in ``r21d doctor``."""
        blocks = f"{self.pixels}x{self.columns}x{self.depth}"
        return f"{blocks}-w{self.warps}-s{self.stages}" + ("-tma" if self.descriptors else "")


class Blocks(Protocol):
    """What the launchers look at in a kernel's configuration, whatever else it has."""

    @property
    def pixels(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def warps(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def descriptors(self) -> bool: ...
    @property
    def name(self) -> str: ...


AnyTile = TypeVar("AnyTile", bound=Blocks)


def by_dtype(
    narrow: tuple[AnyTile, ...], float32: tuple[AnyTile, ...]
) -> Callable[[torch.dtype], tuple[AnyTile, ...]]:
    """A kernel's configuration space: from a dtype, ``narrow`` for 16 bits or ``float32``."""
    return lambda dtype: float32 if dtype == torch.float32 else narrow


def guard(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Kernels are launched on the current device: makes it that of ``tensor`` (N, C, T, H, W).

    Raises:
        RuntimeError: 32-bit indices do not reach its pixels. The backend refuses such problems;
            an exported program with symbolic sizes has not asked it.
    """
    pixels = tensor.shape[0] * math.prod(tensor.shape[2:])
    if pixels > MOST_INDEX:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} has {pixels} pixels; at most {MOST_INDEX} "
            "are indexed"
        )
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def pack_weight(weight: Tensor, pitch: int | None = None) -> Tensor:
    """``weight`` (outputs, inputs, t, h, w) with inputs innermost: (outputs, taps, ``pitch``).

    ``pitch`` rounds the inputs up, with zeros. No copy where the memory is so already.
    """
    outputs, inputs, *kernel = weight.shape
    innermost = ndhwc(weight).permute(0, 2, 3, 4, 1)
    if pitch is not None and pitch != inputs:
        innermost = torch.nn.functional.pad(innermost, (0, pitch - inputs))
    return innermost.reshape(outputs, math.prod(kernel), -1)


def precision(dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: for float32, what cuDNN's convolutions are allowed."""
    if dtype != torch.float32:
        return "tf32"  # of no effect on 16-bit operands
    return "tf32" if dispatch.arithmetic(dtype) == "tf32" else "ieee"


def options(tile: Blocks) -> dict[str, Any]:
    """Launch options. Fused multiply-adds by name, since versions differ in their default."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def parts_of_sum(programs: int, steps: int) -> int:
    """How many programs share a sum of ``steps``, given the ``programs`` that tiles make."""
    if programs >= ENOUGH_PROGRAMS or programs == 0:
        return 1
    return max(1, min(triton.cdiv(ENOUGH_PROGRAMS, programs), steps // STEPS_A_PART))


def launch_tiles(
    kernel: Any,
    tile: Tile,
    arguments: Sequence[Any],
    like: Tensor,
    pixels: int,
    columns: int,
    steps: int,
    phases: int = 1,
    parts: int | None = None,
) -> None:
    """Runs a convolution over ``pixels`` × ``columns``, its sum in parts where tiles are few.

    The kernel takes ``arguments``, then a workspace, the number of pixels, the number of parts, and
    as constants what to do, whether weights are descriptors, the precision and the block sizes.
    With ``phases`` the first axis of the grid has the tiles of each phase one after the other.
    """
    down, across = triton.cdiv(pixels, tile.pixels), triton.cdiv(columns, tile.columns)
    if parts is None:
        parts = parts_of_sum(down * across * phases, steps)
    workspace, runs = None, [(WHOLE, 1)]
    if parts > 1:
        workspace = like.new_empty(parts * phases * pixels * columns, dtype=torch.float32)
        runs = [(PART, parts), (FINISH, 1)]
    for run, depth in runs:
        kernel[(down * phases, across, depth)](
            *arguments, workspace, pixels, parts, run.value,
            tile.descriptors, precision(like.dtype), tile.pixels, tile.columns, tile.depth,
            **options(tile),
        )  # fmt: skip


def launch_sum_over_pixels(
    kernel: Any,
    tile: Tile,
    arguments: Sequence[Any],
    like: Tensor,
    rows: int,
    columns: int,
    pixels: int,
    parts: int | None = None,
) -> Tensor:
    """Runs a weight gradient, (rows, columns) in float32, summed over ``pixels``.

    Parts of the sum go to float32 matrices of their own, which are added in a fixed order: no
    atomics, the same bits every time. The kernel takes ``arguments``, then the workspace, the
    number of pixels, the number of parts, and as constants the precision and the block sizes.
    """
    down, across = triton.cdiv(rows, tile.pixels), triton.cdiv(columns, tile.columns)
    if parts is None:
        parts = parts_of_sum(down * across, triton.cdiv(pixels, tile.depth))
    workspace = like.new_empty(parts, rows, columns, dtype=torch.float32)
    if rows * columns > 0:
        kernel[(across, down, parts)](
            *arguments, workspace, pixels, parts, precision(like.dtype),
            tile.pixels, tile.columns, tile.depth, **options(tile),
        )  # fmt: skip
    return workspace.sum(0) if parts > 1 else workspace[0]


def pick_tile(
    operator: str,
    tiles: Iterable[AnyTile],
    key: tuple[Hashable, ...],
    run: Callable[[AnyTile], object],
    like: Tensor,
    pixels: int,
    columns: int,
    *weights: Tensor,
) -> AnyTile:
    """The configuration for a problem: the tuner's, else the planner's.

    Args:
        operator, key: what is tuned for, with the arithmetic of ``like`` and the size: up to a
            factor of two in pixels the same is best, and an epoch's last batch is not tuned again.
        tiles: the configuration space.
        run: launches one.
        weights: packed; where the GPU and each of them can have descriptors, tiles may use them.
    """
    described = bool(weights) and all(_describable(weight) for weight in weights)
    whole = (*key, columns, pixels.bit_length(), dispatch.arithmetic(like.dtype), described)
    return tuning.pick(operator, whole, prune(tiles, pixels, columns, described), run, like.device)


def prune(
    tiles: Iterable[AnyTile], pixels: int, columns: int, described: bool = False
) -> list[AnyTile]:
    """Those of ``tiles`` that are not far larger than the problem, the planner's choice first.

    Tiles with descriptors stay where they may be used: ``described``.
    """
    fit = [tile for tile in tiles if described or not tile.descriptors]
    kept = [
        tile
        for tile in fit
        if tile.columns <= max(16, triton.next_power_of_2(columns))
        and tile.pixels <= max(16, triton.next_power_of_2(pixels))
    ]
    return kept or [min(fit, key=lambda tile: tile.pixels * tile.columns)]


def _describable(weight: Tensor) -> bool:
    """Rows start at 16-byte addresses, on a GPU that copies in bulk."""
    if not weight.is_cuda or torch.cuda.get_device_capability(weight.device) < (9, 0):
        return False
    return weight.shape[-1] * weight.element_size() % 16 == 0 and weight.data_ptr() % 16 == 0


def weight_argument(weight: Tensor, tile: Blocks, columns: int, depth: int) -> Any:
    """A packed weight as a kernel takes it: itself, or its descriptor of (taps, columns, channels)
    with tiles of ``columns`` × ``depth``."""
    if not tile.descriptors:
        return weight
    outputs, taps, pitch = weight.shape
    return TensorDescriptor(
        weight, [taps, outputs, pitch], [pitch, taps * pitch, 1], [1, columns, depth]
    )

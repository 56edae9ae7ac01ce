"""Gradient of the temporal convolution to BatchNorm's output.

The gradient of v is masked by ReLU as it is made, and the two sums that BatchNorm's backward needs
are taken from what is stored.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r21d_ops.problem import Triple
from r21d_ops.triton import launch
from r21d_ops.triton.launch import Tile
from r21d_ops.triton.tiles import (
    FINISH,
    PART,
    PLAIN,
    load_vector,
    multiply_taps,
    part_of,
    phase,
    split_pixel,
    sum_parts,
)


@triton.jit
def temporal_dgrad_kernel(
    grad,
    weight,
    u,
    scale,
    shift,
    mean,
    invstd,
    g,
    sums,
    clips,
    frames,
    area,
    out_frames,
    pitch,
    mid,
    columns,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    workspace,
    pixels,
    parts,
    RUN: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One tile of g: ``PIXELS`` pixels of one phase of the frames × ``COLUMNS`` of the M channels.

    grad is (clips, out_frames, area, columns), weight (columns, taps, pitch), u and g
    (clips, frames, area, pitch) with ``mid`` channels in use; a row of ``sums`` (2, tiles, pitch)
    is Σg and Σg·(u - mean)·invstd over the tile. ``pixels`` counts those of the largest phase.
    """
    tiles = tl.cdiv(pixels, PIXELS)
    number = tl.program_id(0) // tiles
    first, count, taps, start = phase(number, frames, KERNEL, STRIDE, PADDING)
    pixel = (tl.program_id(0) % tiles) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = pixel < clips * count * area
    here = wanted[:, None] & (column < pitch)[None, :]
    if RUN == FINISH:
        acc = sum_parts(
            workspace, number * pixels + pixel, column, here, pixels * STRIDE, pitch, parts
        )
    clip, step, place = split_pixel(pixel, tl.maximum(count, 1), area)
    if RUN != FINISH:
        begin, end = part_of(taps * tl.cdiv(columns, DEPTH), tl.program_id(2), parts)
        acc = multiply_taps(
            tl.zeros((PIXELS, COLUMNS), tl.float32), grad, None, None, None, None, 0,
            weight, columns, KERNEL * pitch, 1, pitch,
            start + step, place, clip * out_frames, wanted, out_frames, area, columns,
            0, column, pitch, number, 1, begin, end,
            STRIDE, 1, -1, PLAIN, False, DEPTH, PRECISION,
        )  # fmt: skip
    if RUN == PART:
        part = (tl.program_id(2) * STRIDE + number).to(tl.int64) * pixels
        offset = (part + pixel)[:, None] * pitch + column[None, :]
        tl.store(workspace + offset, acc, mask=here)
    else:
        frame = first + step * STRIDE
        offset = ((clip * frames + frame) * area + place).to(tl.int64)[:, None] * pitch
        offset += column[None, :]
        value = tl.load(u + offset, mask=here, other=0.0).to(tl.float32)
        z = value * load_vector(scale, column, mid)[None, :]
        z += load_vector(shift, column, mid)[None, :]
        # Where z is NaN the gradient passes, as in torch's own backward of ReLU.
        kept = here & (column < mid)[None, :] & ~(z <= 0)
        stored = tl.where(kept, acc, 0.0).to(g.dtype.element_ty)
        tl.store(g + offset, stored, mask=here)
        wide = stored.to(tl.float32)
        centred = value - load_vector(mean, column, mid)[None, :]
        normalized = centred * load_vector(invstd, column, mid)[None, :]
        row = tl.program_id(0).to(tl.int64)
        tl.store(sums + (row * pitch + column), tl.sum(wide, 0), mask=column < pitch)
        total = tl.sum(tl.where(here, wide * normalized, 0.0), 0)
        row += tiles * STRIDE
        tl.store(sums + (row * pitch + column), total, mask=column < pitch)


#: 16-bit operands, then float32; the first that fits is the planner's.
TILES = (Tile(128, 64, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 4),
         Tile(128, 16, 32, 4, 4), Tile(16, 16, 32, 2, 3))  # fmt: skip
TILES_FLOAT32 = (Tile(64, 64, 32, 8, 3), Tile(64, 32, 32, 4, 3), Tile(64, 16, 32, 4, 3),
                 Tile(16, 16, 16, 2, 3))  # fmt: skip
tiles = launch.by_dtype(TILES, TILES_FLOAT32)


def temporal_input_gradient(
    grad: Tensor,
    u: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    tile: Tile | None = None,
    parts: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient g at BatchNorm's output, and per channel Σg and Σg·(u - mean)·invstd.

    Args:
        grad: (N, O, T', H, W), NDHWC.
        u: (N, M rounded up to 16, T, H, W), NDHWC.
        scale, shift, mean, invstd: (M,) float32.
        weight: (O, M, t, 1, 1).
        tile, parts: in place of what the tuner and the planner choose.

    Returns:
        g as u, the channels beyond M zero; two vectors (M,), float32.
    """
    n, pitch, frames, rows, cols = u.shape
    columns, mid, taps = weight.shape[:3]
    out_frames, area = grad.shape[2], rows * cols
    g = torch.empty_like(u, memory_format=torch.channels_last_3d)
    if u.numel() == 0:
        return g, torch.zeros_like(scale), torch.zeros_like(scale)
    packed = launch.pack_weight(weight, pitch)
    pixels = n * area * triton.cdiv(frames, stride[0])

    def run(tile: Tile) -> Tensor:
        down = triton.cdiv(pixels, tile.pixels) * stride[0]
        sums = u.new_empty(2, down, pitch, dtype=torch.float32)
        launch.launch_tiles(
            temporal_dgrad_kernel,
            tile,
            (
                grad, packed, u, scale, shift, mean, invstd, g, sums,
                n, frames, area, out_frames, pitch, mid, columns, taps, stride[0], padding[0],
            ),
            u, pixels, pitch, triton.cdiv(taps, stride[0]) * triton.cdiv(columns, tile.depth),
            phases=stride[0], parts=parts,
        )  # fmt: skip
        return sums

    with launch.guard(u):
        if tile is None:
            key = (columns, taps, stride[0])
            tile = launch.pick_tile("temporal_dgrad", tiles(u.dtype), key, run, u, pixels, pitch)
        sum_g, sum_normalized = (part[:, :mid].sum(0) for part in run(tile))
    return g, sum_g, sum_normalized

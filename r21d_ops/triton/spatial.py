"""The spatial 1×d×d convolution.

In training u is stored with BatchNorm's statistics of what was stored; in inference what is stored
is v = relu(u·scale + shift).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r21d_ops.problem import Triple, output_size
from r21d_ops.shapes import like_ndhwc, padded
from r21d_ops.triton import launch
from r21d_ops.triton.launch import Tile
from r21d_ops.triton.tiles import (
    FINISH,
    PART,
    PLAIN,
    load_vector,
    multiply_flat,
    multiply_taps,
    part_of,
    relu,
    split_pixel,
    sum_parts,
)


@triton.jit
def spatial_kernel(
    x,
    weight,
    out,
    scale,
    shift,
    sums,
    deviations,
    rows,
    cols,
    out_rows,
    out_cols,
    channels,
    mid,
    pitch,
    KERNEL_ROWS: tl.constexpr,
    KERNEL_COLS: tl.constexpr,
    STRIDE_ROWS: tl.constexpr,
    STRIDE_COLS: tl.constexpr,
    PADDING_ROWS: tl.constexpr,
    PADDING_COLS: tl.constexpr,
    FLAT: tl.constexpr,
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
    """One tile of u: ``PIXELS`` output pixels of any frames × ``COLUMNS`` of the M channels.

    x is (frames, rows, cols, channels), weight (mid, taps, channels), out (pixels, pitch); with
    ``scale`` the epilogue is BatchNorm and ReLU, with ``sums`` it is a row of each of ``sums`` and
    ``deviations`` (tiles, pitch): Σu and Σ(u - the tile's mean)². ``FLAT`` is the number of
    channels where they are few, else 0.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = pixel < pixels
    here = wanted[:, None] & (column < pitch)[None, :]
    if RUN == FINISH:
        acc = sum_parts(workspace, pixel, column, here, pixels, pitch, parts)
    else:
        image, out_row, out_col = split_pixel(pixel, out_rows, out_cols)
        row = out_row * STRIDE_ROWS - PADDING_ROWS
        col = out_col * STRIDE_COLS - PADDING_COLS
        acc = tl.zeros((PIXELS, COLUMNS), tl.float32)
        if FLAT > 0:
            steps = tl.cdiv(KERNEL_ROWS * KERNEL_COLS * FLAT, DEPTH)
            begin, end = part_of(steps, tl.program_id(2), parts)
            acc = multiply_flat(
                acc, x, weight, KERNEL_ROWS * KERNEL_COLS * FLAT,
                row, col, image * rows, wanted, rows, cols, column, mid, begin, end,
                FLAT, KERNEL_ROWS, KERNEL_COLS, DEPTH, PRECISION,
            )  # fmt: skip
        else:
            steps = KERNEL_ROWS * KERNEL_COLS * tl.cdiv(channels, DEPTH)
            begin, end = part_of(steps, tl.program_id(2), parts)
            acc = multiply_taps(
                acc, x, None, None, None, None, 0,
                weight, channels, 1, KERNEL_ROWS * KERNEL_COLS * channels, channels,
                row, col, image * rows, wanted, rows, cols, channels,
                tl.program_id(1) * COLUMNS, column, mid, 0, KERNEL_COLS, begin, end,
                KERNEL_COLS, 1, 1, PLAIN, DESCRIPTORS, DEPTH, PRECISION,
            )  # fmt: skip
    offset = pixel.to(tl.int64)[:, None] * pitch + column[None, :]
    if RUN == PART:
        part = tl.program_id(2).to(tl.int64) * pixels * pitch
        tl.store(workspace + (part + offset), acc, mask=here)
    else:
        if scale is not None:
            a = load_vector(scale, column, mid)
            b = load_vector(shift, column, mid)
            acc = relu(acc * a[None, :] + b[None, :])
        # Infinity times the weights that a channel beyond M does not have would be NaN.
        value = tl.where((column < mid)[None, :], acc, 0.0).to(out.dtype.element_ty)
        tl.store(out + offset, value, mask=here)
        if sums is not None:
            # The statistics are those of u as stored.
            stored = tl.where(here, value.to(tl.float32), 0.0)
            total = tl.sum(stored, 0)
            count = tl.minimum(pixels - tl.program_id(0) * PIXELS, PIXELS)
            centred = tl.where(here, stored - (total / count)[None, :], 0.0)
            place = tl.program_id(0).to(tl.int64) * pitch + column
            tl.store(sums + place, total, mask=column < pitch)
            tl.store(deviations + place, tl.sum(centred * centred, 0), mask=column < pitch)


#: 16-bit operands, then float32; the first that fits is the planner's.
TILES = (Tile(128, 64, 64, 8, 4, True), Tile(64, 64, 32, 4, 4), Tile(128, 128, 64, 8, 3),
         Tile(128, 128, 64, 8, 3, True), Tile(128, 256, 64, 8, 3, True),
         Tile(128, 16, 32, 4, 4), Tile(16, 16, 32, 2, 3))  # fmt: skip
TILES_FLOAT32 = (Tile(64, 64, 16, 4, 3), Tile(128, 32, 32, 8, 3), Tile(64, 16, 32, 4, 3),
                 Tile(16, 16, 16, 2, 3))  # fmt: skip
tiles = launch.by_dtype(TILES, TILES_FLOAT32)


def spatial_convolution(
    x: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    statistics: bool = False,
    tile: Tile | None = None,
    parts: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """u, or with ``scale`` and ``shift`` (M,) relu(u·scale + shift); with ``statistics`` also the
    mean of u and the sum of its squared deviations (M,), else two empty vectors.

    Args:
        x: (N, C, T, H, W), NDHWC.
        weight: (M, C, 1, d, d).
        tile, parts: in place of what the tuner and the planner choose.

    Returns:
        u (N, M rounded up to 16, T, H', W'), NDHWC; the channels beyond M are zero.
    """
    n, channels, frames, rows, cols = x.shape
    mid, (kh, kw) = weight.shape[0], weight.shape[3:]
    out_rows = output_size(rows, kh, stride[1], padding[1])
    out_cols = output_size(cols, kw, stride[2], padding[2])
    pitch = padded(mid)
    out = like_ndhwc(x, (n, pitch, *(frames, out_rows, out_cols)))
    pixels = n * frames * out_rows * out_cols
    packed = launch.pack_weight(weight)
    flat = channels if channels < launch.FLAT_BELOW else 0
    if pixels == 0:
        mean, m2 = (x.new_zeros(mid if statistics else 0, dtype=torch.float32) for _ in range(2))
        return out, mean, m2

    def run(tile: Tile) -> tuple[Tensor | None, Tensor | None]:
        sums = deviations = None
        if statistics:
            down = triton.cdiv(pixels, tile.pixels)
            sums, deviations = x.new_empty(2, down, pitch, dtype=torch.float32)
        taps = kh * kw
        steps = taps * channels if flat else taps * triton.cdiv(channels, tile.depth) * tile.depth
        launch.launch_tiles(
            spatial_kernel,
            tile,
            (
                x, launch.weight_argument(packed, tile, tile.columns, tile.depth),
                out, scale, shift, sums, deviations,
                rows, cols, out_rows, out_cols, channels, mid, pitch,
                kh, kw, stride[1], stride[2], padding[1], padding[2], flat,
            ),
            x, pixels, pitch, triton.cdiv(steps, tile.depth), parts=parts,
        )  # fmt: skip
        return sums, deviations

    with launch.guard(x):
        if tile is None:
            # Not by what is asked for beside u: computed again for backward, it is the same u.
            key = (channels, kh, kw, stride[1:], scale is None)
            weights = () if flat else (packed,)
            tile = launch.pick_tile("spatial", tiles(x.dtype), key, run, x, pixels, pitch, *weights)
        sums, deviations = run(tile)
    if sums is None or deviations is None:
        return out, x.new_empty(0, dtype=torch.float32), x.new_empty(0, dtype=torch.float32)
    mean, m2 = merge_statistics(sums[:, :mid], deviations[:, :mid], pixels, tile.pixels)
    return out, mean, m2


def merge_statistics(
    sums: Tensor, deviations: Tensor, pixels: int, tile: int
) -> tuple[Tensor, Tensor]:
    """Mean and Σ(u - mean)² over ``pixels`` values, by Chan's formula.

    From (tiles, M) sums and squared deviations from each tile's own mean; every tile has ``tile``
    values but the last.
    """
    counts = torch.full_like(sums[:, :1], tile)
    counts[-1] = pixels - tile * (len(sums) - 1)
    mean = sums.sum(0) / pixels
    between = (sums - counts * mean).square() / counts
    return mean, (deviations + between).sum(0)

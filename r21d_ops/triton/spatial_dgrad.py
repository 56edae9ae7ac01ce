"""Gradient of the spatial convolution to x; BatchNorm's backward makes the gradient of u on the
way in, so that it is never stored."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from r21d_ops.problem import Triple
from r21d_ops.shapes import like_ndhwc
from r21d_ops.triton import launch
from r21d_ops.triton.launch import Tile
from r21d_ops.triton.tiles import (
    FINISH,
    NORM_BACKWARD,
    PART,
    SCALE,
    multiply_taps,
    part_of,
    phase,
    split_pixel,
    sum_parts,
)


@triton.jit
def spatial_dgrad_kernel(
    g,
    u,
    g_factor,
    u_factor,
    offset_vector,
    weight,
    grad,
    images,
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
    """One tile of x's gradient: ``PIXELS`` pixels of one phase × ``COLUMNS`` of the C channels.

    g and u are (images, out_rows, out_cols, pitch) with ``mid`` channels in use, weight
    (mid, taps, channels), grad (images, rows, cols, channels). ``pixels`` counts those of the
    largest phase.
    """
    tiles = tl.cdiv(pixels, PIXELS)
    number = tl.program_id(0) // tiles
    first_row, count_rows, taps_rows, start_row = phase(
        number // STRIDE_COLS, rows, KERNEL_ROWS, STRIDE_ROWS, PADDING_ROWS
    )
    first_col, count_cols, taps_cols, start_col = phase(
        number % STRIDE_COLS, cols, KERNEL_COLS, STRIDE_COLS, PADDING_COLS
    )
    pixel = (tl.program_id(0) % tiles) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = pixel < images * count_rows * count_cols
    here = wanted[:, None] & (column < channels)[None, :]
    image, step_row, step_col = split_pixel(
        pixel, tl.maximum(count_rows, 1), tl.maximum(count_cols, 1)
    )
    if RUN == FINISH:
        acc = sum_parts(
            workspace, number * pixels + pixel, column, here,
            pixels * STRIDE_ROWS * STRIDE_COLS, channels, parts,
        )  # fmt: skip
    else:
        steps = taps_rows * taps_cols * tl.cdiv(pitch, DEPTH)
        begin, end = part_of(steps, tl.program_id(2), parts)
        first_tap = (number // STRIDE_COLS) * KERNEL_COLS + number % STRIDE_COLS
        acc = multiply_taps(
            tl.zeros((PIXELS, COLUMNS), tl.float32), g, u, g_factor, u_factor, offset_vector, mid,
            weight, mid, KERNEL_ROWS * KERNEL_COLS * channels, 1, channels,
            start_row + step_row, start_col + step_col, image * out_rows, wanted,
            out_rows, out_cols, pitch, 0, column, channels,
            first_tap, tl.maximum(taps_cols, 1), begin, end,
            STRIDE_ROWS * KERNEL_COLS, STRIDE_COLS, -1,
            SCALE if u_factor is None else NORM_BACKWARD, False, DEPTH, PRECISION,
        )  # fmt: skip
    if RUN == PART:
        part = tl.program_id(2) * (STRIDE_ROWS * STRIDE_COLS) + number
        offset = (part.to(tl.int64) * pixels + pixel)[:, None] * channels + column[None, :]
        tl.store(workspace + offset, acc, mask=here)
    else:
        row = image * rows + first_row + step_row * STRIDE_ROWS
        offset = (row * cols + first_col + step_col * STRIDE_COLS).to(tl.int64)[:, None] * channels
        tl.store(grad + (offset + column[None, :]), acc.to(grad.dtype.element_ty), mask=here)


#: 16-bit operands, then float32; the first that fits is the planner's.
TILES = (Tile(128, 64, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(64, 64, 32, 4, 3),
         Tile(64, 16, 32, 4, 4), Tile(16, 16, 32, 2, 3))  # fmt: skip
TILES_FLOAT32 = (Tile(64, 64, 16, 8, 3), Tile(64, 16, 32, 4, 3), Tile(16, 16, 32, 2, 3))
tiles = launch.by_dtype(TILES, TILES_FLOAT32)


def spatial_input_gradient(
    g: Tensor,
    u: Tensor,
    weight: Tensor,
    size: Triple,
    g_factor: Tensor,
    u_factor: Tensor | None,
    offset: Tensor | None,
    stride: Triple,
    padding: Triple,
    tile: Tile | None = None,
    parts: int | None = None,
) -> Tensor:
    """The gradient of x where u's is g·g_factor + u·u_factor + offset, per channel.

    Args:
        g, u: (N, M rounded up to 16, T, H', W'), NDHWC.
        weight: (M, C, 1, d, d).
        size: (T, H, W) of x.
        g_factor, u_factor, offset: (M,) float32; the last two both None where BatchNorm's
            statistics are frozen.
        tile, parts: in place of what the tuner and the planner choose.

    Returns:
        (N, C, T, H, W), NDHWC.
    """
    n, pitch, frames, out_rows, out_cols = g.shape
    mid, channels, _, kh, kw = weight.shape
    rows, cols = size[1:]
    grad = like_ndhwc(g, (n, channels, *size))
    if grad.numel() == 0:
        return grad
    packed = launch.pack_weight(weight)
    (sh, sw), (ph, pw) = stride[1:], padding[1:]
    pixels = n * frames * triton.cdiv(rows, sh) * triton.cdiv(cols, sw)

    def run(tile: Tile) -> None:
        taps = triton.cdiv(kh, sh) * triton.cdiv(kw, sw)
        launch.launch_tiles(
            spatial_dgrad_kernel,
            tile,
            (
                g, u, g_factor, u_factor, offset, packed, grad,
                n * frames, rows, cols, out_rows, out_cols, channels, mid, pitch,
                kh, kw, sh, sw, ph, pw,
            ),
            g, pixels, channels, taps * triton.cdiv(pitch, tile.depth),
            phases=sh * sw, parts=parts,
        )  # fmt: skip

    with launch.guard(g):
        if tile is None:
            key = (mid, kh, kw, sh, sw, u_factor is None)
            space = tiles(g.dtype)
            tile = launch.pick_tile("spatial_dgrad", space, key, run, g, pixels, channels)
        run(tile)
    return grad

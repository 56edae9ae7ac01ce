"""Weight gradient of the spatial convolution; BatchNorm's backward makes the gradient of u on the
way in."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from r21d_ops.problem import Triple
from r21d_ops.triton import launch
from r21d_ops.triton.launch import Tile
from r21d_ops.triton.tiles import load_vector, part_of, split_pixel


@triton.jit
def spatial_wgrad_kernel(
    g,
    u,
    g_factor,
    u_factor,
    offset_vector,
    x,
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
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One part of one tile of the gradient: ``ROWS`` of the M channels × ``COLUMNS`` of taps·C.

    g and u are (pixels, pitch), x (images, rows, cols, channels); the sum runs over a part of the
    output pixels, ``DEPTH`` at a time, and goes to its own (mid, taps·channels) of the workspace.
    """
    across = KERNEL_ROWS * KERNEL_COLS * channels
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tap = column // channels
    i, j = tap // KERNEL_COLS, tap % KERNEL_COLS
    place = i * cols + j
    channel = column % channels
    a = load_vector(g_factor, row, mid)[:, None]
    if u_factor is not None:
        b = load_vector(u_factor, row, mid)[:, None]
        c = load_vector(offset_vector, row, mid)[:, None]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    begin, end = part_of(tl.cdiv(pixels, DEPTH), tl.program_id(2), parts)
    for step in range(begin, end):
        pixel = step * DEPTH + tl.arange(0, DEPTH)
        image, out_row, out_col = split_pixel(pixel, out_rows, out_cols)
        y = out_row * STRIDE_ROWS - PADDING_ROWS
        z = out_col * STRIDE_COLS - PADDING_COLS
        here = (pixel < pixels)[None, :] & (row < pitch)[:, None]
        offset = pixel.to(tl.int64)[None, :] * pitch + row[:, None]
        value = tl.load(g + offset, mask=here, other=0.0).to(tl.float32) * a
        if u_factor is not None:
            value += tl.load(u + offset, mask=here, other=0.0).to(tl.float32) * b + c
        grad_u = tl.where(here, value, 0.0).to(x.dtype.element_ty)
        inside = (pixel < pixels)[:, None] & (column < across)[None, :]
        inside &= (y[:, None] + i[None, :] >= 0) & (y[:, None] + i[None, :] < rows)
        inside &= (z[:, None] + j[None, :] >= 0) & (z[:, None] + j[None, :] < cols)
        source = (((image * rows + y) * cols + z)[:, None] + place[None, :]).to(tl.int64)
        seen = tl.load(x + (source * channels + channel[None, :]), mask=inside, other=0.0)
        acc = tl.dot(grad_u, seen, acc, input_precision=PRECISION)
    offset = (tl.program_id(2).to(tl.int64) * mid + row)[:, None] * across + column[None, :]
    tl.store(workspace + offset, acc, mask=(row < mid)[:, None] & (column < across)[None, :])


#: 16-bit operands, then float32; the first that fits is the planner's.
TILES = (Tile(64, 128, 32, 8, 3), Tile(128, 128, 64, 8, 3), Tile(64, 64, 64, 4, 3),
         Tile(32, 32, 32, 4, 3), Tile(16, 16, 32, 2, 3))  # fmt: skip
TILES_FLOAT32 = (Tile(64, 64, 16, 8, 3), Tile(32, 64, 32, 4, 2), Tile(16, 16, 16, 2, 3))
tiles = launch.by_dtype(TILES, TILES_FLOAT32)


def spatial_weight_gradient(
    g: Tensor,
    u: Tensor,
    x: Tensor,
    kernel: tuple[int, int],
    mid: int,
    g_factor: Tensor,
    u_factor: Tensor | None,
    offset: Tensor | None,
    stride: Triple,
    padding: Triple,
    tile: Tile | None = None,
    parts: int | None = None,
) -> Tensor:
    """The weight gradient where u's is g·g_factor + u·u_factor + offset, per channel.

    Args:
        g, u: (N, M rounded up to 16, T, H', W'), NDHWC.
        x: (N, C, T, H, W), NDHWC.
        kernel: (d, d).
        mid: M.
        g_factor, u_factor, offset: (M,) float32; the last two both None where BatchNorm's
            statistics are frozen.
        tile, parts: in place of what the tuner and the planner choose.

    Returns:
        (M, C, 1, d, d), channels innermost.
    """
    n, channels, frames, rows, cols = x.shape
    pitch, _, out_rows, out_cols = g.shape[1:]
    kh, kw = kernel
    pixels = n * frames * out_rows * out_cols

    def run(tile: Tile) -> Tensor:
        return launch.launch_sum_over_pixels(
            spatial_wgrad_kernel,
            tile,
            (
                g, u, g_factor, u_factor, offset, x,
                rows, cols, out_rows, out_cols, channels, mid, pitch,
                kh, kw, stride[1], stride[2], padding[1], padding[2],
            ),
            x, mid, kh * kw * channels, pixels, parts,
        )  # fmt: skip

    with launch.guard(x):
        if tile is None:
            key = (pixels.bit_length(), kh, kw, stride[1:], u_factor is None)
            across = kh * kw * channels
            tile = launch.pick_tile("spatial_wgrad", tiles(x.dtype), key, run, x, mid, across)
        gradient = run(tile).to(x.dtype)
    return gradient.view(mid, 1, kh, kw, channels).permute(0, 4, 1, 2, 3)

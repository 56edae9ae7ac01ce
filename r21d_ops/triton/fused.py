"""Inference in one kernel: v = relu(bn(spatial(x))) never leaves the chip.

A program owns a tile of output pixels, of any clips, and walks over the frames. Each frame's u is
made in slices of M (product 1), turned into v in registers and multiplied at once with every
temporal tap (product 2), so as many output frames are being summed at a time as see one frame.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from r21d_ops.problem import MOST_LIVE, Triple, live_frames, output_size
from r21d_ops.shapes import like_ndhwc, padded
from r21d_ops.triton import launch
from r21d_ops.triton.temporal import finish_output
from r21d_ops.triton.tiles import (
    PLAIN,
    load_transposed,
    load_vector,
    multiply_flat,
    multiply_taps,
    relu,
    split_pixel,
)


@triton.jit
def fused_kernel(
    x,
    spatial_weight,
    temporal_weight,
    out,
    scale,
    shift,
    out_scale,
    out_shift,
    residual,
    pixels,
    frames,
    rows,
    cols,
    out_frames,
    out_rows,
    out_cols,
    channels,
    mid,
    pitch,
    columns,
    chunk,
    KERNEL_FRAMES: tl.constexpr,
    KERNEL_ROWS: tl.constexpr,
    KERNEL_COLS: tl.constexpr,
    STRIDE_FRAMES: tl.constexpr,
    STRIDE_ROWS: tl.constexpr,
    STRIDE_COLS: tl.constexpr,
    PADDING_FRAMES: tl.constexpr,
    PADDING_ROWS: tl.constexpr,
    PADDING_COLS: tl.constexpr,
    FLAT: tl.constexpr,
    RELU: tl.constexpr,
    LIVE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    MIDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """``chunk`` output frames of one tile of y: ``PIXELS`` positions × ``COLUMNS`` of O channels.

    x is (clips, frames, rows, cols, channels), spatial_weight (mid, taps, channels),
    temporal_weight (columns, taps, pitch), out and residual (clips, out_frames, out_rows, out_cols,
    columns); ``pixels`` is clips·out_rows·out_cols. Output frame s is opened at step s and complete
    ``LIVE`` - 1 steps later; live[a] is the sum of output frame ``step - a``.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = pixel < pixels
    clip, out_row, out_col = split_pixel(pixel, out_rows, out_cols)
    row = out_row * STRIDE_ROWS - PADDING_ROWS
    col = out_col * STRIDE_COLS - PADDING_COLS
    zero = tl.zeros((PIXELS, COLUMNS), tl.float32)
    live = (zero,) * LIVE
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, out_frames)
    for step in range(first, last + LIVE - 1):
        for j in tl.static_range(min(STRIDE_FRAMES, KERNEL_FRAMES)):
            frame = step * STRIDE_FRAMES + j - PADDING_FRAMES
            # A frame of padding is v = 0: it adds nothing.
            slices = tl.where((frame >= 0) & (frame < frames), tl.cdiv(mid, MIDS), 0)
            for number in range(0, slices):
                m = number * MIDS + tl.arange(0, MIDS)
                first_row = (clip * frames + frame) * rows
                u = tl.zeros((PIXELS, MIDS), tl.float32)
                if FLAT > 0:
                    u = multiply_flat(
                        u, x, spatial_weight, KERNEL_ROWS * KERNEL_COLS * FLAT,
                        row, col, first_row, wanted, rows, cols, m, mid,
                        0, tl.cdiv(KERNEL_ROWS * KERNEL_COLS * FLAT, DEPTH),
                        FLAT, KERNEL_ROWS, KERNEL_COLS, DEPTH, PRECISION,
                    )  # fmt: skip
                else:
                    u = multiply_taps(
                        u, x, None, None, None, None, 0,
                        spatial_weight, channels, 1, KERNEL_ROWS * KERNEL_COLS * channels, channels,
                        row, col, first_row, wanted, rows, cols, channels, number * MIDS, m, mid,
                        0, KERNEL_COLS, 0, KERNEL_ROWS * KERNEL_COLS * tl.cdiv(channels, DEPTH),
                        KERNEL_COLS, 1, 1, PLAIN, DESCRIPTORS, DEPTH, PRECISION,
                    )  # fmt: skip
                u = u * load_vector(scale, m, mid)[None, :] + load_vector(shift, m, mid)[None, :]
                # Infinity times the weights that a channel beyond M does not have would be NaN.
                v = tl.where((m < mid)[None, :], relu(u), 0.0).to(x.dtype.element_ty)
                summed = ()
                for a in tl.static_range(LIVE):
                    if a * STRIDE_FRAMES + j < KERNEL_FRAMES:
                        if DESCRIPTORS:
                            factor = load_transposed(
                                temporal_weight,
                                a * STRIDE_FRAMES + j,
                                tl.program_id(2) * COLUMNS,
                                number * MIDS,
                            )
                        else:
                            at = column * KERNEL_FRAMES + (a * STRIDE_FRAMES + j)
                            factor = tl.load(
                                temporal_weight + (m[:, None] + at[None, :] * pitch),
                                mask=(m < pitch)[:, None] & (column < columns)[None, :],
                                other=0.0,
                            )
                        dot = tl.dot(v, factor, live[a], input_precision=PRECISION)
                        summed = summed + (dot,)  # type: ignore[assignment]
                    else:
                        summed = summed + (live[a],)  # type: ignore[assignment]
                live = summed
        out_frame = step - (LIVE - 1)
        stored = tl.where(out_frame >= first, columns, 0)
        here = wanted[:, None] & (column < stored)[None, :]
        place = ((clip * out_frames + out_frame) * out_rows + out_row) * out_cols + out_col
        offset = place.to(tl.int64)[:, None] * columns + column[None, :]
        y = finish_output(
            live[LIVE - 1], out_scale, out_shift, residual, offset, column, columns, here, RELU
        )
        tl.store(out + offset, y.to(out.dtype.element_ty), mask=here)
        opened = (zero,)
        for a in tl.static_range(LIVE - 1):
            opened = opened + (live[a],)  # type: ignore[assignment]
        live = opened


class FusedTile(NamedTuple):
    """Block sizes: pixels × columns of y, ``mids`` of M at a time, ``depth`` of product 1's sum."""

    pixels: int
    mids: int
    columns: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False

    @property
    def name(self) -> str:
        """As in the tuner's cache and in ``r21d doctor``."""
        blocks = f"{self.pixels}x{self.mids}x{self.columns}x{self.depth}"
        return f"{blocks}-w{self.warps}-s{self.stages}" + ("-tma" if self.descriptors else "")


#: 16-bit operands, then float32; the first that fits is the planner's.
TILES = (FusedTile(64, 64, 64, 64, 8, 3, True), FusedTile(32, 64, 64, 32, 4, 3),
         FusedTile(64, 32, 64, 16, 8, 3), FusedTile(128, 64, 64, 64, 8, 3, True),
         FusedTile(64, 64, 128, 64, 8, 3, True), FusedTile(64, 32, 128, 32, 8, 3),
         FusedTile(64, 32, 16, 32, 4, 3), FusedTile(16, 32, 16, 32, 2, 2))  # fmt: skip
TILES_FLOAT32 = (FusedTile(32, 32, 32, 16, 8, 2), FusedTile(64, 16, 32, 16, 8, 2),
                 FusedTile(64, 32, 16, 32, 8, 2), FusedTile(16, 32, 16, 16, 4, 2))  # fmt: skip
tiles = launch.by_dtype(TILES, TILES_FLOAT32)


def _chunk(programs: int, out_frames: int) -> int:
    """Output frames a program: all, or fewer where the machine would starve."""
    chunks = min(out_frames, max(1, launch.ENOUGH_PROGRAMS // programs))
    return triton.cdiv(out_frames, chunks)


def fused_inference(
    x: Tensor,
    spatial_weight: Tensor,
    temporal_weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    out_scale: Tensor | None,
    out_shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    stride: Triple,
    padding: Triple,
    tile: FusedTile | None = None,
    chunk: int | None = None,
) -> Tensor:
    """y = temporal(relu(spatial(x)·scale + shift)), then ·out_scale + out_shift + residual, relu.

    Args:
        x: (N, C, T, H, W), NDHWC.
        spatial_weight, temporal_weight: (M, C, 1, d, d), (O, M, t, 1, 1), at most ``MOST_LIVE``
            output frames seeing one frame.
        residual: as y, NDHWC.
        tile, chunk: in place of what the tuner and the planner choose; ``chunk`` is the number of
            output frames a program.

    Returns:
        y (N, O, T', H', W'), NDHWC.
    """
    n, channels, frames, rows, cols = x.shape
    mid, (kh, kw) = spatial_weight.shape[0], spatial_weight.shape[3:]
    columns, _, kt = temporal_weight.shape[:3]
    out_frames, out_rows, out_cols = (
        output_size(*axis)
        for axis in zip((frames, rows, cols), (kt, kh, kw), stride, padding, strict=True)
    )
    out = like_ndhwc(x, (n, columns, *(out_frames, out_rows, out_cols)))
    if out.numel() == 0:
        return out
    live = live_frames(kt, stride[0])
    if live > MOST_LIVE:
        raise ValueError(f"{live} output frames see one frame; at most {MOST_LIVE} are served")
    pixels = n * out_rows * out_cols
    pitch = padded(mid)
    spatial = launch.pack_weight(spatial_weight)
    temporal = launch.pack_weight(temporal_weight, pitch)
    flat = channels if channels < launch.FLAT_BELOW else 0

    def run(tile: FusedTile) -> None:
        down, across = triton.cdiv(pixels, tile.pixels), triton.cdiv(columns, tile.columns)
        length = chunk or _chunk(down * across, out_frames)
        fused_kernel[(down, triton.cdiv(out_frames, length), across)](
            x,
            launch.weight_argument(spatial, tile, tile.mids, tile.depth),
            launch.weight_argument(temporal, tile, tile.columns, tile.mids),
            out, scale, shift, out_scale, out_shift, residual,
            pixels, frames, rows, cols, out_frames, out_rows, out_cols,
            channels, mid, pitch, columns, length,
            kt, kh, kw, *stride, *padding, flat, relu, live,
            tile.descriptors, launch.precision(x.dtype),
            tile.pixels, tile.mids, tile.columns, tile.depth,
            **launch.options(tile),
        )  # fmt: skip

    with launch.guard(x):
        if tile is None:
            key = (frames, channels, mid, kt, kh, kw, stride)
            weights = () if flat else (spatial, temporal)
            tile = launch.pick_tile("fused", tiles(x.dtype), key, run, x, pixels, columns, *weights)
        run(tile)
    return out

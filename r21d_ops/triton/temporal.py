"""The temporal t×1×1 convolution.

On the way in u may become v = relu(u·scale + shift), so v is never stored; on the way out the
epilogue of inference is applied.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from r21d_ops.problem import Triple, output_size
from r21d_ops.shapes import like_ndhwc
from r21d_ops.triton import launch
from r21d_ops.triton.launch import Tile
from r21d_ops.triton.tiles import (
    FINISH,
    NORM_RELU,
    PART,
    PLAIN,
    load_vector,
    multiply_taps,
    part_of,
    relu,
    split_pixel,
    sum_parts,
)


@triton.jit
def finish_output(acc, out_scale, out_shift, residual, offset, column, columns, here, RELU):
    """The epilogue: ·out_scale + out_shift + residual, ReLU, each where it is asked for."""
    if out_scale is not None:
        acc *= load_vector(out_scale, column, columns)[None, :]
    if out_shift is not None:
        acc += load_vector(out_shift, column, columns)[None, :]
    if residual is not None:
        acc += tl.load(residual + offset, mask=here, other=0.0).to(tl.float32)
    if RELU:
        acc = relu(acc)
    return acc


@triton.jit
def temporal_kernel(
    u,
    weight,
    out,
    scale,
    shift,
    out_scale,
    out_shift,
    residual,
    frames,
    area,
    out_frames,
    pitch,
    mid,
    columns,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr,
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
    """One tile of y: ``PIXELS`` output pixels × ``COLUMNS`` of the O channels.

    u is (clips, frames, area, pitch) with ``mid`` channels in use, weight (columns, taps, pitch),
    out and residual (pixels, columns), a pixel being a position in the ``area`` of a frame.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wanted = pixel < pixels
    here = wanted[:, None] & (column < columns)[None, :]
    if RUN == FINISH:
        acc = sum_parts(workspace, pixel, column, here, pixels, columns, parts)
    else:
        clip, out_frame, place = split_pixel(pixel, out_frames, area)
        begin, end = part_of(KERNEL * tl.cdiv(pitch, DEPTH), tl.program_id(2), parts)
        acc = multiply_taps(
            tl.zeros((PIXELS, COLUMNS), tl.float32), u, None, scale, shift, None, mid,
            weight, pitch, 1, KERNEL * pitch, pitch,
            out_frame * STRIDE - PADDING, place, clip * frames, wanted, frames, area, pitch,
            tl.program_id(1) * COLUMNS, column, columns, 0, 1, begin, end,
            1, 1, 1, PLAIN if scale is None else NORM_RELU, DESCRIPTORS, DEPTH, PRECISION,
        )  # fmt: skip
    offset = pixel.to(tl.int64)[:, None] * columns + column[None, :]
    if RUN == PART:
        part = tl.program_id(2).to(tl.int64) * pixels * columns
        tl.store(workspace + (part + offset), acc, mask=here)
    else:
        acc = finish_output(
            acc, out_scale, out_shift, residual, offset, column, columns, here, RELU
        )
        tl.store(out + offset, acc.to(out.dtype.element_ty), mask=here)


#: 16-bit operands, then float32; the first that fits is the planner's.
TILES = (Tile(128, 64, 64, 8, 4), Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 8, 4, True),
         Tile(128, 128, 64, 8, 3, True), Tile(256, 64, 32, 8, 4), Tile(64, 64, 64, 4, 4),
         Tile(128, 16, 32, 4, 4), Tile(16, 16, 32, 2, 3))  # fmt: skip
TILES_FLOAT32 = (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(64, 16, 32, 4, 3),
                 Tile(16, 16, 16, 2, 3))  # fmt: skip
tiles = launch.by_dtype(TILES, TILES_FLOAT32)


def temporal_convolution(
    u: Tensor,
    weight: Tensor,
    stride: Triple,
    padding: Triple,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    out_scale: Tensor | None = None,
    out_shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    tile: Tile | None = None,
    parts: int | None = None,
) -> Tensor:
    """y = temporal(relu(u·scale + shift)), then ·out_scale + out_shift + residual, relu.

    Args:
        u: (N, M rounded up to 16, T, H, W), NDHWC, the channels beyond M zero; without ``scale``
            it is v itself.
        weight: (O, M, t, 1, 1).
        residual: as y, NDHWC.
        tile, parts: in place of what the tuner and the planner choose.

    Returns:
        y (N, O, T', H, W), NDHWC.
    """
    n, pitch, frames, rows, cols = u.shape
    columns, mid, taps = weight.shape[:3]
    out_frames = output_size(frames, taps, stride[0], padding[0])
    out = like_ndhwc(u, (n, columns, *(out_frames, rows, cols)))
    pixels = n * out_frames * rows * cols
    if pixels == 0:
        return out
    packed = launch.pack_weight(weight, pitch)

    def run(tile: Tile) -> None:
        launch.launch_tiles(
            temporal_kernel,
            tile,
            (
                u, launch.weight_argument(packed, tile, tile.columns, tile.depth),
                out, scale, shift, out_scale, out_shift, residual,
                frames, rows * cols, out_frames, pitch, mid, columns,
                taps, stride[0], padding[0], relu,
            ),
            u, pixels, columns, taps * triton.cdiv(pitch, tile.depth), parts=parts,
        )  # fmt: skip

    with launch.guard(u):
        if tile is None:
            key = (mid, taps, stride[0], scale is None, residual is None)
            space = tiles(u.dtype)
            tile = launch.pick_tile("temporal", space, key, run, u, pixels, columns, packed)
        run(tile)
    return out

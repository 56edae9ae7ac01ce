"""Weight gradient of the temporal convolution; v = relu(u·scale + shift) is rebuilt for it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from r21d_ops.problem import Triple
from r21d_ops.triton import launch
from r21d_ops.triton.launch import Tile
from r21d_ops.triton.tiles import load_vector, part_of, relu, split_pixel


@triton.jit
def temporal_wgrad_kernel(
    grad,
    u,
    scale,
    shift,
    frames,
    area,
    out_frames,
    pitch,
    mid,
    outputs,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    workspace,
    pixels,
    parts,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One part of one tile of the gradient: ``ROWS`` of the O channels × ``COLUMNS`` of taps·pitch.

    grad is (pixels, outputs), u (clips, frames, area, pitch) with ``mid`` channels in use; the sum
    runs over a part of the output pixels, ``DEPTH`` at a time, and goes to its own
    (outputs, taps·pitch) of the workspace.
    """
    across = KERNEL * pitch
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tap = column // pitch
    channel = column % pitch
    a = load_vector(scale, channel, mid)[None, :]
    b = load_vector(shift, channel, mid)[None, :]
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    begin, end = part_of(tl.cdiv(pixels, DEPTH), tl.program_id(2), parts)
    for step in range(begin, end):
        pixel = step * DEPTH + tl.arange(0, DEPTH)
        clip, out_frame, place = split_pixel(pixel, out_frames, area)
        frame = (out_frame * STRIDE - PADDING)[:, None] + tap[None, :]
        inside = (pixel < pixels)[:, None] & (column < across)[None, :]
        inside &= (frame >= 0) & (frame < frames)
        source = ((clip * frames)[:, None] + frame) * area + place[:, None]
        source = source.to(tl.int64) * pitch + channel[None, :]
        value = tl.load(u + source, mask=inside, other=0.0).to(tl.float32)
        v = tl.where(inside, relu(value * a + b), 0.0).to(u.dtype.element_ty)
        here = (pixel < pixels)[None, :] & (row < outputs)[:, None]
        offset = pixel.to(tl.int64)[None, :] * outputs + row[:, None]
        acc = tl.dot(
            tl.load(grad + offset, mask=here, other=0.0), v, acc, input_precision=PRECISION
        )
    offset = (tl.program_id(2).to(tl.int64) * outputs + row)[:, None] * across + column[None, :]
    tl.store(workspace + offset, acc, mask=(row < outputs)[:, None] & (column < across)[None, :])


#: 16-bit operands, then float32; the first that fits is the planner's.
TILES = (Tile(64, 128, 64, 8, 3), Tile(128, 128, 64, 8, 3), Tile(64, 256, 32, 8, 3),
         Tile(64, 64, 64, 4, 3), Tile(32, 32, 32, 4, 3), Tile(16, 16, 32, 2, 3))  # fmt: skip
TILES_FLOAT32 = (Tile(64, 64, 16, 8, 3), Tile(32, 64, 32, 4, 2), Tile(16, 16, 16, 2, 3))
tiles = launch.by_dtype(TILES, TILES_FLOAT32)


def temporal_weight_gradient(
    grad: Tensor,
    u: Tensor,
    scale: Tensor,
    shift: Tensor,
    taps: int,
    stride: Triple,
    padding: Triple,
    tile: Tile | None = None,
    parts: int | None = None,
) -> Tensor:
    """The weight gradient of y = temporal(relu(u·scale + shift)).

    Args:
        grad: (N, O, T', H, W), NDHWC.
        u: (N, M rounded up to 16, T, H, W), NDHWC.
        scale, shift: (M,) float32.
        taps: t.
        tile, parts: in place of what the tuner and the planner choose.

    Returns:
        (O, M, t, 1, 1), channels innermost.
    """
    n, pitch, frames, rows, cols = u.shape
    outputs, out_frames = grad.shape[1:3]
    mid = len(scale)
    pixels = n * out_frames * rows * cols

    def run(tile: Tile) -> Tensor:
        return launch.launch_sum_over_pixels(
            temporal_wgrad_kernel,
            tile,
            (
                grad, u, scale, shift,
                frames, rows * cols, out_frames, pitch, mid, outputs,
                taps, stride[0], padding[0],
            ),
            u, outputs, taps * pitch, pixels, parts,
        )  # fmt: skip

    with launch.guard(u):
        if tile is None:
            key = (pixels.bit_length(), taps, stride[0])
            across = taps * pitch
            tile = launch.pick_tile("temporal_wgrad", tiles(u.dtype), key, run, u, outputs, across)
        gradient = run(tile).view(outputs, taps, pitch)[..., :mid].to(u.dtype).contiguous()
    return gradient.permute(0, 2, 1)[..., None, None]

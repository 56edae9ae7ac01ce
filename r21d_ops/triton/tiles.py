"""Device code that the kernels share: pixels of a tile, the implicit matrix product, prologues.

A convolution is a matrix product of pixels × (taps·channels) and (taps·channels) × columns. Rows
of the left matrix are gathered from an NDHWC tensor: for tap (i, j) of the kernel, output pixel
(y, x) reads row ``row + STEP·i`` and column ``col + STEP·j`` of its image. Forward, that is
``STEP`` = 1 from ``y·stride - padding``; backward to the input, ``STEP`` = -1, over the taps that
the pixel's place between two strides leaves (:func:`phase`).
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Elementwise prologues of :func:`multiply_taps`.
PLAIN = tl.constexpr(0)
NORM_RELU = tl.constexpr(1)
NORM_BACKWARD = tl.constexpr(2)
SCALE = tl.constexpr(3)

#: What a program of a convolution does: all of it, one part of a split sum, or the parts' sum.
WHOLE = tl.constexpr(0)
PART = tl.constexpr(1)
FINISH = tl.constexpr(2)


@triton.jit
def relu(z):
    """max(z, 0), and NaN where z is NaN."""
    return tl.where(z <= 0, 0.0, z)


@triton.jit
def load_vector(vector, index, length):
    """Per-channel float32 values; zero beyond ``length``."""
    return tl.load(vector + index, mask=index < length, other=0.0)


@triton.jit
def load_transposed(descriptor, tap, column, channel):
    """A tile (channels, columns) of a descriptor of (taps, columns, channels); zero outside."""
    tile = descriptor.load([tap, column, channel])
    return tl.reshape(tile, (tile.shape[1], tile.shape[2])).T


@triton.jit
def split_pixel(pixel, rows, cols):
    """Pixel number over all images as (image, row, column)."""
    image = pixel // (rows * cols)
    within = pixel % (rows * cols)
    return image, within // cols, within % cols


@triton.jit
def phase(number, SIZE, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr):
    """One of the ``STRIDE`` classes of positions along an axis of ``SIZE`` that meet the same taps.

    Position ``first + STRIDE·k`` meets taps ``number + STRIDE·i``, i < ``taps``, at the output
    positions ``start + k - i``. Returns (first, count of positions, taps, start).
    """
    first = (number + STRIDE * ((PADDING + STRIDE - 1) // STRIDE) - PADDING) % STRIDE
    count = tl.maximum(SIZE - first + STRIDE - 1, 0) // STRIDE
    taps = tl.maximum(KERNEL - number + STRIDE - 1, 0) // STRIDE
    start = (first + PADDING - number) // STRIDE
    return first, count, taps, start


@triton.jit
def multiply_taps(
    acc,
    source,
    second,
    vector_a,
    vector_b,
    vector_c,
    length,
    weight,
    weight_rows,
    weight_k,
    weight_n,
    weight_tap,
    row,
    col,
    first_row,
    wanted,
    rows,
    cols,
    channels,
    first_column,
    column,
    columns,
    first_tap,
    taps_cols,
    begin,
    end,
    TAP_ROW: tl.constexpr,
    TAP_COL: tl.constexpr,
    STEP: tl.constexpr,
    MODE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``acc`` plus the product over steps [begin, end) of taps × chunks of ``DEPTH`` channels.

    Args:
        acc: (pixels, columns) float32.
        source, second: pointers to NDHWC tensors of ``channels`` channels; ``second`` is u in
            ``NORM_BACKWARD``.
        vector_a, vector_b, vector_c: the prologue's per-channel vectors, of ``length`` values:
            ``NORM_RELU`` is relu(value·a + b), ``SCALE`` value·a, ``NORM_BACKWARD``
            value·a + second·b + c, in float32, rounded to the dtype of ``source``.
        weight: pointer; element (k, n) of tap t is at ``k·weight_k + n·weight_n + t·weight_tap``,
            k < ``weight_rows``, n < ``columns``. With ``DESCRIPTORS`` a tensor descriptor of
            (taps, columns, channels), of which a tile comes by one bulk copy.
        row, col: where each pixel's tap (0, 0) lies in its image.
        first_row: image number times ``rows``, per pixel.
        wanted: which pixels exist.
        column: the numbers of the tile's columns, from ``first_column``.
        first_tap: number of the first tap; the next one down is ``TAP_ROW`` further, the next one
            to the right ``TAP_COL``; there are ``taps_cols`` to the right.
    """
    chunk = tl.arange(0, DEPTH)
    chunks = tl.cdiv(channels, DEPTH)
    for step in range(begin, end):
        tap = step // chunks
        channel = (step % chunks) * DEPTH + chunk
        i = tap // taps_cols
        j = tap % taps_cols
        y = row + STEP * i
        x = col + STEP * j
        inside = wanted & (y >= 0) & (y < rows) & (x >= 0) & (x < cols)
        offset = ((first_row + y) * cols + x).to(tl.int64) * channels
        here = inside[:, None] & (channel < channels)[None, :]
        value = tl.load(source + (offset[:, None] + channel[None, :]), mask=here, other=0.0)
        if MODE != PLAIN:
            wide = value.to(tl.float32) * load_vector(vector_a, channel, length)[None, :]
            if MODE == NORM_RELU:
                wide = relu(wide + load_vector(vector_b, channel, length)[None, :])
            if MODE == NORM_BACKWARD:
                u = tl.load(second + (offset[:, None] + channel[None, :]), mask=here, other=0.0)
                wide += u.to(tl.float32) * load_vector(vector_b, channel, length)[None, :]
                wide += load_vector(vector_c, channel, length)[None, :]
            # Padding comes after the prologue: outside the image is zero, whatever the shift.
            value = tl.where(here, wide, 0.0).to(source.dtype.element_ty)
        tap_number = first_tap + i * TAP_ROW + j * TAP_COL
        if DESCRIPTORS:
            factor = load_transposed(weight, tap_number, first_column, (step % chunks) * DEPTH)
        else:
            factor = tl.load(
                weight
                + tap_number * weight_tap
                + (channel[:, None] * weight_k + column[None, :] * weight_n),
                mask=(channel < weight_rows)[:, None] & (column < columns)[None, :],
                other=0.0,
            )
        acc = tl.dot(value, factor, acc, input_precision=PRECISION)
    return acc


@triton.jit
def multiply_flat(
    acc,
    source,
    weight,
    weight_n,
    row,
    col,
    first_row,
    wanted,
    rows,
    cols,
    column,
    columns,
    begin,
    end,
    CHANNELS: tl.constexpr,
    KERNEL_ROWS: tl.constexpr,
    KERNEL_COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """:func:`multiply_taps`, forward and plain, for few channels: over steps of all taps·channels.

    A chunk of ``DEPTH`` holds several taps, so three channels do not become sixteen: the stem's 147
    products a column take 160, not 784. ``weight`` is contiguous per column, ``weight_n`` apart.
    """
    chunk = tl.arange(0, DEPTH)
    pixel = (first_row + row) * cols + col
    for step in range(begin, end):
        k = step * DEPTH + chunk
        i = k // (KERNEL_COLS * CHANNELS)
        j = k % (KERNEL_COLS * CHANNELS) // CHANNELS
        y = row[:, None] + i[None, :]
        x = col[:, None] + j[None, :]
        here = wanted[:, None] & (k < KERNEL_ROWS * KERNEL_COLS * CHANNELS)[None, :]
        here &= (y >= 0) & (y < rows) & (x >= 0) & (x < cols)
        offset = (pixel[:, None] + (i * cols + j)[None, :]).to(tl.int64) * CHANNELS
        value = tl.load(source + (offset + (k % CHANNELS)[None, :]), mask=here, other=0.0)
        factor = tl.load(
            weight + (k[:, None] + column[None, :] * weight_n),
            mask=(k < KERNEL_ROWS * KERNEL_COLS * CHANNELS)[:, None] & (column < columns)[None, :],
            other=0.0,
        )
        acc = tl.dot(value, factor, acc, input_precision=PRECISION)
    return acc


@triton.jit
def part_of(steps, part, parts):
    """Steps [begin, end) of one of ``parts`` equal parts of a sum."""
    size = tl.cdiv(steps, parts)
    begin = tl.minimum(part * size, steps)
    return begin, tl.minimum(begin + size, steps)


@triton.jit
def sum_parts(workspace, row, column, here, rows, columns, parts):
    """The sum of ``parts`` float32 matrices of ``rows`` × ``columns`` at one tile."""
    offset = row.to(tl.int64)[:, None] * columns + column[None, :]
    total = tl.load(workspace + offset, mask=here, other=0.0)
    for _ in range(1, parts):
        offset += tl.cast(rows, tl.int64) * columns
        total += tl.load(workspace + offset, mask=here, other=0.0)
    return total

"""Random problems for every tile of the CUDA kernels, small enough to simulate."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace

from ops.problems import Case
from simt.simulated import SHARED_CLASSES, Setting

#: (pixel warps, channels of M in a slice, live output frames), as in csrc/cuda/config.h.
FUSED_TILES = tuple(itertools.product((4, 2), (144, 48), (3, 2, 1)))
#: (pixel warps, columns).
CONV_TILES = ((4, 144), (4, 128), (4, 96), (4, 64), (4, 48), (2, 64))

#: (pixel warps, columns) of training's convolutions; (row warps, columns) of its weight gradients.
TRAINING_TILES = ((4, 144), (4, 128), (4, 64), (2, 64))
WEIGHT_TILES = ((3, 192), (4, 128), (2, 64))

DTYPES = ("bfloat16", "float16")

#: Temporal kernels and strides by how many output frames see one frame.
_TEMPORAL = {
    1: ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3)),
    2: ((2, 1), (3, 2), (4, 2), (4, 3), (5, 3)),
    3: ((3, 1), (3, 1), (3, 1), (5, 2), (6, 2), (7, 3)),
}

#: Multiply-adds that a simulated problem may take, padding to tiles included.
_BUDGET = 1.0e8


@dataclass(frozen=True)
class Wanted:
    """What a random problem is drawn for.

    Attributes:
        dtype: of the tensors.
        fused: the fused kernel's tile, or None for two kernels with the tiles below.
        spatial, temporal: tiles of the two kernels.
        deep: a block makes several frames, its ring goes around, T is at least 4, and M takes more
            than one slice.
        whole: M fills its slices, as the paper's does.
        bands: of the fused kernel's input, where it has 8 channels or more.
    """

    dtype: str
    fused: tuple[int, int, int] | None
    spatial: tuple[int, int]
    temporal: tuple[int, int]
    deep: bool
    whole: bool = False
    bands: int = 1

    def __str__(self) -> str:
        tiles = self.fused or (*self.spatial, *self.temporal)
        kind = "fused" if self.fused else "two"
        flags = [name for name in ("deep", "whole") if getattr(self, name)]
        bands = [f"bands{self.bands}"] if self.fused else []
        return "-".join([kind, "x".join(map(str, tiles)), self.dtype, *flags, *bands])


def every_wanted() -> list[Wanted]:
    """Each tile in each dtype: the fused twelve times, eight of them deep; the others ten times."""
    found = []
    for dtype in DTYPES:
        for tile in FUSED_TILES:
            found += [
                Wanted(dtype, tile, (0, 0), (0, 0), deep, whole, bands)
                for deep, whole, bands in itertools.product((True, False), (True, False), (1, 2))
                for _ in range(2 if deep else 1)
            ]
        for first, second in itertools.product(CONV_TILES, repeat=2):
            if (CONV_TILES.index(first) + CONV_TILES.index(second)) % 6 < 5:
                found.append(Wanted(dtype, None, first, second, False))
    return found


def _slices(mid: int, width: int) -> int:
    return math.ceil(mid / width)


def _fused_work(case: Case, tile: tuple[int, int, int], chunk: int) -> float:
    warps, mids, live = tile
    pixels = 32 * warps
    (t, h, w), (kt, kh, kw) = case.out_size, case.kernel
    blocks = case.n * math.ceil(h * w / pixels) * math.ceil(t / chunk) * math.ceil(case.o / 64)
    frames = min(case.size[0], (chunk - 1) * case.stride[0] + kt)
    depth = math.ceil(case.c / 16) * 16 * kh * kw if case.c >= 8 else case.c * kh * kw + 16
    work = pixels * mids * (depth + 64 * live)
    return float(blocks * frames * _slices(case.m, mids) * work)


def _conv_work(case: Case, spatial: tuple[int, int], temporal: tuple[int, int]) -> float:
    (t, h, w), (kt, kh, kw) = case.out_size, case.kernel
    mid = math.ceil(case.m / 16) * 16

    def work(pixels: int, columns: int, depth: int, tile: tuple[int, int]) -> float:
        down, across = math.ceil(pixels / (32 * tile[0])), math.ceil(columns / tile[1])
        return float(down * across * 32 * tile[0] * tile[1] * (depth + 32))

    first = work(case.n * case.size[0] * h * w, mid, case.c * kh * kw, spatial)
    return first + work(case.n * t * h * w, case.o, mid * kt, temporal)


def _draw(rng: random.Random, wanted: Wanted) -> Case:
    live = wanted.fused[2] if wanted.fused else rng.choice((1, 2, 3))
    kt, st = rng.choice(_TEMPORAL[live]) if wanted.fused else (rng.randint(1, 7), rng.randint(1, 3))
    kernel = (kt, rng.choice((1, 2, 3, 3, 3, 4, 5, 7)), rng.choice((1, 2, 3, 3, 3, 4, 5, 7)))
    stride = (st, rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 3)))
    padding = (rng.randint(0, 3), rng.randint(0, 3), rng.randint(0, 3))
    if wanted.fused:
        width = wanted.fused[1]
        most = 2 * width if wanted.deep else width
        mid = most if wanted.whole else rng.randint(most - width + 1, most)
    else:
        mid = rng.choice((rng.randint(1, 40), rng.randint(41, 200)))
    return Case(
        "random",
        n=rng.choice((1, 1, 2, 3)),
        c=rng.choice((1, 2, 3, 3, 5, 7, 8, 8, 12, 16, 16, 20, 24, 40)),
        m=mid,
        o=rng.choice((rng.randint(1, 130), rng.choice((8, 16, 24, 64, 72)))),
        size=(
            rng.randint(4, 7) if wanted.deep else rng.randint(1, 6),
            rng.randint(1, 24),
            rng.randint(1, 24),
        ),
        kernel=kernel,
        stride=stride,
        padding=padding,
    )


def draw_problem(rng: random.Random, wanted: Wanted) -> tuple[Case, Setting]:
    """A problem and how to run it, within the budget."""
    while True:
        case = _draw(rng, wanted)
        if min(case.out_size) < 1:
            continue
        shared = rng.choice(SHARED_CLASSES)
        if wanted.fused is None:
            if _conv_work(case, wanted.spatial, wanted.temporal) > _BUDGET:
                continue
            tiles = {"spatial": wanted.spatial, "temporal": wanted.temporal}
            force = {k: {"pixel_warps": w, "columns": c} for k, (w, c) in tiles.items()}
            return case, Setting("two", force, shared)
        frames = case.out_size[0]
        if wanted.deep and frames < 2:
            continue
        chunk = rng.choice((frames, math.ceil(frames / 2)) if frames > 3 else (frames,))
        if _fused_work(case, wanted.fused, chunk) > _BUDGET:
            continue
        warps, mids, _ = wanted.fused
        if wanted.bands == 2 and case.c < 8:
            continue
        force = {"pixel_warps": warps, "columns": mids, "bands": wanted.bands, "chunk": chunk}
        return case, Setting("fused", {"fused": force}, shared)


def roomier(setting: Setting) -> Setting | None:
    """The same with the next larger class of shared memory."""
    larger = [size for size in sorted(SHARED_CLASSES) if size > setting.shared]
    return replace(setting, shared=larger[0]) if larger else None

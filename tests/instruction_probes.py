"""The probes of ``csrc/cuda/probes.cuh``: inputs, and what the PTX ISA says that comes out.

An independent statement of the manual in numpy, to which the host simulator and, on hardware, the
instructions themselves are held. Every word is a ``uint32``; a row of an array is a round.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

#: Outputs of hardware, one file a case; there is none of a case that has not run on any.
GOLDEN = Path(__file__).parent / "gpu" / "golden"

_LANES = np.arange(32)


@dataclass(frozen=True)
class Probe:
    """``numbers`` tells what the output's words are: ``bits``, or numbers of a dtype, of which one
    NaN is as good as another."""

    name: str
    make_input: Callable[[np.random.Generator], Words]
    expect: Callable[[Words], Words]
    numbers: str = "bits"

    def __str__(self) -> str:
        return self.name

    def input(self) -> Words:
        """The same rounds each time; rounds without words where the probe reads none."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        return np.ascontiguousarray(self.make_input(rng), np.uint32)

    def expected(self) -> Words:
        """What the manual says, all rounds one after the other."""
        return canonical(self.expect(self.input()), self.numbers)


def canonical(words: NDArray[np.generic], numbers: str) -> Words:
    """``words`` as one vector, with a single NaN where they are numbers."""
    flat = np.ascontiguousarray(words).view(np.uint32).ravel().copy()
    if numbers == "float32":
        flat[np.isnan(flat.view(np.float32))] = 0x7FC00000
    elif numbers != "bits":
        halves = flat.view(np.uint16)
        most = 0x7C00 if numbers == "float16" else 0x7F80  # infinity; what is above is NaN
        halves[(halves & 0x7FFF) > most] = 0x7FFF
    return flat


def _draw_words(words: int, rounds: int = 3) -> Callable[[np.random.Generator], Words]:
    return lambda rng: rng.integers(0, 2**32, (rounds, words), dtype=np.uint32)


# ---- 16-bit numbers


def _float_of_bfloat16(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _bfloat16_of_float(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """To the nearest, ties to even: cvt.rn.bf16x2.f32 (9.7.9.22)."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)


def _float_of_float16(halves: NDArray[np.uint16]) -> NDArray[np.float32]:
    return halves.view(np.float16).astype(np.float32)


def _float16_of_float(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)


_TO_HALF = {"bfloat16": _bfloat16_of_float, "float16": _float16_of_float}
_OF_HALF = {"bfloat16": _float_of_bfloat16, "float16": _float_of_float16}


#: Where a format overflows, ends being normal, and ends; in float32, with what lies beside.
_EDGES = {
    "bfloat16": (3.3895314e38, 3.39e38, 3.4e38, 2.0**-126, 2.0**-127, 2.0**-133, 2.0**-134),
    "float16": (65504, 65519.996, 65520, 65536, 6.1e-5, 2.0**-24, 2.0**-25, 2.0**-25 * 1.001),
}


def _floats_to_pack(dtype: str) -> Callable[[np.random.Generator], Words]:
    """Ties and their neighbours, overflow, subnormals of both formats, infinities and NaN."""

    def make(rng: np.random.Generator) -> Words:
        halves = rng.integers(0, 2**16, 64, dtype=np.uint16)
        exact = _OF_HALF[dtype](halves).view(np.uint32)
        # Half a unit in the last place above a number of the format.
        half = np.uint32(1 << (15 if dtype == "bfloat16" else 12))
        tie = exact[:, None] + half + np.array([-1, 0, 1]).astype(np.uint32)
        special = np.array([0, 1e-45, 1e-40, np.inf, np.nan, *_EDGES[dtype]], np.float32)
        special = np.concatenate([special, -special])
        words = np.concatenate([exact, tie.ravel(), special.view(np.uint32)])
        rest = rng.integers(0, 2**32, -len(words) % 64, dtype=np.uint32)
        return np.concatenate([words, rest]).reshape(-1, 64)

    return make


def _expect_packed(dtype: str) -> Callable[[Words], Words]:
    def expect(words: Words) -> Words:
        halves = _TO_HALF[dtype](words.view(np.float32)).astype(np.uint32)
        return halves[:, :32] | halves[:, 32:] << 16

    return expect


def _halves(rng: np.random.Generator) -> Words:
    """Zeros, subnormals, infinities and NaN of both formats, and what lies between."""
    special = np.array(
        [0, 1, 0x7F, 0x80, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7C01, 0x7F80, 0x7F81, 0x7FFF]
    )
    found = np.concatenate([special, special | 0x8000, np.arange(0, 2**16, 31)])
    rest = rng.integers(0, 2**16, -len(found) % 64)
    return np.concatenate([found, rest]).astype(np.uint16).view(np.uint32).reshape(-1, 32)


def _expect_unpacked(dtype: str) -> Callable[[Words], Words]:
    def expect(words: Words) -> Words:
        halves = words.view(np.uint16).reshape(-1, 32, 2)
        values = _OF_HALF[dtype](np.ascontiguousarray(halves.transpose(0, 2, 1)))
        return values.view(np.uint32).reshape(-1, 64)

    return expect


# ---- matrices (9.7.14.5.8 and 9.7.14.5.15)


def _a_place(lane: int, i: int) -> tuple[int, int]:
    """Row and column of value ``i`` (0 to 7) of a lane's operand a, of 16×16."""
    group, thread = lane // 4, lane % 4
    row = group if i < 2 or 4 <= i < 6 else group + 8
    return row, thread * 2 + (i & 1) + (8 if i >= 4 else 0)


def _b_place(lane: int, i: int) -> tuple[int, int]:
    """Row and column of value ``i`` (0 to 3) of a lane's operand b, of 16×8."""
    return lane % 4 * 2 + (i & 1) + (8 if i >= 2 else 0), lane // 4


def _d_place(lane: int, i: int) -> tuple[int, int]:
    """Row and column of value ``i`` (0 to 3) of a lane's accumulator, of 16×8."""
    return lane // 4 + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)


def _fragments(
    matrices: NDArray[np.generic], place: Callable[[int, int], tuple[int, int]], values: int
) -> Words:
    """Registers of 32 lanes, lane by lane, from matrices of 16 or 32-bit values."""
    places = np.array([[place(lane, i) for i in range(values)] for lane in _LANES])
    taken = matrices[:, places[..., 0], places[..., 1]]
    return np.ascontiguousarray(taken).reshape(len(matrices), -1).view(np.uint32)


def _matrix(words: Words, place: Callable[[int, int], tuple[int, int]], shape: tuple[int, int],
            dtype: type[np.generic]) -> NDArray[np.generic]:  # fmt: skip
    """What :func:`_fragments` took apart."""
    values = np.ascontiguousarray(words).view(dtype).reshape(len(words), 32, -1)
    made = np.zeros((len(words), *shape), dtype)
    for lane in _LANES:
        for i in range(values.shape[2]):
            made[(slice(None), *place(lane, i))] = values[:, lane, i]
    return made


def _factors(dtype: str) -> Callable[[np.random.Generator], Words]:
    """Products that are exact in float32, whatever the order of the sum.

    Rounds 0 to 15 hold a single column of a and row of b, whose numbers name every element; the
    others random whole numbers, powers of two down to float16's subnormals, infinity and NaN.
    """

    def make(rng: np.random.Generator) -> Words:
        rounds = 22
        a = np.zeros((rounds, 16, 16), np.float32)
        b = np.zeros((rounds, 16, 8), np.float32)
        d = np.zeros((rounds, 16, 8), np.float32)
        for k in range(16):
            a[k, :, k] = np.arange(16) + 1
            b[k, k, :] = k * 8 + np.arange(8) + 1
            d[k] = np.arange(128).reshape(16, 8) * 4096
        a[16:18] = rng.integers(-16, 17, (2, 16, 16))
        b[16:18] = rng.integers(-16, 17, (2, 16, 8))
        d[16:18] = rng.integers(-999, 1000, (2, 16, 8))
        a[18] = np.eye(16) * 2.0 ** -np.arange(8, 24)
        b[18] = rng.integers(1, 8, (16, 8))
        a[19:], b[19:] = 1, 1
        a[19, 3, 5], a[20, 3, 5], b[21, 2, 4], b[20, 5, 1] = np.inf, np.inf, np.nan, 0
        parts = [_fragments(_TO_HALF[dtype](a), _a_place, 8)]
        parts += [_fragments(_TO_HALF[dtype](b), _b_place, 4), _fragments(d, _d_place, 4)]
        return np.concatenate(parts, axis=1)

    return make


def _expect_product(dtype: str) -> Callable[[Words], Words]:
    def expect(words: Words) -> Words:
        a = _OF_HALF[dtype](_matrix(words[:, :128], _a_place, (16, 16), np.uint16))
        b = _OF_HALF[dtype](_matrix(words[:, 128:192], _b_place, (16, 8), np.uint16))
        d = _matrix(words[:, 192:], _d_place, (16, 8), np.float32)
        with np.errstate(invalid="ignore"):
            exact = (a.astype(np.float64) @ b.astype(np.float64) + d).astype(np.float32)
        return _fragments(exact, _d_place, 4)

    return expect


def _rows_of_matrices(rng: np.random.Generator) -> Words:
    words = _draw_words(160)(rng)
    for round_ in words:
        round_[128:] = rng.permutation(32)
    return words


def _expect_matrices(count: int, transposed: bool) -> Callable[[Words], Words]:
    def expect(words: Words) -> Words:
        rows = np.ascontiguousarray(words[:, :128]).view(np.uint16).reshape(-1, 32, 8)
        given = np.take_along_axis(rows, words[:, 128:, None].astype(np.int64), axis=1)
        matrices = given.reshape(-1, 4, 8, 8)[:, :count]
        if transposed:
            matrices = matrices.transpose(0, 1, 3, 2)
        # Lane l has values 2·(l % 4) and the next of row l / 4, of matrix i in register i.
        pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, count, 32)
        return pairs.transpose(0, 2, 1)

    return expect


# ---- memory, synchronisation, warps


def _expect_indices(_: Words) -> Words:
    thread = np.arange(64)
    rounds = []
    for z in range(2):
        for y in range(3):
            for x in range(2):
                block = (np.full(64, i | size << 16) for i, size in ((x, 2), (y, 3), (z, 2)))
                rounds.append(np.stack([thread, *block], axis=1))
    return np.array(rounds, np.uint32)


def _expect_global_widths(words: Words) -> Words:
    threads = words.reshape(-1, 32, 4)
    parts = [words, threads[..., :2].reshape(-1, 64), threads[..., 2], threads[..., 3]]
    return np.concatenate(parts, axis=1)


def _expect_shared_widths(words: Words) -> Words:
    return np.tile(words.reshape(-1, 32, 1, 4), (1, 1, 3, 1))


def _expect_static_shared(words: Words) -> Words:
    return words[:, None, ::-1] + np.arange(3, dtype=np.uint32)[:, None]


def _copies(rng: np.random.Generator) -> Words:
    words = _draw_words(320)(rng)
    words[:, :64] &= 1
    return words


def _expect_copies(words: Words) -> Words:
    chunks = words[:, 64:].reshape(-1, 64, 4) * words[:, :64, None]
    groups = chunks.reshape(-1, 32, 2, 4).transpose(0, 2, 1, 3)
    return np.roll(groups, -1, axis=2)


def _expect_sync_threads(words: Words) -> Words:
    return np.roll(words[:, ::-1] + np.arange(128, dtype=np.uint32), -32, axis=1)


def _expect_sync_named(words: Words) -> Words:
    return np.concatenate([words[:, ::-1], ~words[:, ::-1], words[:, _LANES ^ 1]], axis=1)


def _values_and_lanes(rng: np.random.Generator) -> Words:
    words = _draw_words(64)(rng)
    words[:, 32:] %= 32
    return words


def _expect_shuffle(words: Words) -> Words:
    return np.take_along_axis(words[:, :32], words[:, 32:].astype(np.int64), axis=1)


def _expect_shuffle_xor(words: Words) -> Words:
    return np.stack([words[:, _LANES ^ 1 << i] for i in range(5)], axis=1)


def _expect_shuffle_down(words: Words) -> Words:
    # A lane without another one that far up keeps its own value.
    sources = [np.where(_LANES + (1 << i) < 32, _LANES + (1 << i), _LANES) for i in range(5)]
    return np.stack([words[:, source] for source in sources], axis=1)


def _numbers(rng: np.random.Generator) -> Words:
    return rng.standard_normal((3, 32), np.float32).view(np.uint32)


def _votes(rng: np.random.Generator) -> Words:
    words = rng.integers(0, 2, (4, 32), dtype=np.uint32) * 2
    words[0] = _LANES == 7
    return words


def _expect_ballot(words: Words) -> Words:
    bits = np.bitwise_or.reduce(words.astype(bool) * (1 << _LANES), axis=1)
    return np.repeat(bits.astype(np.uint32), 32)


def _bins(rng: np.random.Generator) -> Words:
    words = rng.integers(0, 8, (2, 128), dtype=np.uint32)
    words[0] = 5
    return words


def _expect_bins(words: Words) -> Words:
    counts = np.stack([(words == b).sum(axis=1) for b in range(8)], axis=1)
    marks = (np.arange(128) < counts[..., None]).reshape(-1, 1024)
    sums = counts.astype(np.float32).view(np.uint32)
    parts = [counts, sums, marks, marks * 2]
    return np.concatenate([part.astype(np.uint32) for part in parts], axis=1)


PROBES = (
    Probe("indices", lambda _: np.zeros((12, 0), np.uint32), _expect_indices),
    Probe("shared_widths", _draw_words(128), _expect_shared_widths),
    Probe("global_widths", _draw_words(128), _expect_global_widths),
    Probe("static_shared", _draw_words(64), _expect_static_shared),
    Probe("cp_async", _copies, _expect_copies),
    Probe("sync_threads", _draw_words(128), _expect_sync_threads),
    Probe("sync_warp", _draw_words(32), lambda words: words[:, ::-1]),
    Probe("sync_named", _draw_words(32), _expect_sync_named),
    Probe("shuffle", _values_and_lanes, _expect_shuffle),
    Probe("shuffle_xor", _numbers, _expect_shuffle_xor),
    Probe("shuffle_down", _draw_words(32), _expect_shuffle_down),
    Probe("ballot", _votes, _expect_ballot),
    Probe("atomic_shared", _bins, _expect_bins),
    Probe("atomic_global", _bins, _expect_bins),
    Probe("ldmatrix_x4", _rows_of_matrices, _expect_matrices(4, False)),
    Probe("ldmatrix_x2", _rows_of_matrices, _expect_matrices(2, False)),
    Probe("ldmatrix_x4_transposed", _rows_of_matrices, _expect_matrices(4, True)),
    Probe("mma_bfloat16", _factors("bfloat16"), _expect_product("bfloat16"), "float32"),
    Probe("mma_float16", _factors("float16"), _expect_product("float16"), "float32"),
    Probe("pack_bfloat16", _floats_to_pack("bfloat16"), _expect_packed("bfloat16"), "bfloat16"),
    Probe("pack_float16", _floats_to_pack("float16"), _expect_packed("float16"), "float16"),
    Probe("unpack_bfloat16", _halves, _expect_unpacked("bfloat16"), "float32"),
    Probe("unpack_float16", _halves, _expect_unpacked("float16"), "float32"),
)


# ---- what hardware said


def golden(probe: Probe) -> Words | None:
    """The committed output of hardware for the probe's input; None: there is none.

    Raises:
        ValueError: the file is of another input.
    """
    file = GOLDEN / f"{probe.name}.json"
    if not file.exists():
        return None
    row = json.loads(file.read_text())
    if row["input"] != zlib.crc32(probe.input().tobytes()):
        raise ValueError(f"{file.name} was made from another input: run the probe on hardware anew")
    return canonical(np.frombuffer(bytes.fromhex("".join(row["output"])), "<u4"), probe.numbers)


def write_golden(folder: Path, probe: Probe, output: Words, machine: dict[str, str]) -> None:
    """The file that :func:`golden` reads: words as bytes in hexadecimal, 32 bytes a line."""
    text = np.ascontiguousarray(output, "<u4").tobytes().hex()
    row = {
        "machine": machine,
        "input": zlib.crc32(probe.input().tobytes()),
        "output": [text[i : i + 64] for i in range(0, len(text), 64)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{probe.name}.json").write_text(json.dumps(row, indent=1) + "\n")

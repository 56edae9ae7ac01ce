"""A synthetic set of videos whose classes differ in nothing but the order of their frames.

Eight classes of camera motion over photographs, in four pairs. The two members of a pair are
written from the same rendered frames, noise included, one of them reversed. So a single frame, or
all frames of a video in no particular order, say nothing about which of the two it is, and a
classifier that ignores order cannot expect more than one half. Coding keeps to that: every frame
is coded by itself at one quantizer, since predicted frames would betray their neighbours.

Read such videos at the rate they have, or at one that divides it (``frame_rate=None``, 25, 12.5):
another rate picks frames in an uneven rhythm, and that rhythm has a direction.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from r21d.atomic import write_atomically
from r21d.video.writer import write_video

FRAME_RATE = 25.0

# Forward, then reversed. Pans and zooms are named after the camera (pan_right: the picture moves
# to the left), turns after the picture (turn_right: clockwise).
PAIRS = (
    ("pan_right", "pan_left"),
    ("pan_down", "pan_up"),
    ("zoom_in", "zoom_out"),
    ("turn_right", "turn_left"),
)

# Files in scikit-image's own wheel (its full collection would have to be downloaded).
TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "coins.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
VAL_PHOTOGRAPHS = ("camera.png", "chelsea.png", "coffee.png", "gravel.png")

Image = npt.NDArray[np.uint8]
Path2D = npt.NDArray[np.float64]

_MANIFEST = "motion.json"
_ATTEMPTS = 50
# Weakest allowed RMS brightness step between neighbouring pixels, in grey levels, along either
# axis of the first, middle and last frame. Below it a view is plain sky, where no motion shows.
_TEXTURE = 5.0


@dataclass(frozen=True)
class _Trajectory:
    """A camera's path: per frame, the centre (x, y) in photograph pixels, the photograph pixels
    per view pixel, and the camera's roll in radians."""

    centre: Path2D
    scale: Path2D
    angle: Path2D

    def at(self, frames: list[int]) -> _Trajectory:
        return _Trajectory(self.centre[frames], self.scale[frames], self.angle[frames])


def write_motion_dataset(
    root: str | os.PathLike[str],
    *,
    clips_per_class_train: int = 60,
    clips_per_class_val: int = 20,
    size: int | tuple[int, int] = 64,
    frames: int = 28,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[str]]:
    """Write ``root/{train,val}/<class>/NNNN.mp4``: H.264, 25 frames a second, ``frames`` long.

    ``size`` is the side in pixels, or (height, width), even. Speed, place, scale, roll, mirroring,
    brightness, contrast and noise vary from video to video; file NNNN of a class is file NNNN of
    its partner reversed. The two splits share no photograph. The same arguments give the same
    files; a folder which holds exactly these already is left as it is, and one this function
    wrote with other arguments is replaced. ``progress(done, total)`` is called after each pair of
    files.

    Returns the photographs of each split, ``{"train": [...], "val": [...]}``. Raises ValueError
    for an argument out of range and FileExistsError where ``train`` or ``val`` hold something
    this function did not write.
    """
    height, width = (size, size) if isinstance(size, int) else size
    counts = {"train": clips_per_class_train, "val": clips_per_class_val}
    _check(counts, height, width, frames)
    photographs = {"train": list(TRAIN_PHOTOGRAPHS), "val": list(VAL_PHOTOGRAPHS)}
    plan = {
        "counts": counts,
        "size": [height, width],
        "frames": frames,
        "seed": seed,
        "photographs": photographs,
    }
    if not _prepare(Path(root), plan):
        return photographs
    images = {name: load_photograph(name) for names in photographs.values() for name in names}
    total = len(PAIRS) * sum(counts.values())
    done = 0
    for split, count in counts.items():
        for pair, partners in enumerate(PAIRS):
            for number in range(count):
                rng = np.random.default_rng([seed, len(split), pair, number])
                image = images[photographs[split][number % len(photographs[split])]]
                video = torch.from_numpy(
                    render_motion(image, partners[0], (height, width), frames, rng)
                )
                for name, shown in zip(partners, (video, video.flip(0)), strict=True):
                    path = Path(root, _file(split, name, number))
                    write_video(path, shown, FRAME_RATE, quantizer=22, all_intra=True)
                done += 1
                if progress is not None:
                    progress(done, total)
    return photographs


def load_photograph(name: str) -> Image:
    """One of scikit-image's bundled photographs, uint8 (H, W, 3) RGB; never downloads.

    Large ones are scaled to 512 pixels on the shorter side. Raises FileNotFoundError when the
    installed scikit-image does not ship the file.
    """
    try:
        from skimage import __file__ as installed
        from skimage import io
    except ImportError as error:
        raise ImportError(
            "the motion set is made from scikit-image's photographs: pip install 'r21d[demo]'"
        ) from error
    path = Path(installed).parent / "data" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the installed scikit-image lacks the photograph {name};"
            " pip install 'r21d[demo]' brings one that has it"
        )
    image: Image = np.asarray(io.imread(path), dtype=np.uint8)
    image = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3]
    shrink = max(1.0, min(image.shape[:2]) / 512)
    size = (round(image.shape[1] / shrink), round(image.shape[0] / shrink))
    cv2 = _import_cv2()
    scaled: Image = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    return scaled


def render_motion(
    photograph: Image, motion: str, size: tuple[int, int], frames: int, rng: np.random.Generator
) -> Image:
    """Frames of a camera moving over a photograph: uint8 (``frames``, h, w, 3).

    ``motion`` is the first name of one of `PAIRS`; ``size`` is (h, w). The view stays inside the
    photograph. Exposure is drawn once a video, noise afresh for every pixel of every frame. Each
    frame is averaged over an area, never over time, so that there is no directional blur.
    """
    if rng.random() < 0.5:
        photograph = np.ascontiguousarray(photograph[:, ::-1])
    best: tuple[float, _Trajectory] | None = None
    for _ in range(_ATTEMPTS):
        path = _draw_trajectory(photograph, motion, size, frames, rng)
        if path is None:
            continue
        texture = _texture(_render(photograph, path.at([0, frames // 2, frames - 1]), size))
        if best is None or texture > best[0]:
            best = texture, path
        if texture >= _TEXTURE:
            break
    if best is None:
        raise ValueError(
            f"no {motion} of {frames} frames fits into a photograph of {photograph.shape[:2]}:"
            " ask for fewer frames"
        )
    views = _expose(_render(photograph, best[1], size), rng)
    views += np.float32(rng.uniform(2.0, 6.0)) * rng.standard_normal(views.shape, dtype=np.float32)
    return np.clip(np.rint(views), 0, 255).astype(np.uint8)


def _draw_trajectory(
    photograph: Image, motion: str, size: tuple[int, int], frames: int, rng: np.random.Generator
) -> _Trajectory | None:
    """A random path of the wanted kind inside the photograph, or None if this draw does not fit."""
    short = min(size)
    step = np.arange(frames) - (frames - 1) / 2
    # The view covers between a half and a quarter of the photograph's shorter side.
    scale = np.full(frames, min(photograph.shape[:2]) / (short * rng.uniform(2.0, 4.0)))
    angle = np.full(frames, rng.uniform(0, 2 * math.pi))
    offset = np.zeros((frames, 2))
    if motion in ("pan_right", "pan_down"):
        axis = angle[0] + (math.pi / 2 if motion == "pan_down" else 0)
        speed = rng.uniform(0.008, 0.03) * short * scale[0]
        offset = speed * step[:, None] * np.array([math.cos(axis), math.sin(axis)])
    elif motion == "zoom_in":
        scale = scale * np.exp(-rng.uniform(0.012, 0.035) * step)
    else:
        # The picture turns clockwise when the camera rolls the other way.
        angle = angle - np.radians(rng.uniform(1.0, 3.5)) * step
    corners = offset[:, None] + _corners(size, scale, angle)
    low, high = corners.min((0, 1)), corners.max((0, 1))
    room = np.array(photograph.shape[1::-1]) - 1 - (high - low)
    if (room < 0).any():
        return None
    return _Trajectory(offset - low + room * rng.random(2), scale, angle)


def _corners(size: tuple[int, int], scale: Path2D, angle: Path2D) -> Path2D:
    """The view's corners relative to its centre, in photograph pixels: (frames, 4, 2)."""
    half = np.array(size[::-1]) / 2
    corners = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)]) * half
    cos, sin = np.cos(angle), np.sin(angle)
    roll = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    turned: Path2D = np.einsum("fij,cj->fci", roll, corners) * scale[:, None, None]
    return turned


def _render(photograph: Image, path: _Trajectory, size: tuple[int, int]) -> Image:
    """What the camera sees: uint8 (frames, h, w, 3)."""
    cv2 = _import_cv2()
    # Shrinking by area first, to the sharpest scale the video needs, keeps large steps from
    # skipping pixels; the rest is averaged from twice the resolution.
    shrink = max(1.0, float(path.scale.min()))
    height, width = photograph.shape[:2]
    shrunk = (round(width / shrink), round(height / shrink))
    source = cv2.resize(photograph, shrunk, interpolation=cv2.INTER_AREA)
    ratio = np.array([shrunk[0] / width, shrunk[1] / height])
    fine = (2 * size[1], 2 * size[0])
    middle = np.array(fine) / 2 - 0.5
    views = np.empty((len(path.scale), *size, 3), np.uint8)
    for i, (centre, scale, angle) in enumerate(
        zip(path.centre, path.scale, path.angle, strict=True)
    ):
        cos, sin = math.cos(angle) * scale / 2, math.sin(angle) * scale / 2
        linear = np.array([[cos, -sin], [sin, cos]]) * ratio[:, None]
        shift = (centre + 0.5) * ratio - 0.5 - linear @ middle
        view = cv2.warpAffine(
            source,
            np.column_stack([linear, shift]),
            fine,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        views[i] = cv2.resize(view, size[::-1], interpolation=cv2.INTER_AREA)
    return views


def _expose(views: Image, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw one brightness and contrast for the whole video."""
    contrast, brightness = rng.uniform(0.7, 1.3), rng.uniform(-30, 30)
    return (views.astype(np.float32) - 128) * np.float32(contrast) + np.float32(128 + brightness)


def _texture(views: Image) -> float:
    """RMS brightness step, grey levels per pixel, in the weakest direction of the weakest frame."""
    grey = views.astype(np.float32).mean(-1)
    steps = (np.diff(grey, axis=axis) for axis in (1, 2))
    return float(min(np.sqrt((step**2).mean((1, 2))).min() for step in steps))


def _files(counts: dict[str, int]) -> Iterator[str]:
    for split, count in counts.items():
        for name in itertools.chain(*PAIRS):
            yield from (_file(split, name, number) for number in range(count))


def _file(split: str, name: str, number: int) -> str:
    return f"{split}/{name}/{number:04d}.mp4"


def _prepare(root: Path, plan: dict[str, Any]) -> bool:
    """Make room for the files of ``plan``; False when all of them are there already."""
    manifest = root / _MANIFEST
    old = _read_manifest(manifest)
    files = [root / file for file in _files(plan["counts"])]
    if old == plan and all(file.is_file() for file in files):
        return False
    if old is not None:
        for name in _files(old["counts"]):
            (root / name).unlink(missing_ok=True)
    for split in plan["counts"]:
        if foreign := [f for f in (root / split).rglob("*") if not f.is_dir()]:
            raise FileExistsError(
                f"{foreign[0]} was not written by this function: remove it or choose another root"
            )
    for folder in {file.parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    # Before the first video: an interrupted run can then be cleaned up and repeated.
    write_atomically(manifest, json.dumps(plan).encode())
    return True


def _read_manifest(manifest: Path) -> dict[str, Any] | None:
    if not manifest.is_file():
        return None
    try:
        old = json.loads(manifest.read_text())
        counts = {split: int(old["counts"][split]) for split in ("train", "val")}
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{manifest} was not written by this function: remove it or choose another root"
        ) from error
    return {**old, "counts": counts}


def _check(counts: dict[str, int], height: int, width: int, frames: int) -> None:
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f"clips_per_class_{split} must be at least 1, got {count}")
    if min(height, width) < 16 or height % 2 or width % 2:
        raise ValueError(f"size must be even and at least 16 pixels, got {height}x{width}")
    if not 2 <= frames <= 64:
        raise ValueError(f"frames must be between 2 and 64, got {frames}")


def _import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "drawing the motion set needs OpenCV: pip install 'r21d[video]'"
        ) from error
    return cv2

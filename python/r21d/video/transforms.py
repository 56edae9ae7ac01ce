"""From uint8 clips to the network's input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from r21d.video.resize import FrameSize, resize_frames
from r21d.video.sampling import (
    check_clip_len,
    check_frame_rate,
    check_frame_stride,
    check_short,
)


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of a clip; travels in its checkpoint.

    ``clip_len`` frames, ``frame_stride / frame_rate`` seconds apart, or where ``frame_rate`` is
    None every ``frame_stride``-th of the video's own. Where the video ends before the clip does,
    its last frame is repeated (``short="pad"``) or it begins again (``"loop"``). Frames are scaled
    to ``resize``, cropped to ``crop`` = (height, width), scaled to [0, 1], then ``(x - mean) /
    std`` per channel: three for RGB, two for optical flow, whose values are not scaled to [0, 1].
    ``resize`` is (height, width) whatever the aspect ratio, or the length of the shorter side,
    which keeps it (the longer side is rounded down to whole pixels). Scaling is bilinear, and
    ``antialias`` averages over all pixels that a smaller one stands for; without it two of each
    row and column count.

    128x171 and 112x112 are the paper's (section 4.1); mean and std are those of torchvision's,
    VMZ's and ig65m's weights; 16 frames at 15 a second are torchvision's.

    Raises ValueError for values out of range, and for a crop that no frame has room for. With
    ``resize`` as the shorter side, some crops fit wide frames alone; there it is the frames that
    decide, in `ClipTransform`.
    """

    clip_len: int = 16
    frame_rate: float | None = 15.0
    resize: FrameSize = (128, 171)
    crop: tuple[int, int] = (112, 112)
    mean: tuple[float, ...] = (0.43216, 0.394666, 0.37645)
    std: tuple[float, ...] = (0.22803, 0.22145, 0.216989)
    frame_stride: int = 1
    short: str = "pad"
    antialias: bool = True

    def __post_init__(self) -> None:
        check_clip_len(self.clip_len)
        check_frame_rate(self.frame_rate)
        check_frame_stride(self.frame_stride)
        check_short(self.short)
        if not isinstance(self.antialias, bool):
            raise ValueError(f"antialias must be True or False, got {self.antialias!r}")
        object.__setattr__(self, "resize", _check_resize(self.resize))
        object.__setattr__(self, "crop", _check_size("crop", self.crop))
        for name in ("mean", "std"):
            object.__setattr__(self, name, _check_channels(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} channels and std {len(self.std)}; expected as many"
            )
        if isinstance(self.resize, int):
            fits = min(self.crop) <= self.resize
        else:
            fits = _fits(self.crop, self.resize)
        if not fits:
            raise ValueError(
                f"crop {self.crop} (height, width) does not fit into resize {self.resize}:"
                " make the crop smaller or the resize larger"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values; `from_dict` turns them back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputSpec:
        """Rebuild a spec from `to_dict`'s values.

        ``frame_stride``, ``short`` and ``antialias`` have their defaults where they are absent, as
        in files that were written before these fields existed. Raises ValueError when another
        field is missing, or one is unknown or out of range.
        """
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - _LATER_FIELDS - values.keys()):
            raise ValueError(f"input specification lacks {', '.join(missing)}")
        if unknown := sorted(values.keys() - names):
            raise ValueError(
                f"input specification has unknown {', '.join(unknown)};"
                f" known are {', '.join(sorted(names))}"
            )
        return cls(**values)

    def resized(self, size: int) -> InputSpec:
        """The same input with crops of ``size`` x ``size`` pixels.

        ``resize`` grows or shrinks in proportion, so that the crop shows the same part of a frame:
        times ``size`` over the crop's shorter side, rounded to the nearest whole pixel (halves up).
        128x171 and 112 become 256x342 for 224. Raises ValueError for a size that is not a whole
        number of at least 1.
        """
        if type(size) is not int or size < 1:
            raise ValueError(f"size must be a whole number of pixels, at least 1, got {size!r}")
        short = min(self.crop)

        def scaled(length: int) -> int:
            return (2 * length * size + short) // (2 * short)

        resize: FrameSize
        if isinstance(self.resize, int):
            resize = scaled(self.resize)
        else:
            resize = scaled(self.resize[0]), scaled(self.resize[1])
        return replace(self, resize=resize, crop=(size, size))

    def replace(self, **changes: Any) -> InputSpec:
        """The same input with other values of some fields; ``size=S`` is `resized` (S).

        Raises ValueError for values out of range, TypeError for an unknown field and for ``size``
        beside ``resize`` or ``crop``.
        """
        if "size" not in changes:
            return replace(self, **changes)
        size = changes.pop("size")
        if beside := sorted({"resize", "crop"} & changes.keys()):
            raise TypeError(f"size says what {' and '.join(beside)} is: give one or the other")
        return replace(self, **changes).resized(size)


_LATER_FIELDS = frozenset({"frame_stride", "short", "antialias"})


class Normalize:
    """uint8 (..., 3, T, h, w) -> float32, ``(x / 255 - mean) / std`` per channel, where x is.

    Clips stay uint8 until they are where the network runs: a quarter of the bytes to move, and a
    GPU normalises a batch in no time. On the CPU the values are `ClipTransform`'s to the last bit.

    Raises ValueError for a spec of optical flow. Calling it raises ValueError for another dtype or
    shape.
    """

    def __init__(self, spec: InputSpec) -> None:
        _check_rgb(spec)
        self._mean = torch.tensor(spec.mean).view(3, 1, 1, 1)
        self._std = torch.tensor(spec.std).view(3, 1, 1, 1)

    def __call__(self, clips: torch.Tensor) -> torch.Tensor:
        if clips.dtype != torch.uint8 or clips.dim() < 4 or clips.shape[-4] != 3:
            raise ValueError(
                "clips must be uint8 (..., 3, T, h, w),"
                f" got {clips.dtype} of shape {tuple(clips.shape)}"
            )
        if self._mean.device != clips.device:
            self._mean, self._std = (x.to(clips.device) for x in (self._mean, self._std))
        scaled = clips.to(torch.float32, memory_format=torch.contiguous_format)
        return scaled.div_(255).sub_(self._mean).div_(self._std)


class ClipTransform:
    """uint8 (T, H, W, 3) or (K, T, H, W, 3) -> (3, T, h, w) or (K, 3, T, h, w).

    Scales and crops as ``spec`` says, then normalises to float32, or leaves uint8 where
    ``normalize`` is False, for `Normalize` to do later. In training the crop is random and, with
    ``flip``, half of the clips are mirrored left to right; each of K clips draws its own. In test
    the crop is the centre, or with ``crops=3`` the left, the centre and the right of the scaled
    frames (top, centre and bottom where they are taller than wide; the other side is centred).
    The crops of a clip follow each other: (3, 3, T, h, w) of one clip, (3 K, 3, T, h, w) of K.
    Use ``flip=False`` for classes where left and right matter. ``generator`` is the source of
    randomness, torch's global one if None.

    Raises ValueError for a spec of optical flow, and for ``crops`` other than 1 and, in test, 3.
    Calling it raises ValueError for another dtype or shape, an empty clip, or one that is smaller
    than the crop once it is scaled.
    """

    def __init__(
        self,
        spec: InputSpec,
        train: bool = False,
        flip: bool = True,
        generator: torch.Generator | None = None,
        *,
        crops: int = 1,
        normalize: bool = True,
    ) -> None:
        _check_rgb(spec)
        check_crops(crops, train)
        self.spec = spec
        self.train = train
        self.flip = flip
        self.generator = generator
        self.crops = crops
        self._normalize = Normalize(spec) if normalize else None

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        _check_clip(clip)
        clip = resize_frames(clip, self.spec.resize, antialias=self.spec.antialias)
        singles = clip if clip.dim() == 5 else clip.unsqueeze(0)
        views = [view for single in singles for view in self._views(single)]
        # One copy of all, which also lays the channels out as planes.
        out = torch.stack([view.permute(3, 0, 1, 2) for view in views])
        if self._normalize is not None:
            out = self._normalize(out)
        return out if clip.dim() == 5 or self.crops > 1 else out[0]

    def _views(self, clip: torch.Tensor) -> list[torch.Tensor]:
        """The crops (T, h, w, 3) of one scaled clip."""
        height, width = self.spec.crop
        corners = self._corners(clip.shape[1], clip.shape[2])
        views = [clip[:, top : top + height, left : left + width] for top, left in corners]
        if self.train and self.flip and torch.rand((), generator=self.generator) < 0.5:
            return [view.flip(2) for view in views]
        return views

    def _corners(self, height: int, width: int) -> list[tuple[int, int]]:
        if not _fits(self.spec.crop, (height, width)):
            raise ValueError(
                f"crop {self.spec.crop} (height, width) does not fit into frames that are"
                f" {(height, width)} after scaling to resize {self.spec.resize}:"
                " make the crop smaller or the resize larger"
            )
        slack = (height - self.spec.crop[0], width - self.spec.crop[1])
        if self.train:
            top, left = (int(torch.randint(s + 1, (), generator=self.generator)) for s in slack)
            return [(top, left)]
        # Half pixels go to the even side, as in torchvision's centre crop.
        top, left = round(slack[0] / 2), round(slack[1] / 2)
        if self.crops == 1:
            return [(top, left)]
        if height > width:
            return [(0, left), (top, left), (slack[0], left)]
        return [(top, 0), (top, left), (top, slack[1])]


def check_crops(crops: int, train: bool = False) -> None:
    """Raise ValueError when ``crops`` is neither 1 nor 3, or not 1 in training."""
    if crops not in (1, 3):
        raise ValueError(f"crops must be 1 (the centre) or 3 (left, centre, right), got {crops!r}")
    if train and crops != 1:
        raise ValueError(f"training crops each clip once, at random: crops must be 1, got {crops}")


def _check_rgb(spec: InputSpec) -> None:
    if len(spec.mean) != 3:
        raise ValueError(
            f"the input specification has {len(spec.mean)} channels, which is optical flow, and"
            " flow is not made from the frames of a video here: pass the network tensors of"
            " flow that were made elsewhere, or use a network for RGB"
        )


def _check_clip(clip: torch.Tensor) -> None:
    if clip.dtype != torch.uint8:
        raise ValueError(f"clip must be uint8 as read_clip returns it, got {clip.dtype}")
    if clip.dim() not in (4, 5) or clip.shape[-1] != 3 or not clip.numel():
        raise ValueError(
            "clip must be (T, H, W, 3) or (K, T, H, W, 3) and not empty,"
            f" got shape {tuple(clip.shape)}"
        )


def _fits(crop: tuple[int, int], frame: tuple[int, int]) -> bool:
    return crop[0] <= frame[0] and crop[1] <= frame[1]


def _check_resize(value: Any) -> FrameSize:
    if type(value) is int and value > 0:
        return value
    return _check_size("resize", value, "(height, width), or the shorter side alone,")


def _check_size(name: str, value: Any, expected: str = "(height, width)") -> tuple[int, int]:
    whole = isinstance(value, tuple | list) and all(type(v) is int and v > 0 for v in value)
    if not whole or len(value) != 2:
        raise ValueError(f"{name} must be {expected} in whole pixels, got {value!r}")
    return value[0], value[1]


def _check_channels(name: str, value: Any) -> tuple[float, ...]:
    sequence = isinstance(value, tuple | list) and len(value) in (2, 3)
    if not sequence or not all(isinstance(v, int | float) and math.isfinite(v) for v in value):
        raise ValueError(
            f"{name} must be three finite numbers (red, green, blue), or two (flow), got {value!r}"
        )
    return tuple(float(v) for v in value)

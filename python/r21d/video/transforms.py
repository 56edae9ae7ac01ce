"""From uint8 clips to the network's input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from r21d.video.resize import FrameSize, resize_frames
from r21d.video.sampling import check_clip_len, check_frame_rate


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of a clip; travels in its checkpoint.

    ``clip_len`` frames at ``frame_rate`` a second (None: the video's consecutive frames), scaled
    to ``resize``, cropped to ``crop`` = (height, width), scaled to [0, 1], then ``(x - mean) /
    std`` per channel: three for RGB, two for optical flow, whose values are not scaled to [0, 1].
    ``resize`` is (height, width) whatever the aspect ratio, or the length of the shorter side,
    which keeps it (the longer side is rounded down to whole pixels).

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

    def __post_init__(self) -> None:
        check_clip_len(self.clip_len)
        check_frame_rate(self.frame_rate)
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

        Raises ValueError when a field is missing, unknown or out of range.
        """
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - values.keys()):
            raise ValueError(f"input specification lacks {', '.join(missing)}")
        if unknown := sorted(values.keys() - names):
            raise ValueError(
                f"input specification has unknown {', '.join(unknown)};"
                f" known are {', '.join(sorted(names))}"
            )
        return cls(**values)


class ClipTransform:
    """uint8 (T, H, W, 3) or (K, T, H, W, 3) -> float32 (3, T, h, w) or (K, 3, T, h, w).

    Scales, crops and normalises as ``spec`` says. In training the crop is random and, with
    ``flip``, half of the clips are mirrored left to right; each of K clips draws its own. In test
    the crop is the centre. Use ``flip=False`` for classes where left and right matter.
    ``generator`` is the source of randomness, torch's global one if None.

    Raises ValueError for a spec of optical flow. Calling it raises ValueError for another dtype or
    shape, an empty clip, or one that is smaller than the crop once it is scaled.
    """

    def __init__(
        self,
        spec: InputSpec,
        train: bool = False,
        flip: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if len(spec.mean) != 3:
            raise ValueError(
                f"the input specification has {len(spec.mean)} channels, which is optical flow, and"
                " flow is not made from the frames of a video here: pass the network tensors of"
                " flow that were made elsewhere, or use a network for RGB"
            )
        self.spec = spec
        self.train = train
        self.flip = flip
        self.generator = generator
        self._mean = torch.tensor(spec.mean).view(3, 1, 1, 1)
        self._std = torch.tensor(spec.std).view(3, 1, 1, 1)

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        _check_clip(clip)
        if clip.dim() == 5:
            return torch.stack([self._one(single) for single in clip])
        return self._one(clip)

    def _one(self, clip: torch.Tensor) -> torch.Tensor:
        clip = resize_frames(clip, self.spec.resize)
        height, width = self.spec.crop
        top, left = self._corner(clip.shape[1], clip.shape[2])
        clip = clip[:, top : top + height, left : left + width]
        if self.train and self.flip and torch.rand((), generator=self.generator) < 0.5:
            clip = clip.flip(2)
        scaled = clip.permute(3, 0, 1, 2).to(torch.float32) / 255
        return ((scaled - self._mean) / self._std).contiguous()

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        if not _fits(self.spec.crop, (height, width)):
            raise ValueError(
                f"crop {self.spec.crop} (height, width) does not fit into frames that are"
                f" {(height, width)} after scaling to resize {self.spec.resize}:"
                " make the crop smaller or the resize larger"
            )
        slack = (height - self.spec.crop[0], width - self.spec.crop[1])
        if not self.train:
            # Half pixels go to the even side, as in torchvision's centre crop.
            return round(slack[0] / 2), round(slack[1] / 2)
        top, left = (int(torch.randint(s + 1, (), generator=self.generator)) for s in slack)
        return top, left


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

"""The network's input (about 2 s)."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from r21d.video.resize import resize_frames
from r21d.video.transforms import ClipTransform, InputSpec

SMALL = InputSpec(clip_len=4, resize=(12, 16), crop=(8, 10))


def _clip(*shape: int) -> torch.Tensor:
    return torch.randint(256, (*shape, 3), dtype=torch.uint8)


def _normalised(pixels: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    values = (pixels.double() / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    return values.movedim(-1, -4).float()


def test_defaults_give_the_papers_size():
    out = ClipTransform(InputSpec())(_clip(2, 40, 30))
    assert out.shape == (3, 2, 112, 112)
    assert out.dtype == torch.float32
    assert out.is_contiguous()


def test_centre_crop_and_normalisation():
    clip = _clip(4, 12, 16)
    out = ClipTransform(SMALL)(clip)
    torch.testing.assert_close(out, _normalised(clip[:, 2:10, 3:13], SMALL))


def test_several_clips_in_test():
    clips = _clip(3, 4, 20, 31)
    out = ClipTransform(SMALL)(clips)
    assert out.shape == (3, 3, 4, 8, 10)
    for clip, one in zip(clips, out, strict=True):
        assert torch.equal(ClipTransform(SMALL)(clip), one)


@pytest.mark.parametrize("flip", [False, True])
def test_training_draws_every_crop_and_only_those(flip):
    clip = _clip(4, 12, 16)
    crops = {
        (top, left, mirrored): _normalised(view.flip(2) if mirrored else view, SMALL)
        for top in range(5)
        for left in range(7)
        for mirrored in ({False, True} if flip else {False})
        for view in [clip[:, top : top + 8, left : left + 10]]
    }
    transform = ClipTransform(SMALL, True, flip, torch.Generator().manual_seed(1))
    seen = set()
    for _ in range(800):
        out = transform(clip)
        seen.add(next(key for key, crop in crops.items() if (out - crop).abs().max() < 1e-5))
    assert seen == crops.keys()


def test_training_crops_all_frames_alike_and_each_clip_by_itself():
    clips = _clip(1, 12, 16).expand(32, 4, 12, 16, 3)
    out = ClipTransform(SMALL, train=True, generator=torch.Generator().manual_seed(0))(clips)
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    assert len({clip.numpy().tobytes() for clip in out}) > 8


def test_the_generator_decides():
    clip = _clip(4, 30, 30)
    first, again = (
        ClipTransform(SMALL, train=True, generator=torch.Generator().manual_seed(7))(clip)
        for _ in range(2)
    )
    assert torch.equal(first, again)


def test_resizing_is_antialiased_bilinear():
    frames = _clip(2, 60, 80)
    images = frames.permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.interpolate(
        images, size=(20, 31), mode="bilinear", antialias=True
    )
    difference = resize_frames(frames, (20, 31)).permute(0, 3, 1, 2) - expected
    assert difference.abs().max() <= 1
    assert resize_frames(frames, (60, 80)) is frames


@pytest.mark.parametrize("spec", [InputSpec(), SMALL, InputSpec(frame_rate=None)])
def test_spec_survives_json(spec):
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


BAD_VALUES = [
    ("clip_len", 0, "clip_len must be a whole number"),
    ("clip_len", True, "clip_len must be a whole number"),
    ("frame_rate", -1.0, "frame_rate must be positive"),
    ("frame_rate", "fast", "frame_rate must be a number"),
    ("resize", (100, 171), "crop .* does not fit into resize"),
    ("resize", 128, "resize must be .height, width."),
    ("crop", (112,), "crop must be .height, width."),
    ("crop", (0, 112), "crop must be .height, width."),
    ("crop", (1.5, 112), "crop must be .height, width."),
    ("mean", (0.5, 0.5), "mean must be three finite numbers"),
    ("mean", (0.5, 0.5, math.nan), "mean must be three finite numbers"),
    ("std", (0.2, 0.2, 0.0), "std must be positive"),
    ("std", "abc", "std must be three finite numbers"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_VALUES)
def test_bad_specs(name, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(InputSpec(), **{name: value})
    with pytest.raises(ValueError, match=message):
        InputSpec.from_dict({**InputSpec().to_dict(), name: value})


def test_missing_and_unknown_fields():
    values = InputSpec().to_dict()
    with pytest.raises(ValueError, match="unknown colour"):
        InputSpec.from_dict({**values, "colour": "grey"})
    del values["mean"], values["crop"]
    with pytest.raises(ValueError, match="lacks crop, mean"):
        InputSpec.from_dict(values)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(4, 12, 16, 3), "clip must be uint8"),
        (_clip(12, 16), "got shape"),
        (torch.zeros(3, 4, 12, 16, dtype=torch.uint8), "got shape"),
        (_clip(0, 12, 16), "not empty"),
    ],
)
def test_bad_clips(clip, message):
    with pytest.raises(ValueError, match=message):
        ClipTransform(SMALL)(clip)

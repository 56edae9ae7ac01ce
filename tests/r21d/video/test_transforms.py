"""The network's input (about 3 s)."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
import torchvision_oracle

from r21d.video.resize import resize_frames, scaled_size
from r21d.video.transforms import ClipTransform, InputSpec, Normalize

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


@pytest.mark.parametrize(
    ("size", "corners"),
    [
        ((12, 21), [(2, 0), (2, 6), (2, 11)]),  # half a pixel goes to the even side
        ((23, 12), [(0, 1), (8, 1), (15, 1)]),
        ((12, 12), [(2, 0), (2, 1), (2, 2)]),
    ],
)
def test_three_crops_are_along_the_longer_side(size, corners):
    spec = dataclasses.replace(SMALL, resize=size)
    clips = _clip(2, 4, *size)
    out = ClipTransform(spec, crops=3)(clips)
    assert out.shape == (6, 3, 4, 8, 10)
    expected = [
        _normalised(clip[:, top : top + 8, left : left + 10], spec)
        for clip in clips
        for top, left in corners
    ]
    torch.testing.assert_close(out, torch.stack(expected))
    assert torch.equal(ClipTransform(spec, crops=3)(clips[0]), out[:3])
    assert torch.equal(ClipTransform(spec)(clips), out[1::3])


def test_three_crops_are_for_test():
    with pytest.raises(ValueError, match=r"training crops each clip once, .* got 3"):
        ClipTransform(SMALL, train=True, crops=3)
    for crops in (0, 2):
        with pytest.raises(ValueError, match="crops must be 1"):
            ClipTransform(SMALL, crops=crops)


@pytest.mark.parametrize("options", [{}, {"crops": 3}, {"train": True}])
def test_normalising_later_gives_the_same_bits(options):
    spec = InputSpec(resize=(20, 30), crop=(13, 17))
    clips = _clip(5, 4, 24, 45)
    outs = []
    for normalize in (True, False):
        generator = torch.Generator().manual_seed(1)
        transform = ClipTransform(spec, generator=generator, normalize=normalize, **options)
        outs.append(transform(clips))
    now, later = outs
    assert later.dtype == torch.uint8 and later.shape == now.shape and later.is_contiguous()
    before = later.clone()
    assert torch.equal(Normalize(spec)(later), now)
    assert torch.equal(later, before)
    batch = later.unflatten(0, (5, -1)).expand(2, *later.unflatten(0, (5, -1)).shape)
    assert torch.equal(Normalize(spec)(batch).flatten(1, 2)[1], now)
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in (spec.mean, spec.std))
    assert torch.equal(now, (later.float() / 255 - mean) / std)


@pytest.mark.parametrize(
    "clips", [torch.zeros(3, 2, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8), _clip(4)[0]]
)
def test_what_is_no_clip_cannot_be_normalised(clips):
    with pytest.raises(ValueError, match=r"clips must be uint8 \(..., 3, T, h, w\), got"):
        Normalize(InputSpec())(clips)


def test_antialiasing_is_as_specified():
    clip = _clip(2, 60, 80)
    for antialias in (True, False):
        spec = dataclasses.replace(SMALL, antialias=antialias)
        scaled = resize_frames(clip, (12, 16), antialias=antialias)
        torch.testing.assert_close(
            ClipTransform(spec)(clip), _normalised(scaled[:, 2:10, 3:13], spec)
        )


def test_resizing_is_antialiased_bilinear():
    frames = _clip(2, 60, 80)
    images = frames.permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.interpolate(
        images, size=(20, 31), mode="bilinear", antialias=True
    )
    difference = resize_frames(frames, (20, 31)).permute(0, 3, 1, 2) - expected
    assert difference.abs().max() <= 1
    assert resize_frames(frames, (60, 80)) is frames


def test_the_shorter_side_alone_keeps_the_aspect_ratio():
    frames = _clip(2, 60, 82)
    assert torch.equal(resize_frames(frames, 20), resize_frames(frames, (20, 27)))
    turned = frames.transpose(1, 2)
    assert torch.equal(resize_frames(turned, 20), resize_frames(turned, (27, 20)))
    assert resize_frames(frames, 60) is frames
    assert resize_frames(_clip(1, 7, 7), 5).shape == (1, 5, 5, 3)


def test_the_longer_side_is_torchvisions(generator):
    try:
        torchvision_oracle.load()
    except ImportError as error:
        pytest.skip(str(error))
    from torchvision.transforms.functional import resize

    for height, width, size in torch.randint(1, 60, (300, 3), generator=generator).tolist():
        expected = resize(torch.zeros(1, height, width), [size], antialias=False).shape[1:]
        assert scaled_size(height, width, size) == tuple(expected), (height, width, size)


@pytest.mark.parametrize(("height", "width"), [(24, 45), (45, 24), (24, 24)])
def test_crops_of_frames_of_any_aspect_ratio(height, width):
    spec = dataclasses.replace(SMALL, resize=12, crop=(8, 10))
    clip = _clip(4, height, width)
    scaled = resize_frames(clip, 12)
    assert min(scaled.shape[1:3]) == 12 and max(scaled.shape[1:3]) == max(height, width) // 2
    top, left = round((scaled.shape[1] - 8) / 2), round((scaled.shape[2] - 10) / 2)
    expected = _normalised(scaled[:, top : top + 8, left : left + 10], spec)
    torch.testing.assert_close(ClipTransform(spec)(clip), expected)
    transform = ClipTransform(spec, True, False, torch.Generator().manual_seed(1))
    places = [(y, x) for y in range(scaled.shape[1] - 7) for x in range(scaled.shape[2] - 9)]
    crops = {at: scaled[:, at[0] : at[0] + 8, at[1] : at[1] + 10] for at in places}
    crops = {at: _normalised(crop, spec) for at, crop in crops.items()}
    seen = set()
    for _ in range(12 * len(places)):
        out = transform(clip)
        seen.add(next(at for at, crop in crops.items() if (out - crop).abs().max() < 1e-5))
    assert seen == set(places)


def test_a_crop_that_fits_wide_frames_alone():
    transform = ClipTransform(dataclasses.replace(SMALL, resize=12, crop=(8, 20)))
    assert transform(_clip(4, 24, 45)).shape == (3, 4, 8, 20)
    message = r"crop \(8, 20\) .* frames that are \(12, 13\) after scaling to resize 12"
    with pytest.raises(ValueError, match=message):
        transform(_clip(4, 24, 27))


def test_flow_has_a_specification_but_is_not_made_from_frames():
    spec = InputSpec(mean=(0, 0), std=(1, 1))
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    for maker in (ClipTransform, Normalize):
        with pytest.raises(ValueError, match="2 channels, which is optical flow"):
            maker(spec)


@pytest.mark.parametrize(
    "spec",
    [
        InputSpec(),
        SMALL,
        InputSpec(frame_rate=None),
        InputSpec(resize=256),
        InputSpec(frame_stride=8, short="loop", antialias=False),
    ],
)
def test_spec_survives_json(spec):
    assert InputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_specs_that_were_written_before_some_fields_existed():
    values = InputSpec(8, 30.0).to_dict()
    for name in ("frame_stride", "short", "antialias"):
        del values[name]
    assert InputSpec.from_dict(values) == InputSpec(8, 30.0)


@pytest.mark.parametrize(
    ("resize", "crop", "size", "resized"),
    [
        ((128, 171), (112, 112), 224, (256, 342)),
        ((128, 171), (112, 112), 56, (64, 86)),  # 85.5
        ((128, 171), (112, 112), 112, (128, 171)),
        (256, (224, 224), 112, 128),
        (256, (224, 224), 7, 8),
        ((128, 171), (112, 140), 56, (64, 86)),
        ((112, 112), (112, 112), 1, (1, 1)),
    ],
)
def test_another_size(resize, crop, size, resized):
    spec = InputSpec(resize=resize, crop=crop, frame_stride=2)
    expected = dataclasses.replace(spec, resize=resized, crop=(size, size))
    assert spec.resized(size) == spec.replace(size=size) == expected


def test_other_values():
    spec = InputSpec().replace(clip_len=32, frame_rate=None, size=224)
    assert spec == InputSpec(32, None, (256, 342), (224, 224))
    with pytest.raises(TypeError, match="size says what crop and resize is"):
        InputSpec().replace(size=224, crop=(224, 224), resize=256)
    with pytest.raises(TypeError, match="colour"):
        InputSpec().replace(colour="grey")
    for size in (0, 11.5, True):
        with pytest.raises(ValueError, match="size must be a whole number of pixels"):
            InputSpec().resized(size)


BAD_VALUES = [
    ("clip_len", 0, "clip_len must be a whole number"),
    ("clip_len", True, "clip_len must be a whole number"),
    ("frame_rate", -1.0, "frame_rate must be positive"),
    ("frame_rate", "fast", "frame_rate must be a number"),
    ("resize", (100, 171), "crop .* does not fit into resize"),
    ("resize", 0, "resize must be .height, width., or the shorter side alone, .* got 0"),
    ("resize", 128.0, "resize must be .height, width., or the shorter side"),
    ("resize", True, "resize must be .height, width., or the shorter side"),
    ("resize", (128,), "resize must be .height, width., or the shorter side"),
    ("resize", 111, "crop .112, 112. .height, width. does not fit into resize 111"),
    ("crop", (112,), "crop must be .height, width."),
    ("crop", (0, 112), "crop must be .height, width."),
    ("crop", (1.5, 112), "crop must be .height, width."),
    ("mean", (0.5, 0.5), "mean has 2 channels and std 3"),
    ("mean", (0.5,), "mean must be three finite numbers .*, or two"),
    ("mean", (0.5, 0.5, math.nan), "mean must be three finite numbers"),
    ("std", (0.2, 0.2, 0.0), "std must be positive"),
    ("std", "abc", "std must be three finite numbers"),
    ("frame_stride", 0, "frame_stride must be a whole number"),
    ("frame_stride", 1.0, "frame_stride must be a whole number"),
    ("short", "stretch", "short must be 'pad' or 'loop'"),
    ("antialias", 1, "antialias must be True or False"),
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

"""Weights of one network start another: classes, channels, frames (about 3 s)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from r21d.models import VideoModel, create_model
from r21d.video.transforms import InputSpec
from r21d.weights import load_checkpoint, load_weights, save_checkpoint

pytest.importorskip("safetensors.torch", reason="needs the extra 'train'")

SMALL: dict[str, Any] = {"widths": (4, 6, 6, 8), "stem_channels": 4, "blocks": (1, 1, 1, 1)}
LABELS = ["a", "b", "c"]


def small(name: str, **options: Any) -> VideoModel:
    return create_model(name, **{"num_classes": 3, **SMALL, **options})


def saved(tmp_path: Path, model: VideoModel, clip_len: int = 8) -> Path:
    path = tmp_path / "a.safetensors"
    spec = InputSpec(clip_len=clip_len).to_dict()
    save_checkpoint(path, model, classes=LABELS, input=spec)
    return path


def differing(one: nn.Module, other: nn.Module) -> set[str]:
    state = other.state_dict()
    return {
        name
        for name, tensor in one.state_dict().items()
        if tensor.shape != state[name].shape or not torch.equal(tensor, state[name])
    }


def test_everything_is_read_from_the_weights(tmp_path: Path) -> None:
    model = small("r2plus1d_34", eps=1e-3, dropout=0.25, midplanes="torchvision", stem_pool=True)
    again = create_model("r2plus1d_34", weights=saved(tmp_path, model))
    assert again.config == model.config and again.training
    assert again.classes == LABELS and again.input_spec == InputSpec(clip_len=8)
    assert not differing(again, model)


def test_other_classes_get_a_fresh_head(tmp_path: Path) -> None:
    model = small("r3d_18")
    again = create_model("r3d_18", 5, weights=saved(tmp_path, model))
    assert differing(again, model) == {"fc.weight", "fc.bias"}
    assert again.config["num_classes"] == 5 and again.classes is None
    assert again.input_spec == InputSpec(clip_len=8)


@pytest.mark.parametrize("name", ["r2plus1d_18", "fr2d_18", "r3d_18"])
def test_rgb_weights_start_a_flow_network(tmp_path: Path, name: str) -> None:
    model = small(name)
    flow = create_model(name, weights=saved(tmp_path, model), in_channels=2)
    assert differing(flow, model) == {"stem.0.weight"}
    mean = model.stem[0].weight.mean(1)
    assert flow.stem[0].weight.shape[1] == 2
    for channel in range(2):
        torch.testing.assert_close(flow.stem[0].weight[:, channel], mean)
    assert flow.classes == LABELS and flow.input_spec is None


@pytest.mark.parametrize("clip_len", [2, 4, 6, 8, 12, 32])
def test_frames_of_r2d_are_resampled(tmp_path: Path, clip_len: int) -> None:
    model = small("r2d_18", clip_len=4)
    other = create_model("r2d_18", weights=saved(tmp_path, model, 4), clip_len=clip_len)
    assert differing(other, model) == ({"stem.0.weight"} if clip_len != 4 else set())
    assert other.input_spec == InputSpec(clip_len=clip_len)
    still = torch.randn(2, 3, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            other.eval()(still.expand(-1, -1, clip_len, -1, -1)),
            model.eval()(still.expand(-1, -1, 4, -1, -1)),
            rtol=1e-4,
            atol=1e-5,
        )


def test_each_frame_counts_where_it_is_shown(tmp_path: Path) -> None:
    """Frames 2t and 2t + 1 of a clip twice as long share what frame t had."""
    model = small("r2d_18", clip_len=3)
    longer = create_model("r2d_18", weights=saved(tmp_path, model, 3), clip_len=6)
    taps = model.stem[0].weight.unflatten(1, (3, 3))
    expected = taps.repeat_interleave(2, dim=2) / 2
    torch.testing.assert_close(longer.stem[0].weight.unflatten(1, (3, 6)), expected)


def test_r2d_for_flow_of_more_frames(tmp_path: Path) -> None:
    model = small("r2d_18", clip_len=2)
    path = saved(tmp_path, model, 2)
    flow = create_model("r2d_18", weights=path, in_channels=2, clip_len=4)
    taps = model.stem[0].weight.unflatten(1, (3, 2)).mean(1, keepdim=True)
    expected = taps.repeat_interleave(2, dim=2).expand(-1, 2, -1, -1, -1, -1) / 2
    torch.testing.assert_close(flow.stem[0].weight, expected.flatten(1, 2))


@pytest.mark.parametrize("clip_len", [8, 16, 32])
def test_longer_clips_need_no_other_weights(tmp_path: Path, clip_len: int) -> None:
    model = small("r2plus1d_18")
    longer = create_model("r2plus1d_18", weights=saved(tmp_path, model), clip_len=clip_len)
    assert not differing(longer, model)
    assert longer.input_spec == InputSpec(clip_len=clip_len)


def test_i3d_for_flow_and_other_classes(tmp_path: Path) -> None:
    model = create_model("i3d", 3)
    flow = create_model("i3d", 4, weights=saved(tmp_path, model), in_channels=2)
    stem = "Conv3d_1a_7x7.conv3d.weight"
    assert differing(flow, model) == {stem, "logits.conv3d.weight", "logits.conv3d.bias"}
    torch.testing.assert_close(
        flow.state_dict()[stem], model.state_dict()[stem].mean(1, True).expand(-1, 2, -1, -1, -1)
    )


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("r2d_18", {"clip_len": 8}, "stem.0.weight"),
        ("r2d_18", {"clip_len": 4, "in_channels": 2}, "stem.0.weight"),
        ("r2d_18", {"clip_len": 4, "num_classes": 5}, "fc.weight"),
    ],
)
def test_load_weights_adapts_only_when_asked(
    tmp_path: Path, name: str, options: dict[str, Any], key: str
) -> None:
    path = saved(tmp_path, small("r2d_18", clip_len=4), 4)
    model = small(name, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"{key} .*in the file, .*adapt=True"):
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    load_weights(model, path, adapt=True)
    x = torch.randn(2, options.get("in_channels", 3), options["clip_len"], 8, 8)
    assert model(x).isfinite().all()


def test_other_shapes_are_never_adapted(tmp_path: Path) -> None:
    path = saved(tmp_path, small("r2plus1d_18"))
    with pytest.raises(
        ValueError, match=r"widths is \[4, 6, 6, 8\] in the file and \[4, 6, 6, 9\]"
    ):
        create_model("r2plus1d_18", weights=path, widths=(4, 6, 6, 9))
    with pytest.raises(ValueError, match=r"holds a r2plus1d_18, not a r3d_18: create_model\('r2"):
        create_model("r3d_18", weights=path)
    with pytest.raises(TypeError, match="width_multiplier"):
        create_model("r2plus1d_18", weights=path, width_multiplier=2)


def test_what_the_model_knows_is_kept(tmp_path: Path) -> None:
    path = saved(tmp_path, small("r2d_18", clip_len=4), 4)
    model = small("r2d_18", num_classes=5, clip_len=4)
    model.classes = list("abcde")
    load_weights(model, path, adapt=True)
    assert model.classes == list("abcde") and model.input_spec == InputSpec(clip_len=4)
    flow = small("r2d_18", in_channels=2, clip_len=4)
    flow.input_spec = InputSpec(mean=(0.0, 0.0), std=(1.0, 1.0))
    load_weights(flow, path, adapt=True)
    assert flow.input_spec.mean == (0.0, 0.0) and flow.classes == LABELS


def test_as_many_other_classes_get_a_fresh_head(tmp_path: Path) -> None:
    given = small("r3d_18")
    path = saved(tmp_path, given)
    model = small("r3d_18")
    model.classes = ["p", "q", "r"]
    own = model.fc.weight.clone()
    load_weights(model, path, adapt=True)
    assert model.classes == ["p", "q", "r"] and torch.equal(model.fc.weight, own)
    assert differing(model, given) == {"fc.weight"}  # fresh biases are zero in both
    load_weights(model, path)
    assert model.classes == LABELS and not differing(model, given)


def test_a_stem_that_fits_is_kept_where_its_frames_are_a_guess(tmp_path: Path) -> None:
    """24 merged channels are 12 frames of flow, or 8 of RGB: a plain file does not tell."""
    flow = small("r2d_18", in_channels=2, clip_len=12)
    torch.save(flow.state_dict(), tmp_path / "a.pth")
    assert "8 frames of 3 channels" in load_checkpoint(tmp_path / "a.pth").extra["assumed"]
    again = create_model("r2d_18", weights=tmp_path / "a.pth", in_channels=2, clip_len=12)
    assert not differing(again, flow)
    load_weights(other := small("r2d_18", in_channels=2, clip_len=12), tmp_path / "a.pth", True)
    assert not differing(other, flow)
    # A checkpoint of our own tells.
    rgb = small("r2d_18", clip_len=8)
    adapted = create_model("r2d_18", weights=saved(tmp_path, rgb), in_channels=2, clip_len=12)
    assert differing(adapted, rgb) == {"stem.0.weight"}

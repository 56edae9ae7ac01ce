"""Networks by name, and what happens to bad arguments (about 1 s)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from r21d.models import Architecture, VideoResNet, create_model, list_models

SMALL: dict[str, Any] = {"widths": (4, 6, 6, 8), "stem_channels": 4, "blocks": (1, 1, 1, 1)}


def test_registered_names() -> None:
    assert list_models() == ["fr2d_18", "mc3_18", "r2plus1d_18", "r2plus1d_34", "r3d_18"]


@pytest.mark.parametrize("name", list_models())
def test_config_is_json_and_rebuilds_the_network(name: str) -> None:
    model = create_model(
        name, 7, None, "torchvision", in_channels=2, clip_len=4, eps=1e-3, dropout=0.25, **SMALL
    )
    config = json.loads(json.dumps(model.config))
    again = create_model(**config)
    assert again.config == model.config
    assert str(again) == str(model)
    assert model.classes is None and model.input_spec is None
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, 4, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), model.eval()(x), rtol=0, atol=0)


def test_options_reach_the_layers() -> None:
    model = create_model("r2plus1d_18", 5, in_channels=2, eps=1e-3, dropout=0.5, **SMALL)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert len(norms) == 2 + 4 * 4 + 3
    assert {norm.eps for norm in norms} == {1e-3}
    assert model.dropout.p == 0.5
    assert [len(group) for group in (model.layer1, model.layer2, model.layer3, model.layer4)] == [
        1,
        1,
        1,
        1,
    ]
    assert tuple(model.stem[0].weight.shape) == (2, 2, 1, 7, 7)
    assert tuple(model.stem[3].weight.shape) == (4, 2, 3, 1, 1)
    assert model.fc.in_features == 8


def test_the_stem_has_the_papers_45_channels() -> None:
    with torch.device("meta"):
        model = create_model("r2plus1d_18")
    assert model.stem[0].out_channels == 45


def test_the_same_seed_gives_the_same_weights() -> None:
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(create_model("fr2d_18", 5, **SMALL).state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_unknown_name_suggests_close_ones() -> None:
    with pytest.raises(ValueError, match=r"name='r2plus1_18'.*did you mean 'r2plus1d_18'"):
        create_model("r2plus1_18")
    with pytest.raises(ValueError, match=r"known are fr2d_18, mc3_18, r2plus1d_18"):
        create_model("zzz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a positive integer, got 0"),
        ({"num_classes": 2.0}, "num_classes must be a positive integer, got 2.0"),
        ({"num_classes": True}, "num_classes must be a positive integer, got True"),
        ({"midplanes": "vmz"}, "midplanes must be 'paper' or 'torchvision', got 'vmz'"),
        ({"midplanes": 45}, "midplanes must be 'paper' or 'torchvision', got 45"),
        ({"in_channels": -3}, "in_channels must be a positive integer, got -3"),
        ({"clip_len": 0}, "clip_len must be a positive integer, got 0"),
        ({"blocks": (2, 2, 2)}, "blocks must be four positive integers"),
        ({"blocks": (2, 0, 2, 2)}, r"blocks\[1\] must be a positive integer, got 0"),
        ({"widths": "abcd"}, "widths must be four positive integers"),
        ({"widths": 64}, "widths must be four positive integers"),
        ({"stem_channels": 0}, "stem_channels must be a positive integer, got 0"),
        ({"eps": -1e-5}, r"eps must be a number in \[0.0, 1.0\), got -1e-05"),
        ({"eps": float("nan")}, r"eps must be a number in \[0.0, 1.0\), got nan"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0.0, 1.0\), got 1.0"),
        ({"dropout": "0.5"}, r"dropout must be a number in \[0.0, 1.0\), got '0.5'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("r2plus1d_18", **arguments)


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="width_multiplier"):
        create_model("r2plus1d_18", width_multiplier=2)


def test_merged_frames() -> None:
    r2d = Architecture("r2d_18", ("2d-merged", "2d", "2d", "2d", "2d"), (1, 1, 1, 1))
    with pytest.raises(ValueError, match="clip_len is needed"):
        VideoResNet(r2d, 3, widths=(4, 4, 4, 4))
    model = VideoResNet(r2d, 3, widths=(4, 4, 4, 4), stem_channels=4, clip_len=2).eval()
    x = torch.randn(1, 3, 2, 16, 16)
    as_image = torch.cat([x[:, 0], x[:, 1], x[:, 2]], dim=1)  # both frames of red, green, blue
    expected = torch.nn.functional.conv2d(
        as_image, model.stem[0].weight[:, :, 0], stride=2, padding=3
    )
    torch.testing.assert_close(model.stem[0](x)[:, :, 0], expected)
    assert model(x).shape == (1, 3)
    with pytest.raises(ValueError, match="3 frames, but this network merges exactly 2"):
        model(torch.randn(1, 3, 3, 16, 16))

"""Networks by name, and what happens to bad arguments (about 1 s)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from r21d.models import create_model, list_models

OF_THE_PAPER = [name for name in list_models() if name != "i3d"]
SMALL: dict[str, Any] = {"widths": (4, 6, 6, 8), "stem_channels": 4, "blocks": (1, 1, 1, 1)}


def test_registered_names() -> None:
    families = ["fr2d", "mc2", "mc3", "mc4", "mc5", "r2d", "r2plus1d", "r3d"]
    families += ["rmc2", "rmc3", "rmc4", "rmc5"]
    of_the_paper = [f"{family}_{depth}" for family in families for depth in (18, 34)]
    assert list_models() == sorted([*of_the_paper, "i3d"])


@pytest.mark.parametrize("name", OF_THE_PAPER)
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
    with pytest.raises(ValueError, match=r"known are fr2d_18, fr2d_34, i3d, mc2_18"):
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
        ({"stem_midplanes": 0}, "stem_midplanes must be a positive integer, got 0"),
        ({"shortcut": "identity"}, r"shortcut must be 'projection' or '\(2\+1\)d', got 'identity'"),
        ({"eps": -1e-5}, r"eps must be a number in \[0.0, 1.0\), got -1e-05"),
        ({"eps": float("nan")}, r"eps must be a number in \[0.0, 1.0\), got nan"),
        ({"inner_eps": 2}, r"inner_eps must be a number in \[0.0, 1.0\), got 2"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0.0, 1.0\), got 1.0"),
        ({"dropout": "0.5"}, r"dropout must be a number in \[0.0, 1.0\), got '0.5'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("r2plus1d_18", **arguments)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("r3d_18", {"stem_midplanes": 83}),
        ("mc3_18", {"shortcut": "(2+1)d"}),
        ("r3d_34", {"inner_eps": 1e-5}),
    ],
)
def test_options_of_2plus1d_networks_alone(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(option))}=.* is for networks of \(2\+1\)D"):
        create_model(name, **option)


def test_options_of_mmaction2() -> None:
    plain = create_model("r2plus1d_18", 5, **SMALL).eval()
    options = {"stem_midplanes": 7, "stem_pool": True, "shortcut": "(2+1)d"}
    model = create_model("r2plus1d_18", 5, eps=1e-3, inner_eps=1e-5, **options, **SMALL).eval()
    assert model.stem[0].out_channels == 7
    norms = {name: m.eps for name, m in model.named_modules() if hasattr(m, "eps")}
    inner = {name for name, eps in norms.items() if eps == 1e-5}
    assert set(norms.values()) == {1e-3, 1e-5}
    # One in the stem, one in each of eight convolutions and three shortcuts.
    assert len(inner) == 12 and all(name == "stem.1" or name.endswith(".0.1") for name in inner)
    spatial, norm, _, temporal = model.layer2[0].downsample[0]
    assert spatial.weight.shape == (3 * 4 * 6 // (4 + 3 * 6), 4, 1, 1, 1)
    assert (spatial.stride, temporal.stride) == ((1, 2, 2), (2, 1, 1))
    assert isinstance(norm, torch.nn.BatchNorm3d) and model.layer2[0].downsample[1].eps == 1e-3
    x = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        stem = model.stem(x)
        pooled = torch.nn.functional.max_pool3d(stem, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        assert torch.equal(model.features(x, "stem", pool=False), pooled)
        assert model(x).shape == (1, 5)
    assert not [name for name in model.state_dict() if "pool" in name]
    assert plain.stem_pool is None


def test_unknown_option() -> None:
    with pytest.raises(TypeError, match="width_multiplier"):
        create_model("r2plus1d_18", width_multiplier=2)


def test_merged_frames() -> None:
    with pytest.raises(ValueError, match="clip_len is needed"):
        create_model("r2d_18", 3, **SMALL)
    model = create_model("r2d_18", 3, clip_len=2, **SMALL).eval()
    x = torch.randn(1, 3, 2, 16, 16)
    as_image = torch.cat([x[:, 0], x[:, 1], x[:, 2]], dim=1)  # both frames of red, green, blue
    expected = torch.nn.functional.conv2d(
        as_image, model.stem[0].weight[:, :, 0], stride=2, padding=3
    )
    torch.testing.assert_close(model.stem[0](x)[:, :, 0], expected)
    assert model(x).shape == (1, 3)
    with pytest.raises(ValueError, match="3 frames, but this network merges exactly 2"):
        model(torch.randn(1, 3, 3, 16, 16))

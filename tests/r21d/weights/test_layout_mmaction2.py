"""mmaction2's ResNet2Plus1d: recognised with what no key tells, and what is nearly one says what
differs (about 3 s).  Logits are compared in ``test_published_families``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from weights import published_mmaction2
from weights.published_tensors import placeholder, record

from r21d.models import create_model
from r21d.weights.layouts import Imported, LayoutError, import_layout

State = dict[str, Tensor]


def made(classes: int = 400, channels: int = 8) -> State:
    return record(published_mmaction2.network(classes, channels), (3, 4, 32, 32))


def imported_from(state: State) -> Imported:
    imported = import_layout(state)
    assert imported is not None and imported.layout == "mmaction2"
    return imported


def test_the_published_size() -> None:
    state = record(published_mmaction2.network(), (3, 4, 32, 32), placeholder)
    imported = imported_from(state)
    with torch.device("meta"):
        model = create_model(**imported.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 63_759_281
    config = imported.config
    assert config["name"] == "r2plus1d_34" and config["midplanes"] == "paper"
    assert (config["stem_midplanes"], config["stem_pool"]) == (83, True)
    assert (config["shortcut"], config["dropout"]) == ("(2+1)d", 0.5)
    middle = imported.state_dict["layer3.0.downsample.0.0.weight"]
    assert middle.shape[0] == 109
    assert len(imported.classes) == 400


def test_every_value_is_kept_once() -> None:
    state = made()
    imported = imported_from(state)
    ours = create_model(**imported.config).state_dict()
    assert list(imported.state_dict) == list(ours) and len(ours) == len(state)
    for name, tensor in ours.items():
        assert imported.state_dict[name].shape == tensor.shape
        assert imported.state_dict[name].dtype == tensor.dtype
    kept = torch.cat([tensor.double().flatten() for tensor in imported.state_dict.values()])
    given = torch.cat([tensor.double().flatten() for tensor in state.values()])
    assert torch.equal(kept.sort().values, given.sort().values)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.conv1.conv.conv_s.weight", "stem.0.weight"),
        ("backbone.conv1.conv.bn_s.running_var", "stem.1.running_var"),
        ("backbone.conv1.conv.conv_t.weight", "stem.3.weight"),
        ("backbone.conv1.bn.bias", "stem.4.bias"),
        ("backbone.layer3.5.conv2.conv.conv_s.weight", "layer3.5.conv2.0.0.weight"),
        ("backbone.layer3.5.conv2.conv.bn_s.weight", "layer3.5.conv2.0.1.weight"),
        ("backbone.layer3.5.conv2.conv.conv_t.weight", "layer3.5.conv2.0.3.weight"),
        ("backbone.layer3.5.conv1.bn.running_mean", "layer3.5.conv1.1.running_mean"),
        ("backbone.layer2.0.downsample.conv.conv_t.weight", "layer2.0.downsample.0.3.weight"),
        ("backbone.layer2.0.downsample.bn.weight", "layer2.0.downsample.1.weight"),
        ("cls_head.fc_cls.weight", "fc.weight"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    state = made(classes=7)
    imported = imported_from(state)
    assert torch.equal(imported.state_dict[ours], state[theirs])
    assert imported.classes == []


def test_input() -> None:
    imported = imported_from(made())
    assert imported.input == {
        "clip_len": 8,
        "frame_rate": None,
        "resize": 256,
        "crop": [224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "frame_stride": 8,
        "short": "loop",
        "antialias": False,
    }
    assert any("max-pool after conv1" in text for text in imported.assumed)
    assert any("32-frame weights take every 2nd" in text for text in imported.assumed)


def test_buffers_of_the_preprocessing_are_passed_over() -> None:
    state = made()
    more = {**state, "data_preprocessor.mean": torch.zeros(3, 1, 1, 1)}
    assert imported_from(more).config == imported_from(state).config


def without(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            without("backbone.layer2.0.downsample.conv.conv_t.weight"),
            "missing from the file: backbone.layer2.0.downsample.conv.conv_t.weight",
        ),
        (without("backbone.conv1.conv.conv_s.weight"), "conv_s.weight is missing from the file"),
        (without("cls_head.fc_cls.bias"), "missing from the file: cls_head.fc_cls.bias"),
        (
            lambda state: state.update({"backbone.layer1.0.conv1.conv.weight": torch.zeros(3)}),
            "unknown to a r2plus1d_34 of mmaction2: backbone.layer1.0.conv1.conv.weight",
        ),
        (
            lambda state: state.update({"cls_head.fc_cls.weight": torch.zeros(400, 63)}),
            r"cls_head.fc_cls.weight \(400x63 in the file, 400x64 in a r2plus1d_34 of mmaction2\)",
        ),
    ],
)
def test_near_misses(damage: Callable[[State], object], message: str) -> None:
    state = made()
    damage(state)
    with pytest.raises(LayoutError, match=message) as caught:
        import_layout(state)
    assert str(caught.value).startswith("this looks like the layout of mmaction2")


@pytest.mark.parametrize("names", ["mmaction2's", "without head", "torchvision's"])
def test_a_backbone_is_not_always_mmaction2s(names: str) -> None:
    state = made()
    if names == "without head":
        state = {k: v for k, v in state.items() if k.startswith("backbone.")}
        with pytest.raises(LayoutError, match=r"layout of mmaction2 .*cls_head\.fc_cls"):
            import_layout(state)
    elif names == "mmaction2's":
        imported_from(state)
    else:
        model = create_model("r3d_18", 5, widths=(8, 8, 8, 8), stem_channels=8)
        ours = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
        imported = import_layout(ours)
        assert imported is not None and imported.layout == "torchvision"
        assert imported.config["name"] == "r3d_18"
        encoder = {k: v for k, v in ours.items() if ".fc." not in k}
        encoder |= {"projector.weight": torch.zeros(3)}
        assert import_layout(encoder) is None  # nobody's that is known


@pytest.mark.parametrize("prefix", ["model.", "net."])
def test_a_prefix_that_all_names_have(prefix: str) -> None:
    state = made()
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    imported, plain = imported_from(prefixed), imported_from(state)
    assert imported.config == plain.config
    for name, tensor in plain.state_dict.items():
        assert torch.equal(imported.state_dict[name], tensor)
    more = {**prefixed, "criterion.weight": torch.zeros(3)}
    assert import_layout(more) is None
    prefixed.pop(f"{prefix}cls_head.fc_cls.bias")
    with pytest.raises(LayoutError, match=f"without '{prefix}' before every name, this looks like"):
        import_layout(prefixed)


def test_other_networks_of_mmaction2() -> None:
    state = {
        f"backbone.layer{layer}.0.conv{conv}.{name}.weight": torch.zeros(2, 2, 1, 1, 1)
        for layer in range(1, 5)
        for conv in range(1, 4)
        for name in ("conv", "bn")
    }
    state |= {"cls_head.fc_cls.weight": torch.zeros(2, 2)}
    with pytest.raises(LayoutError, match=r"a network of mmaction2 other than R\(2\+1\)D"):
        import_layout(state)

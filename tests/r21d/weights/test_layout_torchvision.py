"""torchvision's layout: every network's own state dict is recognised as what it is, what is nearly
one says what differs, and what goes out comes back (about 10 s).  Logits are compared in
``test_published_families`` and with torchvision's own code in ``models/test_torchvision``."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from r21d.models import VideoModel, create_model, list_models
from r21d.video.transforms import InputSpec
from r21d.weights.layouts import Imported, LayoutError, import_layout
from r21d.weights.layouts.torchvision import export_torchvision

State = dict[str, Tensor]

NETWORKS = [name for name in list_models() if name != "i3d"]
NARROW: dict[str, Any] = {"widths": (6, 8, 10, 12), "stem_channels": 4}


def built(name: str, **options: Any) -> VideoModel:
    if name.startswith("r2d_"):
        options = {"clip_len": 8, **options}
    return create_model(name, **options)


def on_meta(name: str, **options: Any) -> VideoModel:
    with torch.device("meta"):
        return built(name, **options)


def recognised(state: State) -> Imported:
    imported = import_layout(state)
    assert imported is not None and imported.layout == "torchvision"
    return imported


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 7, "in_channels": 2},
        {**NARROW, "blocks": (2, 1, 3, 1), "num_classes": 1},
        {"midplanes": "torchvision", "in_channels": 1, "widths": (8, 8, 16, 16)},
    ],
)
def test_own_state_dicts_are_recognised(name: str, options: dict[str, Any]) -> None:
    if name.startswith("r2d_") and options.get("in_channels") == 1:
        options = {**options, "in_channels": 3}  # frames of one channel look like RGB
    if not name.startswith("r2plus1d"):
        options = {key: value for key, value in options.items() if key != "midplanes"}
    model = on_meta(name, **options)
    imported = recognised(model.state_dict())
    config = dict(imported.config)
    expected = dict(model.config)
    # No shape tells eps; and with other depths than the paper's, 18 and 34 layers are the same.
    for key in ("eps", *(("name",) if "blocks" in options else ())):
        del config[key], expected[key]
    assert config == expected
    assert imported.config["name"].rpartition("_")[0] == name.rpartition("_")[0]
    assert imported.state_dict.keys() == model.state_dict().keys()


@pytest.mark.parametrize("frames", [2, 5, 16])
def test_r2d_tells_its_clip(frames: int) -> None:
    imported = recognised(on_meta("r2d_34", clip_len=frames).state_dict())
    assert imported.config["clip_len"] == frames and imported.config["in_channels"] == 3
    assert imported.input["clip_len"] == frames


def test_mmaction2s_network_by_our_names() -> None:
    options = {"stem_midplanes": 83, "stem_pool": True, "shortcut": "(2+1)d", "eps": 1e-3}
    model = on_meta("r2plus1d_34", **options)
    imported = recognised(model.state_dict())
    assert {key: imported.config[key] for key in options} == options
    assert any("max-pool after conv1" in text for text in imported.assumed)


@pytest.mark.parametrize(
    ("name", "options", "eps", "clip_len", "rate"),
    [
        ("r2plus1d_18", {"midplanes": "torchvision"}, 1e-5, 16, 15.0),
        ("r3d_18", {}, 1e-5, 16, 15.0),
        ("mc3_18", {}, 1e-5, 16, 15.0),
        ("r2plus1d_34", {}, 1e-3, 8, 30.0),
        ("r2plus1d_34", {"num_classes": 487}, 1e-3, 8, 30.0),
        ("r2plus1d_34", {"num_classes": 359}, 1e-3, 32, 30.0),
    ],
)
def test_what_is_assumed_of_published_networks(
    name: str, options: dict[str, Any], eps: float, clip_len: int, rate: float
) -> None:
    imported = recognised(on_meta(name, **options).state_dict())
    assert imported.config["eps"] == eps
    assert InputSpec.from_dict(imported.input) == InputSpec(clip_len, rate, antialias=False)
    assert len(imported.classes) == (400 if imported.config["num_classes"] == 400 else 0)
    text = "; ".join(imported.assumed)
    assert f"eps {'1e-3' if eps == 1e-3 else '1e-5'}" in text
    assert f"clips of {clip_len} frames at {rate:g} a second" in text
    assert ("Kinetics-400" in text) == bool(imported.classes)


def test_nothing_is_assumed_of_networks_that_nobody_published() -> None:
    imported = recognised(on_meta("r3d_18", **NARROW).state_dict())
    assert (imported.classes, imported.input) == ([], {})


def test_without_counters_of_batches() -> None:
    state = built("r3d_18", **NARROW, num_classes=3).state_dict()
    older = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    imported = recognised(older)
    assert imported.state_dict.keys() == state.keys()
    for name, tensor in imported.state_dict.items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "mc3_18"])
def test_torchvisions_own_networks(name: str, torchvision_resnet: ModuleType) -> None:
    theirs = getattr(torchvision_resnet, name)()
    imported = recognised(theirs.state_dict())
    assert imported.config["name"] == name
    assert imported.config["midplanes"] == ("torchvision" if name == "r2plus1d_18" else "paper")
    ours = create_model(**imported.config)
    ours.load_state_dict(imported.state_dict)
    exported = export_torchvision(ours)
    assert list(exported) == list(theirs.state_dict())
    assert len(exported) == (224 if name == "r2plus1d_18" else 122)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(exported[key], tensor)


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("r2d_")])
def test_export_round_trip_is_exact(name: str) -> None:
    model = built(name, **NARROW, num_classes=3)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else 7)
    exported = export_torchvision(model.to(memory_format=torch.channels_last_3d))
    imported = recognised(exported)
    assert list(imported.state_dict) == list(model.state_dict())
    for key, tensor in model.state_dict().items():
        assert torch.equal(imported.state_dict[key], tensor)
        assert exported[key].is_contiguous() and exported[key].data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("r2d_18", {}, "its conv1 merges the frames of a clip into one image"),
        ("r2plus1d_18", {"stem_pool": True}, "a max-pool follows its conv1"),
        ("r2plus1d_18", {"shortcut": "(2+1)d"}, r"its shortcuts are \(2\+1\)d convolutions"),
        ("i3d", {}, "i3d has no layout in torchvision"),
    ],
)
def test_what_torchvision_has_no_layout_for(
    name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"{reason}.*keep it as safetensors"):
        export_torchvision(on_meta(name, **options))


def without(*parts: str) -> Callable[[State], object]:
    """Drops all names with one of ``parts`` in them."""
    return lambda state: [
        state.pop(name) for name in list(state) if any(part in name for part in parts)
    ]


def changed(name: str, *shape: int) -> Callable[[State], object]:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("layer2.1.conv1.0.3.weight"), "missing from the file: layer2.1.conv1.0.3.weight"),
        (without("layer2.0."), "missing from the file: layer2.0.conv1.0.0.weight.* and .* more"),
        (without("layer3."), "no block of conv4_x, layer3.0.conv1.1.weight for one"),
        (without("stem.0"), "stem.0.weight is missing from the file"),
        (without("fc."), "fc.bias is missing from the file, or empty"),
        (without("fc.bias"), "missing from the file: fc.bias"),
        (changed("fc.extra.weight", 3), "unknown to a r2plus1d_18 of torchvision: fc.extra.weight"),
        (changed("layer1.0.conv1.0.0.bias", 3), "unknown to .*layer1.0.conv1.0.0.bias"),
        (
            changed("layer4.1.conv2.1.bias", 13),
            r"layer4.1.conv2.1.bias \(13 in the file, 12 in a r2plus1d_18",
        ),
        (
            changed("layer4.0.conv1.0.0.weight", 33, 10, 3, 3, 3),
            r"layer4.0.conv1.0.0.weight \(33x10x3x3x3 in the file, 25x10x1x3x3",
        ),
        (changed("stem.0.weight", 2, 3, 7, 7), "stem.0.weight is 2x3x7x7, expected 5 dimensions"),
        (changed("fc.bias", 0), r"of another shape: fc.bias \(0 in the file, 3 in"),
        (changed("fc.bias"), r"of another shape: fc.bias \(scalar in the file, 3 in"),
        (changed("stem.0.weight", 3, 3, 1, 7, 7), r"shape: stem.0.weight \(3x3x1x7x7 in .* 2x3x"),
        (
            changed("layer1.0.conv1.1.weight", 7),
            r"of another shape: layer1.0.conv1.1.weight \(7 in",
        ),
    ],
)
def test_near_misses(damage: Callable[[State], object], message: str) -> None:
    state = dict(built("r2plus1d_18", **NARROW, num_classes=3).state_dict())
    damage(state)
    with pytest.raises(LayoutError, match=message) as caught:
        import_layout(state)
    assert str(caught.value).startswith("this looks like the layout of torchvision")


def test_kinds_that_make_no_network_of_the_paper() -> None:
    state = dict(built("r3d_18", **NARROW).state_dict())
    for name in list(state):
        if name.startswith("layer2.") and state[name].dim() == 5 and "downsample" not in name:
            state[name] = state[name][:, :, :1]
    with pytest.raises(LayoutError, match="are 3d, 3d, 2d, 3d, 3d, which is no network"):
        import_layout(state)
    state["layer2.0.conv1.0.weight"] = torch.zeros(8, 6, 5, 3, 3)
    with pytest.raises(LayoutError, match=r"layer2.0.conv1.0.weight spans 5 frames"):
        import_layout(state)


def bottleneck(kind: str, blocks: tuple[int, ...]) -> State:
    """Names and ranks of VMZ's deeper PyTorch networks (pt/vmz/models)."""
    middles: dict[str, nn.Module] = {
        "ir-CSN": nn.Conv3d(4, 4, 3, groups=4, bias=False),
        "ip-CSN": nn.Sequential(
            nn.Conv3d(4, 4, 1, bias=False),
            nn.BatchNorm3d(4),
            nn.Conv3d(4, 4, 3, groups=4, bias=False),
        ),
        "R(2+1)D": nn.Sequential(
            nn.Conv3d(4, 9, (1, 3, 3), bias=False),
            nn.BatchNorm3d(9),
            nn.ReLU(),
            nn.Conv3d(9, 4, (3, 1, 1), bias=False),
        ),
        "residual": nn.Conv3d(4, 4, 3, bias=False),
    }

    def unit(conv: nn.Module, channels: int) -> nn.Module:
        return nn.Sequential(conv, nn.BatchNorm3d(channels))

    network = nn.ModuleDict({"stem": nn.Sequential(nn.Conv3d(3, 8, (3, 7, 7), bias=False))})
    for layer, count in enumerate(blocks, start=1):
        block = nn.ModuleDict(
            {
                "conv1": unit(nn.Conv3d(8, 4, 1, bias=False), 4),
                "conv2": unit(middles[kind], 4),
                "conv3": unit(nn.Conv3d(4, 8, 1, bias=False), 8),
            }
        )
        network[f"layer{layer}"] = nn.ModuleList([block] * count)
    network["fc"] = nn.Linear(8, 400)
    return network.state_dict()


@pytest.mark.parametrize(
    ("kind", "blocks", "message"),
    [
        ("ir-CSN", (3, 8, 36, 3), "this is an ir-CSN of 152 layers"),
        ("ip-CSN", (3, 8, 36, 3), "this is an ip-CSN of 152 layers"),
        ("R(2+1)D", (3, 8, 36, 3), r"this is an R\(2\+1\)D of 152 layers"),
        ("residual", (3, 4, 6, 3), "this is a residual network of 50 layers"),
    ],
)
def test_deeper_networks_are_refused_by_name(
    kind: str, blocks: tuple[int, ...], message: str
) -> None:
    with pytest.raises(LayoutError, match=f"{message}.*use weights of r2plus1d_34"):
        import_layout(bottleneck(kind, blocks))


def test_other_networks_are_not_torchvisions_video_networks() -> None:
    # torchvision's image networks have layer1.0.conv1.weight and layer2.0.downsample.0.weight.
    image = {"conv1.weight": torch.zeros(2, 3, 7, 7), "fc.weight": torch.zeros(3, 2)}
    for layer in range(1, 5):
        for conv in ("conv1", "conv2", "bn1", "bn2"):
            image[f"layer{layer}.0.{conv}.weight"] = torch.zeros(2)
        image[f"layer{layer}.0.downsample.0.weight"] = torch.zeros(2)
    assert import_layout(image) is None
    assert import_layout({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}) is None
    assert import_layout({}) is None

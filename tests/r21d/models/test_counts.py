"""Parameters and multiply-adds of every network of the paper (about 5 s).

The expected figures are those of the paper's Table 2 and Figure 3 computed to the last digit; for
r3d_18 and mc3_18 they are also what torchvision publishes, for mmaction2's network what its own
code gives.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from r21d.models import VideoModel, create_model, list_models, model_info
from r21d.models.paper import Network

# Family: parameters at 18 layers, GMAC at 8, 16 and 32 frames, frames left after the last
# convolution at 8 frames, parameters and GMAC (8 frames) at 34 layers.
FIGURES = {
    "r2d": (11_447_568, ("1.93", "2.17", "2.64"), 1, 21_555_728, "3.78"),
    "fr2d": (11_381_712, ("13.80", "27.60", "55.20"), 8, 21_489_872, "28.60"),
    "r3d": (33_371_472, ("20.35", "40.70", "81.39"), 1, 63_681_104, "37.69"),
    "mc2": (11_400_528, ("14.27", "28.55", "57.09"), 8, 21_508_688, "29.07"),
    "mc3": (11_695_440, ("21.67", "43.34", "86.69"), 8, 21_951_056, "40.17"),
    "mc4": (12_727_632, ("19.98", "39.95", "79.90"), 4, 24_162_896, "35.70"),
    "mc5": (16_856_400, ("19.95", "39.90", "79.80"), 2, 37_728_848, "37.06"),
    "rmc2": (33_352_656, ("19.88", "39.75", "79.50"), 1, 63_662_288, "37.22"),
    "rmc3": (33_057_744, ("12.48", "24.95", "49.91"), 1, 63_219_920, "26.12"),
    "rmc4": (32_025_552, ("14.55", "29.09", "58.18"), 2, 61_008_080, "32.58"),
    "rmc5": (27_896_784, ("15.39", "30.79", "61.57"), 4, 47_442_128, "31.12"),
    "r2plus1d": (33_370_839, ("20.75", "41.50", "82.99"), 1, 63_697_175, "38.09"),
}
CLIP_LENS = (8, 16, 32)


def build(name: str, **options: Any) -> VideoModel:
    with torch.device("meta"):
        return create_model(name, **options)


def test_every_network_of_the_paper_is_registered() -> None:
    paper = {f"{family}_{depth}" for family in FIGURES for depth in (18, 34)}
    assert len(paper) == 24
    assert paper == {name for name in list_models() if name != "i3d"}


@pytest.mark.parametrize("family", FIGURES)
def test_18_layers(networks: dict[str, Network], family: str) -> None:
    parameters, gmacs, last_frames, _, _ = FIGURES[family]
    infos = [networks[f"{family}_18"].infos[n] for n in CLIP_LENS]
    assert infos[0].parameters == parameters
    assert tuple(f"{info.gmacs:.2f}" for info in infos) == gmacs
    assert infos[0].last_conv == (last_frames, 7, 7)


@pytest.mark.parametrize("family", FIGURES)
def test_34_layers(networks: dict[str, Network], family: str) -> None:
    _, _, last_frames, parameters, gmacs = FIGURES[family]
    info = networks[f"{family}_34"].infos[8]
    assert info.parameters == parameters
    assert f"{info.gmacs:.2f}" == gmacs
    assert info.last_conv == (last_frames, 7, 7)


def test_mmaction2s_network() -> None:
    options = {"stem_midplanes": 83, "stem_pool": True, "shortcut": "(2+1)d", "eps": 1e-3}
    model = build("r2plus1d_34", **options)
    info = model_info(model, (3, 8, 224, 224))
    assert info.parameters == 63_759_281
    shortcuts = [row for row in info.layers if "downsample" in row.name]
    assert [row.output[0] for row in shortcuts] == [54, 128, 109, 256, 219, 512]
    assert info.last_conv == (1, 7, 7)  # of 224 pixels, because of the pool


def test_midplanes_of_torchvision() -> None:
    model = build("r2plus1d_18", midplanes="torchvision")
    assert model_info(model).parameters == 31_505_325


def test_midplanes_differ_only_where_a_block_changes_the_channels() -> None:
    paper, torchvision = (build("r2plus1d_34", midplanes=m) for m in ("paper", "torchvision"))
    shapes = {name: tensor.shape for name, tensor in torchvision.state_dict().items()}
    differing = {n.rsplit(".", 2)[0] for n, t in paper.state_dict().items() if t.shape != shapes[n]}
    assert differing == {f"layer{group}.0.conv2.0" for group in (2, 3, 4)}
    published = [paper.get_submodule(f"layer{g}.0.conv2.0.0").out_channels for g in (2, 3, 4)]
    assert published == [288, 576, 1152]  # those of ig65m's 34-layer weights
    assert len(shapes) == 416


def test_rows_count_one_clip_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv3d(4, 6, (1, 3, 2), stride=(1, 2, 1), groups=2),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    info = model_info(model, (4, 2, 7, 6))
    conv, linear = info.layers
    assert (conv.name, conv.kind, conv.input, conv.output) == (
        "0",
        "Conv3d",
        (4, 2, 7, 6),
        (6, 2, 3, 5),
    )
    assert conv.macs == (6 * 2 * 3 * 5) * (4 // 2 * 1 * 3 * 2)
    assert conv.parameters == 6 * 2 * 1 * 3 * 2 + 6
    assert (linear.macs, linear.parameters) == (30, 35)
    assert info.gmacs == (conv.macs + linear.macs) / 1e9
    assert info.parameters == conv.parameters + linear.parameters
    assert info.last_conv == (2, 3, 5)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_model_alone(training: bool) -> None:
    model = create_model("r2plus1d_18", 3, widths=(4, 4, 6, 6), stem_channels=4).train(training)
    model.fc.requires_grad_(False)
    model.layer2.train(not training)
    calls: list[str] = []
    model.stem[0].register_forward_hook(lambda *_: calls.append("stem"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    info = model_info(model, (3, 1, 5, 5))
    assert info.last_conv == (1, 1, 1)
    assert calls == []
    assert len(model.stem[0]._forward_hooks) == 1
    assert not any(m._forward_hooks for n, m in model.named_modules() if n != "stem.0")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="x must be"):
        model_info(model, (2, 1, 5, 5))
    assert not any(m._forward_hooks for n, m in model.named_modules() if n != "stem.0")


@pytest.mark.parametrize("shape", [(3, 8, 112), (3, 8, 112, 0), (3, 8, 112, 1.5)])
def test_bad_clip_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="clip_shape must be four positive integers"):
        model_info(nn.Conv3d(3, 4, 1), shape)


def test_model_without_a_convolution() -> None:
    with pytest.raises(ValueError, match="no Conv3d layer"):
        model_info(nn.Linear(4, 2), (3, 2, 2, 4))

"""Going on from the weights of a run: what stays, what learns, and how fast.  About two seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.shades import Shades

from r21d.models.base import VideoModel
from r21d.training import TrainConfig, train
from r21d.training.network import build_model
from r21d.training.protocol import load_config
from r21d.video import InputSpec

_CONFIG = TrainConfig(epochs=1, epoch_clips=8, batch_size=4, lr=0.05)


class _Greys(Shades):
    """Three classes, and clips of any length."""

    classes = ["bright", "dark", "grey"]  # noqa: RUF012

    def __init__(self, frames: int = 4) -> None:
        super().__init__(6, size=16)
        self.spec = InputSpec(clip_len=frames, resize=(16, 16), crop=(16, 16))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two classes, 4 frames a clip."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    model = _start(None, 4, ["bright", "dark"])
    train(model, Shades(6, size=16), None, _CONFIG, out=folder)
    return folder


def _start(weights: Path | None, frames: int, classes: list[str]) -> VideoModel:
    torch.manual_seed(1)
    values: dict[str, Any] = {"clip_len": frames, "resize": (16, 16), "crop": (16, 16)}
    if weights is None:
        values |= {"width": 4}
    else:
        values |= {"weights": str(weights)}
    return build_model(load_config(None, values), classes)


def _state(model: VideoModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _changed(before: dict[str, Tensor], model: VideoModel) -> set[str]:
    """The network's parts of which anything, statistics included, is another than before."""
    return {
        name.partition(".")[0]
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor, before[name])
    }


def test_frozen_stages_keep_their_weights_and_statistics(pretrained: Path) -> None:
    model = _start(pretrained, 4, _Greys.classes)
    before = _state(model)
    assert before["fc.weight"].shape[0] == 3
    settings = {**_CONFIG.to_dict(), "freeze": 2}
    train(model, _Greys(), None, TrainConfig(**settings))
    assert _changed(before, model) == {"layer2", "layer3", "layer4", "fc"}


def test_the_head_learns_at_a_rate_of_its_own(pretrained: Path) -> None:
    """Ten times the rate: ten times as far in a step of plain SGD from the same place."""
    moved = {}
    for factor in (1.0, 10.0):
        model = _start(pretrained, 4, _Greys.classes)
        before = _state(model)
        settings = {
            **_CONFIG.to_dict(),
            "epoch_clips": 4,
            "weight_decay": 0.0,
            "lr_scales": {"fc": factor},
        }
        train(model, _Greys(), None, TrainConfig(**settings))
        after = model.state_dict()
        moved[factor] = {
            name: after[name] - before[name] for name in ("fc.weight", "layer1.0.conv1.0.0.weight")
        }
    head, body = moved[1.0]
    assert moved[1.0][head].abs().max() > 0
    torch.testing.assert_close(moved[10.0][head], 10 * moved[1.0][head], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[10.0][body], moved[1.0][body], rtol=0, atol=0)


def test_longer_clips_start_from_the_same_weights(pretrained: Path) -> None:
    """4 frames to 8: everything but the head is the run's, and it trains."""
    model = _start(pretrained, 8, _Greys.classes)
    shorter = _state(_start(pretrained, 4, _Greys.classes))
    assert {n for n, t in _state(model).items() if not torch.equal(t, shorter[n])} <= {
        "fc.weight",
        "fc.bias",
    }
    before = _state(model)
    (row,) = train(model, _Greys(8), None, _CONFIG)
    assert row["train_loss"] > 0
    assert "stem" in _changed(before, model)


def test_the_same_classes_keep_the_head(pretrained: Path) -> None:
    same = _start(pretrained, 4, ["bright", "dark"])
    others = _start(pretrained, 4, ["red", "green"])
    assert not torch.equal(same.state_dict()["fc.weight"], others.state_dict()["fc.weight"])
    body = [name for name in same.state_dict() if not name.startswith("fc.")]
    for name in body:
        assert torch.equal(same.state_dict()[name], others.state_dict()[name]), name


def test_options_that_the_weights_have_otherwise_are_named(pretrained: Path) -> None:
    own = {"weights": str(pretrained), "clip_len": 4, "dropout": 0.5}
    named = "kinetics_r2plus1d_18_8f"
    width, eps = r"width is 8 \(command line\) and 4", r"eps is 0.001 \(VMZ.*\) and 1e-05"
    for name, more, told in (
        (None, {"width": 8}, f"{width} in the weights; none takes what they have"),
        (named, {"width": 8}, f"{width} in the weights, {eps} in the weights; none"),
        (named, {}, f"{eps} in the weights; none"),
    ):
        with pytest.raises(ValueError, match=f"holds a r2plus1d_18 that does not fit: {told}"):
            build_model(load_config(name, own | more), _Greys.classes)
    build_model(load_config(named, own | {"eps": None}), _Greys.classes)

"""A network from a file, a URL or a name alone, with all that is known about it (about 10 s)."""

from __future__ import annotations

import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from r21d.models import VideoModel, create_model
from r21d.video.transforms import InputSpec
from r21d.weights import (
    PublishedWeights,
    WeightsUnavailable,
    list_weights,
    load_checkpoint,
    load_model,
    load_weights,
    register_weights,
)
from r21d.weights import published as registry_entry

SMALL: dict[str, Any] = {"widths": (4, 6, 6, 8), "stem_channels": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads of a test go to its own folder, and its entries go with it."""
    module = sys.modules["r21d.weights.registry"]
    monkeypatch.setattr(module, "_registry", dict(module._registry))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def small(name: str = "r2plus1d_34", seed: int = 1, **options: Any) -> VideoModel:
    torch.manual_seed(seed)
    model = create_model(name, **{"num_classes": 5, **SMALL, **options}).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_var is not None
            module.running_var.uniform_(0.001, 0.01)  # small, so that eps shows
            nn.init.constant_(module.weight, 0.05)  # and depth does not overflow
    return model


def write(path: Path, model: nn.Module) -> Path:
    torch.save(model.state_dict(), path)
    return path


def entry(path: Path, name: str, **changes: Any) -> PublishedWeights:
    values: dict[str, Any] = {
        "model": "r2plus1d_34",
        "name": name,
        "url": path.as_uri(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:8],
        "clip_len": 32,
        "frame_rate": 30.0,
    }
    return PublishedWeights(**values | changes)


def test_a_plain_file_is_enough(tmp_path: Path) -> None:
    model = small(eps=1e-3)
    again = load_model(write(tmp_path / "a.pth", model))
    assert again.config == model.config and not again.training
    x = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        assert model(x).isfinite().all() and torch.equal(again(x), model(x))


def test_a_url(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", small(eps=1e-3))
    first = load_model(path.as_uri())
    torch.save(small(eps=1e-3, seed=2).state_dict(), path)
    second = load_model(path.as_uri())  # the file as it is now
    assert second.config == first.config and not torch.equal(second.fc.weight, first.fc.weight)
    path.unlink()
    with pytest.raises(WeightsUnavailable, match=r"cannot download file:///.*no such file"):
        load_model(path.as_uri())


def test_a_registered_name(tmp_path: Path) -> None:
    model = small(eps=1e-3, num_classes=400, widths=(64, 128, 256, 512), stem_channels=64)
    register_weights(entry(write(tmp_path / "a.pth", model), "mine", classes="kinetics400"))
    for again in (load_model("r2plus1d_34/mine"), create_model("r2plus1d_34", weights="mine")):
        assert again.input_spec == InputSpec(32, 30.0, antialias=False)
        assert again.classes is not None and again.classes[129] == "flipping pancake"
        assert again.config["eps"] == 1e-3
    # The same file by its path: known by its hash.
    checkpoint = load_checkpoint(tmp_path / "a.pth")
    assert checkpoint.extra["weights"] == "r2plus1d_34/mine"
    assert checkpoint.input["clip_len"] == 32


def test_a_name_of_several_networks(tmp_path: Path) -> None:
    for name in ("r3d_18", "mc3_18"):
        path = write(tmp_path / f"{name}.pth", small(name))
        register_weights(entry(path, "mine", model=name))
        assert create_model(name, weights="mine").config["name"] == name
    with pytest.raises(ValueError, match="name one of mc3_18/mine, r3d_18/mine"):
        load_model("mine")
    with pytest.raises(ValueError, match=r"r3d_34 has no weights 'mine'"):
        create_model("r3d_34", weights="mine")


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path) -> None:
    lost = tmp_path / "lost.pth"
    register_weights(entry(write(lost, small()), "lost"))
    lost.unlink()
    with pytest.raises(WeightsUnavailable, match=r"lost.pth.*download it elsewhere, then pass"):
        create_model("r2plus1d_34", weights="lost")
    with pytest.raises(ValueError, match="start with https:// or file://"):
        load_model("ftp://a/b.pth")


def test_other_content_than_published_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", small())
    register_weights(entry(path, "mine"))
    write(path, small(seed=2))
    with pytest.raises(WeightsUnavailable, match="does not give what was published"):
        load_model("mine")


def test_options_over_the_weights_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", small(eps=1e-3))
    model = load_model(path, num_classes=7, dropout=0.5, eps=1e-4)
    assert [model.config[key] for key in ("num_classes", "dropout", "eps")] == [7, 0.5, 1e-4]
    with pytest.raises(ValueError, match="stem_midplanes is None in the file and 9 in the model"):
        load_model(path, stem_midplanes=9)


def test_what_is_assumed_never_overrides_what_the_model_knows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.pth", small())
    model = small(seed=2)
    model.classes, model.input_spec = list("abcde"), InputSpec(clip_len=4)
    with caplog.at_level(logging.WARNING):
        load_weights(model, path)
    assert "eps is 0.001 in the file and 1e-05 in the model, judging by" in caplog.text
    assert model.classes == list("abcde") and model.input_spec == InputSpec(clip_len=4)
    assert torch.equal(model.fc.weight, small().fc.weight)


def test_eps_of_known_weights_is_no_assumption(tmp_path: Path) -> None:
    register_weights(entry(write(tmp_path / "a.pth", small(eps=1e-3)), "mine"))
    model = small(seed=2)
    before = model.fc.weight.clone()
    with pytest.raises(ValueError, match=r"eps is 0.001 in the file and 1e-05 in the model"):
        load_weights(model, tmp_path / "a.pth")
    assert torch.equal(model.fc.weight, before)
    load_weights(small(eps=1e-3), tmp_path / "a.pth")


def test_published_files_are_named_for_every_source() -> None:
    entries = [registry_entry(name) for name in list_weights()]
    hosts = {entry.url.split("/")[2] for entry in entries}
    assert hosts == {
        "download.pytorch.org",
        "github.com",
        "www.dropbox.com",
        "download.openmmlab.com",
        "files.pythonhosted.org",
    }
    for entry in entries:
        with torch.device("meta"):
            create_model(entry.model, clip_len=entry.clip_len)
        assert entry.licence and entry.protocol and entry.source
        assert entry.sha256 or "dropbox" in entry.url

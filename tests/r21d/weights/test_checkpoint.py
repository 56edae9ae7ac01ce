"""Checkpoints: what is written comes back, and nothing half-written or foreign gets through
(about 2 s)."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from r21d.models import VideoResNet, create_model
from r21d.video.transforms import InputSpec
from r21d.weights import (
    CheckpointError,
    load_checkpoint,
    load_model,
    load_weights,
    save_checkpoint,
)

safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs the extra 'train'")

SMALL: dict[str, Any] = {"widths": [4, 6, 6, 8], "stem_channels": 4, "blocks": [1, 1, 1, 1]}
LABELS = ["walk", "Rad fahren", "跳"]
SPEC = InputSpec(clip_len=8, frame_rate=None, resize=(40, 50), crop=(32, 32))


def small(seed: int = 0, **options: Any) -> VideoResNet:
    torch.manual_seed(seed)
    return create_model("r2plus1d_18", **{"num_classes": 3, **SMALL, **options})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, small(), classes=LABELS, input=SPEC.to_dict(), extra={"epoch": "7"})
    return path


def changed(**options: Any) -> str:
    """The config of a saved network with some options changed, as metadata."""
    return json.dumps(small().config | options)


def rewrite(path: Path, **metadata: str | None) -> None:
    """Write the file anew with some of its metadata changed, or removed where None."""
    with safetensors_torch.safe_open(path, framework="pt") as file:
        merged = {**file.metadata(), **metadata}
        tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
    kept = {name: text for name, text in merged.items() if text is not None}
    safetensors_torch.save_file(tensors, path, metadata=kept)


def test_round_trip(saved: Path) -> None:
    model, checkpoint = small(), load_checkpoint(saved)
    assert checkpoint.config == model.config
    assert checkpoint.classes == LABELS
    assert InputSpec.from_dict(checkpoint.input) == SPEC
    assert checkpoint.extra == {"epoch": "7"}
    assert checkpoint.state_dict.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert checkpoint.state_dict[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.state_dict[name], tensor)
    again = create_model(**checkpoint.config, weights=saved)
    assert again.classes == LABELS and again.input_spec == SPEC
    x = torch.randn(2, 3, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))


def test_an_input_specification_as_it_is(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", small(), classes=LABELS, input=SPEC)
    assert load_checkpoint(tmp_path / "a").input == load_checkpoint(saved).input


def test_without_an_input_specification(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a", small(), classes=LABELS, input={})
    assert load_checkpoint(tmp_path / "a").input == {}
    model = small(1)
    model.input_spec = SPEC
    load_weights(model, tmp_path / "a")
    assert model.classes == LABELS and model.input_spec is None


def test_strides_dtypes_and_random_state(tmp_path: Path) -> None:
    model = small().to(memory_format=torch.channels_last_3d).to(torch.bfloat16)
    state = torch.get_rng_state()
    save_checkpoint(tmp_path / "a", model, classes=LABELS, input=SPEC.to_dict())
    assert torch.equal(torch.get_rng_state(), state)
    loaded = load_checkpoint(tmp_path / "a").state_dict
    assert loaded["stem.0.weight"].dtype == torch.bfloat16
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_loaded_tensors_outlive_the_file(saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    before = checkpoint.state_dict["fc.weight"].clone()
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert torch.equal(checkpoint.state_dict["fc.weight"], before)


def test_saving_replaces_at_once_or_not_at_all(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(saved, small(1), classes=LABELS, input=SPEC.to_dict())
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    save_checkpoint(saved, small(1), classes=LABELS, input=SPEC.to_dict())
    assert saved.read_bytes() != before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["walk"]}, "classes has 1 names, but the network has 3 outputs"),
        ({"classes": "abc"}, "classes must be a list of label names, got 'abc'"),
        ({"classes": [1, 2, 3]}, "classes must be a list of label names"),
        ({"input": {"clip_len": 8}}, "input specification lacks"),
        ({"extra": {"epoch": 7}}, "extra must map text to text"),
    ],
)
def test_bad_arguments(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments = {"classes": LABELS, "input": SPEC.to_dict(), **change}
    with pytest.raises(ValueError, match=message):
        save_checkpoint(tmp_path / "a.safetensors", small(), **arguments)
    assert os.listdir(tmp_path) == []


def test_models_that_cannot_be_rebuilt_are_refused(tmp_path: Path) -> None:
    model = small()
    model.fc = torch.nn.Linear(8, 5)
    with pytest.raises(ValueError, match=r"fc.weight \(5x8 in the model, 3x8 in its config\)"):
        save_checkpoint(tmp_path / "a", model, classes=LABELS, input=SPEC.to_dict())
    wrapped: Any = torch.nn.DataParallel(small())
    with pytest.raises(TypeError, match=r"got DataParallel; pass the network beneath"):
        save_checkpoint(tmp_path / "a", wrapped, classes=LABELS, input=SPEC.to_dict())
    with pytest.raises(
        FileNotFoundError, match=r"cannot write a: its folder .*missing does not exist"
    ):
        save_checkpoint(tmp_path / "missing" / "a", small(), classes=LABELS, input=SPEC.to_dict())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("length", [0, 4, 8, 100, 0.5, -1])
def test_truncated(saved: Path, length: float) -> None:
    content = saved.read_bytes()
    kept = int(len(content) * length) if isinstance(length, float) else length
    saved.write_bytes(content[:kept])
    for read in (load_checkpoint, lambda path: load_weights(small(), path)):
        with pytest.raises(CheckpointError, match=r"best.safetensors: not a safetensors file"):
            read(saved)


@pytest.mark.parametrize(
    "content", [b"hello", b"PK\3\4" * 50, b"\x80\x02K\x05.", bytes(range(256))]
)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a"])
def test_foreign(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot read weights from"):
        load_weights(small(), path)


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none.safetensors: there is no such file"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="it is not a file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "format version 2 and this library reads up to 1; upgrade r21d"),
        ({"version": "one"}, "not a usable r21d checkpoint"),
        ({"config": None}, "it lacks 'config'"),
        ({"config": "{"}, "not a usable r21d checkpoint"),
        ({"config": "[]"}, "its config is not a table"),
        ({"config": "{}"}, "it lacks 'num_classes'"),
        ({"classes": json.dumps(["a", "b"])}, "classes has 2 names, but the network has 3"),
        ({"classes": "null"}, "not a usable r21d checkpoint"),
        ({"input": json.dumps({**SPEC.to_dict(), "clip_len": 0})}, "clip_len"),
        ({"input": "3"}, "not a usable r21d checkpoint"),
        ({"extra": "3"}, "its extra notes are not a table"),
        ({"extra": json.dumps({"assumed": 5})}, "its extra notes are not a table of texts"),
        ({"config": "[" * 100_000}, "not a usable r21d checkpoint"),
        ({"config": changed(name=None)}, "name=None is not a known network"),
        ({"config": changed(name="r3d_18")}, "missing from the file: layer1.0.conv1.0.weight"),
        ({"config": changed(bogus=1)}, "bogus"),
        (
            {"config": changed(widths=[4, 6, 6, 3_000_000])},
            "of another shape: layer4",
        ),
        ({"config": changed(widths=[10**12] * 4)}, "not a usable r21d checkpoint"),
        ({"config": changed(blocks=[20_000] * 4)}, "tensors for [20000, 20000, 20000, 20000]"),
    ],
)
def test_damaged_metadata(saved: Path, metadata: dict[str, str | None], message: str) -> None:
    rewrite(saved, **metadata)
    for read in (load_checkpoint, load_model):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read(saved)


@pytest.mark.parametrize("format", [None, "pt"])
def test_without_our_metadata_it_is_a_plain_state_dict(saved: Path, format: str | None) -> None:
    known = load_checkpoint(saved)
    rewrite(saved, format=format)
    plain = load_checkpoint(saved)
    assert plain.config["widths"] == known.config["widths"]
    assert (plain.classes, plain.input) == ([], {})
    assert plain.extra["layout"] == "torchvision" and "eps 1e-5" in plain.extra["assumed"]


def test_tensors_of_no_known_layout(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="tensors of no known layout"):
        load_checkpoint(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="tensors of no known layout"):
        load_model(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"missing from the file: stem.0.weight.*unknown to the"):
        create_model("r2plus1d_18", weights=tmp_path / "a.pth")


def test_reading_executes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
            return Path.touch, (target,)

    for name in ("a.pth", "a.pt", "a.safetensors"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Payload(), protocol=2))
        with pytest.raises(CheckpointError):
            load_weights(small(), path)
        torch.save({"fc.weight": Payload()}, path)
        with pytest.raises(CheckpointError):
            load_weights(small(), path)
    assert not target.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert target.exists()  # the payload works where files are trusted

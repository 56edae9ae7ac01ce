"""VMZ's Caffe2 blobs: each is used once, and what is nearly such a file says what differs
(about 3 s).  Logits are compared in ``test_published_families``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from weights import published_caffe2
from weights.published_tensors import record
from weights.python2_pickle import python2_pickle

from r21d.models import create_model
from r21d.video.transforms import InputSpec
from r21d.weights.layouts import Imported, LayoutError, import_layout
from r21d.weights.state_dict import read_state_dict

Blobs = dict[str, Tensor]

NARROW = (6, 8, 10, 12)


def made(
    family: str, depth: int = 18, channels: int = 3, frames: int = 8, labels: int = 400
) -> Blobs:
    """The blobs of a narrow network."""
    network = published_caffe2.network(family, depth, labels, NARROW, conv1_middle=4)
    return record(network, (channels, frames, 16, 16))


def imported_from(blobs: Blobs) -> Imported:
    imported = import_layout(blobs)
    assert imported is not None
    return imported


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("family", published_caffe2.MODELS)
def test_every_network_is_recognised(family: str, depth: int) -> None:
    blobs = made(family, depth, labels=5)
    imported = imported_from(blobs)
    config = imported.config
    assert config["name"] == f"{published_caffe2.MODELS[family]}_{depth}"
    assert (config["num_classes"], config["eps"]) == (5, 1e-3)
    assert (config["widths"], config["stem_channels"]) == (list(NARROW), NARROW[0])
    assert config["clip_len"] == (8 if family == "r2d" else None)
    assert imported.layout == "caffe2" and imported.classes == []
    ours = create_model(**config).state_dict()
    assert list(imported.state_dict) == list(ours)
    for name, tensor in ours.items():
        assert imported.state_dict[name].shape == tensor.shape
        assert imported.state_dict[name].dtype == tensor.dtype
    # Every value of the blobs is there, and once.
    kept = [t.flatten() for n, t in imported.state_dict.items() if not n.endswith("_tracked")]
    given = torch.cat([blob.flatten() for blob in blobs.values()])
    assert torch.equal(torch.cat(kept).sort().values, given.sort().values)


def test_what_comes_with_it() -> None:
    imported = imported_from(made("r2plus1d"))
    assert len(imported.classes) == 400 and imported.classes[0] == "abseiling"
    assert InputSpec.from_dict(imported.input) == InputSpec(8, 30.0, antialias=False)
    assert any("8, 16 and 32 frames" in text for text in imported.assumed)
    r2d = imported_from(made("r2d", frames=16))
    assert r2d.input["clip_len"] == 16
    assert not any("8, 16 and 32 frames" in text for text in r2d.assumed)


def test_optical_flow() -> None:
    imported = imported_from(made("r2plus1d", 34, channels=2))
    assert imported.config["in_channels"] == 2
    assert imported.input["mean"] == [0.0046635, 0.0046261]
    assert imported.input["std"] == [0.972347, 0.755146]


@pytest.mark.parametrize(("channels", "frames"), [(2, 8), (3, 2), (3, 16), (1, 5)])
def test_r2d_merges_channel_by_channel(channels: int, frames: int) -> None:
    blobs = made("r2d", channels=channels, frames=frames)
    imported = imported_from(blobs)
    assert imported.config["in_channels"] == channels
    assert imported.config["clip_len"] == frames
    ours = imported.state_dict["stem.0.weight"]
    assert ours.shape == (6, channels * frames, 1, 7, 7)
    for channel in range(channels):
        for frame in range(frames):
            theirs = blobs["conv1_w"][:, channel, frame]
            assert torch.equal(ours[:, channel * frames + frame, 0], theirs)


@pytest.mark.parametrize("protocol", [0, 2])
def test_through_a_file(tmp_path: Path, protocol: int) -> None:
    blobs = made("mc3")
    arrays = {name: blob.numpy() for name, blob in blobs.items()}
    (tmp_path / "a.pkl").write_bytes(python2_pickle({**arrays, "iter": 3}, protocol))
    tensors, _ = read_state_dict(tmp_path / "a.pkl")
    assert_same(imported_from(tensors), imported_from(blobs))


def assert_same(given: Imported, expected: Imported) -> None:
    assert given.config == expected.config
    for name, tensor in expected.state_dict.items():
        assert torch.equal(given.state_dict[name], tensor)


def test_what_training_left_is_passed_over() -> None:
    blobs = made("r2plus1d")
    trained = {f"gpu_0/{name}": blob for name, blob in blobs.items()}
    trained |= {f"gpu_0/{name}_momentum": blob for name, blob in blobs.items()}
    trained |= {"gpu_0/lr": torch.zeros(1), "optimizer_iteration": torch.zeros(1)}
    assert_same(imported_from(trained), imported_from(blobs))


def without(*names: str) -> Callable[[Blobs], object]:
    return lambda blobs: [blobs.pop(name) for name in names]


def changed(**shapes: tuple[int, ...]) -> Callable[[Blobs], object]:
    return lambda blobs: blobs.update({n: torch.zeros(*shape) for n, shape in shapes.items()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("comp_3_conv_2_middle_w"), "missing from the file: comp_3_conv_2_middle_w"),
        (
            without("comp_7_spatbn_2_riv", "conv1_w"),
            "missing from the file: conv1_w, comp_7_spatbn",
        ),
        (without("conv1_middle_w"), "conv1_middle_w is missing from the file"),
        (without("last_out_L400_b"), "missing from the file: last_out_L400_b"),
        (without("shortcut_projection_4_w"), "missing from the file: shortcut_projection_4_w"),
        (
            lambda blobs: [
                blobs.pop(n) for n in list(blobs) if n.startswith("shortcut_projection_4")
            ],
            r"found projections \[2, 6\]",
        ),
        (changed(conv2_w=(3,)), r"unknown to a r2plus1d_18 of VMZ \(Caffe2\): conv2_w"),
        (changed(comp_8_conv_1_w=(3,)), "unknown|missing"),
        (
            changed(comp_0_conv_1_w=(6, 13, 1, 1, 1)),
            r"comp_0_conv_1_w \(6x13x1x1x1 in the file, 6x13x3x1x1 in",
        ),
        (changed(last_out_L10_w=(10, 12)), r"outputs \['10', '400'\]"),
        (changed(last_out_L400_b=(7,)), r"last_out_L400_b \(7 in the file, 400 in"),
        (changed(conv1_middle_w=(5, 3, 1, 7, 7)), r"shape: conv1_middle_w \(5x3x1x7x7 in .* 4x3x"),
        (
            changed(comp_0_spatbn_1_s=(5,)),
            r"of another shape: comp_0_spatbn_1_s \(5 in the file, 6",
        ),
        (changed(conv1_middle_w=(4, 3, 7, 7)), "conv1_middle_w is 4x3x7x7, expected 5 dimensions"),
        (
            lambda blobs: blobs.update({"gpu_1/conv1_w": blobs["conv1_w"]}),
            "conv1_w is there twice, the second time as gpu_1/conv1_w",
        ),
    ],
)
def test_near_misses(damage: Callable[[Blobs], object], message: str) -> None:
    blobs = made("r2plus1d")
    damage(blobs)
    with pytest.raises(LayoutError, match=message) as caught:
        import_layout(blobs)
    assert "VMZ (Caffe2)" in str(caught.value) or "twice" in str(caught.value)


def test_shapes_are_told_as_the_file_has_them() -> None:
    blobs = made("r2d")
    blobs["conv1_w"] = torch.zeros(7, 3, 8, 7, 7)
    with pytest.raises(LayoutError, match=r"conv1_w \(7x3x8x7x7 in the file, 6x3x8x7x7 in a r2d"):
        import_layout(blobs)


def bottleneck(kind: str) -> Blobs:
    blobs = {"conv1_w": torch.zeros(6, 3, 3, 7, 7), "last_out_L400_w": torch.zeros(400, 8)}
    for i in range(50):
        first, last = {"ir": (3, 4)}.get(kind, (2, 3))
        blobs[f"comp_{i}_conv_1_w"] = torch.zeros(4, 8, 1, 1, 1)
        blobs[f"comp_{i}_conv_{last}_w"] = torch.zeros(8, 4, 1, 1, 1)
        middle = {"ip": (4, 4, 1, 1, 1), "r2plus1d": (9, 4, 1, 3, 3)}.get(kind)
        if middle:
            blobs[f"comp_{i}_conv_2_middle_w"] = torch.zeros(*middle)
        group = 4 if kind == "r2plus1d" else 1
        blobs[f"comp_{i}_conv_{first}_w"] = torch.zeros(4, group, 3, 3, 3)
        for j in (1, first, last):
            blobs[f"comp_{i}_spatbn_{j}_s"] = torch.zeros(4)
        if i in (0, 3, 11, 47):
            blobs[f"shortcut_projection_{i}_w"] = torch.zeros(8, 4, 1, 1, 1)
    return blobs


@pytest.mark.parametrize(
    ("kind", "name"), [("ir", "an ir-CSN"), ("ip", "an ip-CSN"), ("r2plus1d", r"an R\(2\+1\)D")]
)
def test_deeper_networks_are_refused_by_name(kind: str, name: str) -> None:
    with pytest.raises(
        LayoutError, match=rf"this is {name} of 152 layers in the layout of VMZ \(Caffe2\)"
    ):
        import_layout(bottleneck(kind))


def test_other_blobs_are_not_vmzs() -> None:
    assert import_layout({"conv1a_w": torch.zeros(2), "fc6_w": torch.zeros(2)}) is None

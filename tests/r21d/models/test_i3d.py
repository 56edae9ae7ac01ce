"""I3D against a second writing of the authors' code, and as a module (about 15 s)."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import i3d_oracle
import pytest
import torch
from accuracy import assert_accurate_over_draws
from torch import nn

import r21d_ops
from r21d.models import VideoModel, create_model, list_models, model_info
from r21d.models.i3d import I3D, SameConv3d, SameMaxPool3d, same_padding

CLASSES = 7
# Even and odd along each axis at each of the five halvings; maps smaller and larger than the
# classifier's window of 2x7x7, the last one by 2 x 2 x 1 positions.
SIZES = [(1, 1, 1), (2, 33, 18), (9, 31, 34), (14, 47, 70), (19, 225, 64)]


def fresh(file: i3d_oracle.Published, **options: Any) -> I3D:
    """The network with the tensors of a file in pytorch-i3d's names."""
    model = create_model("i3d", CLASSES, **options)
    assert isinstance(model, I3D)
    state = model.state_dict()
    counters = {key: value for key, value in state.items() if key.endswith("num_batches_tracked")}
    model.load_state_dict({**file.tensors, **counters})
    return model


@pytest.fixture(scope="module")
def file() -> i3d_oracle.Published:
    torch.manual_seed(3)
    return i3d_oracle.random_file("pytorch-i3d", CLASSES)


@pytest.fixture(scope="module")
def shared(file: i3d_oracle.Published) -> I3D:
    return fresh(file).eval()


def test_names_shapes_and_parameters() -> None:
    state = create_model("i3d").state_dict()
    expected = i3d_oracle.random_file("pytorch-i3d").tensors
    named = {key: value.shape for key, value in state.items() if "num_batches" not in key}
    assert named == {key: value.shape for key, value in expected.items()}
    learnt = [value for key, value in expected.items() if "running" not in key]
    assert sum(value.numel() for value in learnt) == 12_697_264
    info = model_info(create_model("i3d"), (3, 64, 224, 224))
    assert info.parameters == 12_697_264
    assert info.layers[-1].input == (1024, 7, 1, 1)  # windows of 2x7x7 over the map of 8x7x7


@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_the_authors_code(
    shared: I3D, file: i3d_oracle.Published, size: tuple[int, int, int]
) -> None:
    assert_accurate_over_draws(
        lambda: i3d_oracle.draw(shared, file, torch.rand(2, 3, *size) * 2 - 1)
    )


def test_channels_last(shared: I3D, file: i3d_oracle.Published) -> None:
    last = torch.channels_last_3d
    twin = copy.deepcopy(shared).to(memory_format=last)
    assert_accurate_over_draws(
        lambda: i3d_oracle.draw(twin, file, torch.randn(2, 3, 5, 33, 46).to(memory_format=last))
    )


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 7, 3), (2, 7, 7), (4, 9, 8)])
def test_the_classifier_stands_at_every_window(shared: I3D, size: tuple[int, int, int]) -> None:
    head = copy.deepcopy(shared).double()
    x = torch.rand(2, 1024, *size, dtype=torch.float64)
    window = [min(full, length) for full, length in zip((2, 7, 7), size, strict=True)]
    logits = [
        x[:, :, t : t + window[0], h : h + window[1], w : w + window[2]].mean((2, 3, 4))
        @ head.logits.conv3d.weight.flatten(1).T
        + head.logits.conv3d.bias
        for t, h, w in itertools.product(
            *(range(length - full + 1) for length, full in zip(size, window, strict=True))
        )
    ]
    torch.testing.assert_close(head._classify(x), torch.stack(logits).mean(0))


def test_training_step(file: i3d_oracle.Published) -> None:
    model = fresh(file, dropout=0.0).double().train()
    watched = ("Conv3d_1a_7x7.conv3d.weight", "Mixed_4c.b2b.bn.bias", "logits.conv3d.weight")
    twin = i3d_oracle.Published(
        file.publisher,
        {
            key: value.double().requires_grad_("running" not in key)
            for key, value in file.tensors.items()
        },
    )
    x, labels = torch.randn(3, 3, 9, 40, 37, dtype=torch.float64), torch.tensor([0, 3, 6])
    outputs = [model(x), i3d_oracle.logits(twin, x, training=True)]
    torch.testing.assert_close(*outputs)
    for logits in outputs:
        nn.functional.cross_entropy(logits, labels).backward()
    for name in watched:
        torch.testing.assert_close(model.get_parameter(name).grad, twin.tensors[name].grad)
    # The authors' decay of 0.999.
    name = "Conv3d_1a_7x7.bn.running_mean"
    with torch.no_grad():
        batch = model.Conv3d_1a_7x7.conv3d(x).mean((0, 2, 3, 4))
    expected = 0.999 * file.tensors[name].double() + 0.001 * batch
    torch.testing.assert_close(model.get_buffer(name), expected)


def test_flow() -> None:
    torch.manual_seed(5)
    file = i3d_oracle.random_file("pytorch-i3d", CLASSES, channels=2)
    model = fresh(file, in_channels=2).eval()
    assert_accurate_over_draws(
        lambda: i3d_oracle.draw(model, file, torch.rand(1, 2, 6, 30, 31) * 2 - 1)
    )


def test_padding_is_tensorflows() -> None:
    for size, kernel, stride in itertools.product(range(1, 19), range(1, 8), range(1, 4)):
        pads = same_padding(size, kernel, stride)
        assert pads == i3d_oracle.same_pads(size, kernel, stride), (size, kernel, stride)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4), (5, 6, 7), (8, 9, 10)])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))]
)
def test_pooling_never_picks_the_padding(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    x = -torch.rand(2, 3, *size) - 1
    padded = i3d_oracle.pad(x, kernel, stride, -math.inf)
    out = SameMaxPool3d(kernel, stride)(x)
    assert torch.equal(out, nn.functional.max_pool3d(padded, kernel, stride))
    assert out.shape[2:] == tuple(math.ceil(s / by) for s, by in zip(size, stride, strict=True))


@pytest.mark.parametrize(
    ("size", "copies"),
    [
        ((5, 7, 9), []),
        ((5, 7, 8), [[0, 1, 0, 0, 0, 0]]),
        ((4, 7, 8), [[0, 1, 0, 0, 0, 1]]),
    ],
)
def test_only_uneven_padding_is_copied(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int], copies: list[list[int]]
) -> None:
    conv = SameConv3d(2, 3, 7, 2).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    padded = i3d_oracle.pad(x, (7, 7, 7), (2, 2, 2))
    expected = nn.functional.conv3d(padded, conv.weight, conv.bias, 2)
    pad, copied = nn.functional.pad, []

    def record(x: torch.Tensor, pads: list[int]) -> torch.Tensor:
        copied.append(pads)
        return pad(x, pads)

    monkeypatch.setattr(nn.functional, "pad", record)
    torch.testing.assert_close(conv(x), expected)
    assert copied == copies


def test_features_of_every_stage(shared: I3D) -> None:
    x = torch.randn(1, 3, 9, 65, 33)
    with torch.no_grad():
        maps = shared.features(x, shared.stages, pool=False)
        logits = shared._classify(maps["Mixed_5c"])
        assert torch.equal(logits, shared(x))
    sizes = {name: tuple(value.shape[1:]) for name, value in maps.items()}
    assert list(sizes) == list(shared.stages)
    assert sizes["Conv3d_1a_7x7"] == (64, 5, 33, 17)
    assert sizes["MaxPool3d_3a_3x3"] == (192, 5, 9, 5)
    assert sizes["Mixed_3c"] == (480, 5, 9, 5)
    assert sizes["Mixed_4f"] == (832, 3, 5, 3)
    assert sizes["Mixed_5c"] == (1024, 2, 3, 2)


def test_another_head_keeps_the_rest(file: i3d_oracle.Published) -> None:
    model = fresh(file)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.replace_head(3)
    after = model.state_dict()
    assert list(after) == list(before)
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert changed == ["logits.conv3d.weight", "logits.conv3d.bias"]
    assert model.eval()(torch.randn(2, 3, 4, 32, 32)).shape == (2, 3)


def test_dropout_acts_before_the_classifier_in_training_only(shared: I3D) -> None:
    model = copy.deepcopy(shared)
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.dropout.train()
        assert not torch.equal(model(x), model(x))


def test_empty_batch(shared: I3D) -> None:
    assert shared(torch.empty(0, 3, 4, 16, 16)).shape == (0, CLASSES)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 4, 16, 16), r"of shape \(N, 3, T, H, W\), got torch.float32 of shape"),
        (torch.zeros(1, 2, 8, 16, 16), r"got torch.float32 of shape \(1, 2, 8, 16, 16\)"),
        (torch.zeros(1, 3, 4, 16, 16, dtype=torch.uint8), "floating-point.*got torch.uint8"),
        (torch.zeros(1, 3, 0, 16, 16), "at least one frame and one pixel"),
    ],
)
def test_bad_input(shared: I3D, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shared(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a positive integer, got 0"),
        ({"in_channels": 2.0}, "in_channels must be a positive integer, got 2.0"),
        ({"clip_len": 0}, "clip_len must be a positive integer, got 0"),
        ({"dropout": 1.0}, "dropout must be a number in"),
        ({"eps": -1e-3}, "eps must be a number in"),
        ({"momentum": 1.0}, "momentum must be a number in"),
        ({"midplanes": "paper"}, "midplanes='paper' is for"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("i3d", **options)


def test_config_rebuilds_the_network() -> None:
    options = {"in_channels": 2, "clip_len": 64, "dropout": 0.25, "eps": 1e-5, "momentum": 0.1}
    model = create_model("i3d", 3, **options)
    assert isinstance(model, VideoModel)
    assert model.config == {"name": "i3d", "num_classes": 3, **options}
    assert create_model(**model.config).config == model.config
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    assert len(norms) == 57 and {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}
    assert isinstance(model, I3D) and model.dropout.p == 0.25
    assert "i3d" in list_models()


def test_initialisation() -> None:
    model = create_model("i3d", 300)
    for name, fan_in in [("Mixed_5c.b1b.conv3d", 192 * 27), ("logits.conv3d", 1024)]:
        weight = model.get_parameter(f"{name}.weight")
        deviation = fan_in**-0.5
        assert weight.abs().max() <= 2 * deviation
        # A normal cut off at two deviations has 0.8796 of its deviation left.
        assert weight.std().item() == pytest.approx(0.8796 * deviation, rel=0.01)
    assert model.get_parameter("logits.conv3d.bias").abs().max() == 0


def test_it_holds_no_factored_convolution(shared: I3D) -> None:
    assert r21d_ops.fuse_report(shared) == []


def test_compiles_without_a_graph_break(shared: I3D) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(shared, fullgraph=True, backend="eager")
    x = torch.randn(1, 3, 4, 33, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), shared(x))


def test_exports_with_a_dynamic_batch(shared: I3D) -> None:
    with torch.no_grad():
        program = torch.export.export(
            shared,
            (torch.randn(2, 3, 4, 32, 32),),
            dynamic_shapes=({0: torch.export.Dim("clips", min=2, max=64)},),
        )
        x = torch.randn(3, 3, 4, 32, 32)
        torch.testing.assert_close(program.module()(x), shared(x))


def test_learns_clips_by_heart() -> None:
    model = create_model("i3d", 8, momentum=0.5, dropout=0.0)
    x, labels = torch.randn(8, 3, 4, 32, 32), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    with torch.no_grad():
        for _ in range(15):  # the running statistics of one layer after another settle
            model(x)
        assert (model.eval()(x).argmax(1) == labels).all()

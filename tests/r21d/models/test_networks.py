"""Each network of the paper: its shapes, that it learns, and that it computes what plain PyTorch
functions compute, in eval and in training (about 30 s)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accuracy import Draw, assert_accurate_over_draws
from models.stock_forward import KINDS, NAMES, StockNetwork, cloned
from torch import Tensor, nn

from r21d.models import VideoModel, create_model, list_models, model_info

# Frames left after the last convolution at 8 frames (section 9's table); all are 7x7 pixels.
LAST_FRAMES = {
    "r2d": 1,
    "fr2d": 8,
    "r3d": 1,
    "mc2": 8,
    "mc3": 8,
    "mc4": 4,
    "mc5": 2,
    "rmc2": 1,
    "rmc3": 1,
    "rmc4": 2,
    "rmc5": 4,
    "r2plus1d": 1,
}
# The real depth at a few channels.  No two widths are equal, so that each change of them shows.
NARROW: dict[str, Any] = {"widths": (6, 7, 9, 10), "stem_channels": 5}
MMACTION2: dict[str, Any] = {
    "stem_midplanes": 11,
    "stem_pool": True,
    "shortcut": "(2+1)d",
    "eps": 1e-3,
    "inner_eps": 1e-5,
}
CLASSES = 5
# An odd number that leaves two frames after three strides: with one, a temporal convolution could
# not tell its taps apart.
FRAMES = 9
# 65 logits: the root mean square of the errors of ten is a matter of luck.
CLIPS = 13


def build(name: str, clip_len: int, **options: Any) -> VideoModel:
    if name.startswith("r2d_"):
        options["clip_len"] = clip_len
    return create_model(name, **options)


@pytest.mark.parametrize("clip_len", [8, 16, 32])
@pytest.mark.parametrize("name", NAMES)
def test_shape_at_the_last_convolution(name: str, clip_len: int) -> None:
    family = name.split("_")[0]
    frames = LAST_FRAMES[family] * (1 if family == "r2d" else clip_len // 8)
    with torch.device("meta"):
        model = build(name, clip_len)
    assert model_info(model, (3, clip_len, 112, 112)).last_conv == (frames, 7, 7)
    model = build(name, clip_len, num_classes=CLASSES, **NARROW).eval()
    with torch.no_grad():
        clips = torch.randn(2, 3, clip_len, 33, 17)
        assert model.features(clips, pool=False).shape == (2, 10, frames, 3, 2)
        assert model(clips).shape == (2, CLASSES)


def test_every_registered_network_is_covered() -> None:
    assert sorted([*NAMES, "i3d"]) == list_models()
    assert KINDS.keys() == LAST_FRAMES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_overfits(name: str) -> None:
    """16 clips of noise, labelled at random: all right within a few steps, in training and eval."""
    clips, labels = torch.randn(16, 3, 4, 16, 16), torch.randint(0, 4, (16,))
    # Blocks that start as their shortcuts, or 34 layers would need more steps than a test has.
    model = build(
        name, 4, num_classes=4, widths=(8, 12, 16, 24), stem_channels=8, zero_init_residual=True
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        logits = model.train()(clips)
        right = logits.argmax(1) == labels
        loss = nn.functional.cross_entropy(logits, labels)
        if right.all() and loss < 0.05:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert right.all()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0  # so few steps leave the running statistics behind
    with torch.no_grad():
        model(clips)
        assert (model.eval()(clips).argmax(1) == labels).all()


@pytest.mark.parametrize("name", NAMES)
def test_eval_agrees_with_plain_functions(name: str) -> None:
    def draw() -> Draw:
        model = narrow(name, in_channels=2)
        randomise(model)
        return evaluated(model, torch.randn(CLIPS, 2, FRAMES, 29, 21))

    assert_accurate_over_draws(draw, f"{name} in eval")


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", ["mc4_18", "rmc4_18", "r2plus1d_18"])
def test_few_frames_and_pixels(name: str, frames: int) -> None:
    def draw() -> Draw:
        model = narrow(name)
        randomise(model)
        return evaluated(model, torch.randn(CLIPS, 3, frames, 1, 17))

    assert_accurate_over_draws(draw, f"{name}, {frames} frames")


@pytest.mark.parametrize("depth", [18, 34])
def test_mmaction2s_options_agree_with_plain_functions(depth: int) -> None:
    """The pool after the stem, a stem of more middle channels, (2+1)D shortcuts, two eps."""

    def draw() -> Draw:
        model = narrow(f"r2plus1d_{depth}", **MMACTION2)
        randomise(model)
        return evaluated(model, torch.randn(CLIPS, 3, FRAMES, 37, 45))

    assert_accurate_over_draws(draw, "logits")


@pytest.mark.parametrize("name", NAMES)
def test_training_agrees_with_plain_functions(name: str) -> None:
    """One step: logits, the gradient of every parameter and every running statistic."""
    agree_in_training(name)


def test_mmaction2s_options_agree_in_training() -> None:
    agree_in_training("r2plus1d_18", **MMACTION2)


def narrow(name: str, **options: Any) -> VideoModel:
    return build(name, FRAMES, num_classes=CLASSES, **NARROW, **options)


def randomise(model: nn.Module) -> None:
    """BatchNorm as after some training, so that a forgotten statistic or factor shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)


def evaluated(model: VideoModel, x: Tensor) -> Draw:
    """Logits in eval: the model's, the functions' in float64, and theirs in both formats."""
    state = model.state_dict()
    with torch.no_grad():
        exact = StockNetwork(model.config, cloned(state, torch.float64))(x.double())
        stock = [
            StockNetwork(model.config, cloned(state, torch.float32), channels_last=last)(x)
            for last in (False, True)
        ]
        return model.eval()(x), exact, stock


def agree_in_training(name: str, **options: Any) -> None:
    steps: list[list[dict[str, dict[str, Tensor]]]] = []

    def nth(index: int) -> list[dict[str, dict[str, Tensor]]]:
        while len(steps) <= index:
            steps.append(training_step(name, options))
        return steps[index]

    for what in ("logits", "gradients", "statistics"):
        draws = iter(range(3))

        def draw(what: str = what, draws: Any = draws) -> Draw:
            ours, exact, *stock = (step[what] for step in nth(next(draws)))
            assert ours.keys() == exact.keys()
            size: dict[str, float] = {}
            for key, tensor in exact.items():
                unit = unit_of(what, key)
                size[unit] = max(size.get(unit, 0.0), tensor.square().mean().sqrt().item())
            assert min(size.values()) > 0, f"zero {what} prove nothing: {size}"
            vectors = [
                torch.cat(
                    [(step[key].double() / size[unit_of(what, key)]).flatten() for key in exact]
                )
                for step in (ours, exact, *stock)
            ]
            return vectors[0].float(), vectors[1], [vector.float() for vector in vectors[2:]]

        assert_accurate_over_draws(draw, f"{name}: {what} of a training step")


def unit_of(what: str, key: str) -> str:
    """What a tensor is measured by, so that all of them count alike in one vector: itself.

    A gradient is measured by its layer, weight and bias together: the bias of a BatchNorm whose
    shift the next BatchNorm takes away, as in a shortcut of two 1x1x1 convolutions, has none.
    """
    return key.rpartition(".")[0] if what == "gradients" else key


def training_step(name: str, options: dict[str, Any]) -> list[dict[str, dict[str, Tensor]]]:
    """What a step gives: ours, the functions in float64, and in float32 in both formats."""
    model = narrow(name, **options).train()
    randomise(model)
    keep_activations_from_zero(model)
    x, labels = torch.randn(3, 3, FRAMES, 37, 29), torch.randint(0, CLASSES, (3,))
    state = model.state_dict()
    results = []
    for dtype, last in ((torch.float64, False), (torch.float32, False), (torch.float32, True)):
        network = StockNetwork(
            model.config, cloned(state, dtype), training=True, channels_last=last
        )
        logits = network(x.to(dtype))
        nn.functional.cross_entropy(logits, labels).backward()
        results.append(collected(logits, network.state, gradients(network.state)))
    ours = copy.deepcopy(model)
    logits = ours(x)
    nn.functional.cross_entropy(logits, labels).backward()
    counted = {key: t.item() for key, t in ours.state_dict().items() if key.endswith("tracked")}
    assert set(counted.values()) == {1} and counted.keys() <= state.keys()
    learned = {key: parameter.grad for key, parameter in ours.named_parameters()}
    return [collected(logits, ours.state_dict(), learned), *results]


def gradients(state: Any) -> dict[str, Tensor | None]:
    return {key: tensor.grad for key, tensor in state.items() if tensor.requires_grad}


def collected(
    logits: Tensor, state: Any, learned: dict[str, Tensor | None]
) -> dict[str, dict[str, Tensor]]:
    missing = [key for key, gradient in learned.items() if gradient is None]
    assert not missing, f"no gradient reached {missing}"
    statistics = {key: state[key] for key in state if "running_" in key}
    found = {key: gradient for key, gradient in learned.items() if gradient is not None}
    return {"logits": {"logits": logits.detach()}, "gradients": found, "statistics": statistics}


def keep_activations_from_zero(model: nn.Module) -> None:
    """Shift every BatchNorm by 8 deviations up or down: each ReLU clearly lets pass or stops.

    A value that rounds to the other side of zero flips its ReLU, in stock PyTorch as in ours, and
    the gradients of a deep network then differ by far more than rounding.  Between convolutions
    the channels alternate, so that no layer is dead; between blocks all are positive, so that no
    sum cancels.  The weights of the next convolution sum to zero over what passes: the shift would
    otherwise meet the zeros of its padding, and edges would drown what differs between clips.
    """
    factored_stem = "stem.3.weight" in model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm3d):
            between = factored_stem if name == "stem.1" else name.endswith(("conv1.1", ".0.1"))
            module.bias.data.fill_(8.0)
            if between:
                module.bias.data[1::2] = -8.0
            nn.init.uniform_(module.weight, 0.5, 1.0)
        elif isinstance(module, nn.Conv3d) and name != "stem.0":
            between = name == "stem.3" or name.endswith(".0.3") or ".conv2.0" in name
            passing = module.weight.data[:, :: 2 if between else 1]
            passing -= passing.mean(1, keepdim=True)

"""What one step does: loss, accumulation, clipping, mixed precision. About three seconds."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from training.shades import CONFIG, Shades, changed, same_weights, small_model, timeless

from r21d.evaluation.distributed import Ranks
from r21d.training import TrainConfig, TrainingDiverged, train
from r21d.training.logs import StepTimer
from r21d.training.step import Learner

STEP = TrainConfig(epochs=1, epoch_clips=1, batch_size=12, momentum=0.5, channels_last=False)


class Constant(nn.Module):
    """The same logits for every clip."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


class Tagged(Shades):
    """Bright clips are also "any"; dark ones are nothing else."""

    classes: ClassVar[list[str]] = ["bright", "dark", "any"]

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        clips, label, _ = super().__getitem__(index)
        return clips, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]][label]), index


class OnlyBright(Tagged):
    """The clips of two labels."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        return super().__getitem__(index - index % 2)


def test_several_labels_a_clip() -> None:
    config = replace(STEP, lr=1e-9)
    for logits, share in (([0.0, 1.0, 2.0], 0.5), ([3.0, 1.0, 2.0], 0.5), ([0.0, 9.0, 2.0], 0.5)):
        (row,) = train(Constant(logits), Tagged(12, clips=2), None, config)
        logs = torch.tensor(logits).log_softmax(0)
        expected = (-(logs[0] + logs[2]) / 2 - logs[1]) / 2
        assert row["train_loss"] == pytest.approx(expected.item(), rel=1e-6)
        assert row["train_clip_top1"] == share
    # Two labels at equal scores are the best that can be had, at a loss of log 2.
    (row,) = train(Constant([40.0, 0.0, 40.0]), OnlyBright(12), None, config)
    assert row["train_loss"] == pytest.approx(math.log(2)) and row["train_clip_top1"] == 1


@pytest.mark.parametrize(("kind", "truth"), [(Shades, [1.0, 0.0]), (OnlyBright, [0.5, 0.0, 0.5])])
def test_label_smoothing_mixes_the_truth_with_all_classes(
    kind: type[Shades], truth: list[float]
) -> None:
    logits = [2.0, -1.0, 0.5][: len(truth)]
    config = replace(STEP, lr=1e-9, batch_size=1, label_smoothing=0.3, seed=1)
    (row,) = train(Constant(logits), kind(1), None, config)
    mixed = 0.7 * torch.tensor(truth) + 0.3 / len(truth)
    expected = -(mixed * torch.tensor(logits).log_softmax(0)).sum()
    assert row["train_loss"] == pytest.approx(expected.item(), rel=1e-6)


class Linear(nn.Module):
    """A classifier of mean brightness: no statistics, no random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        nn.init.constant_(self.fc.weight, 0.1)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3, 4)))
        return logits


def trained(config: TrainConfig) -> Linear:
    model = Linear()
    train(model, Shades(), None, config)
    return model


def test_every_forward_pass_draws_its_own_random_numbers() -> None:
    class Drawing(Linear):
        """Keeps what dropout would see."""

        drawn: ClassVar[list[float]] = []

        def forward(self, x: Tensor) -> Tensor:
            self.drawn.append(torch.rand(()).item())
            return super().forward(x)

    config = replace(STEP, epochs=2, epoch_clips=24, batch_size=4, accumulate=3)
    train(Drawing(), Shades(), None, config)
    first = list(Drawing.drawn)
    assert len(set(first)) == len(first) == 12
    Drawing.drawn.clear()
    torch.manual_seed(99)
    train(Drawing(), Shades(), None, config)
    assert Drawing.drawn == first


def test_an_update_is_that_of_stock_sgd() -> None:
    config = replace(STEP, epochs=3, lr=0.5, weight_decay=0.01, seed=5)
    expected = Linear()
    optimizer = torch.optim.SGD(
        expected.parameters(), lr=0.5, momentum=0.5, weight_decay=0.01, nesterov=True
    )

    class Kept(Shades):
        """Keeps what it gave."""

        given: ClassVar[list[tuple[Tensor, int]]] = []

        def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
            clips, label, index = super().__getitem__(index)
            self.given.append((clips[0], label))
            return clips, label, index

    model = Linear()
    train(model, Kept(), None, config)
    for first in range(0, 36, 12):
        batch = Kept.given[first : first + 12]
        optimizer.zero_grad()
        logits = expected(torch.stack([clip for clip, _ in batch]))
        nn.functional.cross_entropy(logits, torch.tensor([label for _, label in batch])).backward()
        optimizer.step()
    assert same_weights(model, expected)


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    whole = trained(replace(STEP, lr=0.5))
    parts = trained(replace(STEP, lr=0.5, batch_size=3, accumulate=4))
    torch.testing.assert_close(parts.fc.weight, whole.fc.weight)
    torch.testing.assert_close(parts.fc.bias, whole.fc.bias)
    assert not torch.equal(whole.fc.weight, Linear().fc.weight)


def test_clipping_shortens_long_gradients_alone() -> None:
    plain = replace(STEP, lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)

    def moved(config: TrainConfig) -> Tensor:
        model = trained(config)
        ends = torch.cat([model.fc.weight.flatten(), model.fc.bias])
        return (ends - torch.cat([torch.full((6,), 0.1), torch.zeros(2)])).detach()

    free = moved(plain)
    assert torch.equal(moved(replace(plain, clip_gradients=2 * free.norm().item())), free)
    half = moved(replace(plain, clip_gradients=0.5 * free.norm().item()))
    torch.testing.assert_close(half, 0.5 * free, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_keeps_float32_weights(dtype: str) -> None:
    config = changed(dtype=dtype, epochs=8)
    model = small_model()
    # 32 pixels keep layer4 at 2x2: torch 2.13's bfloat16 weight gradient of a padded convolution
    # over 1x1 pixels on the CPU holds uninitialised memory.
    history = train(model, Shades(size=32), None, config)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    # Of few clips and large steps the loss goes up and down, in float32 as well.
    losses = [row["train_loss"] for row in history]
    assert min(losses) < 0.9 * losses[0]


class Steep(nn.Module):
    """Gradients of the half-precision multiplication are ``slope`` times the loss's own."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope
        self.fc = nn.Linear(3, 2)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3, 4)))
        return logits.half() * self.slope


def test_overflowing_float16_gradients_are_left_out_until_the_scale_fits() -> None:
    config = replace(STEP, dtype="float16", epochs=8, lr=1e-9)
    model = Steep(64.0)
    history = train(model, Shades(), None, config)
    skipped = [row["skipped_steps"] for row in history]
    # 2**16 times the slope is above float16's 65504; each skipped update halves the scale.
    assert skipped[0] == 1 and skipped == sorted(skipped, reverse=True) and skipped[-1] == 0
    assert any(parameter.abs().max() > 0 for parameter in model.parameters())


def test_an_update_left_out_begins_the_count_anew_as_the_stock_scaler_does() -> None:
    overflows = [False, False, True, False]

    class Once(Steep):
        """Too steep in one step alone."""

        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.slope = 64.0 if overflows[self.passes] else 0.125
            self.passes += 1
            return super().forward(x)

    config = replace(STEP, dtype="float16", lr=1e-9)
    learner = Learner(Once(0.0), config, Ranks(), lambda clips: clips)
    stock = torch.amp.GradScaler("cpu")
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter])
    batch = torch.ones(1, 1, 3, 4, 8, 8), torch.tensor([0]), torch.tensor([0])
    for number, overflow in enumerate(overflows):
        updated, _ = learner.step(number, 1e-9, iter([batch]), StepTimer(), lambda: None)
        stock.scale(parameter.sum()).backward()
        assert parameter.grad is not None
        parameter.grad.fill_(math.inf if overflow else 1.0)
        stock.step(optimizer)
        stock.update()
        assert updated != overflow and learner.scaler.state_dict() == stock.state_dict()


def test_gradients_that_overflow_at_any_scale_diverge() -> None:
    class Root(Linear):
        """Infinite slope."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (0 * self.fc.bias).sqrt()

    with pytest.raises(
        TrainingDiverged, match=r"overflow float16 although .* by 0\.000977 in epoch"
    ):
        train(Root(), Shades(), None, replace(CONFIG, dtype="float16", epochs=100))
    with pytest.raises(TrainingDiverged, match="the loss is nan"):
        train(Linear(), Shades(poison=math.nan), None, replace(CONFIG, dtype="float16"))


def test_a_norm_that_overflows_scales_the_loss_down_too() -> None:
    class Huge(Linear):
        """Gradients that are finite, with squares that are not."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e30 * self.fc.bias

    with pytest.raises(TrainingDiverged, match="overflow float16"):
        train(Huge(), Shades(), None, replace(CONFIG, dtype="float16", epochs=100))


def test_one_bad_clip_of_an_accumulated_step_is_told() -> None:
    class Rotten(Shades):
        """Among good clips."""

        def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
            clips, label, index = super().__getitem__(index)
            return clips * (math.nan if index == 5 else 1.0), label, index

    model = Linear()
    with pytest.raises(TrainingDiverged, match="the loss is nan in epoch 1, step 1"):
        train(model, Rotten(), None, replace(STEP, batch_size=1, accumulate=12))
    assert same_weights(model, Linear())


def test_compiled_training_is_the_same_and_keeps_plain_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Traced and not generated: code of its own takes a compiler ten seconds.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = Linear(), Linear()
    config = replace(STEP, epochs=2, lr=0.5)
    expected = train(plain, Shades(), None, config)
    history = train(compiled, Shades(), None, replace(config, compile=True))
    assert timeless(history) == timeless(expected) and same_weights(compiled, plain)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_what_cannot_be_compiled_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    told = r"torch.compile fails here \(.*no compiler here\); leave compile out"
    with pytest.raises(ValueError, match=told) as error:
        train(Linear(), Shades(), None, TrainConfig(epochs=1, batch_size=2, compile=True))
    assert "\n" not in str(error.value)

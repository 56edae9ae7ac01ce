"""The training loop on clips made in memory. About twelve seconds."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset
from training.shades import (
    CONFIG,
    FILES,
    FixedValidation,
    Shades,
    changed,
    run,
    same_weights,
    small_model,
    timeless,
)

from r21d.models import create_model
from r21d.training import TrainConfig, TrainingDiverged, learning_rate, train
from r21d.training.logs import read_csv
from r21d.training.results import is_best
from r21d.training.run_folder import state_files
from r21d.video import InputSpec
from r21d.video.transforms import Normalize
from r21d.weights import load_checkpoint


def test_learns_and_writes_its_files(tmp_path: Path) -> None:
    config = TrainConfig(epochs=12, batch_size=8, lr=0.02, schedule="cosine", warmup_epochs=1.0)
    model = small_model(dropout=0.0)
    val_set = FixedValidation(6, clips=2, size=16)
    history = train(model, Shades(24, size=16), val_set, config, out=tmp_path)
    assert history[-1]["video_top1"] == 1.0
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert [(row["step"], row["clips"]) for row in history] == [
        (3 * e, 24 * e) for e in range(1, 13)
    ]
    written = {file.name for file in tmp_path.iterdir()}
    assert written - {"tensorboard"} == {*FILES, "states", "steps.csv", "metrics.csv", ".lock"}
    states = sorted(file.name for file in (tmp_path / "states").iterdir())
    assert states == [f"step_0000000{step}.safetensors" for step in (30, 33, 36)]
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    logged = [int(row["step"]) for row in read_csv(tmp_path / "steps.csv")]
    assert logged == [step for step in range(1, 37) if step == 1 or step % 10 == 0 or step % 3 == 0]
    saved = load_checkpoint(tmp_path / "last.safetensors")
    assert saved.classes == Shades.classes
    assert saved.input == val_set.spec.to_dict()
    assert (saved.extra["epoch"], saved.extra["step"]) == ("12", "36")
    assert json.loads(saved.extra["train_config"]) == config.to_dict()
    rebuilt = create_model(**saved.config, weights=tmp_path / "last.safetensors")
    assert same_weights(rebuilt, model)


def test_what_the_caller_says_of_the_data_is_in_the_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, changed(epochs=1), description={"dataset": "shades", "split": 1})
    for name in ("last.safetensors", "best.safetensors"):
        extra = load_checkpoint(tmp_path / name).extra
        assert json.loads(extra["description"]) == {"dataset": "shades", "split": 1}


def test_a_network_of_other_classes_becomes_one_of_these() -> None:
    model = small_model()
    model.classes = ["cat", "dog"]
    train(model, Shades(4), Shades(4), replace(CONFIG, epochs=1))
    assert model.classes == Shades.classes


def test_best_files_are_of_the_first_of_the_best_epochs(tmp_path: Path) -> None:
    _, history = run(tmp_path)
    scores = [(row["video_top1"], row["clip_top1"]) for row in history]
    expected = scores.index(max(scores)) + 1
    assert load_checkpoint(tmp_path / "best.safetensors").extra["epoch"] == str(expected)
    best = json.loads((tmp_path / "best.json").read_text())
    assert best["epoch"] == expected
    assert best["video_top1"] == history[expected - 1]["video_top1"]
    assert best["classes"] == Shades.classes and sum(map(sum, best["confusion"])) == 6
    predictions = best["predictions"]
    right = [row["predicted"] in row["labels"] for row in predictions]
    assert len(right) == 6 and sum(right) / 6 == best["video_top1"]
    for row in predictions:
        assert row["score"] >= row["label_score"] > 0
        assert (row["score"] == row["label_score"]) == (row["predicted"] in row["labels"])


def test_best_is_strictly_better_than_each_epoch_before() -> None:
    def rows(*scores: tuple[float, float] | None) -> list[dict[str, Any]]:
        named = [s and {"video_top1": s[0], "clip_top1": s[1]} for s in scores]
        return [row or {} for row in named]

    assert is_best(rows((0.5, 0.5)))
    assert not is_best(rows((0.5, 0.5), (0.5, 0.5)))
    assert is_best(rows((0.5, 0.5), None, (0.5, 0.6)))
    assert not is_best(rows((0.6, 0.5), (0.5, 0.6)))
    assert not is_best(rows((0.5, 0.5), None))


def test_validation_after_every_so_many_epochs_and_the_last() -> None:
    _, history = run(config=changed(epochs=5, validate_epochs=2))
    assert ["val_loss" in row for row in history] == [False, True, False, True, True]


def test_an_epoch_may_be_any_number_of_clips() -> None:
    _, history = run(config=changed(epochs=3, epoch_clips=7))
    assert [(row["step"], row["clips"]) for row in history] == [(2, 8), (4, 16), (6, 24)]


def test_each_step_is_logged_and_learns_at_the_schedules_rate(tmp_path: Path) -> None:
    config = changed(epochs=3, schedule="step", lr_step=2, lr_batch=2, log_steps=1)
    _, history = run(tmp_path, config)
    rates = [learning_rate(config, step, 3) for step in range(9)]
    assert max(rates) == pytest.approx(2 * config.lr) and len(set(rates)) == 4
    with (tmp_path / "steps.csv").open() as file:
        steps = [
            {name: float(text) for name, text in row.items() if text}
            for row in csv.DictReader(file)
        ]
    assert [row["lr"] for row in steps] == rates
    assert [row["lr"] for row in history] == rates[2::3]
    for epoch, row in enumerate(history):
        own = steps[3 * epoch : 3 * epoch + 3]
        assert row["train_loss"] == pytest.approx(sum(step["loss"] for step in own) / 3)
        assert row["train_clip_top1"] == pytest.approx(sum(step["clip_top1"] for step in own) / 3)
        assert all(step["grad_norm"] > 0 for step in own)


def test_a_run_shorter_than_the_logs_interval_is_logged_all_the_same(tmp_path: Path) -> None:
    _, history = run(tmp_path, changed(epochs=2, max_steps=5, log_steps=100))
    logged = read_csv(tmp_path / "steps.csv")
    assert [row["step"] for row in logged] == ["1", "3", "5"] and len(history) == 1
    # Of the first one it says nothing: that is the start of workers, and compiling.
    assert [row["clips_per_second"] == "" for row in logged] == [True, False, False]


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    model, history = run()
    torch.manual_seed(12345)
    again, history_again = run()
    assert timeless(history) == timeless(history_again)
    assert same_weights(model, again)
    other, history_other = run(config=changed(seed=1))
    assert timeless(history) != timeless(history_other)
    assert not same_weights(model, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_run(workers: int) -> None:
    model, history = run(config=changed(epochs=2, bn_recalibration=8))
    again, history_again = run(config=changed(epochs=2, bn_recalibration=8, workers=workers))
    assert timeless(history) == timeless(history_again)
    assert same_weights(model, again)


class Recorded(Shades):
    """Remembers what it gave."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.given: list[Tensor] = []

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        item = super().__getitem__(index)
        self.given.append(item[0].sum())
        return item


def test_no_two_draws_are_alike() -> None:
    train_set = Recorded()
    train(small_model(), train_set, None, changed(epochs=3))
    assert len(torch.stack(train_set.given).unique()) == len(train_set.given) == 36


def test_every_batch_is_full() -> None:
    # 8x8 pixels and 4 frames are down to one value a channel: a single clip has no variance.
    train_set = Recorded(9)
    history = train(small_model(), train_set, None, TrainConfig(epochs=1, batch_size=4))
    assert len(train_set.given) == history[0]["clips"] == 12
    assert math.isfinite(history[0]["train_loss"])


def test_recalibration_leaves_weights_and_changes_statistics(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "a", changed(epochs=1))
    fresh, _ = run(tmp_path / "b", changed(epochs=1, bn_recalibration=8))
    held = [load_checkpoint(tmp_path / name / "last.safetensors").state_dict for name in "ab"]
    differing = {name for name in held[0] if not torch.equal(held[0][name], held[1][name])}
    assert differing == {name for name in held[0] if "running" in name}
    assert not same_weights(plain, fresh)


def test_a_step_reads_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(TorchDispatchMode):
        """Counts tensors turned into numbers."""

        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    class Still(Shades):
        """No random numbers."""

        def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
            return torch.full((1, 3, 4, 8, 8), float(index)), index % 2, index

    def count(videos: int) -> int:
        with Reads() as reads, monkeypatch.context() as patch:
            plain = Tensor.tolist

            def counted(tensor: Tensor) -> Any:
                reads.count += 1
                return plain(tensor)

            patch.setattr(Tensor, "tolist", counted)
            train(small_model(), Still(videos), None, changed(epochs=1, clip_gradients=1.0))
        return reads.count

    assert count(20) - count(12) == 2


def test_callers_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    model = small_model()
    torch.set_rng_state(before)
    train(model, Shades(), Shades(4), TrainConfig(epochs=1, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_loss_stops_and_names_the_last_good_state(tmp_path: Path, poison: float) -> None:
    config = replace(CONFIG, schedule="step")
    run(tmp_path, config)
    longer = replace(config, epochs=6)
    model = small_model()
    told = (
        r"the loss is nan in epoch 5, step 1, at .*step_000000012.*: resume with "
        r"allow_changes=True \(--allow-changes\) and a lower lr.*from step 12"
    )
    with pytest.raises(TrainingDiverged, match=told):
        train(model, Shades(poison=poison), None, longer, out=tmp_path, resume=True)
    resumed, history = run(tmp_path, longer, resume=True)
    whole, expected = run(None, longer)
    # The last epoch of the first part was validated; so are all of these.
    assert timeless(history) == timeless(expected) and same_weights(resumed, whole)


def test_non_finite_gradient_stops_before_the_update() -> None:
    class Root(nn.Module):
        """Finite value, infinite slope."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3, 4))[:, None] + self.weight.sqrt()

    model = Root()
    with pytest.raises(TrainingDiverged, match=r"the gradient norm is .*no state .* is saved"):
        train(model, Shades(), None, CONFIG)
    assert torch.equal(model.weight, torch.zeros(2))


def test_non_finite_validation_stops(tmp_path: Path) -> None:
    val_set = Shades(4, poison=math.nan)
    with pytest.raises(TrainingDiverged, match=r"validation after epoch 1: .*; start with a lower"):
        train(small_model(), Shades(), val_set, CONFIG)
    # Its weights are those that gave it: it would be of no use to go on from there.
    told = r"newest state, .*step_000000003.*last good state is .*step_000000000.safetensors: "
    told += r"delete step_000000003.safetensors, then resume with allow_changes=True.*from step 0"
    with pytest.raises(TrainingDiverged, match=told):
        train(small_model(), Shades(), val_set, changed(keep=1), out=tmp_path)
    lower = changed(keep=1, lr=CONFIG.lr / 2)
    # Not done as it says: the state before it still stays.
    with pytest.raises(TrainingDiverged, match=told):
        train(
            small_model(), Shades(), val_set, lower, out=tmp_path, resume=True, allow_changes=True
        )
    # As it says.
    state_files(tmp_path)[3].unlink()
    history = train(
        small_model(), Shades(), Shades(4), lower, out=tmp_path, resume=True, allow_changes=True
    )
    assert len(history) == CONFIG.epochs and len(state_files(tmp_path)) == 1


class Hungry(nn.Module):
    """Asks for more memory than there is, on its n-th pass, as ``ask`` does."""

    def __init__(self, number: int, ask: Callable[[], object]) -> None:
        super().__init__()
        self.left, self.ask = number, ask
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            self.ask()
        return x.mean((1, 2, 3, 4))[:, None] + self.weight


def _out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none.")


@pytest.mark.parametrize(
    ("ask", "size"),
    [(lambda: torch.empty(2**58), f"{2**60} bytes"), (_out_of_gpu_memory, "2.00 GiB")],
)
def test_too_little_memory_is_told_in_a_line(ask: Callable[[], object], size: str) -> None:
    told = f"^out of memory after step 1, {size} more were needed; a lower batch_size .* no state"
    with pytest.raises(MemoryError, match=told) as error:
        train(Hungry(2, ask), Shades(), None, CONFIG)
    assert "\n" not in str(error.value)


class Bytes(Dataset[tuple[Tensor, int, int]]):
    """Three uint8 clips a video, normalised or left to the loop."""

    classes: ClassVar[list[str]] = ["a", "b"]

    def __init__(self, normalize: bool, spec: InputSpec | None) -> None:
        self.normalize, self.spec = normalize, spec

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        clips = torch.randint(256, (3, 3, 4, 8, 8), dtype=torch.uint8)
        assert self.spec is not None or not self.normalize
        return Normalize(self.spec)(clips) if self.normalize else clips, index % 2, index


def test_uint8_clips_are_normalised_on_the_way_into_the_network() -> None:
    spec = InputSpec(clip_len=4, resize=(8, 8), crop=(8, 8))
    config = TrainConfig(epochs=2, batch_size=2, bn_recalibration=4)
    runs = []
    for normalize in (True, False):
        model = small_model()
        runs.append((train(model, Bytes(normalize, spec), None, config), model))
    (history, model), (history_later, model_later) = runs
    assert timeless(history) == timeless(history_later) and same_weights(model, model_later)
    with pytest.raises(ValueError, match="uint8 clips and has no spec to normalise them by"):
        train(small_model(), Bytes(False, None), None, config)


class Flat(nn.Module):
    """A network with a convolution over frames alone, and one over clips."""

    def __init__(self) -> None:
        super().__init__()
        self.clips = nn.Conv3d(3, 2, 3)
        self.frames = nn.Conv2d(2, 2, 3)
        self.register_buffer("plane", torch.zeros(1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.frames(self.clips(x).mean(2)).mean((2, 3))


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_network_with_parameters_of_four_axes_trains(channels_last: bool) -> None:
    model = Flat()
    before = model.clips.weight
    assert train(model, Shades(), None, changed(epochs=1, channels_last=channels_last))
    assert model.clips.weight is before
    last = model.clips.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert last == channels_last and model.frames.weight.is_contiguous()


def test_a_network_of_which_no_checkpoint_can_be_made_is_refused_before_the_work(
    tmp_path: Path,
) -> None:
    with pytest.raises(TypeError, match="with out the model must be a VideoModel, got Flat"):
        train(Flat(), Shades(), None, CONFIG, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_single_value_a_channel_says_what_to_raise() -> None:
    with pytest.raises(ValueError, match="no variance: raise batch_size, crop or clip_len"):
        train(small_model(), Shades(), None, changed(epochs=1, batch_size=1))


def test_empty_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="train_set is empty"):
        train(small_model(), Shades(0), None, CONFIG)

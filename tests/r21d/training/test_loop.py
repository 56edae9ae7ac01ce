"""The training loop on clips made in memory. About ten seconds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset

from r21d.models import VideoResNet, create_model
from r21d.training import ResumeError, TrainConfig, TrainingDiverged, train
from r21d.training.loop import epoch_seed
from r21d.video import InputSpec
from r21d.video.transforms import Normalize
from r21d.weights import load_checkpoint, save_checkpoint

FILES = ("last.safetensors", "best.safetensors", "state.safetensors", "history.jsonl")
CONFIG = TrainConfig(epochs=4, batch_size=4, lr=0.05, schedule="cosine", warmup_epochs=1.0)


class Shades(Dataset[tuple[Tensor, int, int]]):
    """Two classes, bright clips and dark ones, under random noise."""

    classes: ClassVar[list[str]] = ["bright", "dark"]

    def __init__(
        self, videos: int = 12, clips: int = 1, poison: float = 0.0, size: int = 8
    ) -> None:
        self.spec = InputSpec(clip_len=4, resize=(size, size), crop=(size, size))
        self.videos, self.clips, self.poison = videos, clips, poison

    def __len__(self) -> int:
        return self.videos

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if index >= self.videos:
            raise IndexError(index)
        label = index % 2
        brightness = 1.0 if label == 0 else -1.0
        noise = 0.3 * torch.randn(self.clips, 3, self.spec.clip_len, *self.spec.crop)
        return noise + brightness + self.poison, label, index


def small_model(**options: Any) -> VideoResNet:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": 2, "dropout": 0.2, "stem_channels": 4, **options}
    return create_model("r2plus1d_18", blocks=(1, 1, 1, 1), widths=(4, 4, 8, 8), **settings)


class FixedValidation(Shades):
    """The same noise each time it is read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        with torch.random.fork_rng():
            torch.manual_seed(index)
            return super().__getitem__(index)


def run(out: Path | None = None, config: TrainConfig = CONFIG, **options: Any) -> Any:
    model = small_model()
    history = train(model, Shades(), FixedValidation(6, clips=2), config, out=out, **options)
    return model, history


def changed(**settings: Any) -> TrainConfig:
    return TrainConfig(**{**CONFIG.to_dict(), **settings})


def contents(folder: Path) -> dict[str, Any]:
    """What a run's files hold; the bytes of equal safetensors files may differ in their order."""
    found: dict[str, Any] = {}
    for name in FILES:
        if not name.endswith(".safetensors"):
            found[name] = (folder / name).read_text()
            continue
        with safe_open(folder / name, framework="pt") as file:
            tensors = {key: file.get_tensor(key).tolist() for key in file.keys()}  # noqa: SIM118
            found[name] = (file.metadata(), tensors)
    return found


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_learns_and_writes_its_files(tmp_path: Path) -> None:
    config = TrainConfig(epochs=12, batch_size=8, lr=0.02, schedule="cosine", warmup_epochs=1.0)
    model = small_model(dropout=0.0)
    val_set = FixedValidation(6, clips=2, size=16)
    history = train(model, Shades(24, size=16), val_set, config, out=tmp_path)
    assert history[-1]["video_top1"] == 1.0
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert [row["epoch"] for row in history] == list(range(1, 13))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(FILES)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    saved = load_checkpoint(tmp_path / "last.safetensors")
    assert saved.classes == Shades.classes
    assert saved.input == val_set.spec.to_dict()
    assert saved.extra["epoch"] == "12"
    rebuilt = create_model(**saved.config, weights=tmp_path / "last.safetensors")
    assert same_weights(rebuilt, model)


def test_a_network_of_other_classes_becomes_one_of_these() -> None:
    model = small_model()
    model.classes = ["cat", "dog"]
    train(model, Shades(4), Shades(4), replace(CONFIG, epochs=1))
    assert model.classes == Shades.classes


def test_best_checkpoint_is_the_first_of_the_best_epochs(tmp_path: Path) -> None:
    _, history = run(tmp_path)
    scores = [(row["video_top1"], row["clip_top1"]) for row in history]
    expected = scores.index(max(scores)) + 1
    assert load_checkpoint(tmp_path / "best.safetensors").extra["epoch"] == str(expected)


def test_equal_seeds_give_equal_runs_and_others_do_not() -> None:
    model, history = run()
    torch.manual_seed(12345)
    again, history_again = run()
    assert history == history_again
    assert same_weights(model, again)
    other, history_other = run(config=changed(seed=1))
    assert history != history_other
    assert not same_weights(model, other)


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_run(workers: int) -> None:
    model, history = run(config=changed(epochs=2))
    again, history_again = run(config=changed(epochs=2, workers=workers))
    assert history == history_again
    assert same_weights(model, again)


def test_no_two_draws_are_alike() -> None:
    class Recorded(Shades):
        """Remembers what it gave."""

        given: ClassVar[list[Tensor]] = []

        def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
            item = super().__getitem__(index)
            self.given.append(item[0].sum())
            return item

    train(small_model(), Recorded(), None, changed(epochs=3))
    assert len(torch.stack(Recorded.given).unique()) == len(Recorded.given) == 36


def test_a_step_reads_the_device_once() -> None:
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
        with Reads() as reads:
            train(small_model(), Still(videos), None, changed(epochs=1))
        return reads.count

    assert count(20) - count(12) == 2


def test_epoch_seeds_are_distinct() -> None:
    runs = [*range(10), *(2**power for power in range(8, 32, 3))]
    seeds = [epoch_seed(seed, epoch) for seed in runs for epoch in range(50)]
    # What they lead to, not the numbers themselves: generators do not heed all of a seed.
    drawn = [torch.rand(3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    assert len(torch.stack(drawn).unique(dim=0)) == len(seeds)


def test_callers_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    model = small_model()
    torch.set_rng_state(before)
    train(model, Shades(), None, TrainConfig(epochs=1, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_run_equals_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    whole, history = run(tmp_path / "whole")

    def interrupt(row: dict[str, Any]) -> None:
        if row["epoch"] == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", on_epoch=interrupt)
    torch.manual_seed(777)
    resumed, resumed_history = run(tmp_path / "parts", resume=True)
    assert resumed_history == history
    assert same_weights(resumed, whole)
    for name in ("last.safetensors", "best.safetensors"):
        parts, together = (load_checkpoint(tmp_path / run / name) for run in ("parts", "whole"))
        assert parts.extra == together.extra
        assert parts.state_dict.keys() == together.state_dict.keys()
        for key, tensor in parts.state_dict.items():
            assert torch.equal(tensor, together.state_dict[key]), key


@pytest.mark.parametrize("interrupted", range(1, 5))
def test_an_interrupt_between_files_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: int
) -> None:
    # Each epoch is better than the one before: two checkpoints an epoch, in two epochs.
    val_scores = iter([0.25, 0.5] * 2)

    def validate(*_: Any) -> dict[str, float]:
        score = next(val_scores)
        return {"clip_top1": score, "video_top1": score}

    monkeypatch.setattr("r21d.training.loop._validate", validate)
    run(tmp_path / "whole", changed(epochs=2))
    calls = 0

    def interrupt(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == interrupted:
            raise KeyboardInterrupt
        save_checkpoint(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("r21d.weights.checkpoint.save_checkpoint", interrupt)
        run(tmp_path / "parts", changed(epochs=2))
    run(tmp_path / "parts", changed(epochs=2), resume=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_resuming_a_complete_run_returns_its_history(tmp_path: Path) -> None:
    model, history = run(tmp_path)
    again, history_again = run(tmp_path, resume=True)
    assert history_again == history
    assert same_weights(model, again)


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    run(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before
    _, history = run(tmp_path, TrainConfig(epochs=1, batch_size=4), overwrite=True)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == len(history) == 1


def test_resume_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="no run to resume"):
        run(tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume needs out"):
        run(None, resume=True)
    run(tmp_path)
    other = changed(lr=0.01)
    with pytest.raises(ResumeError, match=r"lr was 0\.05 and is now 0\.01"):
        run(tmp_path, other, resume=True)
    wider = small_model(stem_channels=8)
    before = [parameter.clone() for parameter in wider.parameters()]
    with pytest.raises(ResumeError, match="the network differs"):
        train(wider, Shades(), None, CONFIG, out=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(before, wider.parameters(), strict=True))


@pytest.mark.parametrize("content", [b"", b"not tensors at all", None])
def test_damaged_state_is_told(tmp_path: Path, content: bytes | None) -> None:
    run(tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ResumeError, match="cannot read the training state"):
        run(tmp_path, resume=True)


def test_a_checkpoint_is_not_a_state(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "state.safetensors").write_bytes((tmp_path / "last.safetensors").read_bytes())
    with pytest.raises(ResumeError, match="not the training state"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_loss_stops_and_keeps_the_files(tmp_path: Path, poison: float) -> None:
    run(tmp_path)
    before = contents(tmp_path)
    longer = changed(epochs=6)
    model = small_model()
    with pytest.raises(TrainingDiverged, match=r"the loss is nan in epoch 5, step 1.*lower lr"):
        train(model, Shades(poison=poison), None, longer, out=tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_non_finite_gradient_stops_before_the_update() -> None:
    class Root(nn.Module):
        """Finite value, infinite slope."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3, 4))[:, None] + self.weight.sqrt()

    model = Root()
    with pytest.raises(TrainingDiverged, match="the gradient norm is"):
        train(model, Shades(), None, CONFIG)
    assert torch.equal(model.weight, torch.zeros(2))


def test_non_finite_validation_stops() -> None:
    val_set = Shades(4, poison=math.nan)
    with pytest.raises(TrainingDiverged, match="validation after epoch 1"):
        train(small_model(), Shades(), val_set, CONFIG)


def test_a_last_batch_of_one_clip_is_dropped() -> None:
    # 8x8 pixels and 4 frames are down to one value a channel, whose variance does not exist.
    history = train(small_model(), Shades(9), None, TrainConfig(epochs=1, batch_size=4))
    assert math.isfinite(history[0]["train_loss"])


def test_bfloat16_autocast_keeps_float32_weights() -> None:
    config = changed(dtype="bfloat16", epochs=8)
    model = small_model()
    # 32 pixels keep layer4 at 2x2: torch 2.13's bfloat16 weight gradient of a padded convolution
    # over 1x1 pixels on the CPU holds uninitialised memory.
    history = train(model, Shades(size=32), None, config)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert history[-1]["train_loss"] < history[0]["train_loss"]


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
    config = TrainConfig(epochs=2, batch_size=2)
    runs = []
    for normalize in (True, False):
        model = small_model()
        runs.append((train(model, Bytes(normalize, spec), None, config), model))
    (history, model), (history_later, model_later) = runs
    assert history == history_later and same_weights(model, model_later)
    with pytest.raises(ValueError, match="uint8 clips and has no spec to normalise them by"):
        train(small_model(), Bytes(False, None), None, config)


class Tagged(Shades):
    """Bright clips are also "any"; dark ones are nothing else."""

    classes: ClassVar[list[str]] = ["bright", "dark", "any"]

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        clips, label, _ = super().__getitem__(index)
        return clips, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]][label]), index


class Constant(nn.Module):
    """The same logits for every clip."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_several_labels_a_clip() -> None:
    config = TrainConfig(epochs=1, batch_size=12, lr=1e-9)
    for logits, share in (([0.0, 1.0, 2.0], 0.5), ([3.0, 1.0, 2.0], 0.5), ([0.0, 9.0, 2.0], 0.5)):
        (row,) = train(Constant(logits), Tagged(12, clips=2), None, config)
        logs = torch.tensor(logits).log_softmax(0)
        expected = (-(logs[0] + logs[2]) / 2 - logs[1]) / 2
        assert row["train_loss"] == pytest.approx(expected.item(), rel=1e-6)
        assert row["train_clip_top1"] == share
    # Two labels at equal scores are the best that can be had, at a loss of log 2.
    (row,) = train(Constant([40.0, 0.0, 40.0]), OnlyBright(12), None, config)
    assert row["train_loss"] == pytest.approx(math.log(2)) and row["train_clip_top1"] == 1


class OnlyBright(Tagged):
    """The clips of two labels."""

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        return super().__getitem__(index - index % 2)


def test_empty_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="train_set is empty"):
        train(small_model(), Shades(0), None, CONFIG)

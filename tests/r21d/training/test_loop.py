"""The training loop on clips made in memory. About ten seconds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from r21d.models import VideoResNet, create_model
from r21d.training import ResumeError, TrainConfig, TrainingDiverged, train
from r21d.training.loop import epoch_seed
from r21d.video import InputSpec
from r21d.weights import load_checkpoint

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


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_learns_and_writes_its_files(tmp_path: Path) -> None:
    config = TrainConfig(epochs=12, batch_size=4, lr=0.02, schedule="cosine", warmup_epochs=1.0)
    model = small_model()
    val_set = FixedValidation(6, clips=2, size=16)
    history = train(model, Shades(size=16), val_set, config, out=tmp_path)
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
    other, history_other = run(config=TrainConfig(**{**CONFIG.to_dict(), "seed": 1}))
    assert history != history_other
    assert not same_weights(model, other)


def test_worker_processes_are_seeded() -> None:
    config = TrainConfig(**{**CONFIG.to_dict(), "epochs": 1, "workers": 2})
    model, history = run(config=config)
    again, history_again = run(config=config)
    assert history == history_again
    assert same_weights(model, again)


def test_epoch_seeds_are_distinct() -> None:
    seeds = {epoch_seed(seed, epoch) for seed in range(20) for epoch in range(200)}
    assert len(seeds) == 20 * 200


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
    other = TrainConfig(**{**CONFIG.to_dict(), "lr": 0.01})
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
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    longer = TrainConfig(**{**CONFIG.to_dict(), "epochs": 6})
    model = small_model()
    with pytest.raises(TrainingDiverged, match=r"the loss is nan in epoch 5, step 1.*lower lr"):
        train(model, Shades(poison=poison), None, longer, out=tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


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
    config = TrainConfig(**{**CONFIG.to_dict(), "dtype": "bfloat16", "epochs": 8})
    model = small_model()
    # 32 pixels keep layer4 at 2x2: torch 2.13's bfloat16 weight gradient of a padded convolution
    # over 1x1 pixels on the CPU holds uninitialised memory.
    history = train(model, Shades(size=32), None, config)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_empty_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="train_set is empty"):
        train(small_model(), Shades(0), None, CONFIG)

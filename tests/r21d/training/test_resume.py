"""Runs that go on after an interruption, and those that must not. About sixteen seconds."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.shades import (
    CONFIG,
    FixedValidation,
    Shades,
    changed,
    contents,
    run,
    same_weights,
    small_model,
    timeless,
)

from r21d.training import ResumeError, TrainConfig, train
from r21d.training.run_folder import state_file, state_files
from r21d.training.state import TrainState, load_state, write_state
from r21d.weights import load_checkpoint

#: States amid epochs, which have three steps each; no two epochs validate alike.
BUSY = changed(checkpoint_steps=2, bn_recalibration=4)


class Interrupting(Shades):
    """Raises at the n-th clip it is asked for."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uninterrupted run's network, history and folder."""
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder, BUSY), folder


# 4 clips a step and 4 of recalibration an epoch: amid the first step, before and after the first
# state amid an epoch, in a recalibration, and in the last epoch.
@pytest.mark.parametrize(("clips", "saved"), [(2, 0), (6, 0), (11, 2), (15, 3), (60, 12)])
def test_resumed_run_equals_uninterrupted_one(
    tmp_path: Path, whole: Any, clips: int, saved: int
) -> None:
    model, history, folder = whole
    val_set = FixedValidation(6, clips=2)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), Interrupting(clips), val_set, BUSY, out=tmp_path)
    assert next(iter(state_files(tmp_path))) == saved
    torch.manual_seed(777)
    resumed, resumed_history = run(tmp_path, BUSY, resume=True)
    assert timeless(resumed_history) == timeless(history)
    assert same_weights(resumed, model)
    assert contents(tmp_path) == contents(folder)
    assert state_files(tmp_path).keys() == state_files(folder).keys()
    logs = [(place / "steps.csv").read_text().splitlines() for place in (tmp_path, folder)]
    assert [row.split(",")[:5] for row in logs[0]] == [row.split(",")[:5] for row in logs[1]]


@pytest.mark.parametrize("clips", [12 + 4, 12 + 4 + 4])
def test_an_epoch_that_was_trained_is_only_validated(tmp_path: Path, clips: int) -> None:
    """Interrupted in the validation after its first epoch, whose clips are drawn at random."""
    config = dataclasses.replace(BUSY, epochs=2)
    model = small_model()
    history = train(model, Shades(), Shades(), config)
    # One set for both sides: it counts the clips of both.
    both = Interrupting(clips)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), both, both, config, out=tmp_path)
    step, newest = next(iter(state_files(tmp_path).items()))
    assert step == 3 and load_state(newest).history == []
    torch.manual_seed(777)
    again, resumed = Interrupting(1000), small_model()
    rows = train(resumed, again, Shades(), config, out=tmp_path, resume=True)
    # The first epoch's recalibration and the second one whole.
    assert 1000 - again.left == 4 + 12 + 4
    assert timeless(rows) == timeless(history) and same_weights(resumed, model)


def test_float16_goes_on_at_the_scale_it_had(tmp_path: Path) -> None:
    config = changed(epochs=2, dtype="float16")
    whole, history = run(tmp_path / "whole", config)
    run(tmp_path / "parts", dataclasses.replace(config, max_steps=4))
    resumed, rows = run(tmp_path / "parts", config, resume=True)
    assert timeless(rows) == timeless(history) and same_weights(resumed, whole)
    first, last = (load_state(state_files(tmp_path / "whole")[step]) for step in (3, 6))
    parts = load_state(state_files(tmp_path / "parts")[6])
    assert parts.scaler == last.scaler
    # It starts at 2**16: another one must be the state's.
    (tmp_path / "low").mkdir()
    scaler = {**first.scaler, "scale": 2.0**5, "_growth_tracker": 0}
    write_state(state_file(tmp_path / "low", 3), dataclasses.replace(first, scaler=scaler))
    run(tmp_path / "low", config, resume=True)
    assert load_state(state_files(tmp_path / "low")[6]).scaler == {**scaler, "_growth_tracker": 3}


def test_another_number_of_processes_may_go_on_with_the_sums() -> None:
    sums = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    state = TrainState({}, {}, 1, {}, 4, {}, None, [], sums)
    assert [state.sums_of(rank, 2).tolist() for rank in (0, 1)] == sums.tolist()
    assert state.sums_of(0, 1).tolist() == [5, 7, 9]
    assert [state.sums_of(rank, 3)[0].item() for rank in range(3)] == [5, 0, 0]


def test_max_steps_ends_a_run_that_can_go_on(tmp_path: Path, whole: Any) -> None:
    model, history, folder = whole
    limited = changed(**{**BUSY.to_dict(), "max_steps": 5})
    for _ in range(2):
        # The second time there is nothing left to do.
        _, rows = run(tmp_path, limited, resume=_ > 0)
        assert timeless(rows) == timeless(history)[:1]
        assert next(iter(state_files(tmp_path))) == 5
    extra = load_checkpoint(tmp_path / "last.safetensors").extra
    assert (extra["epoch"], extra["step"]) == ("1", "5")
    resumed, rows = run(tmp_path, BUSY, resume=True)
    assert timeless(rows) == timeless(history) and same_weights(resumed, model)
    assert contents(tmp_path) == contents(folder)


def test_resuming_a_complete_run_returns_its_history(tmp_path: Path) -> None:
    model, history = run(tmp_path)
    before = contents(tmp_path)
    again, history_again = run(tmp_path, resume=True)
    assert history_again == history
    assert same_weights(model, again)
    assert contents(tmp_path) == before


def test_a_folder_with_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "curves.png").write_bytes(b"of the old run")
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(FileExistsError, match="already holds a run"):
        run(tmp_path)
    assert {file: file.read_bytes() for file in files} == files
    (tmp_path / "config.toml").write_text("of the new run\n")
    _, history = run(tmp_path, TrainConfig(epochs=1, batch_size=4), overwrite=True)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == len(history) == 1
    assert not (tmp_path / "curves.png").exists()
    assert (tmp_path / "config.toml").read_text() == "of the new run\n"
    assert [*state_files(tmp_path)] == [3, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scales": {"head": 2.0}}, "'head' leads no parameter"),
        ({"freeze": 99}, "freeze is 99"),
        ({"device": "nowhere"}, "nowhere"),
    ],
)
def test_a_run_is_not_replaced_by_one_that_cannot_begin(
    short: Path, settings: dict[str, Any], message: str
) -> None:
    before = {file: file.read_bytes() for file in short.rglob("*") if file.is_file()}
    began: list[None] = []
    with pytest.raises((ValueError, RuntimeError), match=message):
        run(short, changed(**settings), overwrite=True, on_start=lambda: began.append(None))
    assert {file: file.read_bytes() for file in before} == before and not began


def test_a_folder_may_have_a_name_that_is_not_utf8(tmp_path: Path, whole: Any) -> None:
    folder = tmp_path / os.fsdecode(b"r\xe9sum\xe9")
    run(folder, dataclasses.replace(BUSY, max_steps=5))
    model, history = run(folder, BUSY, resume=True)
    assert timeless(history) == timeless(whole[1]) and same_weights(model, whole[0])


def test_resume_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match=r"no run to resume.*nowhere does not exist"):
        run(tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(ResumeError, match=r"no run to resume.*holds no state"):
        run(tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume needs out"):
        run(None, resume=True)
    (tmp_path / "state.safetensors").write_bytes(b"of an earlier version")
    with pytest.raises(ResumeError, match=r"state\.safetensors is the state of an earlier version"):
        run(tmp_path, resume=True)
    with pytest.raises(FileExistsError, match=r"already holds a run \(state\.safetensors\)"):
        run(tmp_path)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("short")
    run(folder, changed(epochs=1, schedule="step"), description={"clip_len": 4, "split": None})
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.01}, r"lr was 0\.05 and is now 0\.01"),
        ({"seed": 3}, "seed was 0 and is now 3"),
        ({"dtype": "bfloat16"}, "dtype was 'float32' and is now 'bfloat16'"),
        ({"batch_size": 8}, r"clips \(batch_size x accumulate x processes\) were 4 and are now 8"),
        ({"schedule": "cosine"}, "schedule was 'step' and is now 'cosine'"),
        ({"lr_scales": {"fc": 2.0}}, r"lr_scales was \{\} and is now \{'fc': 2\.0\}"),
    ],
)
def test_changed_settings_are_named(short: Path, settings: dict[str, Any], message: str) -> None:
    before = contents(short)
    with pytest.raises(ResumeError, match=message):
        run(short, changed(**{"epochs": 1, "schedule": "step", **settings}), resume=True)
    assert contents(short) == before


def test_less_than_is_done_already_is_refused(tmp_path: Path) -> None:
    config = changed(epochs=2, schedule="step")
    run(tmp_path, config)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for fewer in ({"max_steps": 5}, {"epochs": 1}):
        with pytest.raises(ResumeError, match="6 steps are done already"):
            run(tmp_path, dataclasses.replace(config, **fewer), resume=True)
    assert {file: file.read_bytes() for file in files} == files
    run(tmp_path, dataclasses.replace(config, max_steps=6), resume=True)


#: What the middle epoch of three has otherwise; the rest is given back for the last.
OTHERWISE: dict[str, Any] = {
    "lr": 0.01,
    "schedule": "cosine",
    "epochs": 5,
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
    "clip_gradients": 0.5,
    "dtype": "float16",
    "lr_scales": {"fc": 3.0},
    "freeze": 1,
    "bn_recalibration": 4,
    "warmup_epochs": 0.0,
    "channels_last": False,
}


def test_changes_that_are_allowed_are_taken_told_and_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = changed(epochs=3, schedule="step", max_steps=3)
    run(tmp_path, first)
    other = dataclasses.replace(first, **OTHERWISE, max_steps=5)
    told = (
        r"lr was 0\.05 and is now 0\.01.*=True \(--allow-changes\) takes other values of epochs, lr"
    )
    with pytest.raises(ResumeError, match=told):
        run(tmp_path, other, resume=True)
    with caplog.at_level(logging.WARNING):
        model, _ = run(tmp_path, other, resume=True, allow_changes=True)
    assert "from step 3 on lr is 0.01; it was 0.05" in caplog.text
    # epochs, too: the cosine's steps depend on it.
    values = {name: [getattr(first, name), value] for name, value in OTHERWISE.items()}
    state = load_state(state_files(tmp_path)[5])
    assert state.changes == [{"step": 3, "changed": values}]
    # The state that it went on from has the new settings: nothing has to be allowed again.
    assert load_state(state_files(tmp_path)[3]).config == other.to_dict()
    assert state.momentum == {} and state.scaler["scale"] > 0
    assert model.stem[0].weight.requires_grad is False
    extra = load_checkpoint(tmp_path / "last.safetensors").extra
    assert json.loads(extra["changes"]) == state.changes
    # Amid an epoch, whose row tells the rate of its last step.
    last = dataclasses.replace(first, max_steps=None, lr=0.02)
    _, history = run(tmp_path, last, resume=True, allow_changes=True)
    assert [row["lr"] for row in history] == [0.05, 0.02, 0.02]
    notes = json.loads(load_checkpoint(tmp_path / "last.safetensors").extra["changes"])
    assert [note["step"] for note in notes] == [3, 5] and notes[1]["changed"]["lr"] == [0.01, 0.02]
    state = load_state(state_files(tmp_path)[9])
    assert state.changes == notes and len(state.momentum) == len([*small_model().parameters()])


def test_an_epoch_that_was_trained_keeps_its_rate(tmp_path: Path) -> None:
    config = changed(epochs=1, schedule="step", max_steps=3, warmup_epochs=0.0)
    both = Interrupting(13)
    with pytest.raises(KeyboardInterrupt):
        train(small_model(), both, both, config, out=tmp_path)
    other = dataclasses.replace(config, lr=0.01)
    _, (row,) = run(tmp_path, other, resume=True, allow_changes=True)
    assert row["lr"] == 0.05


@pytest.mark.parametrize("settings", [{"seed": 3}, {"epoch_clips": 8}, {"batch_size": 8}])
def test_no_permission_changes_the_clips(short: Path, settings: dict[str, Any]) -> None:
    config = changed(**{"epochs": 2, "schedule": "step", "lr": 0.01, **settings})
    with pytest.raises(ResumeError, match=r"cannot resume with other settings") as error:
        run(short, config, resume=True, allow_changes=True)
    assert "lr was" not in str(error.value) and "allow" not in str(error.value)
    with pytest.raises(ResumeError, match=r"takes other values of lr"):
        run(short, config, resume=True)
    with pytest.raises(ResumeError, match="clip_len was 4 and is now 8"):
        description = {"clip_len": 8, "split": None}
        config = changed(epochs=1, schedule="step", lr=0.01)
        run(short, config, description=description, resume=True, allow_changes=True)


def test_what_changes_no_step_may_change(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # There is nothing left to compile.
    monkeypatch.setattr(torch, "compile", lambda network: network)
    moved = changed(
        **{"epochs": 1, "schedule": "step", "batch_size": 2, "accumulate": 2, "workers": 1},
        **{"eval_batch_size": 5, "checkpoint_steps": 1, "keep": 1, "log_steps": 1, "max_steps": 9},
        compile=True,
    )
    run(short, moved, resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"description": {"clip_len": 8, "split": None}}, "clip_len was 4 and is now 8"),
        ({"description": {"clip_len": 4, "split": 2}}, "split was None and is now 2"),
        ({"train_set": Shades(10)}, "training videos were 12 and are now 10"),
    ],
)
def test_other_data_is_refused(short: Path, options: dict[str, Any], message: str) -> None:
    config = changed(epochs=1, schedule="step")
    train_set = options.pop("train_set", Shades())
    with pytest.raises(ResumeError, match=message):
        train(small_model(), train_set, None, config, out=short, resume=True, **options)


def test_other_classes_are_refused(short: Path) -> None:
    train_set = Shades()
    train_set.classes = ["dark", "bright"]  # type: ignore[misc]
    with pytest.raises(ResumeError, match="classes are others"):
        config = changed(epochs=1, schedule="step")
        train(small_model(), train_set, None, config, out=short, resume=True)


def test_the_description_survives_a_resume_without_one(short: Path) -> None:
    run(short, changed(epochs=2, schedule="step"), resume=True)
    newest = next(iter(state_files(short).values()))
    assert load_state(newest).description == {"clip_len": 4, "split": None}


def test_another_network_is_refused_and_left_alone(tmp_path: Path) -> None:
    run(tmp_path)
    wider = small_model(stem_channels=8)
    before = [parameter.clone() for parameter in wider.parameters()]
    with pytest.raises(ResumeError, match="the network differs"):
        train(wider, Shades(), None, CONFIG, out=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(before, wider.parameters(), strict=True))


def test_a_run_with_a_longer_cosine_is_another(tmp_path: Path) -> None:
    run(tmp_path, changed(epochs=1))
    with pytest.raises(ResumeError, match="epochs was 1 and is now 2"):
        run(tmp_path, changed(epochs=2), resume=True)


def damages() -> dict[str, Callable[[bytes], bytes]]:
    """Ways to damage a file."""
    return {
        "empty": lambda content: b"",
        "other": lambda content: b"not tensors at all",
        "short": lambda content: content[:-100],
        "flipped": lambda content: content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
    }


@pytest.mark.parametrize("kind", damages())
def test_a_damaged_state_is_named_with_the_newest_good_one(tmp_path: Path, kind: str) -> None:
    _, history = run(tmp_path)
    (_, newest), (step, second), *_ = state_files(tmp_path).items()
    newest.write_bytes(damages()[kind](newest.read_bytes()))
    told = f"cannot read the training state {newest}: .*{second}: delete .* from step {step}"
    with pytest.raises(ResumeError, match=told):
        run(tmp_path, resume=True)
    newest.unlink()
    _, again = run(tmp_path, resume=True)
    assert timeless(again) == timeless(history)


def test_when_no_state_can_be_read_it_says_so(tmp_path: Path) -> None:
    run(tmp_path, changed(epochs=1))
    for file in state_files(tmp_path).values():
        file.write_bytes(b"")
    with pytest.raises(ResumeError, match="no other state can be read: start the run anew"):
        run(tmp_path, resume=True)


def test_a_checkpoint_is_not_a_state(tmp_path: Path) -> None:
    run(tmp_path, changed(epochs=1))
    newest = next(iter(state_files(tmp_path).values()))
    newest.write_bytes((tmp_path / "last.safetensors").read_bytes())
    with pytest.raises(ResumeError, match="not the training state"):
        run(tmp_path, resume=True)


def test_history_follows_the_state(tmp_path: Path) -> None:
    run(tmp_path, changed(schedule="step"))
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 5, "train_l')
    run(tmp_path, changed(schedule="step"), resume=True)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]

"""Files of states: what they hold, how damage shows, which of them stay. Under a second."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from training.shades import small_model

from r21d.training import ResumeError, TrainConfig
from r21d.training.run_folder import state_file, state_files
from r21d.training.state import States, TrainState, load_state, write_state


def state(step: int = 7, size: int = 3) -> TrainState:
    generator = torch.Generator().manual_seed(step)
    return TrainState(
        model={"fc.weight": torch.randn(size, 2, generator=generator), "bn.count": torch.tensor(4)},
        momentum={"fc.weight": torch.randn(size, 2, generator=generator)},
        step=step,
        config=TrainConfig().to_dict(),
        global_batch=32,
        data={"videos": 9, "classes": ["a", "ü"]},
        description={"split": 1},
        history=[{"epoch": 1, "train_loss": 0.1 + 0.2}],
        sums=torch.tensor([[0.1, 2.0, 3.0]], dtype=torch.float64),
        seconds=1.5,
        skipped=2,
        scaler={"scale": 65536.0, "_growth_tracker": 3},
    )


def same(a: TrainState, b: TrainState) -> bool:
    for name in ("model", "momentum"):
        one, other = getattr(a, name), getattr(b, name)
        if one.keys() != other.keys() or not all(torch.equal(one[k], other[k]) for k in one):
            return False
    plain = [
        {f.name: getattr(s, f.name) for f in dataclasses.fields(s)} | {"model": 0, "momentum": 0}
        for s in (a, b)
    ]
    return torch.equal(plain[0].pop("sums"), plain[1].pop("sums")) and plain[0] == plain[1]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "states" / "one.safetensors"
    write_state(file, state())
    assert same(load_state(file), state())
    # Layouts that safetensors does not take: channels_last, a view.
    held = dataclasses.replace(
        state(),
        model=small_model().to(memory_format=torch.channels_last_3d).state_dict(),
        momentum={"view": torch.arange(6.0).view(2, 3).t()},
    )
    write_state(file, held)
    assert same(load_state(file), held)


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    file = tmp_path / "states" / "one.safetensors"
    write_state(file, state())
    content = file.read_bytes()
    draw = random.Random(0)
    places = {*range(0, 64), *range(len(content) - 64, len(content))}
    places |= {draw.randrange(len(content)) for _ in range(300)}
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        file.write_bytes(flipped)
        try:
            found = load_state(file)
        except ResumeError as error:
            assert str(file) in str(error)
        else:
            # Spaces that fill up the header have no meaning.
            assert content[place : place + 1] == b" " and same(found, state())


def test_every_truncation_is_found(tmp_path: Path) -> None:
    file = tmp_path / "states" / "one.safetensors"
    write_state(file, state())
    content = file.read_bytes()
    for length in range(0, len(content), 37):
        file.write_bytes(content[:length])
        with pytest.raises(ResumeError, match=r"cannot read the training state|not the training"):
            load_state(file)


def test_a_later_version_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "states" / "one.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("r21d.training.state.VERSION", 3)
        write_state(file, state())
    with pytest.raises(ResumeError, match="of version 3, this r21d reads 2"):
        load_state(file)


def test_the_newest_stay(tmp_path: Path) -> None:
    states = States(tmp_path, keep=2)
    for step in (0, 5, 10, 1000):
        states.save(state(step))
    assert [*state_files(tmp_path)] == [1000, 10]
    assert states.newest == (1000, state_file(tmp_path, 1000))
    assert States(tmp_path, keep=2).load().step == 1000


def test_a_damaged_state_takes_no_good_ones_place(tmp_path: Path) -> None:
    before = States(tmp_path, keep=3)
    for step in (5, 10, 15):
        before.save(state(step))
    state_file(tmp_path, 10).write_bytes(b"damaged")
    again = States(tmp_path, keep=3)
    assert again.load().step == 15
    again.save(state(20))
    assert [*state_files(tmp_path)] == [20, 15, 10, 5]
    # Three good ones; whatever is older goes, damaged or not.
    again.save(state(25))
    assert [*state_files(tmp_path)] == [25, 20, 15]


def test_older_states_go_only_when_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = States(tmp_path, keep=1)
    states.save(state(5))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("r21d.atomic.os.fsync", full)
        states.save(state(10))
    assert [file.name for file in (tmp_path / "states").iterdir()] == ["step_000000005.safetensors"]
    assert states.newest == (5, state_file(tmp_path, 5))

"""Configurations read, overridden and written (about three seconds)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from r21d.training.config import TrainConfig
from r21d.training.network import as_stock, build_model, completed, load_start
from r21d.training.protocol import dump_config, list_configs, load_config
from r21d.training.run_config import COMMAND_LINE, KEYS, TABLES, RunConfig
from r21d.video import InputSpec
from r21d.weights import save_checkpoint
from r21d_ops import Conv2Plus1D
from r21d_ops.modules import FusedSequential


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a configuration and returns its path."""

    def make(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def test_defaults_are_those_of_the_classes() -> None:
    config = load_config(None)
    assert config == RunConfig(**{table: cls() for table, cls in TABLES.items()})
    assert config.sources == {}
    assert config.input.spec() == InputSpec()
    fields = [f.name for cls in TABLES.values() for f in dataclasses.fields(cls)]
    assert sorted(fields) == sorted(KEYS) and len(set(fields)) == len(fields)


def test_the_command_line_comes_before_the_file_and_the_file_before_defaults(write: Any) -> None:
    path = write("[train]\nlr = 0.5 # ours: high\nepochs = 7\n\n[input]\nclip_len = 4\n")
    config = load_config(path, {"lr": 0.25, "frame_rate": None})
    assert (config.train.lr, config.train.epochs, config.input.clip_len) == (0.25, 7, 4)
    assert config.input.frame_rate is None
    assert config.train.momentum == TrainConfig().momentum
    assert config.sources["lr"] == config.sources["frame_rate"] == COMMAND_LINE
    assert config.sources["epochs"] == str(path)
    assert load_config(path).sources["lr"] == "ours: high"


def test_a_file_extends_another_or_a_named_one(write: Any) -> None:
    write("[train]\nlr = 0.5  # the base\nepochs = 7  # the base\n", "base.toml")
    config = load_config(write('extends = "base.toml"\n[train]\nlr = 0.25  # here\n'))
    assert (config.train.lr, config.train.epochs) == (0.25, 7)
    assert (config.sources["lr"], config.sources["epochs"]) == ("here", "the base")
    named = load_config(write('extends = "kinetics_r3d_18_8f"\n[train]\nlr = 0.25\n'))
    assert (named.model.model, named.train.lr) == ("r3d_18", 0.25)
    assert named.sources["epochs"].startswith("paper, section 4.1")


@pytest.mark.parametrize(
    ("value", "comment"),
    [
        ('"a # b"', "behind # it"),
        ("'a # \\'", "literal"),
        ('"a \\" # b"', "escaped"),
        ('"a"', ""),
    ],
)
def test_comments_are_told_from_text(write: Any, value: str, comment: str) -> None:
    config = load_config(write(f"# above\n[run]\n# next\n# to it\ndata = {value}  # {comment}\n"))
    assert config.sources["data"] == (comment or "next to it")


def test_what_is_written_reads_back_with_its_sources(write: Any) -> None:
    settings = {
        "lr_scales": {"fc": 10.0, "layer4.1": 0.5},
        "resize": 128,
        "crop": (96, 112),
        "frame_rate": None,
        "max_steps": 12,
        "data": 'a "folder" \\ with # \x7f and ü',
        "weights": "runs/x",
        "flip": False,
    }
    config = load_config("kinetics_to_ucf101", settings)
    again = load_config(write(dump_config(config)))
    assert again == config
    assert again.sources == config.sources
    assert all(again.sources[name] == COMMAND_LINE for name in settings)


def test_a_name_that_is_no_text_is_left_out(write: Any) -> None:
    config = load_config(None, {"data": "v\udcff", "split": "1", "weights": "w\udcff"})
    config = config.changed({"lr": 0.5}, "the file\n m\udcff\x1b\x7fü")
    again = load_config(write(dump_config(config)))
    assert (again.run.data, again.run.split, again.model.weights) == (None, "1", None)
    assert again.sources["lr"] == r"the file m\udcff\x1b\x7fü"


def test_validation_takes_as_many_clips_as_training_unless_told(write: Any) -> None:
    assert load_config(None, {"batch_size": 4}).train.eval_batch_size == 4
    path = write("[train]\nbatch_size = 4\neval_batch_size = 7\n")
    assert load_config(path, {"batch_size": 3}).train.eval_batch_size == 7
    # In a run's own file, too, where it stands beside what it follows.
    own = write(dump_config(load_config(None, {"batch_size": 4})))
    assert load_config(own).train.eval_batch_size == 4
    assert load_config(own, {"batch_size": 3}).train.eval_batch_size == 3
    edited = own.read_text().replace("eval_batch_size = 4", "eval_batch_size = 2")
    assert load_config(write(edited), {"batch_size": 3}).train.eval_batch_size == 2
    own = write(dump_config(load_config(None)))
    assert load_config(own, {"batch_size": 3}).train.eval_batch_size == 3


BAD = {
    "key": ("[train]\nlearning_rate = 1\n", r"\[train\] has an unknown key learning_rate"),
    "near key": ("[train]\nepoch_clip = 1\n", "unknown key epoch_clip; did you mean epoch_clips"),
    "table of a key": ("[model]\nlr = 1.0\n", r"lr belongs into \[train\], not into \[model\]"),
    "table": ("[trian]\nlr = 1.0\n", "trian is no table; did you mean train"),
    "no table": ("lr = 1.0\n", "lr is no table"),
    "table's name as a key": ("train = 1.0\n", r"train is 1.0, expected a table \[train\]"),
    "type": ('[train]\nlr = "high"\n', "lr is 'high', expected a finite number"),
    "whole number": ("[train]\nepochs = 1.5\n", "epochs is 1.5, expected a whole number"),
    "truth is no number": ("[train]\nepochs = true\n", "epochs is True, expected a whole number"),
    "number is no truth": ("[input]\nflip = 1\n", "flip is 1, expected true or false"),
    "infinite": ("[train]\nlr = inf\n", "lr is inf, expected a finite number"),
    "huge": (f"[train]\nlr = 1{'0' * 400}\n", "expected a finite number"),
    "none": ('[train]\nlr = "none"\n', "lr is 'none', expected a finite number"),
    "other than none": (
        '[train]\nmax_steps = "all"\n',
        "max_steps is 'all', expected a whole number or 'none'",
    ),
    "size": ("[input]\ncrop = [112]\n", r"crop is \[112\], expected \[height, width\]"),
    "scales": ("[train]\nlr_scales = { fc = true }\n", "expected a table of numbers"),
    "range": ("[train]\nepochs = 0\n", "epochs is 0, expected at least 1"),
    "range of a clip": ("[input]\nclip_len = 0\n", "clip_len must be a whole number"),
    "network": (
        '[model]\nmodel = "r2plus2d"\n',
        "model='r2plus2d' is not a known network; did you mean",
    ),
    "data set": ('[data]\ndataset = "kinetix"\n', "dataset is 'kinetix', expected one of folder"),
    "sampling": ('[data]\nval_sampling = "some"\n', "val_sampling is 'some', expected one of even"),
    "width": ("[model]\nwidth = 0\n", "width is 0, expected at least 1"),
    "TOML": ("[train\n", "is not a configuration: .*line 1"),
    "base": ('extends = "nothing"\n', "no configuration 'nothing'"),
    "base's type": ("extends = 1\n", "extends is 1, expected a name or a path"),
    "circle": ('extends = "mine.toml"\n', "leads back to"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused_by_name(write: Any, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value) or "no configuration" in str(error.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(b"[train]\nlr = 1 # \xff\n")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        load_config(tmp_path / "mine.toml")


def test_an_unknown_name_gets_a_near_one() -> None:
    assert "kinetics_r3d_18_8f" in list_configs()
    with pytest.raises(ValueError, match=r"did you mean .*kinetics_r3d_18_8f"):
        load_config("kinetics_r3d_18")


TINY = {"width": 2, "clip_len": 2, "resize": (16, 16), "crop": (16, 16)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A run's folder: a narrow network of three classes, made for 2 frames at 7 a second."""
    (tmp_path / "run").mkdir()
    model = build_model(load_config(None, {**TINY, "eps": 0.25, "model": "mc2_18"}), "abc")
    spec = InputSpec(clip_len=2, frame_rate=7.0, mean=(0.5, 0.5, 0.5))
    save_checkpoint(
        tmp_path / "run" / "last.safetensors", model, classes=["a", "b", "c"], input=spec
    )
    return tmp_path / "run"


def test_weights_decide_what_nobody_chose(weights: Path) -> None:
    config = load_config(None, {"weights": str(weights), "crop": (32, 32)})
    start = load_start(config)
    config = completed(config, start)
    assert (config.model.model, config.input.frame_rate) == ("mc2_18", 7.0)
    assert (config.input.clip_len, config.input.crop) == (2, (32, 32))
    assert config.sources["clip_len"] == "the weights"
    model = build_model(config, ["a", "b"], start)
    assert model.config["eps"] == 0.25 and model.config["widths"] == [2, 4, 8, 16]
    assert model.classes == ["a", "b"] and model.fc.out_features == 2


def test_the_head_is_kept_for_the_same_classes_alone(weights: Path) -> None:
    config = load_config(None, {"weights": str(weights)})
    start = load_start(config)
    assert start is not None
    kept = build_model(config, ["a", "b", "c"])
    assert kept.fc.weight.equal(start.state_dict["fc.weight"])
    other = build_model(config, ["a", "b", "d"])
    assert not other.fc.weight.equal(start.state_dict["fc.weight"])
    assert other.stem[0].weight.equal(start.state_dict["stem.0.weight"])
    assert other.classes == ["a", "b", "d"]


def test_other_weights_than_asked_for_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a mc2_18, not a r3d_18"):
        load_start(load_config(None, {"weights": str(weights), "model": "r3d_18"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds neither best.safetensors nor last"):
        load_start(load_config(None, {"weights": str(tmp_path / "empty")}))


def test_the_best_weights_of_a_run_come_first(weights: Path) -> None:
    model = build_model(load_config(None, {**TINY, "model": "r3d_18"}), ["a"])
    save_checkpoint(weights / "best.safetensors", model, classes=["a"], input={})
    start = load_start(load_config(None, {"weights": str(weights)}))
    assert start is not None and start.config["name"] == "r3d_18"


def test_recompute_is_for_every_fused_convolution() -> None:
    config = load_config(None, {**TINY, "recompute": True})
    model = build_model(config, ["a", "b"])
    fused = [m for m in model.modules() if isinstance(m, Conv2Plus1D | FusedSequential)]
    assert len(fused) == 17 and all(module.recompute for module in fused)
    with pytest.raises(ValueError, match="recompute is True, expected with fused"):
        load_config(None, {**TINY, "recompute": True, "fused": False})


def test_stock_layers_take_the_place_of_fused_ones_under_the_same_names() -> None:
    fused = build_model(load_config(None, TINY), ["a", "b"])
    stock = build_model(load_config(None, {**TINY, "fused": False}), ["a", "b"])
    assert any(isinstance(module, Conv2Plus1D) for module in fused.modules())
    assert not any(isinstance(module, Conv2Plus1D) for module in stock.modules())
    assert list(stock.state_dict()) == list(fused.state_dict())
    assert as_stock(fused) is fused

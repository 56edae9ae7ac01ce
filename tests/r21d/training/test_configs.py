"""Every configuration: its values are those quoted, and a run of it dies, goes on and is evaluated.

About 25 seconds.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from small_sets import small_set
from training.quoted_values import QUOTED

from r21d.cli import main
from r21d.cli.train_data import located
from r21d.models import create_model
from r21d.training.network import build_model
from r21d.training.protocol import list_configs, load_config
from r21d.training.run_config import KEYS, RunConfig
from r21d.training.run_folder import state_files
from r21d.training.state import States
from r21d.weights import load_checkpoint, save_checkpoint

CONFIGS = sorted(list_configs())
# Of this library's own studies.
OWN = {name for name in CONFIGS if name.startswith("weizmann")}


def test_no_configuration_is_missing() -> None:
    assert set(CONFIGS) - OWN == set(QUOTED)
    families = [
        "r2d",
        "fr2d",
        "r3d",
        "mc2",
        "mc3",
        "mc4",
        "mc5",
        "rmc2",
        "rmc3",
        "rmc4",
        "rmc5",
        "r2plus1d",
    ]
    assert {f"kinetics_{family}_18_8f" for family in families} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_value_has_a_source(name: str) -> None:
    config = load_config(name)
    assert list_configs()[name]
    for key, source in config.sources.items():
        if key != "eval_batch_size":
            assert source.startswith(("paper, ", "VMZ: c2/", "ours: ")), f"{key}: {source}"


@pytest.mark.parametrize("name", sorted(QUOTED))
def test_values_are_as_quoted(name: str) -> None:
    config, quoted = load_config(name), QUOTED[name]
    values = config.values()
    given = {key for key in config.sources if key != "eval_batch_size"}
    assert given == set(quoted)
    for key, quote in quoted.items():
        assert values[key] == quote.value, key
        assert config.sources[key].startswith(quote.source), key
        assert quote.quote


# Words of a source that speaks of one data set alone.
SPEAK_OF = {
    "kinetics": ("kinetics.sh", "kinetics_train.md", "section 4.1", "section 4.3", "of Kinetics"),
    "hmdb51": ("hmdb51",),
    "ucf101": ("ucf101",),
}


@pytest.mark.parametrize("name", sorted(QUOTED))
def test_no_source_speaks_of_another_data_set(name: str) -> None:
    config = load_config(name)
    for key, source in config.sources.items():
        for dataset, words in SPEAK_OF.items():
            if dataset != config.data.dataset and not source.startswith("ours: "):
                assert not any(word in source for word in words), f"{key}: {source}"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_network_is_the_one_named(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config.changed({"weights": None}, "test"), ["a", "b", "c"])
    assert model.config["name"] == config.model.model
    if name in QUOTED and config.model.weights is None:
        # Table 1's widths, and Caffe2's eps.
        assert model.config["widths"] == [64, 128, 256, 512]
        assert model.config["eps"] == 1e-3


# Few and small clips; what decides how the run goes (frames, rate, schedule ...) stays.
SMALL = "--resize 16x20 --crop 16x16 --batch-size 2 --accumulate 1 --epoch-clips 4 --epochs 1"
SMALL += " --val-clips 2 --eval-batch-size 4"


def small_options(config: RunConfig, folder: Path) -> list[str]:
    """Options that make a run of ``config`` one of seconds."""
    options = SMALL.split()
    if config.model.weights is None:
        return [*options, "--width", "2"]
    # What it starts from, a run's folder where the configuration expects one.
    model = create_model(
        config.model.model, 3, widths=(2, 4, 8, 16), stem_channels=2, eps=1e-3, clip_len=8
    )
    file = Path("runs", "weights.safetensors")
    if config.model.weights.startswith("runs/"):
        file = Path(config.model.weights, "best.safetensors")
    else:
        options += ["--weights", str(file)]
    (folder / file).parent.mkdir(parents=True)
    save_checkpoint(folder / file, model, classes=["x", "y", "z"], input={})
    return options


def killed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command in a process that is killed when it has saved its first step."""
    save = States.save

    def save_and_die(states: States, state: Any, proven: bool) -> None:
        save(states, state, proven)
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        try:
            monkeypatch.setattr(States, "save", save_and_die)
            main(arguments)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("name", CONFIGS)
def test_it_trains_dies_goes_on_and_is_evaluated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # It is made of files alone, whatever the settings, and takes longer than all else here.
    monkeypatch.setattr("r21d.training.report.write_report", lambda folder: None)
    config = load_config(name)
    data = small_set(config.data.dataset, tmp_path)
    out = Path("runs", name)
    options = small_options(config, tmp_path)
    arguments = ["train", *data, "--config", name, *options, "--checkpoint-steps", "1"]

    killed(arguments, monkeypatch)
    assert max(state_files(out)) == 1
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert max(state_files(out)) == 2
    notes = load_checkpoint(out / "last.safetensors").extra
    assert (notes["step"], notes["epoch"]) == ("2", "1")

    # What ran is the configuration but for what was given.
    ran, asked = load_config(out / "config.toml"), located(config)
    other = {key for key in KEYS if ran.values().get(key) != asked.values().get(key)}
    flags = {word[2:].replace("-", "_") for word in options if word.startswith("--")}
    assert other <= flags | {"checkpoint_steps"}

    capsys.readouterr()
    best = str(out / "best.safetensors")
    assert main(["eval", *data, "--weights", best, "--clips", "2", "--batch-size", "4"]) == 0
    assert "video@1" in capsys.readouterr().out

"""The code in docs/recipes.md and the commands in docs/training.md run (about 30 s).

The recipes as they stand; training at a size that takes seconds, in folders of videos made here.
Commands that need published weights or data sets are parsed alone.
"""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SMALL = [
    "--width",
    "2",
    "--clip-len",
    "2",
    "--resize",
    "16x20",
    "--crop",
    "16x16",
    "--batch-size",
    "4",
    "--epochs",
    "1",
]
BLOCKS = re.findall(r"^## (.*?)$|^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TRAIN = "Train from scratch"


def recipes() -> list[tuple[str, str]]:
    """(heading, code) of each block."""
    found, heading = [], ""
    for title, code in BLOCKS:
        heading = title or heading
        if code:
            found.append((heading, code))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page presupposes: videos of two classes, a video, weights of other classes."""
    from r21d import create_model
    from r21d.video import InputSpec, write_video
    from r21d.weights.checkpoint import save_checkpoint

    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for name in ("left", "right"):
            Path("videos", split, name).mkdir(parents=True)
            for number in range(2):
                frames = torch.randint(256, (24, 96, 128, 3), dtype=torch.uint8)
                write_video(Path("videos", split, name, f"{number}.mp4"), frames)
    Path("videos/train/left/0.mp4").rename("video.mp4")
    Path("val.csv").write_text("left/0.mp4,left\nright/1.mp4,right\n")
    torch.manual_seed(0)
    spec = InputSpec(clip_len=4, resize=(32, 43), crop=(32, 32)).to_dict()
    model = create_model("r2plus1d_18", num_classes=3)
    save_checkpoint("kinetics.safetensors", model, classes=list("abc"), input=spec)
    return tmp_path


ONCE = [(heading, code) for heading, code in recipes() if not heading.startswith(TRAIN)]


@pytest.mark.parametrize(("heading", "code"), ONCE, ids=[heading for heading, _ in ONCE])
def test_recipe(heading: str, code: str, folder: Path) -> None:
    values: dict[str, object] = {}
    exec(compile(code, f"docs/recipes.md: {heading}", "exec"), values)
    if heading.startswith("Fine-tune"):
        assert (folder / "runs" / "mine" / "last.safetensors").exists()
        assert values["result"].videos == 4  # type: ignore[attr-defined]
    elif "features.safetensors" in code:
        (kept,) = [torch.cat(values["features"])]  # type: ignore[arg-type]
        assert kept.shape == (4, 512) and kept.isfinite().all()
    elif "listed" in values:
        assert values["frames"].shape == (10, 3, 8, 112, 112)  # type: ignore[attr-defined]
        assert values["label"] == 0
    elif "feature" in values:
        assert values["feature"].shape == (1, 512)  # type: ignore[attr-defined]


def test_there_are_four() -> None:
    assert len({heading for heading, _ in recipes()}) == 4


def test_training_goes_on_when_the_script_is_run_again(folder: Path) -> None:
    (code,) = (code for heading, code in recipes() if heading.startswith(TRAIN))
    stopped = code.replace("TrainConfig(", "TrainConfig(max_steps=3, ")
    assert stopped != code
    histories = []
    for script in (stopped, code, code):
        values: dict[str, object] = {}
        exec(compile(script, "docs/recipes.md", "exec"), values)
        histories.append(values["history"])
    assert [len(history) for history in histories] == [1, 2, 2]  # type: ignore[arg-type]
    assert histories[1] == histories[2]
    assert (folder / "runs" / "narrow" / "report.html").exists()


def commands() -> list[list[str]]:
    """The words of each command of docs/training.md."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def expanded(name: str) -> list[str]:
    """The names that one with {a,b} stands for."""
    choices = [part.split(",") for part in re.split(r"[{}]", name)]
    return ["".join(parts) for parts in itertools.product(*choices)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_of_the_guide_exist(command: list[str]) -> None:
    from r21d.cli.app import build_parser
    from r21d.training.protocol import load_config

    if command[0] == "torchrun":
        command = command[command.index("-m") + 1 :]
    assert command[0] == "r21d"
    args = build_parser().parse_args(command[1:]) if "--list-configs" not in command else None
    if args is not None and getattr(args, "config", None) and "/" not in args.config:
        load_config(args.config)


def test_the_guide_names_every_configuration() -> None:
    from r21d.training.protocol import list_configs

    table = GUIDE.partition("| `--config` |")[2].partition("\n\n")[0]
    cells = [row.split(" | ")[0] for row in table.splitlines()]
    names = [n for cell in cells for code in re.findall(r"`(.*?)`", cell) for n in expanded(code)]
    assert sorted(names) == sorted(list_configs())


def test_commands_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from r21d.cli import main
    from r21d.training.report import read_run
    from r21d.video.motion import write_motion_dataset

    monkeypatch.chdir(tmp_path)
    videos = {"clips_per_class_train": 2, "clips_per_class_val": 1, "size": 32, "frames": 12}
    write_motion_dataset(tmp_path / "motion", **videos)
    Path("motion/train").rename("videos")
    Path("motion/val/zoom_in/0000.mp4").rename("new.mp4")
    ours = ("videos", "new.mp4", "--resume", "runs/mine/config.toml")
    elsewhere = ("torchrun", "r2plus1d_18/kinetics400_torchvision")
    ran = 0
    for command in commands():
        if not any(word in command for word in ours) or any(word in command for word in elsewhere):
            continue
        ran += 1
        own = [] if any(word in command for word in ("--resume", "predict", *ours[3:])) else SMALL
        more = ["--epochs", "2"] if "--resume" in command else own
        assert main([*command[1:], *more]) == 0, command
    assert ran == 6
    assert "nothing was written" in capsys.readouterr().out
    assert len(read_run("runs/mine").history) == 2
    for name in ("mine", "longer", "again"):
        assert (Path("runs", name) / "report.html").stat().st_size > 10_000


def test_files_that_the_guide_names_are_those_of_a_run() -> None:
    from r21d.training import run_folder

    table = GUIDE.partition("## The run's folder")[2].partition("\n\nWhat was")[0]
    named = {
        name.rstrip("/")
        for row in table.splitlines()
        for name in re.findall(r"`(.*?)`", row.split(" | ")[0])
    }
    known = {
        value for key, value in vars(run_folder).items() if re.match(r"[A-Z_]+_(FILE|FOLDER)$", key)
    }
    assert named == known - {run_folder.OLD_STATE_FILE}

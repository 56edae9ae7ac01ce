"""What the command line says to wrong requests. About ten seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import r21d
from r21d.cli import main
from r21d.models import create_model
from r21d.video import InputSpec
from r21d.weights import save_checkpoint


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint, a broken one, an empty folder; the current folder."""
    small = {"blocks": (1, 1, 1, 1), "widths": (4, 4, 4, 4), "stem_channels": 4}
    model = create_model("r2plus1d_18", 2, **small)
    save_checkpoint(
        tmp_path / "good.safetensors", model, classes=["a", "b"], input=InputSpec().to_dict()
    )
    save_checkpoint(tmp_path / "unnamed.safetensors", model, classes=[], input={})
    flow = create_model("r2plus1d_18", 2, in_channels=2, **small)
    save_checkpoint(tmp_path / "flow.safetensors", flow, classes=["a", "b"], input={})
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "text.mp4").write_text("not a video")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("info r2plus1d_81", "did you mean 'r2plus1d_18'"),
        ("info r2plus1d_18 --classes 0", "num_classes must be a positive integer"),
        ("predict text.mp4 --checkpoint none.safetensors", "none.safetensors"),
        ("predict text.mp4 --checkpoint cut.safetensors", "cut.safetensors"),
        ("predict text.mp4 --checkpoint text.mp4", "text.mp4"),
        ("predict text.mp4 --checkpoint empty", "empty"),
        ("predict text.mp4 --weights file:///none/a.pth", "cannot download file:///none/a.pth"),
        ("predict text.mp4 --weights kinetics400_torchvision", "several networks have weights"),
        ("predict text.mp4 --weights flow.safetensors", "2 input channels (optical flow)"),
        ("predict a.mp4 b.mp4 --checkpoint good.safetensors --filmstrip x.png", "name a folder"),
        ("predict a.mp4 --checkpoint good.safetensors --filmstrip text.mp4", "neither a folder"),
        ("predict a.mp4 --checkpoint good.safetensors --device warp", "--device warp"),
        ("predict a.mp4 --checkpoint good.safetensors --device meta", "--device meta"),
        ("eval one --checkpoint unnamed.safetensors", "does not name its classes"),
        ("eval none --checkpoint good.safetensors", "none: no such folder"),
        ("eval empty --checkpoint good.safetensors", "no class folders"),
        ("eval one --checkpoint good.safetensors", "only"),
        ("train none", "none: no such folder"),
        ("train empty", "no class folders"),
        ("train one", "a single class (only)"),
        ("train empty --resize 100x100 --crop 112x112", "does not fit into resize (100, 100)"),
        ("train empty --epochs 0", "epochs is 0"),
        ("train empty --lr -1", "lr is -1.0"),
        ("demo --out text.mp4", "text.mp4"),
    ],
)
def test_one_line_and_exit_code_2(
    files: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    before = sorted(files.rglob("*"))
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("r21d: error: ")
    assert message in lines[0]
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["info", "--clip", "3x8x112"], "'3x8x112' is not 4 positive numbers joined by x"),
        (["info", "--clip", "3x8x0x112"], "'3x8x0x112' is not 4 positive numbers"),
        (["info", "--clip", "axbxcxd"], "'axbxcxd' is not 4 positive numbers"),
        (["info", "--midplanes", "mine"], "invalid choice: 'mine'"),
        (["predict", "a.mp4"], "--checkpoint"),
        (["predict", "--checkpoint", "x"], "VIDEO"),
        (["predict", "a", "--checkpoint", "x", "--clips", "0"], "'0' is not a whole number"),
        (["predict", "a", "--checkpoint", "x", "--topk", "-1"], "'-1' is not a whole number"),
        (["train", "a", "--val-fraction", "1"], "'1' is not a number between 0 and 1"),
        (["train", "a", "--frame-rate", "0"], "'0' is neither a rate above 0 nor 'native'"),
        (["train", "a", "--val", "b", "--val-fraction", "0.1"], "not allowed with"),
        (["train", "a", "--resume", "--overwrite"], "not allowed with"),
        (["doctor", "--log-level", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_malformed_command_lines(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_interrupt_is_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(gpu: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("r21d.cli.doctor.examine", interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "r21d: error: interrupted\n"


def test_a_defect_of_the_library_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r21d.cli.doctor.examine", lambda _: [][1])
    with pytest.raises(IndexError):
        main(["doctor"])


@pytest.mark.parametrize("command", ["", "demo", "doctor", "info", "predict", "train", "eval"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([*command.split(), "--help"])
    assert exit_info.value.code == 0
    assert f"r21d {command or 'demo'}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"r21d {r21d.__version__}\n"


def test_missing_device_is_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device whose absence is tested")
    assert main(["predict", "a.mp4", "--checkpoint", "good.safetensors", "--device", "cuda"]) == 2
    assert "--device cuda cannot be used here" in capsys.readouterr().err

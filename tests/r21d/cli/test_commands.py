"""The commands on real input. About twenty seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from processes import run

from r21d.cli import main
from r21d.cli.tables import plain_table
from r21d.evaluation import Prediction, predict
from r21d.models import VideoResNet, create_model
from r21d.video import InputSpec, write_video
from r21d.weights import save_checkpoint
from r21d_ops import dispatch, native
from r21d_ops.backends import cpu, eager
from r21d_ops.backends import triton as triton_backend

CLASSES = ["bend", "run", "wave1"]
SPEC = InputSpec(clip_len=4, frame_rate=12.5, resize=(40, 50), crop=(32, 32))
PNG = b"\x89PNG"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small network with random weights."""
    torch.manual_seed(0)
    model = create_model(
        "r2plus1d_18", 3, blocks=(1, 1, 1, 1), widths=(4, 4, 8, 8), stem_channels=4
    )
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, model, classes=CLASSES, input=SPEC.to_dict())
    return path


@pytest.fixture
def actions(tmp_path: Path, test_data: Path) -> Path:
    """Three Weizmann actions by three people, and the corrupt file among them."""
    for name in CLASSES:
        (tmp_path / "actions" / name).mkdir(parents=True)
        for video in sorted((test_data / "weizmann" / name).glob("*.mp4"))[:3]:
            (tmp_path / "actions" / name / video.name).symlink_to(video)
    corrupt = test_data / "videos" / "decord_corrupted.mp4"
    (tmp_path / "actions" / "run" / corrupt.name).symlink_to(corrupt)
    return tmp_path / "actions"


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def run_module(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(
        [sys.executable, "-m", "r21d", *arguments],
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), **environment},
    )


def test_doctor_tells_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    report = run_json(capsys, "doctor")
    assert report["torch"] == torch.__version__
    assert {row["name"] for row in report["backends"]} >= {"cpu", "eager"}
    assert all(row["available"] or row["reason"] for row in report["backends"])
    assert report["native"]["loaded"] or report["native"]["reason"]
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text
    assert all(row["name"] in text for row in report["backends"])


def test_doctor_tells_what_is_wrong_with_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "R21D_CPU_ISA=bogus is not known;\nthis build has generic"

    def refuse() -> dict[str, Any]:
        raise RuntimeError(reason)

    monkeypatch.setattr("r21d_ops.native.build_info", refuse)
    assert run_json(capsys, "doctor")["native"]["reason"] == " ".join(reason.split())
    assert main(["doctor"]) == 0
    assert "R21D_CPU_ISA=bogus is not known; this build has generic" in capsys.readouterr().out


@pytest.mark.skipif(native.load_error is not None, reason=str(native.load_error))
def test_doctor_survives_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_module("doctor", "--json", R21D_CPU_ISA="bogus")
    assert (done.returncode, done.stderr) == (0, "")
    assert "R21D_CPU_ISA=bogus" in json.loads(done.stdout)["native"]["reason"]


@pytest.fixture
def two_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """``triton``, which serves a GPU elsewhere, and ``eager``; nothing forced, nothing measured."""
    triton = ModuleType("triton")
    vars(triton).update(
        NAME="triton",
        DEVICES=("cuda",),
        KERNELS=("fused", "two"),
        unavailable=lambda: "not here",
        can_run=lambda _: None,
    )
    modules = {"triton": triton, "eager": eager}
    monkeypatch.setattr(sys.modules["r21d_ops.backends"], "_BACKENDS", modules)
    monkeypatch.setattr(dispatch.measurements, "find", lambda *_: [])
    monkeypatch.setattr(dispatch, "_route", dispatch._route.__wrapped__)
    for variable in ("R21D_BACKEND", "R21D_INFERENCE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("two_backends")
def test_doctor_tells_what_serves_each_layer_of_a_named_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_json(capsys, "doctor", "--gpu", "NVIDIA H200")["dispatch"]
    rows = {(row["layer"], row["training"]): row for row in found["layers"]}
    assert len(rows) == 16 and found["elsewhere"]
    stem = rows["stem", False]
    assert [stem[k] for k in ("backend", "kernels", "source")] == ["triton", "fused", "estimated"]
    assert rows["conv5_x", False]["backend"] == "eager"
    assert main(["doctor", "--gpu", "NVIDIA H200"]) == 0
    text = capsys.readouterr().out
    assert "stem      inference  triton   fused    estimated" in text
    # Nothing that the estimate rests on has been measured.
    closing = text.strip().splitlines()[-1]
    assert closing.startswith("Estimates are no measurements. Assumed: ")
    assert all(share in closing for share in ("0.80", "0.90", "Triton 0.6", "cuDNN 0.7"))
    assert "measured" not in text.replace("no measurements", "")
    # A GPU that is here may be one that nothing is known of.
    monkeypatch.setattr(dispatch, "gpu_name", lambda: "Abacus 3")
    assert main(["doctor", "--gpu", "abacus"]) == 0
    text = capsys.readouterr().out
    assert "eager             default" in text and "rates are unknown: Abacus 3" in text
    assert "Estimates" not in text


@pytest.mark.usefixtures("two_backends")
@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("h200", "NVIDIA H200"),
        ("nvidia h200", "NVIDIA H200"),
        ("H100 PCIe", "NVIDIA H100 PCIe"),
        ("gh200", "NVIDIA GH200 480GB"),
        ("RTX", "An RTX"),
    ],
)
def test_doctor_knows_a_gpu_by_a_part_of_its_name(
    asked: str, meant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"An RTX", "NVIDIA GH200 480GB", "NVIDIA H200 NVL"}
    monkeypatch.setattr(dispatch.measurements, "gpus", lambda: others)
    if asked == "h200":
        others.clear()
    assert run_json(capsys, "doctor", "--gpu", asked)["dispatch"]["gpu"] == meant


@pytest.mark.parametrize(
    ("asked", "reason", "listed", "not_listed"),
    [
        ("", "is no GPU that is known", "NVIDIA H200", "Abacus"),
        ("Abacus 3", "is no GPU that is known", "NVIDIA H200", "Abacus"),
        ("a100", "is part of several names", "NVIDIA A100 80GB PCIe", "H200"),
    ],
)
def test_doctor_lists_the_gpus_it_knows(
    asked: str, reason: str, listed: str, not_listed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--gpu", asked]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert captured.out == "" and f"--gpu {asked!r} {reason}" in line
    assert listed in line and not_listed not in line.split("give one of")[1]


@pytest.mark.usefixtures("two_backends")
def test_doctor_obeys_and_names_what_is_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_json(capsys, "doctor", "--gpu", "h200")["environment"] == []
    monkeypatch.setenv("R21D_BACKEND", "triton")
    monkeypatch.setenv("R21D_INFERENCE", "two")
    rows = run_json(capsys, "doctor", "--gpu", "h200")["dispatch"]["layers"]
    assert {row["backend"] for row in rows} == {"triton"}
    assert {row["kernels"] for row in rows if not row["training"]} == {"two"}
    assert main(["doctor", "--gpu", "h200"]) == 0
    text = capsys.readouterr().out
    assert ", with R21D_BACKEND=triton, with R21D_INFERENCE=two;" in text


@pytest.mark.usefixtures("two_backends")
@pytest.mark.parametrize(
    ("variable", "reason", "without_route"),
    [
        ("R21D_INFERENCE", "R21D_INFERENCE must be fused or two, got 'foo'", 8),
        ("R21D_BACKEND", "backend 'foo' is not known; this version has triton, eager", 16),
    ],
)
def test_doctor_tells_which_variable_is_wrong(
    variable: str,
    reason: str,
    without_route: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, "foo")
    report = run_json(capsys, "doctor", "--gpu", "h200")
    assert report["environment"] == [{"name": variable, "value": "foo", "reason": reason}]
    wrong = [row for row in report["dispatch"]["layers"] if row["backend"] == ""]
    assert len(wrong) == without_route and {row["detail"] for row in wrong} == {reason}
    # Without a GPU to ask about, too.
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(variable) and f"foo: {reason}" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_doctor_says_nothing_of_layers_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "doctor")["dispatch"] is None


def test_doctor_names_what_triton_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_backend, "triton_version", lambda: None)
    assert run_json(capsys, "doctor")["triton"] is None
    assert main(["doctor"]) == 0
    assert "missing: pip install 'r21d[triton]'" in capsys.readouterr().out


def test_doctor_clears_the_cache_of_the_autotuner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r21d_ops.triton.tuning.clear_cache", lambda: [tmp_path / "a.json"])
    assert main(["doctor", "--clear-cache"]) == 0
    assert capsys.readouterr().out == f"removed {tmp_path / 'a.json'}\n"
    monkeypatch.setenv("R21D_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "triton-tuning"
    expected = {"folder": str(folder), "removed": [str(tmp_path / "a.json")]}
    assert run_json(capsys, "doctor", "--clear-cache") == expected
    monkeypatch.undo()
    monkeypatch.setenv("R21D_CACHE_DIR", str(tmp_path))
    assert main(["doctor", "--clear-cache"]) == 0
    assert capsys.readouterr().out == f"nothing was kept in {folder}\n"
    (folder / "a.json").mkdir(parents=True)
    assert main(["doctor", "--clear-cache"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"cache cannot be cleared: {folder / 'a.json'}: " in line and "Errno" not in line


def test_a_forced_backend_that_cannot_run_is_told_in_one_line(
    checkpoint: Path,
    videos: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("R21D_BACKEND", "cpu")
    monkeypatch.setattr(cpu, "unavailable", lambda: "there is none")
    assert main(["predict", videos[0], "--checkpoint", str(checkpoint), "--clips", "1"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("r21d: error: ") and "there is none" in lines[0]


def test_info_gives_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    info = run_json(capsys, "info", "r2plus1d_18")
    assert info["r2plus1d_18"]["parameters"] == 33_370_839
    assert round(info["r2plus1d_18"]["gmacs"], 2) == 20.75
    assert main(["info", "r2plus1d_18", "--midplanes", "torchvision", "--layers"]) == 0
    text = capsys.readouterr().out
    assert "31,505,325" in text
    assert "layer4.1.conv2.0.3" in text
    assert set(run_json(capsys, "info")) >= {"r2plus1d_18", "r2plus1d_34", "fr2d_18"}


def test_predict_every_file_and_fail_for_bad_ones(
    checkpoint: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 100)
    files = [bad, *sorted((test_data / "videos").iterdir()), tmp_path / "missing.mp4"]
    arguments = ["predict", *map(str, files), "--checkpoint", str(checkpoint), "--clips", "2"]
    strips = tmp_path / "strips"
    results = run_json(capsys, *arguments, "--filmstrip", str(strips), code=1)
    assert [result["path"] for result in results] == list(map(str, files))
    good = [result for result in results if "error" not in result]
    assert len(good) == 6
    assert all("error" in results[i] for i in (0, -1))
    for result in good:
        assert sum(row["score"] for row in result["top"]) == pytest.approx(1.0, abs=1e-5)
        assert (strips / f"{Path(result['path']).stem}.png").read_bytes()[:4] == PNG
    assert len(list(strips.iterdir())) == 6


def test_predict_prints_tables_and_one_error_line(
    checkpoint: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = next((test_data / "weizmann" / "run").glob("*.mp4"))
    arguments = ["predict", str(video), str(tmp_path / "no.mp4"), "--checkpoint", str(checkpoint)]
    assert main([*arguments, "--clips", "1", "--topk", "2"]) == 1
    captured = capsys.readouterr()
    lines = captured.out.split("\n")
    assert str(video) in lines
    assert sum(line.endswith("%") for line in lines) == 2
    errors = captured.err.strip().splitlines()
    assert len(errors) == 1
    assert "no.mp4" in errors[0]


def test_a_name_with_a_line_break_is_told_once(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "a\nb.mp4"
    bad.write_text("no video")
    assert main(["predict", str(bad), "--checkpoint", str(checkpoint)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.count("b.mp4") == 1 and "a\\nb.mp4: " in line


def test_filmstrips_of_equal_names_do_not_overwrite(
    checkpoint: Path, test_data: Path, tmp_path: Path
) -> None:
    video = next((test_data / "weizmann" / "run").glob("*.mp4"))
    (tmp_path / video.name).symlink_to(video)
    arguments = ["predict", str(video), str(tmp_path / video.name), "--clips", "1"]
    strips = tmp_path / "strips"
    assert main([*arguments, "--checkpoint", str(checkpoint), "--filmstrip", str(strips)]) == 0
    assert sorted(path.name for path in strips.iterdir()) == [
        f"{video.stem}-2.png",
        f"{video.stem}.png",
    ]


@pytest.fixture
def videos(tmp_path: Path) -> list[str]:
    """Two videos of noise."""
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in paths:
        write_video(path, torch.randint(0, 255, (8, 48, 64, 3), dtype=torch.uint8))
    return [str(path) for path in paths]


def test_predictions_outlive_filmstrips_that_cannot_be_written(
    checkpoint: Path, videos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    arguments = ["predict", *videos, "--checkpoint", str(checkpoint), "--clips", "1"]
    arguments += ["--filmstrip", str(tmp_path / "file" / "strips")]
    results = run_json(capsys, *arguments, code=1)
    assert [result["path"] for result in results] == videos
    assert all(len(result["top"]) == 3 for result in results)
    assert all("Not a directory" in result["error"] for result in results)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out.count("%") == 6
    assert "filmstrip" not in captured.out
    lines = captured.err.strip().splitlines()
    assert [path in line for path, line in zip(videos, lines, strict=True)] == [True, True]


def test_scores_that_are_not_finite_fail_their_video_alone(
    checkpoint: Path,
    videos: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def first_overflows(model: VideoResNet, path: str, *options: Any, **more: Any) -> Prediction:
        if path == videos[0]:
            raise FloatingPointError("the network's scores are not finite")
        return predict(model, path, *options, **more)

    # By name the function of the package would be found instead of its module.
    monkeypatch.setattr(sys.modules["r21d.evaluation.predict"], "predict", first_overflows)
    arguments = ["predict", *videos, "--checkpoint", str(checkpoint), "--clips", "1"]
    bad, good = run_json(capsys, *arguments, code=1)
    assert bad == {"path": videos[0], "error": f"{videos[0]}: the network's scores are not finite"}
    assert "error" not in good and len(good["top"]) == 3


def test_train_eval_predict(
    actions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = "--clip-len 4 --resize 40x50 --crop 32x32 --batch-size 4 --val-clips 2 --lr 0.001"
    options += " --model mc2_18"  # a third of the default's weights, which the README's test trains
    arguments = ["train", str(actions), "--out", str(out), *options.split()]
    assert main([*arguments, "--epochs", "1", "--val-fraction", "0.34"]) == 0
    assert (out / "curves.png").read_bytes()[:4] == PNG
    assert len((out / "history.jsonl").read_text().splitlines()) == 1
    assert main([*arguments, "--epochs", "1", "--val-fraction", "0.34"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    resumed = [*arguments, "--epochs", "2", "--val-fraction", "0.34", "--resume"]
    assert main(resumed) == 0
    assert len((out / "history.jsonl").read_text().splitlines()) == 2
    best = str(out / "best.safetensors")
    # Two clips need what is damaged in the corrupt file.
    result = run_json(capsys, "eval", str(actions), "--checkpoint", best, "--clips", "2", code=1)
    assert result["classes"] == CLASSES
    assert result["videos"] == 9
    assert result["clips"] == 18
    assert [sum(row) for row in result["confusion"]] == [3, 3, 3]
    assert [Path(row["path"]).name for row in result["failed"]] == ["decord_corrupted.mp4"]


def test_eval_leaves_out_what_cannot_be_decoded(
    checkpoint: Path, actions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (actions / "bend" / "text.mp4").write_text("no video")
    arguments = ["eval", str(actions), "--checkpoint", str(checkpoint), "--clips", "1"]
    result = run_json(capsys, *arguments, code=1)
    assert [Path(row["path"]).name for row in result["failed"]] == ["text.mp4"]
    assert result["videos"] == 10
    assert main([*arguments, "--confusion"]) == 1
    captured = capsys.readouterr()
    assert all(part in captured.out for part in ("clip@1", "left out: ", "wave1"))
    lines = [line for line in captured.err.splitlines() if line.startswith("r21d: error: ")]
    bad = actions / "bend" / "text.mp4"
    assert lines == ["r21d: error: left out 1 of 11 videos, listed above"]
    bad.unlink()
    assert main(arguments) == 0


def test_eval_refuses_classes_the_network_lacks(
    checkpoint: Path, actions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (actions / "run").rename(actions / "flying")
    assert main(["eval", str(actions), "--checkpoint", str(checkpoint)]) == 2
    assert "flying" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    done = run_module("info", "r2plus1d_18", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["r2plus1d_18"]["last_conv"] == [1, 7, 7]


def test_tables_are_aligned() -> None:
    lines = plain_table(("name", "n"), [("a", "1"), ("long name", "1000")], right=(1,))
    assert lines == ["name          n", "a             1", "long name  1000"]

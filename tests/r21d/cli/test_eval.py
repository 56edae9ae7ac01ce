"""``r21d eval`` and ``r21d predict`` over small sets of videos of noise (about 25 seconds).

Twelve of them are spent on starting torchrun and its decoding processes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run

import r21d
from r21d.cli import main
from r21d.cli.arguments import rank_device
from r21d.cli.clips import input_spec
from r21d.cli.errors import UserError
from r21d.evaluation import load_scores
from r21d.evaluation.distributed import Ranks
from r21d.models import create_model
from r21d.video import ClipSampling, InputSpec, VideoDataset, open_list, write_video
from r21d.weights import save_checkpoint

CLASSES = ["bend", "run", "walk"]
SPEC = InputSpec(clip_len=4, frame_rate=12.5, resize=(40, 50), crop=(32, 32))
PNG = b"\x89PNG"


def save_network(path: Path, seed: int = 0, classes: list[str] = CLASSES) -> None:
    torch.manual_seed(seed)
    model = create_model(
        "r2plus1d_18", len(classes), blocks=(1, 1, 1, 1), widths=(4, 4, 8, 8), stem_channels=4
    )
    # Far from one class for all.
    torch.nn.init.normal_(model.fc.weight, std=20)
    save_checkpoint(path, model, classes=classes, input=SPEC.to_dict())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and eight videos: bend/0.mp4, ... run/3.mp4, ..., of 12 to 26 frames."""
    root = tmp_path_factory.mktemp("eval")
    save_network(root / "small.safetensors")
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        path = root / "set" / CLASSES[number // 3] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = torch.randint(0, 255, (3, 6, 8, 3), dtype=torch.uint8, generator=generator)
        frames = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
        write_video(path, frames.repeat(4 + number, 1, 1, 1)[: 12 + 2 * number], 25.0)
    return root


@pytest.fixture
def in_base(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(base)
    return base


def run_json(capsys: pytest.CaptureFixture[str], command: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main([*command.split(), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def dataset(base: Path, sampling: ClipSampling, spec: InputSpec = SPEC) -> VideoDataset:
    videos = open_list("folder", base / "set", classes=CLASSES)
    return VideoDataset(videos, spec, train=False, sampling=sampling)


@pytest.mark.usefixtures("in_base")
def test_the_command_finds_what_the_function_does(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "eval set --weights small.safetensors --clips 3 --batch-size 8")
    model = r21d.load_model(base / "small.safetensors")
    result = r21d.evaluate(model, dataset(base, ClipSampling(clips=3)), batch_size=8)
    expected = json.loads(json.dumps(result.to_dict()))
    assert {key: found[key] for key in expected} == expected
    assert (found["videos"], found["clips"], found["data"]) == (8, 24, "set")
    assert found["weights"] == "small.safetensors"


@pytest.mark.usefixtures("in_base")
def test_every_option_reaches_the_clips(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--sampling random --clips 2 --crops 3 --seed 5 --clip-len 3 --frame-rate native "
    options += f"--frame-stride 2 --size 24 --scores {tmp_path}/a.safetensors --clip-scores"
    found = run_json(capsys, f"eval set --weights small.safetensors {options}")
    expected = {"sampling": "random", "clips": 2, "crops": 3, "seed": 5, "clip_len": 3}
    expected |= {"frame_rate": None, "frame_stride": 2, "crop": [24, 24], "resize": [30, 38]}
    assert found["protocol"].items() >= expected.items()
    assert found["clips"] == 8 * 2 * 3
    scores = load_scores(tmp_path / "a.safetensors")
    assert scores.names[:4] == ["bend/0.mp4", "bend/1.mp4", "bend/2.mp4", "run/3.mp4"]
    assert scores.labels == [(0,)] * 3 + [(1,)] * 3 + [(2,)] * 2
    spec = SPEC.replace(clip_len=3, frame_rate=None, frame_stride=2, size=24)
    model = r21d.load_model(base / "small.safetensors")
    videos = dataset(base, ClipSampling("random", 2, 3, seed=5), spec)
    expected_scores = r21d.evaluate(model, videos, clip_scores=True).scores
    assert torch.equal(scores.video_scores, expected_scores.video_scores)
    assert torch.equal(scores.clip_scores, expected_scores.clip_scores)
    assert scores.protocol == found["protocol"]


@pytest.mark.usefixtures("in_base")
def test_a_rate_of_its_own_takes_every_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = r21d.load_model("small.safetensors")
    spec = SPEC.replace(frame_rate=None, frame_stride=8)
    path = tmp_path / "strided.safetensors"
    save_checkpoint(path, model, classes=CLASSES, input=spec.to_dict())
    command = f"eval set --weights {path} --clips 1"
    assert run_json(capsys, command)["protocol"]["frame_stride"] == 8
    assert run_json(capsys, f"{command} --frame-rate 25")["protocol"]["frame_stride"] == 1
    both = run_json(capsys, f"{command} --frame-rate 25 --frame-stride 2")["protocol"]
    assert (both["frame_rate"], both["frame_stride"]) == (25.0, 2)


@pytest.mark.usefixtures("in_base")
def test_tables_on_paper_and_files_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = f"--json {tmp_path}/a.json --confusion {tmp_path}/a.png"
    command = f"eval set --weights small.safetensors --sampling dense {files} --per-class 2"
    assert main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("clips end to end over each video, 4 frames, 12.5 a second")
    assert any(line.startswith("video@1") for line in lines)
    assert any("--per-class all prints the 1 others" in line for line in lines)
    text = (tmp_path / "a.json").read_text()
    found = json.loads(text)
    assert found["videos"] == 8 and found["clips"] > 8
    # A line a key.
    assert len(text.splitlines()) == len(found) + 2
    assert (tmp_path / "a.png").read_bytes()[:4] == PNG
    for shown in (["--confusion"], ["--confusion", "-"]):
        assert main([*command.split(), *shown]) == 0
        assert "videos by true class (row) and top class (column)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--scores none/a.safetensors", "--scores none/a.safetensors needs a writable folder none"),
        ("--json none/a.json", "--json none/a.json needs a writable folder none"),
        ("--confusion set", "--confusion set is a folder"),
        ("--confusion a.jpg", "--confusion a.jpg must end in .png"),
        ("--json small.safetensors", "exists and is not a result of r21d eval"),
        ("--json none.safetensors", "would replace none.safetensors, which the command reads"),
        ("--json set/bend/0.mp4", "exists and is not a result"),
        ("--json set/.r21d-index.jsonl", "which the command reads"),
        ("--scores small.safetensors", "exists and is not a file of scores"),
        ("--json a.png --confusion a.png", "--json and --confusion name the same file, a.png"),
        ("--clips 3 --sampling dense", "leave --clips out"),
        ("--index none", "--index none: no such file; r21d index set --out none makes one"),
        ("--clip-scores", "--clip-scores needs --scores FILE"),
        ("--scores -", "--scores - cannot be printed"),
        ("--weights a b", "--weights names 2 checkpoints for 1 splits"),
    ],
)
@pytest.mark.usefixtures("in_base")
def test_what_could_not_be_done_is_refused_before_the_work(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "set", "--weights", "none.safetensors", *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.fixture
def people(base: Path, tmp_path: Path) -> Path:
    """The videos as two actions by four people each, one of them broken."""
    for number, video in enumerate(sorted((base / "set").rglob("*.mp4"))):
        action, person = ("bend", "run")[number % 2], ("ann", "bob", "cat", "dan")[number // 2]
        path = tmp_path / "people" / action / f"{person}_{action}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(video)
    path.unlink()
    path.write_text("dan is no video")
    return tmp_path / "people"


@pytest.mark.usefixtures("in_base")
def test_a_table_a_split_and_their_mean(
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_network(tmp_path / "other.safetensors", seed=1)
    command = f"eval {people} --dataset weizmann --clips 1 --scores {tmp_path}/s.safetensors "
    command += "--split bob cat --weights"
    found = run_json(capsys, f"{command} small.safetensors {tmp_path}/other.safetensors")
    assert [row["split"] for row in found["splits"]] == ["bob", "cat"]
    assert found["splits"][1]["weights"] == f"{tmp_path}/other.safetensors"
    rows = found["splits"]
    for key, mean in found["mean"].items():
        assert mean == pytest.approx((rows[0][key] + rows[1][key]) / 2)
    assert "one checkpoint" not in caplog.text
    names = {name: load_scores(tmp_path / f"s-{name}.safetensors").names for name in ("bob", "cat")}
    assert names == {p: [f"bend/{p}_bend.mp4", f"run/{p}_run.mp4"] for p in names}
    # One network for all, and a split with a broken file.
    arguments = [*command.split(), "small.safetensors", "--split", "all"]
    assert main([*arguments, "--confusion", f"{tmp_path}/a.png"]) == 1
    captured = capsys.readouterr()
    assert "left out 1 of 8 videos" in captured.err.splitlines()[-1]
    assert "one checkpoint for 4 splits" in caplog.text
    lines = captured.out.splitlines()
    assert next(line for line in lines if line.startswith("split ")) == "split ann"
    assert "mean of 4 splits" in lines
    assert lines[-7].split()[0] == "mean" and lines[-8].split()[:3] == ["dan", "1", "1"]
    saved = [f"scores: {tmp_path}/s-{name}.safetensors" for name in ("ann", "bob", "cat", "dan")]
    assert lines[-6:] == ["", *saved, f"confusion matrix: {tmp_path}/a.png"]
    assert (tmp_path / "a.png").read_bytes()[:4] == PNG


@pytest.mark.usefixtures("in_base")
def test_networks_of_the_splits_may_order_their_classes_differently(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned, others = tmp_path / "turned.safetensors", tmp_path / "others.safetensors"
    save_network(turned, classes=CLASSES[::-1])
    save_network(others, classes=["bend", "run", "fly"])
    command = f"eval {people} --dataset weizmann --clips 1 --split bob cat"
    assert main([*command.split(), "--weights", "small.safetensors", str(others)]) == 2
    assert "others.safetensors have different classes" in capsys.readouterr().err
    second = tmp_path / "second.safetensors"
    second.write_bytes(turned.read_bytes())
    arguments = f"{command} --confusion {tmp_path}/a.png --weights {turned} {second}".split()
    assert main(arguments) == 0
    same = (tmp_path / "a.png").read_bytes()
    # The same network, its classes named in another order, says the same of every video.
    model = r21d.load_model(turned)
    with torch.no_grad():
        for parameter in model.fc.parameters():
            parameter.copy_(parameter.flip(0))
    save_checkpoint(second, model, classes=CLASSES, input=SPEC)
    assert main(arguments) == 0
    assert (tmp_path / "a.png").read_bytes() == same


def test_each_process_of_torchrun_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert rank_device(None, Ranks(rank=3, world=4)) == "cuda:1"
    assert chosen == [1]
    assert rank_device("cpu", Ranks(rank=3, world=4)) == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"more processes here than there are GPUs \(2\)"):
        rank_device(None, Ranks(rank=2, world=4))


@pytest.mark.usefixtures("in_base")
def test_several_labels_and_files_that_are_gone(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "bend/0.mp4,bend;walk\nrun/3.mp4,run\nwalk/6.mp4,walk\nrun/gone.mp4,run\n"
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
    command = f"eval set --dataset csv --annotations {tmp_path}/list.csv --clips 2"
    found = run_json(capsys, f"{command} --weights small.safetensors", code=1)
    assert found["multilabel"] and found["videos"] == 3
    assert [Path(row["path"]).name for row in found["failed"]] == ["gone.mp4"]
    assert [sum(row) for row in found["confusion"]] == [1, 1, 2]
    assert main([*command.split(), "--weights", "small.safetensors", "--strict"]) == 2
    assert "gone.mp4" in capsys.readouterr().err
    # One of several labels is no error for the others.
    assert main([*command.split(), "--weights", "small.safetensors", "--confusion"]) == 2
    assert "--confusion: these videos may have several labels" in capsys.readouterr().err


@pytest.mark.usefixtures("in_base")
def test_scores_of_a_split_do_not_replace_a_checkpoint(
    people: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"eval {people} --dataset weizmann --scores s.safetensors --split ann bob"
    assert main([*command.split(), "--weights", "s-ann.safetensors", "s-bob.safetensors"]) == 2
    assert "--scores s-ann.safetensors would replace" in capsys.readouterr().err


@pytest.mark.usefixtures("in_base")
def test_a_picture_says_what_it_is_of(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, str] = {}
    monkeypatch.setattr("r21d.plots.confusion_matrix", lambda *_, **titles: drawn.update(titles))
    command = f"eval {people} --dataset weizmann --split ann bob --clips 3 --weights"
    assert main([*command.split(), "small.safetensors", "--confusion", f"{tmp_path}/a.png"]) == 0
    assert drawn == {
        "title": "people (weizmann), splits ann, bob",
        "subtitle": "small.safetensors; 3 evenly spaced clips a video",
    }


@pytest.mark.usefixtures("in_base")
def test_predict_takes_no_folders(capsys: pytest.CaptureFixture[str]) -> None:
    videos = ["set", "set/bend/0.mp4"]
    assert main(["predict", *videos, "--clips", "1", "--weights", "small.safetensors"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "r21d: error: set is a folder; predict takes files\n"
    assert "set/bend/0.mp4" in captured.out


def test_clips_of_a_network_that_merges_frames() -> None:
    model = create_model("r2d_18", 3, clip_len=4, blocks=(1, 1, 1, 1), widths=(4, 4, 8, 8))
    args = argparse.Namespace(clip_len=8, frame_stride=None, size=None)
    with pytest.raises(UserError, match="merges exactly 4 frames into one image; leave --clip-len"):
        input_spec(args, model)
    args.clip_len = 4
    assert input_spec(args, model).clip_len == 4


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return run(
        [sys.executable, *launcher, "-m", "r21d", *arguments],
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
    )


def files(folder: Path, name: str) -> list[str]:
    return ["--scores", f"{folder}/{name}.safetensors", "--json", f"{folder}/{name}.json"]


@pytest.mark.skipif(not dist.is_available(), reason="this torch cannot run several processes")
@pytest.mark.usefixtures("in_base")
def test_processes_of_torchrun_find_what_one_does(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "eval set --weights small.safetensors --clips 3 --batch-size 7 --device cpu "
    command += "--sampling random --workers 1 --clip-scores"
    done = torchrun(2, *command.split(), *files(tmp_path, "two"))
    assert done.returncode == 0, done.stderr
    assert main([*command.split(), *files(tmp_path, "one")]) == 0
    # By one of the two.
    assert done.stdout.replace("/two.", "/one.") == capsys.readouterr().out
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.skipif(not dist.is_available(), reason="this torch cannot run several processes")
@pytest.mark.usefixtures("in_base")
def test_processes_of_torchrun_tell_an_error_once() -> None:
    done = torchrun(2, "eval", "none", "--weights", "small.safetensors", "--device", "cpu")
    assert done.returncode != 0 and done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("r21d: error: ")]
    assert len(errors) == 1 and "none: no such folder" in errors[0]


@pytest.mark.usefixtures("in_base")
def test_a_decoding_process_that_dies_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def starved(dataset: VideoDataset, index: int) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(VideoDataset, "__getitem__", starved)
    assert main(["eval", "set", "--weights", "small.safetensors", "--workers", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("r21d: error: a decoding process failed (DataLoader worker")
    assert "lower workers (--workers)" in line and "/dev/shm" in line


@pytest.mark.usefixtures("in_base")
def test_predict_takes_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    command = "predict set/bend/2.mp4 --weights small.safetensors --sampling random --clips 4"
    command += " --crops 3 --seed 5 --clip-len 3 --frame-rate 25 --size 24"
    (found,) = run_json(capsys, command)
    model = r21d.load_model("small.safetensors")
    spec = SPEC.replace(clip_len=3, frame_rate=25.0, size=24)
    expected = r21d.predict(model, "set/bend/2.mp4", 4, 5, "random", 3, seed=5, spec=spec)
    assert found == json.loads(json.dumps(expected.to_dict()))
    (other,) = run_json(capsys, command.replace("--seed 5", "--seed 6"))
    assert other["starts"] != found["starts"]

"""The Weizmann studies: runs that go on, sums that are right, a page that its files say (~8 s)."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import weizmann, weizmann_page, weizmann_results, weizmann_runs
from benchmarks.weizmann_runs import STUDIES, Arm, StudyRun
from r21d.video import write_video

PEOPLE = ("ann", "bob", "cyd")
ACTIONS = ("bend", "jack", "jump", "walk")
_TINY = """
extends = "weizmann"
[model]
width = 4
[input]
clip_len = 2
resize = [20, 25]
crop = [16, 16]
[data]
val_clips = 2
[train]
epochs = 2
epoch_clips = 4
batch_size = 4
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four actions by three people, in noise."""
    root = tmp_path_factory.mktemp("weizmann")
    rng = np.random.default_rng(0)
    for person in PEOPLE:
        for action in ACTIONS:
            frames = torch.from_numpy(rng.integers(0, 256, (8, 32, 40, 3), dtype=np.uint8))
            write_video(root / f"{person}_{action}.mp4", frames, 25.0)
    return root


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both studies of two arms with a network of seconds."""
    config = tmp_path / "tiny.toml"
    config.write_text(_TINY)
    name = str(config)
    first, second = ("bend", "jump"), ("jack", "walk")
    monkeypatch.setitem(STUDIES, "lopo", {"a": Arm("A", name), "b": Arm("B", name)})
    monkeypatch.setitem(
        STUDIES,
        "finetune",
        {
            "pretrained": Arm("P", name, first, compared=False),
            "finetuned": Arm("F", name, second, start=("finetune", "pretrained")),
            "scratch": Arm("S", name, second),
        },
    )
    return tmp_path


def test_a_run_is_of_the_person_left_out_and_kept(
    tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tiny / "runs"
    run = StudyRun("lopo", "a", "bob", 3)
    found = weizmann_runs.perform(run, data, out)
    assert [row["video"] for row in found["predictions"]] == [f"bob_{a}.mp4" for a in ACTIONS]
    assert [row["label"] for row in found["predictions"]] == list(ACTIONS)
    right = [row["label"] == row["predicted"] for row in found["predictions"]]
    assert found["video_top1"] == sum(right) / 4 == np.trace(found["confusion"]) / 4
    assert (found["train_videos"], found["steps"], found["clips"]) == (8, 2, 8)
    assert found["settings"]["width"] == 4 and found["settings"]["seed"] == 3
    assert str(tiny) not in json.dumps(found["environment"])

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(weizmann_runs, "train", again)
    assert weizmann_runs.perform(run, data, out) == found
    (tiny / "tiny.toml").write_text(_TINY.replace("epochs = 2", "epochs = 3"))
    with pytest.raises(ValueError, match=r"made with other settings \(epochs\)"):
        weizmann_runs.result_of(run, out)


def test_an_interrupted_run_goes_on(
    tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights' figures as without an interruption, after the first epoch."""
    run, whole = StudyRun("lopo", "a", "bob", 0), tiny / "whole"
    expected = weizmann_runs.perform(run, data, whole)

    class Stop(Exception):
        pass

    def stop_after_first(*arguments: Any, **options: Any) -> Any:
        def on_epoch(_: Any) -> None:
            raise Stop

        return train(*arguments, **options, on_epoch=on_epoch)

    train = weizmann_runs.train
    monkeypatch.setattr(weizmann_runs, "train", stop_after_first)
    with pytest.raises(Stop):
        weizmann_runs.perform(run, data, tiny / "cut")
    assert weizmann_runs.result_of(run, tiny / "cut") is None
    starts: list[int] = []

    def resumed(*arguments: Any, **options: Any) -> Any:
        return train(*arguments, **options, on_epoch=lambda row: starts.append(row["epoch"]))

    monkeypatch.setattr(weizmann_runs, "train", resumed)
    found = weizmann_runs.perform(run, data, tiny / "cut")
    # The first epoch was not trained again.
    assert starts == [2]
    assert found["test_loss"] == expected["test_loss"]
    assert found["predictions"] == expected["predictions"]
    assert len(found["history"]) == 2


def test_fine_tuning_starts_from_the_weights_of_other_actions(tiny: Path, data: Path) -> None:
    """With a learning rate of next to nothing they are still there at the end."""
    out = tiny / "runs"
    start = StudyRun("finetune", "pretrained", "ann", 0)
    before = weizmann_runs.perform(start, data, out)
    assert before["classes"] == ["bend", "jump"] and before["train_videos"] == 4
    (tiny / "tiny.toml").write_text(_TINY + "lr = 1e-12\n")
    after = weizmann_runs.perform(StudyRun("finetune", "finetuned", "ann", 0), data, out)
    fresh = weizmann_runs.perform(StudyRun("finetune", "scratch", "ann", 0), data, out)
    for found in (after, fresh):
        assert [row["label"] for row in found["predictions"]] == ["jack", "walk"]
        assert found["settings"] == after["settings"] and found["steps"] == before["steps"]
    weights = [_weights(out / "finetune" / f"{arm}-ann-0") for arm in STUDIES["finetune"]]
    assert torch.allclose(weights[0], weights[1], rtol=0, atol=1e-8)
    assert not torch.allclose(weights[0], weights[2], rtol=0, atol=1e-5)


def _weights(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "last.safetensors")["layer4.1.conv2.0.3.weight"]


def test_every_run_once_and_a_failed_one_ends_the_study(
    tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stand-ins for the processes: the scheduling alone."""
    out = tiny / "runs"
    script = (
        "import json, pathlib, sys\n"
        "folder, settings, fails = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]\n"
        "if folder.name == fails: sys.exit(3)\n"
        "folder.mkdir(parents=True)\n"
        "row = {'settings': json.loads(settings), 'video_top1': 1, 'clip_top1': 1,"
        " 'history': [{'train_clip_top1': 1}]}\n"
        "(folder / 'result.json').write_text(json.dumps(row))\n"
    )
    fails = ["finetuned-bob-0"]

    def command(number: int, options: Any) -> list[str]:
        people = options.people or PEOPLE
        run = weizmann_runs.plan(options.study, people, options.seeds)[number]
        settings = json.dumps(weizmann_runs.settings(run.config()))
        return [sys.executable, "-I", "-S", "-c", script, str(run.folder(out)), settings, *fails]

    monkeypatch.setattr(weizmann, "_command", command)
    monkeypatch.setattr(weizmann, "_PATIENCE", 0.01)
    line = [str(data), "--study", "finetune", "--seeds", "0", "--out", str(out)]
    assert weizmann.main(line) == 1
    assert "failed: finetuned-bob-0" in capsys.readouterr().err
    fails[0] = "none"
    assert weizmann.main([*line, "--jobs", "2"]) == 0
    names = {path.parent.name for path in out.glob("finetune/*/result.json")}
    assert names == {f"{arm}-{person}-0" for arm in STUDIES["finetune"] for person in PEOPLE}
    assert weizmann.main(line) == 0
    assert "9 runs, 9 finished already" in capsys.readouterr().out


def test_what_starts_from_a_run_waits_for_it(tiny: Path) -> None:
    runs = weizmann_runs.plan("finetune", ["ann"], [0])
    assert [run.arm for run in runs] == ["pretrained", "finetuned", "scratch"]
    assert weizmann._startable([1, 2], runs, tiny) == 2
    assert weizmann._startable([1], runs, tiny) is None
    folder = runs[0].folder(tiny)
    folder.mkdir(parents=True)
    settings = weizmann_runs.settings(runs[0].config())
    (folder / "result.json").write_text(json.dumps({"settings": settings}))
    assert weizmann._startable([1, 2], runs, tiny) == 1


def test_a_person_who_is_not_there_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        weizmann.main([str(data), "--study", "lopo", "--people", "zoe"])
    assert "--people: zoe is none of ann, bob, cyd" in capsys.readouterr().err


def _run(arm: str, person: str, seed: int, video: float) -> dict[str, Any]:
    row = {"epoch": 1, "step": 4, "clips": 64, "seconds": 30.0, "train_clip_top1": video / 2}
    losses = {"train_loss": 1.0 + seed, "val_loss": 2.0, "clip_top1": video}
    return {
        "arm": arm,
        "person": person,
        "seed": seed,
        "config": "weizmann",
        "settings": {"seed": seed, "model": "r2plus1d_18", "width": 16, "clip_len": 8}
        | {"crop": [56, 70], "batch_size": 16, "lr": 0.05, "schedule": "cosine"},
        "parameters": 1000,
        "gmacs": 0.5,
        "steps": 4,
        "clips": 64,
        "classes": ["bend", "walk"],
        "video_top1": video,
        "clip_top1": video / 2,
        "history": [{**row, **losses}],
        "confusion": [[1, 0], [1, 0]],
        "environment": {"git": "abc", "gpus": [], "cpu": "A CPU", "torch": "2"},
    }


def _handmade() -> list[dict[str, Any]]:
    figures = {
        ("r2plus1d", "ann"): (1.0, 0.5),
        ("r2plus1d", "bob"): (1.0, 1.0),
        ("fr2d", "ann"): (0.5, 0.5),
        ("fr2d", "bob"): (0.0, 0.5),
    }
    return [
        _run(arm, person, seed, value)
        for (arm, person), values in figures.items()
        for seed, value in enumerate(values)
    ]


def test_sums_by_hand() -> None:
    """Two people, two seeds: 100 and 75 % against 25 and 50 %."""
    summary = weizmann_results.summarize("lopo", _handmade())
    ahead, behind, gap = (*summary["arms"].values(), summary["gap"])
    assert ahead["video_top1"]["by_seed"] == {"0": 1.0, "1": 0.75}
    assert behind["video_top1"]["by_seed"] == {"0": 0.25, "1": 0.5}
    assert ahead["video_top1"]["mean"] == 0.875
    assert ahead["video_top1"]["std"] == pytest.approx(0.25 / 2**0.5)
    assert ahead["by_person"] == {"ann": 0.75, "bob": 1.0}
    assert ahead["confusion"] == [[4, 0], [4, 0]] and ahead["seconds"] == 30
    assert gap["by_seed"] == {"0": 0.75, "1": 0.25} and gap["mean"] == 0.5
    assert gap["by_person"] == {"ann": 0.25, "bob": 0.75}
    assert gap["std_over_people"] == pytest.approx(0.5 / 2**0.5)
    assert (gap["better"], gap["equal"], gap["worse"]) == (2, 0, 0)
    assert summary["clip_gap"]["by_person"] == {"ann": 0.125, "bob": 0.375}
    # All the same sign, one way of four, and its mirror image.
    assert gap["sign_flip_p"] == 0.5
    assert weizmann_results.sign_flip_p([0.1] * 9) == 2 / 512
    assert weizmann_results.sign_flip_p([0.3, -0.3]) == 1
    with pytest.raises(ValueError, match="other people or seeds"):
        weizmann_results.summarize("lopo", _handmade()[:-1])


def test_the_page_of_handmade_runs(tmp_path: Path) -> None:
    weizmann_page.write_study(weizmann_results.summarize("lopo", _handmade()), tmp_path)
    page = (tmp_path / "weizmann.md").read_text()
    assert "| R(2+1)D | 1,000 | 0.500 | 4 | 64 | 87.5 % ± 17.7 | 43.8 % ± 8.8 |" in page
    assert "| gap | +25.0 | +75.0 |" in page
    assert "2 people, 2 seeds; 2 tested videos a person, each worth 50 points of a run." in page
    assert "50.0 points of video@1, ± 35.4 over seeds and ± 35.4 over people" in page
    assert "8 runs, 0.1 hours together; commit abc" in page
    assert "tried on f-R2D alone. Of the people here none is among denis.\n" in page
    for line in page.splitlines():
        if line.startswith("!["):
            picture = tmp_path / line.rpartition("(")[2].rstrip(")")
            assert picture.read_bytes().startswith(b"\x89PNG")


def test_people_who_served_to_choose_settings_are_told_apart() -> None:
    runs = [run | {"person": {"ann": "denis"}.get(run["person"], "bob")} for run in _handmade()]
    page = weizmann_page.render([weizmann_results.summarize("lopo", runs)])
    assert (
        " Without denis the gap is 75.0 points (p = 1.000), in clip@1 37.5 points (p = 1.000)."
        in page
    )
    assert "p = 1.000).\n" in page
    own = [run for run in runs if run["person"] == "denis"]
    page = weizmann_page.render([weizmann_results.summarize("lopo", own)])
    assert " All people here have had a part in the choice.\n" in page


def test_the_committed_page_is_what_its_files_say() -> None:
    """And nothing in them is a path of the machine that they were made on."""
    studies = weizmann_page.read_studies(weizmann_page.DOCS)
    page = weizmann_page.DOCS / weizmann_page.PAGE
    if not studies and not page.exists():
        pytest.skip("no study is published yet")
    assert page.read_text(encoding="utf-8") == weizmann_page.render(studies)
    for study in studies:
        assert not [text for text in _texts(study) if text.startswith(("/", "~"))]
        runs = [{**run, "settings": study["arms"][run["arm"]]["settings"]} for run in study["runs"]]
        again = weizmann_results.summarize(study["study"], runs)
        assert json.loads(json.dumps(again)) == study


def test_the_guides_table_is_that_of_the_studies() -> None:
    """Figures in docs/training.md, rounded as printed."""
    guide = (weizmann_page.DOCS.parent / "training.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^\| steps \|.*\n\|-.*\n((?:\|.*\n)+)", guide, re.MULTILINE)
    printed = [re.findall(r"\d+(?:\.\d+)?", row) for row in block.splitlines()]
    expected = []
    for study in weizmann_page.read_studies(weizmann_page.DOCS):
        if not study["study"].startswith("finetune"):
            continue
        arms, gap = study["arms"], study["gap"]
        row = [f"{arms['finetuned']['steps']}"]
        for arm in (arms["finetuned"], arms["scratch"]):
            row += [f"{100 * arm['video_top1'][name]:.1f}" for name in ("mean", "std")]
        others = [gap["by_person"][person] for person in ("lyova", "moshe", "shahar")]
        for gaps in (list(gap["by_person"].values()), others):
            row.append(f"{100 * abs(statistics.fmean(gaps)):.1f}")
            row.append(f"{weizmann_results.sign_flip_p(gaps):.3f}")
        expected.append(row)
    assert sorted(printed) == sorted(expected)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []

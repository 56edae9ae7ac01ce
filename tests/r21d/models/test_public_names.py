"""``import r21d`` with torch alone (about 4 s: it needs a fresh interpreter)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import r21d

WITHOUT_EXTRAS = """
import sys
for name in ("av", "cv2", "matplotlib", "rich", "safetensors", "skimage", "torchvision"):
    sys.modules[name] = None
import r21d
model = r21d.create_model("r2plus1d_18", 3, widths=(4, 4, 4, 4), stem_channels=4)
assert r21d.model_info(model, (3, 2, 16, 16)).last_conv == (1, 1, 1)
assert "r2plus1d_34" in r21d.list_models()
assert "r2plus1d_18/kinetics400_torchvision" in r21d.list_weights()
try:
    r21d.load_weights(model, sys.argv[1])
except ImportError as error:
    print(error)
"""


def test_torch_alone_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "empty.safetensors"
    file.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "pip install 'r21d[train]'" in result.stdout


WITHOUT_THE_COMPILER = """
import sys
import torch
import r21d_ops
import r21d.cli.app
from r21d.models import create_model
from r21d.weights import load_model, save_checkpoint

model = create_model("r2plus1d_18", widths=(4, 4, 4, 4), stem_channels=4).eval()
save_checkpoint(sys.argv[1], model, classes=[], input={})
with torch.no_grad():
    load_model(sys.argv[1])(torch.zeros(1, 3, 2, 8, 8))
assert "torch._dynamo" not in sys.modules
"""


def test_nothing_waits_for_the_compiler(tmp_path: Path) -> None:
    """torch.compile's own packages take a second to import, which inference has no need of."""
    command = [sys.executable, "-c", WITHOUT_THE_COMPILER, str(tmp_path / "a.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", r21d.__all__)
def test_names_exist(name: str) -> None:
    assert getattr(r21d, name) is not None
    assert name in dir(r21d)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'list_modles'"):
        r21d.list_modles  # noqa: B018

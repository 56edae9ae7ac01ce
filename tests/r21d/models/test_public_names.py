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


@pytest.mark.parametrize("name", r21d.__all__)
def test_names_exist(name: str) -> None:
    assert getattr(r21d, name) is not None
    assert name in dir(r21d)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'list_modles'"):
        r21d.list_modles  # noqa: B018

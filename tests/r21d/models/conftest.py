"""The outside oracle: torchvision's video networks."""

from __future__ import annotations

from types import ModuleType

import pytest
import torchvision_oracle


@pytest.fixture(scope="session")
def torchvision_resnet() -> ModuleType:
    """``torchvision.models.video.resnet``; skips with the reason where it cannot be had."""
    try:
        return torchvision_oracle.load()
    except ImportError as error:
        pytest.skip(str(error))

"""The names of the classes that published weights tell apart."""

from __future__ import annotations

from importlib.resources import files

_SETS = ("kinetics400",)


def labels(name: str) -> list[str]:
    """The label names of a set, in the order of the logits of its published weights.

    ``kinetics400`` is in alphabetical order, which torchvision, VMZ, mmaction2 and the I3D
    weights share.

    Raises:
        ValueError: the set is not known.
    """
    if name not in _SETS:
        raise ValueError(f"name={name!r} is not a known label set; known are {', '.join(_SETS)}")
    text = files("r21d.weights").joinpath(f"{name}.txt").read_text(encoding="utf-8")
    return text.splitlines()

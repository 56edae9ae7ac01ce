"""Tensors by name: read from a file without executing it, and compared with what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

_PICKLED = (".pth", ".pt")
_NAMED = 3
_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
)


def read_state_dict(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors or PyTorch file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not what its name says, is damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise FileNotFoundError("it is not a file" if path.exists() else "there is no such file")
    pickled = path.suffix.lower() in _PICKLED
    tensors, metadata = _read_pickled(path) if pickled else _read_safetensors(path)
    for name, tensor in tensors.items():
        _check_plain(name, tensor)
    return tensors, metadata


def describe_mismatch(
    given: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    given_name: str,
    expected_name: str,
) -> str:
    """How the names and shapes of two state dicts differ, in words; empty where they agree."""
    shapes = [
        f"{name} ({_shape(given[name])} in {given_name}, {_shape(expected[name])} in "
        f"{expected_name})"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    groups = (
        (f"missing from {given_name}", [name for name in expected if name not in given]),
        (f"unknown to {expected_name}", [name for name in given if name not in expected]),
        ("of another shape", shapes),
    )
    return "; ".join(f"{title}: {_first_few(names)}" for title, names in groups if names)


def import_safetensors() -> ModuleType:
    """``safetensors`` with ``safetensors.torch`` loaded, or an error that names the extra."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "reading and writing weights needs safetensors: pip install 'r21d[train]'"
        ) from error
    return safetensors


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            # Cloned, because the tensors are views of the mapped file, which may be rewritten.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a safetensors file, or damaged ({error})") from error
    return tensors, metadata


def _read_pickled(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or damaged file fails in any of a dozen ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"not a PyTorch file of tensors, or damaged ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} instead of tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f"entry {name!r} is a {type(value).__name__}, expected tensors by name; if the "
                "state dict is an entry of the file, save that entry alone"
            )
    return dict(content), {}


def _check_plain(name: str, tensor: torch.Tensor) -> None:
    # Others would fail, or lose a part, only while they are copied into a model.
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise ValueError(
            f"{name} is a {tensor.device.type} tensor of {tensor.dtype} with layout "
            f"{tensor.layout}; expected a dense tensor of real numbers"
        )


def _first_few(names: list[str]) -> str:
    text = ", ".join(names[:_NAMED])
    rest = len(names) - _NAMED
    return f"{text} and {rest} more" if rest > 0 else text


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"

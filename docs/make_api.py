"""Writes docs/api.md from the public docstrings.

    python docs/make_api.py            # write the page
    python docs/make_api.py --check    # exit status 1 if the page is not what this would write

The order of the page is that of the modules below and of each one's ``__all__``.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ForwardRef

PAGE = Path(__file__).resolve().parent / "api.md"
_ROOT = PAGE.parent.parent

#: Module, and the names it shows where it has no ``__all__`` of its own.
_MODULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("r21d_ops", ()),
    ("r21d_ops.backends", ("BackendStatus",)),
    ("r21d_ops.fuse", ("FuseRow",)),
    ("r21d_ops.modules", ("FusedSequential", "conv_norm_act")),
    ("r21d_ops.basic_block", ("run_block",)),
    ("r21d_ops.reference", ("conv2plus1d_reference",)),
    ("r21d", ()),
    ("r21d.models", ()),
    ("r21d.weights", ()),
    ("r21d.video", ()),
    (
        "r21d.video.lists",
        (
            *("VideoList", "VideoItem", "open_list", "list_splits", "list_folder", "list_csv"),
            *("list_kinetics", "list_ucf101", "list_hmdb51", "list_sports1m", "list_weizmann"),
            *("find_videos", "is_video"),
        ),
    ),
    ("r21d.video.motion", ("write_motion_dataset",)),
    ("r21d.training", ()),
    ("r21d.training.report", ("write_report",)),
    ("r21d.evaluation", ()),
    ("r21d.plots", ("confusion_matrix", "filmstrip", "run_curves", "training_curves")),
)
_INTRODUCTION = """# API

Made from the docstrings by `python docs/make_api.py`; edit those, not this page.
"""
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):\s*$")
_ROLE = re.compile(r":[a-z]+:`~?([^`]+)`")


def _markdown(docstring: str) -> str:
    """A docstring as markdown: literals, roles, literal blocks and sections."""
    lines: list[str] = []
    block: list[str] | None = None
    section = False
    for line in inspect.cleandoc(docstring).splitlines():
        indented = line.startswith("    ")
        if block is not None and (indented or not line.strip()):
            block.append(line)
            continue
        if block is not None:
            lines += _fence(block)
            block = None
        match = _SECTION.match(line)
        if match:
            section = True
            lines += [f"**{match[1]}**", ""]
        elif line.rstrip().endswith("::"):
            block = []
            text = line.rstrip()[:-2].rstrip()
            lines += [_inline(text) + ":"] if text else []
        elif section and indented:
            lines.append(_item(line))
        elif indented and not section:
            # An indented block without a mark is an example of the command line.
            block = [line]
        else:
            section = section and not line.strip()
            lines.append(_inline(line))
    return "\n".join(lines + _fence(block or [])).strip()


def _fence(block: Sequence[str]) -> list[str]:
    text = inspect.cleandoc("\n".join(block)).strip("\n")
    return ["", "```", text, "```", ""] if text else []


def _item(line: str) -> str:
    """One line of a section: ``name: meaning`` starts an item, deeper lines continue it."""
    text = line[4:]
    if text.startswith("    "):
        return "  " + _inline(text.strip())
    name, colon, meaning = text.partition(":")
    if colon and re.fullmatch(r"[\w.*, ]+", name):
        return f"- `{name}`:{_inline(meaning)}"
    return _inline(text)


def _inline(text: str) -> str:
    return _ROLE.sub(r"`\1`", text).replace("``", "`")


def _signature(name: str, value: Any) -> str:
    """``name(parameters) -> result``; long ones with a parameter a line."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parameters = [_parameter(p) for p in signature.parameters.values()]
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parameters.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = signature.return_annotation
    result = _annotation(result)
    arrow = (
        ""
        if signature.return_annotation is inspect.Signature.empty or inspect.isclass(value)
        else f" -> {result}"
    )
    line = f"{name}({', '.join(parameters)}){arrow}"
    if len(line) <= 92:
        return line
    return "\n".join([f"{name}(", *(f"    {p}," for p in parameters), f"){arrow}"])


def _annotation(value: Any) -> str:
    """As written: a string, NamedTuple's ForwardRef of one, or a class."""
    if isinstance(value, ForwardRef):
        return value.__forward_arg__
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))


def _parameter(parameter: inspect.Parameter) -> str:
    """``name: annotation = default``; annotations stand without quotes."""
    star: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    text = star.get(parameter.kind, "") + parameter.name
    bare = parameter.annotation is inspect.Parameter.empty
    if not bare:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is not inspect.Parameter.empty:
        text += f"{'=' if bare else ' = '}{parameter.default!r}"
    return text


def _methods(value: type) -> list[tuple[str, Any]]:
    """Public methods that the class defines itself and documents, in the order of the source."""
    found = []
    for name, member in vars(value).items():
        function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
        if not name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            found.append((name, getattr(value, name)))
    return found


def _is_plain_doc(value: Any) -> bool:
    """Whether the docstring was written, rather than made by ``dataclass`` or ``NamedTuple``."""
    doc = value.__doc__ or ""
    made = f"{value.__name__}("
    return bool(doc) and not (inspect.isclass(value) and doc.startswith(made))


def _entry(name: str, value: Any) -> list[str]:
    kind = "class " if inspect.isclass(value) else ""
    lines = [f"### `{name}`", "", "```python", f"{kind}{_signature(name, value)}", "```", ""]
    if _is_plain_doc(value):
        lines += [_markdown(value.__doc__), ""]
    if inspect.isclass(value):
        initializer = vars(value).get("__init__")
        written = initializer is not None and not dataclasses.is_dataclass(value)
        if written and initializer.__doc__:
            lines += [_markdown(initializer.__doc__), ""]
        for method, function in _methods(value):
            call = _signature(f"{name}.{method}", function)
            lines += [f"#### `{name}.{method}`", "", "```python", call, "```", ""]
            lines += [_markdown(function.__doc__), ""]
    return lines


def _names(module: ModuleType, chosen: Sequence[str]) -> list[str]:
    names = list(chosen or module.__all__)
    return [name for name in names if not name.startswith("__")]


def page() -> str:
    """The whole page.

    Raises:
        ValueError: a public function or class has no docstring.
    """
    lines = [_INTRODUCTION]
    home: dict[int, str] = {}
    for module_name, chosen in _MODULES:
        module = importlib.import_module(module_name)
        lines += [f"## `{module_name}`", "", _markdown(module.__doc__ or ""), ""]
        for name in _names(module, chosen):
            value = getattr(module, name)
            if id(value) in home:
                lines += [f"### `{name}`", "", f"See `{home[id(value)]}`.", ""]
                continue
            home[id(value)] = f"{module_name}.{name}"
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                raise ValueError(f"{module_name}.{name} is neither a class nor a function")
            if not value.__doc__:
                raise ValueError(f"{module_name}.{name} has no docstring")
            lines += _entry(name, value)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _write(text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=PAGE.parent, prefix=".", suffix=".md")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, PAGE)
    except BaseException:
        os.unlink(temporary)
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make docs/api.md from the docstrings")
    parser.add_argument("--check", action="store_true", help="only tell whether it is up to date")
    options = parser.parse_args(arguments)
    text = page()
    if not options.check:
        _write(text)
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is out of date; run: python docs/make_api.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.path[:0] = [str(_ROOT), str(_ROOT / "python")]
    sys.exit(main())

"""docs/api.md is what its generator makes of the docstrings (about 2 s)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make_api() -> ModuleType:
    """docs/make_api.py as a module."""
    spec = importlib.util.spec_from_file_location("make_api", _ROOT / "docs" / "make_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make_api: ModuleType) -> None:
    made, committed = make_api.page(), make_api.PAGE.read_text(encoding="utf-8")
    assert committed == made, "run: python docs/make_api.py"


def test_the_page_names_every_public_thing(make_api: ModuleType) -> None:
    import r21d
    import r21d_ops

    text = make_api.page()
    for name in [*r21d_ops.__all__, *r21d.__all__]:
        assert f"### `{name}`" in text or name.startswith("__")
    assert "backend: str | None = None" in text
    assert " object at 0x" not in text


def test_docstrings_become_markdown(make_api: ModuleType) -> None:
    docstring = """Does ``x`` with :func:`~a.b`.

    ::

        u = f(x)

    Args:
        x: (N, C), floats;
            more of it.
        y, z: others.

    Raises:
        ValueError: no ``x``.
    """
    assert make_api._markdown(docstring).split("\n") == [
        "Does `x` with `a.b`.",
        "",
        "",
        "```",
        "u = f(x)",
        "```",
        "",
        "**Args**",
        "",
        "- `x`: (N, C), floats;",
        "  more of it.",
        "- `y, z`: others.",
        "",
        "**Raises**",
        "",
        "- `ValueError`: no `x`.",
    ]


def test_check_tells_a_stale_page(
    make_api: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(make_api, "PAGE", tmp_path / "api.md")
    assert make_api.main(["--check"]) == 1
    assert "python docs/make_api.py" in capsys.readouterr().err
    assert make_api.main([]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["api.md"]
    assert make_api.main(["--check"]) == 0
    with (tmp_path / "api.md").open("a") as file:
        file.write("stale\n")
    assert make_api.main(["--check"]) == 1

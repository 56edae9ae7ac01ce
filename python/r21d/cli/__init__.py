"""The command line, ``r21d`` and ``python -m r21d``; a file a command."""

from __future__ import annotations

from r21d.cli.app import main

__all__ = ["main"]

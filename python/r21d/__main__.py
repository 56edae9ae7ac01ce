"""``python -m r21d`` is the ``r21d`` command."""

from __future__ import annotations

import sys

from r21d.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

"""``r21d`` under torchrun, killed and stopped: ``torchrun ... rank_killed.py train ...``.

The second process dies by SIGKILL amid the second epoch, in step 9 of 12. Once torchrun has started
both again, they go on from step 8, and the first sends torchrun a SIGTERM in step 10.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from r21d.cli.app import main

_update = torch.optim.SGD.step
_steps = 0


def _step(optimizer: torch.optim.SGD, *arguments: Any) -> Any:
    """An update, after which this process, or torchrun, may get a signal."""
    global _steps
    result = _update(optimizer, *arguments)
    _steps += 1
    restarted = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if os.environ["RANK"] == "1" and not restarted and _steps == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "0" and restarted and _steps == 2:
        # What torchrun passes on may reach any thread; the pipe tells when it has come.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        os.kill(os.getppid(), signal.SIGTERM)
        os.read(reader, 1)
        signal.set_wakeup_fd(-1)
    return result


if __name__ == "__main__":
    torch.optim.SGD.step = _step  # type: ignore[method-assign]
    sys.exit(main())

"""r21d.processes: how other processes are started."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_START_AND_LOOK = """
import os, signal
from multiprocessing import forkserver
from pathlib import Path

from r21d.processes import fresh_processes

os.environ["MASTER_ADDR"] = "127.0.0.1"
fresh_processes(["json"])
server = Path("/proc") / str(forkserver._forkserver._forkserver_pid)
(blocked,) = (
    line.split()[1] for line in (server / "status").read_text().splitlines()
    if line.startswith("SigBlk:")
)
here = signal.pthread_sigmask(signal.SIG_BLOCK, ())
address = b"MASTER_ADDR" in (server / "environ").read_bytes()
print(int(blocked, 16), len(here), address, os.environ["MASTER_ADDR"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_server_is_deaf_to_sigint_from_its_first_moment() -> None:
    """Also where it is the process's first, and starts the resource tracker before itself."""
    done = subprocess.run(
        [sys.executable, "-c", _START_AND_LOOK], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    blocked, here, address, own = done.stdout.split()
    assert int(blocked) & 1 << (signal.SIGINT - 1)
    assert (here, address, own) == ("0", "False", "127.0.0.1")

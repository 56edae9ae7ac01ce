"""r21d.processes: how other processes are started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_START_AND_LOOK = """
import os, signal
from multiprocessing import forkserver, get_context
from pathlib import Path

from r21d.processes import fresh_processes


def tell(connection):
    connection.send((
        {signal.SIGINT, signal.SIGHUP} & signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    ))


def told_by(context):
    receiver, sender = context.Pipe()
    process = context.Process(target=tell, args=(sender,))
    process.start()
    process.join()
    return receiver.recv()


if __name__ == "__main__":
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    context = fresh_processes(["json"])
    server = Path("/proc") / str(forkserver._forkserver._forkserver_pid)
    (blocked,) = (
        line.split()[1] for line in (server / "status").read_text().splitlines()
        if line.startswith("SigBlk:")
    )
    for number in (signal.SIGINT, signal.SIGHUP):
        assert int(blocked, 16) & 1 << number - 1
    assert b"MASTER_ADDR" not in (server / "environ").read_bytes()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert told_by(context) == ({signal.SIGINT, signal.SIGHUP}, True)
    assert told_by(get_context("forkserver")) == (set(), True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_server_is_deaf_to_the_terminal_from_its_first_moment(tmp_path: Path) -> None:
    """Also where it starts the resource tracker before itself; the program's own children hear."""
    script = tmp_path / "script.py"
    script.write_text(_START_AND_LOOK)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

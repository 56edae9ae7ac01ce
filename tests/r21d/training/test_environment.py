"""What a run notes about the machine, and what it does not (about 1 s)."""

from __future__ import annotations

import json
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import r21d
from r21d.training.environment import append_environment, describe_environment, read_environments


def test_versions_machine_and_command(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/r21d", "train", "my videos", "--epochs", "3"])
    monkeypatch.setenv("R21D_BACKEND", "eager")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = json.loads(json.dumps(describe_environment()))
    assert found["command"] == "r21d train 'my videos' --epochs 3"
    assert found["torch"] == torch.__version__ and found["r21d"] == r21d.__version__
    assert found["threads"] == torch.get_num_threads() and found["world"] == 4
    assert found["variables"]["R21D_BACKEND"] == "eager"
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert found["cpu"] and re.fullmatch(r"\d+\.\d+\.\d+", found["python"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["started"])


def test_nothing_about_the_user(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USER", "ada_l")
    monkeypatch.setenv("API_TOKEN", "secret")
    monkeypatch.setenv("R21D_TEST_DATA", "/home/ada/data")
    arguments = ["/home/ada/videos", "--out=/home/ada", "/home/adam", "/mnt/home/ada"]
    monkeypatch.setattr(sys, "argv", ["r21d", *arguments])
    found = describe_environment()
    assert found["command"] == "r21d ~/videos --out=~ /home/adam /mnt/home/ada"
    assert found["variables"]["R21D_TEST_DATA"] == "~/data"
    text = json.dumps(found)
    for private in ("ada_l", "secret", "API_TOKEN", socket.gethostname() + "."):
        assert private not in text
    assert all(n == "OMP_NUM_THREADS" or n.startswith("R21D_") for n in found["variables"])


def test_each_start_adds_its_entry(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "environment.json"
    assert read_environments(path) == []
    for argument in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["r21d", argument])
        append_environment(path)
    assert [entry["command"] for entry in read_environments(path)] == ["r21d one", "r21d two"]
    append_environment(path, anew=True)
    assert [entry["command"] for entry in read_environments(path)] == ["r21d two"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"[{", b"\xff", b"3", b'["text"]'])
def test_a_damaged_file_begins_anew(tmp_path: Path, content: bytes, caplog) -> None:
    path = tmp_path / "environment.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        append_environment(path)
    assert len(read_environments(path)) == 1
    assert len(caplog.records) == 1 and str(path) in caplog.text


def test_commit_is_that_of_r21d_alone(tmp_path: Path, monkeypatch) -> None:
    """Not of a checkout of something else, in which r21d is installed."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    source = tmp_path / "site-packages" / "r21d" / "__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text("1\n")
    monkeypatch.setattr(r21d, "__file__", str(source))
    git("commit", "--allow-empty", "--message", "zero")
    assert describe_environment()["git"] is None
    git("add", ".")
    git("commit", "--message", "one")
    commit = git("rev-parse", "HEAD")
    assert describe_environment()["git"] == commit
    source.write_text("2\n")
    assert describe_environment()["git"] == f"{commit}+"

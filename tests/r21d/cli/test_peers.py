"""What processes under torchrun say that are not the first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from r21d.cli.peers import fail_after_the_first, speak_of_own_files_alone
from r21d.cli.train import epoch_line
from r21d.evaluation.distributed import RankFailed, Ranks


class _Four(Ranks):
    """The last of four processes, the only one with an error."""

    def gather(self, value: Any) -> list[Any]:
        return [None, None, None, value]


def test_another_process_tells_of_videos_that_it_alone_reads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    loggers = [logging.getLogger(), logging.getLogger("torch._dynamo.peers")]
    handlers = [logging.StreamHandler(), logging.StreamHandler()]
    for logger, handler in zip(loggers, handlers, strict=True):
        logger.addHandler(handler)
    loggers[1].propagate = False  # As torch's own.
    speak_of_own_files_alone()
    try:
        logging.getLogger("r21d.video.dataset").warning("another video is drawn instead: b.mp4")
        logging.getLogger("r21d.evaluation.evaluate").warning("left out: c.mp4")
        logging.getLogger("r21d.training.run").warning("for the first one to tell")
        loggers[1].warning("this, too")
        logging.getLogger("r21d.training.run").error("an error")
    finally:
        for logger, handler in zip(loggers, handlers, strict=True):
            logger.removeHandler(handler)
    told = capsys.readouterr().err.splitlines()
    assert told == ["another video is drawn instead: b.mp4", "left out: c.mp4", "an error"]


@pytest.fixture(autouse=True)
def filters() -> Iterator[None]:
    """Those of all handlers are as they were afterwards."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    before = [(h, list(h.filters)) for one in loggers for h in getattr(one, "handlers", ())]
    yield
    for handler, filters in before:
        handler.filters = filters


def test_another_process_tells_an_error_that_no_other_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("r21d.cli.peers._MOMENT", 0.0)
    assert fail_after_the_first(OSError("no\nroom")) == 2
    assert capsys.readouterr().err == "r21d: error: process 3: no room\n"
    # What they have agreed on, or the death of another one, is the first one's to tell.
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)
    agreed = ValueError("a bad list")
    with pytest.raises(ValueError, match="a bad list"), _Four(3, 4).together():
        raise agreed
    for error in (agreed, RankFailed("process 1 failed")):
        assert fail_after_the_first(error) == 2
        assert capsys.readouterr().err == ""


def test_an_epoch_is_told_in_a_line() -> None:
    row = {"epoch": 7, "train_loss": 2.3456, "train_clip_top1": 0.1234}
    assert epoch_line(row, 45) == "epoch  7/45 loss 2.346 clip@1 12.3%"
    row |= {"val_loss": 1.5, "clip_top1": 0.25, "video_top1": 1.0}
    told = "epoch  7/45 loss 2.346 clip@1 12.3% | val loss 1.500 clip@1 25.0% video@1 100.0%"
    assert epoch_line(row, 45) == told

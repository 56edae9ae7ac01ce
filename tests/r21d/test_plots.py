"""Pictures of results (about 8 s)."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("matplotlib")

from r21d.plots import confusion_matrix, filmstrip, run_curves, training_curves
from r21d.plots.run import _by_epoch, best_epoch


def _read(path) -> torch.Tensor:
    from matplotlib import image

    return (torch.from_numpy(image.imread(path)) * 255).round().int()[..., :3]


def _clip(*shape: int) -> torch.Tensor:
    return torch.randint(256, (*shape, 3), dtype=torch.uint8)


def _rows(count: int, validation: bool = True) -> list[dict[str, float]]:
    rows = [
        {"epoch": i + 1, "train_loss": 2.0 / (i + 1), "train_clip_top1": 0.5} for i in range(count)
    ]
    return [row | {"val_loss": 1.0, "clip_top1": 0.4} if validation else row for row in rows]


def test_filmstrip_shows_first_and_last_frame(tmp_path):
    clip = torch.zeros(20, 30, 40, 3, dtype=torch.uint8)
    clip[0], clip[-1] = torch.tensor([250, 0, 0]), torch.tensor([0, 240, 0])
    filmstrip(clip, "title", [("one", 0.7), ("two", 0.2)], tmp_path / "a.png")
    picture = _read(tmp_path / "a.png")
    red = (picture == torch.tensor([250, 0, 0])).all(-1).nonzero()[:, 1]
    green = (picture == torch.tensor([0, 240, 0])).all(-1).nonzero()[:, 1]
    assert len(red) > 5000
    assert len(green) > 5000
    assert red.max() < picture.shape[1] / 7
    assert green.min() > picture.shape[1] * 6 / 7
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_filmstrip_bars_are_as_long_as_the_probabilities(tmp_path):
    lengths = []
    for probability in (0.3, 0.6):
        scores = [("best", probability), ("other", 0.1)]
        filmstrip(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "", scores, tmp_path / "a.png")
        blue = (_read(tmp_path / "a.png") == torch.tensor([0x1F, 0x6F, 0xEB])).all(-1)
        lengths.append(int(blue.any(0).sum()))
    assert lengths[1] == pytest.approx(2 * lengths[0], abs=3)


@pytest.mark.parametrize(
    ("shape", "labels"), [((1, 10, 10), 1), ((3, 60, 20), 5), ((100, 9, 31), 10)]
)
def test_filmstrip_of_odd_clips_and_labels(tmp_path, shape, labels):
    scores = [(f"$label_{i} %{'x' * 60}\u00e9", 1 / labels) for i in range(labels)]
    filmstrip(_clip(*shape), "a $title" * 40, scores, tmp_path / "a.png")
    assert _read(tmp_path / "a.png").float().std() > 1


@pytest.mark.parametrize(
    ("clip", "scores", "message"),
    [
        (torch.zeros(4, 8, 8, 3), [("a", 1.0)], "clip must be uint8"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), [("a", 1.0)], "not empty"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), [("a", 1.0)], "clip must be uint8"),
        (_clip(4, 8, 8), [], "scores is empty"),
        (_clip(4, 8, 8), [("a", 1.5)], "probability of 'a' must be in"),
        (_clip(4, 8, 8), [("a", math.nan)], "probability of 'a' must be in"),
    ],
)
def test_bad_filmstrips(tmp_path, clip, scores, message):
    with pytest.raises(ValueError, match=message):
        filmstrip(clip, "title", scores, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs", [1, 2, 37])
def test_training_curves_of_several_runs(tmp_path, epochs):
    runs = {"one": _rows(epochs), "two": _rows(1, validation=False)}
    training_curves(runs, tmp_path / "bare.png")
    training_curves(runs, tmp_path / "lines.png", chance=0.125, bound=("bag of frames", 0.5))
    bare, lines = _read(tmp_path / "bare.png"), _read(tmp_path / "lines.png")
    half = bare.shape[1] // 2
    assert torch.equal(bare[:, :half], lines[:, :half])
    assert not torch.equal(bare[:, half:], lines[:, half:])


def test_training_curves_of_one_run(tmp_path):
    training_curves(_rows(5), tmp_path / "named.png", title="Title")
    training_curves(_rows(5), tmp_path / "plain.png")
    assert _read(tmp_path / "named.png").shape[0] > _read(tmp_path / "plain.png").shape[0]


@pytest.mark.parametrize("history", [[], {}, {"run": []}])
def test_empty_history(tmp_path, history):
    with pytest.raises(ValueError, match="history is empty"):
        training_curves(history, tmp_path / "a.png")
    if not history:
        with pytest.raises(ValueError, match="history is empty"):
            run_curves(history, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def _logged(epochs: int) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Rows of epochs of ten steps, and of every second step of a run that is one epoch further."""
    rows = [row | {"step": 10 * row["epoch"], "video_top1": 0.6} for row in _rows(epochs)]
    pace = {"lr": 0.01, "loss": 1.0, "clips_per_second": 300.0, "data_wait": 0.05}
    return rows, [pace | {"step": step} for step in range(2, 10 * epochs + 10, 2)]


def test_curves_of_a_run_show_what_was_logged(tmp_path):
    rows, steps = _logged(4)
    heights = []
    for given in ([], steps):
        run_curves(rows, tmp_path / "a.png", steps=given, chance=0.1)
        heights.append(_read(tmp_path / "a.png").shape[0])
    # Learning rate, pace and waiting stand beneath, where there are any.
    assert heights[1] > heights[0] + 200
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    drawn = []
    for key in ("", "lr", "clips_per_second", "data_wait", "loss"):
        # Both ways of not knowing a value: a column that is not there, a run that logs less.
        less = [{name: row[name] for name in row if name != key} for row in steps]
        run_curves(rows, tmp_path / "a.png", steps=less)
        drawn.append(_read(tmp_path / "a.png"))
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_curves_of_one_epoch_without_validation(tmp_path):
    rows, steps = _logged(1)
    bare = [{name: rows[0][name] for name in ("epoch", "step", "train_loss", "train_clip_top1")}]
    run_curves(bare, tmp_path / "a.png", steps=steps)
    run_curves(rows, tmp_path / "b.png", steps=steps)
    green = "#2da44e"
    assert not len(_colour(_read(tmp_path / "a.png"), green))
    assert len(_colour(_read(tmp_path / "b.png"), green)) > 30


def test_steps_are_drawn_in_few_points_and_none_beyond_the_last_epoch():
    rows, steps = _logged(200)
    points = _by_epoch(rows, steps, "lr")
    assert 100 < len(points) <= 300
    assert points[0][0] < 1 and 199 < points[-1][0] <= 200
    assert all(value == pytest.approx(0.01) for _, value in points)
    values = [row | {"loss": row["step"]} for row in steps]
    assert all(loss == pytest.approx(10 * epoch) for epoch, loss in _by_epoch(rows, values, "loss"))


def test_best_epoch_is_the_first_by_videos_then_clips():
    scores = [(0.5, 0.9), (0.6, 0.1), (0.6, 0.3), (0.6, 0.3)]
    rows = [{"epoch": e, "video_top1": v, "clip_top1": c} for e, (v, c) in enumerate(scores, 1)]
    assert best_epoch([{"epoch": 0}, *rows]) == rows[2]
    assert best_epoch([{"epoch": 1}]) is None


def test_a_failure_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        training_curves(_rows(2), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _confusion(classes: int) -> torch.Tensor:
    """Three of four right, one taken for the class before."""
    confusion = 3 * torch.eye(classes, dtype=torch.int64)
    return confusion + torch.roll(torch.eye(classes, dtype=torch.int64), -1, 1)


def _colour(picture: torch.Tensor, colour: str) -> torch.Tensor:
    wanted = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return ((picture - wanted).abs().amax(-1) <= 2).nonzero()


@pytest.mark.parametrize("classes", [2, 101, 400])
def test_confusion_matrices_of_any_size(tmp_path, classes):
    names = [f"class number $ {i}" for i in range(classes)]
    confusion_matrix(_confusion(classes), names, tmp_path / "a.png", title="a $title")
    picture = _read(tmp_path / "a.png")
    cell = picture.shape[1] / classes
    # Every cell and every name can be told apart, and a picture can be opened.
    assert cell > 8 and max(picture.shape) < 5000
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_right_is_blue_wrong_is_orange_by_share_of_the_row(tmp_path):
    confusion = torch.tensor([[7, 0, 0], [0, 0, 900], [0, 0, 1]])
    confusion_matrix(confusion, ["a", "b", "c"], tmp_path / "a.png")
    picture = _read(tmp_path / "a.png")
    blue, orange = _colour(picture, "#0a3069"), _colour(picture, "#762c00")
    # Two cells of the diagonal less their frames, the upper one on the left; one cell left of the
    # lower one.
    assert len(blue) == pytest.approx(2 * 0.67 * len(orange), rel=0.1)
    assert blue[:, 1].max() == pytest.approx(orange[:, 1].max(), abs=6)
    assert blue[:, 0].min() < orange[:, 0].min() < blue[:, 0].max()


def test_classes_without_videos_have_no_row(tmp_path):
    sparse = torch.zeros(400, 400, dtype=torch.int64)
    sparse[5, 5], sparse[9, 9] = 2, 1
    names = [f"class {i}" for i in range(400)]
    confusion_matrix(sparse, names, tmp_path / "two.png")
    confusion_matrix(torch.diag(torch.tensor([2, 1])), names[5:10:4], tmp_path / "few.png")
    assert torch.equal(_read(tmp_path / "two.png"), _read(tmp_path / "few.png"))
    # What was taken for a class without videos has a column all the same.
    sparse[9, 100] = 1
    confusion_matrix(sparse, names, tmp_path / "others.png")
    orange = [
        ((picture[..., 0] > 180) & (picture[..., 2] < 120)).sum()
        for picture in (_read(tmp_path / "two.png"), _read(tmp_path / "others.png"))
    ]
    assert orange[0] == 0 and orange[1] > 500


def test_what_one_class_took_is_told_by_its_name(tmp_path, monkeypatch):
    names = ["a", "b", "taker", "d"]
    confusion = torch.tensor([[1, 0, 2, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    texts: list[str] = []
    monkeypatch.setattr(
        "r21d.plots.confusion._label", lambda axes, x, y, name, *_, **__: texts.append(name)
    )
    monkeypatch.setattr("r21d.plots.confusion.write", lambda *args, **_: texts.append(args[3]))
    confusion_matrix(confusion, names, tmp_path / "one.png")
    errors = ["most frequent errors", "2 of 3  a → taker", "1 of 2  b → taker"]
    assert texts[-8:] == ["a", "b", "taker", "a", "b", *errors]
    confusion[1, 3] = 3
    confusion_matrix(confusion, names, tmp_path / "two.png")
    errors = ["3 of 5  b → d", "2 of 3  a → taker", "1 of 5  b → taker"]
    assert texts[-9:] == ["a", "b", "others", "a", "b", "most frequent errors", *errors]
    confusion_matrix(confusion, ["a" * 99, "b", "c" * 99, "d"], tmp_path / "long.png")
    assert max(map(len, texts[-3:])) <= 66


def test_titles_of_any_length_fit(tmp_path):
    confusion = torch.eye(2, dtype=torch.int64)
    path = tmp_path / "a.png"
    for text in ("short", "long " * 30, "long" * 200):
        confusion_matrix(confusion, ["a", "b"], path, title=text, subtitle=text)
        picture = _read(path)
        # White to the right of the text, whatever it says.
        assert (picture[:, -15:] == 255).all()
        assert picture.shape[1] < 700


def test_right_cells_are_framed(tmp_path):
    tallest = []
    for confusion in (torch.eye(2, dtype=torch.int64), 1 - torch.eye(2, dtype=torch.int64)):
        confusion_matrix(confusion, ["a", "b"], tmp_path / "a.png")
        ink = _colour(_read(tmp_path / "a.png"), "#22272e")
        tallest.append(int(ink[:, 1].bincount().max()))
    # The side of a cell of 54 pixels; letters are lower.
    assert tallest[1] < 40 < 46 < tallest[0]


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (torch.eye(3, dtype=torch.int64), "a row for each of the 2 classes"),
        (torch.ones(2, 3, dtype=torch.int64), "must be square"),
        (torch.zeros(2, 2, dtype=torch.int64), "at least one video"),
        (torch.tensor([[1, -1], [0, 1]]), "nothing below 0"),
    ],
)
def test_bad_confusion_matrices(tmp_path, confusion, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(confusion, ["a", "b"], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_names_that_no_font_has(tmp_path):
    names = ["a\n\udcff", "b" * 200]
    confusion_matrix(torch.eye(2, dtype=torch.int64), names, tmp_path / "a.png")
    assert max(_read(tmp_path / "a.png").shape) < 1500
    filmstrip(_clip(2, 8, 8), "a\udcff\n", [("b\udcff", 0.5)], tmp_path / "b.png")


@pytest.mark.parametrize(("first", "top"), [(4.7, None), (30.0, 2.4)])
def test_a_loss_far_above_those_of_training_does_not_flatten_them(first, top):
    from r21d.plots.curves import cut_off
    from r21d.plots.figure import add_axes, new_figure

    axes = add_axes(new_figure(4, 3), 1, 1, 2, 1)
    axes.set_ylim(0, 50)
    cut_off(axes, [_rows(3, validation=False), [_rows(3)[0] | {"val_loss": first}, *_rows(3)[1:]]])
    assert axes.get_ylim() == (0, pytest.approx(top or 50))
    told = "" if top is None else "loss (cut off: up to 30)"
    assert axes.get_title(loc="left") == told

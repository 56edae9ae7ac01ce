"""Accuracies against figures worked out by hand. About three seconds."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from r21d.evaluation import EvalResult, evaluate
from r21d.video import VideoError


class Written(nn.Module):
    """Reads its logits off the clip: the first row of the first frame's red."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.classes_out = classes
        self.batches: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        return x[:, 0, 0, 0, : self.classes_out] * self.scale


class Scored(Dataset[tuple[Tensor, int, int]]):
    """Videos whose clips carry the probabilities they shall be given."""

    def __init__(self, videos: list[tuple[int, list[list[float]] | None]]) -> None:
        self.videos = videos
        self.classes = ["x", "y", "z"]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        label, clips = self.videos[index]
        if clips is None:
            raise VideoError(f"video {index} is damaged")
        frames = torch.zeros(len(clips), 3, 1, 1, 8)
        frames[:, 0, 0, 0, : len(clips[0])] = torch.tensor(clips).log()
        return frames, label, index


# Video 0: one clip right, one wrong by a hair; the mean (0.55, 0.35, 0.1) is right.
# Video 1: two clips right by a hair, one wrong by far; the mean (0.533, 0.367, 0.1) is wrong.
# Video 2: wrong twice. Video 3: right once.
HAND = [
    (0, [[0.7, 0.2, 0.1], [0.4, 0.5, 0.1]]),
    (1, [[0.4, 0.5, 0.1], [0.4, 0.5, 0.1], [0.8, 0.1, 0.1]]),
    (2, [[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]]),
    (0, [[0.8, 0.1, 0.1]]),
]
TRUE_PROBABILITIES = [0.7, 0.4, 0.5, 0.5, 0.1, 0.1, 0.2, 0.8]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("workers", [0, 1])
def test_figures_worked_out_by_hand(batch_size: int, workers: int) -> None:
    model = Written(3)
    result = evaluate(model, Scored(HAND), batch_size=batch_size, workers=workers)
    assert result.clip_top1 == 4 / 8
    assert result.video_top1 == 2 / 4
    assert result.clip_top5 == result.video_top5 == 1.0
    assert (result.clips, result.videos) == (8, 4)
    expected_loss = -sum(math.log(p) for p in TRUE_PROBABILITIES) / 8
    assert result.loss == pytest.approx(expected_loss, rel=1e-5)
    assert result.per_class == {"x": 1.0, "y": 0.0, "z": 0.0}
    assert result.confusion.tolist() == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert result.failed == []
    assert max(model.batches) <= batch_size


def test_scores_are_averaged_after_softmax() -> None:
    # By mean logit class 1 would win: the logarithm of 0.001 outweighs that of 0.9.
    clips = [[0.9, 0.05, 0.05], [0.001, 0.5, 0.499], [0.5, 0.3, 0.2]]
    result = evaluate(Written(3), Scored([(0, clips)]))
    assert torch.tensor(clips).log().mean(0).argmax() == 1
    assert result.video_top1 == 1.0


def test_top5_counts_five_classes() -> None:
    ranked = [0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05]
    result = evaluate(Written(7), Scored([(4, [ranked]), (5, [ranked])]))
    assert result.clip_top5 == result.video_top5 == 0.5
    assert result.classes == [str(i) for i in range(7)]


def test_a_network_that_cannot_tell_scores_chance() -> None:
    even = [[1 / 3, 1 / 3, 1 / 3]]
    result = evaluate(Written(3), Scored([(label, even) for label in (0, 1, 2)]))
    assert result.clip_top1 == result.video_top1 == 1 / 3
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_video_is_left_out_and_listed(workers: int) -> None:
    videos = Scored([HAND[0], (1, None), HAND[3]])
    result = evaluate(Written(3), videos, workers=workers)
    assert result.video_top1 == 1.0
    assert result.videos == 2
    assert result.failed == [("video 1", "video 1 is damaged")]


def test_no_video_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no video could be evaluated \(1 failed.*damaged"):
        evaluate(Written(3), Scored([(0, None)]))
    with pytest.raises(ValueError, match="no video could be evaluated"):
        evaluate(Written(3), Scored([]))


def test_scores_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(FloatingPointError, match="video 1 are not finite"):
        evaluate(Written(3), Scored([HAND[0], (1, [[math.nan, 0.5, 0.5]])]))


def test_labels_beyond_the_outputs_are_an_error() -> None:
    with pytest.raises(ValueError, match="video 0 has label 3, but the network has 3 outputs"):
        evaluate(Written(3), Scored([(3, [[0.2, 0.3, 0.5]])]))


def test_bad_batch_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate(Written(3), Scored(HAND), batch_size=0)


def test_modes_are_put_back_also_after_an_error() -> None:
    model = nn.Sequential(Written(3), nn.Dropout().eval())
    model[0].train()
    evaluate(model, Scored(HAND))
    with pytest.raises(ValueError, match="no video"):
        evaluate(model, Scored([]))
    assert model.training and model[0].training and not model[1].training


def test_result_is_json() -> None:
    result: EvalResult = evaluate(Written(3), Scored(HAND))
    assert json.loads(json.dumps(result.to_dict()))["confusion"] == result.confusion.tolist()

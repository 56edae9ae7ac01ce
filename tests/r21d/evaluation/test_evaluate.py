"""Accuracies against figures worked out by hand. About four seconds."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from evaluation.written import PartedScored, Scored, Written
from torch import nn

from r21d.evaluation import EvalResult, evaluate
from r21d.evaluation.loading import worker_deaths
from r21d.video import ClipSampling, InputSpec, VideoError

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


def test_several_labels_count_by_sports1ms_rule() -> None:
    videos = Scored([((0, 2), [[0.5, 0.3, 0.2]]), ((1, 2), [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])])
    result = evaluate(Written(3), videos)
    assert result.multilabel
    # Clips: hit, miss, hit. Videos: hit; the mean (0.35, 0.25, 0.4) is a hit, too.
    assert (result.clip_top1, result.video_top1) == (2 / 3, 1.0)
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 1]]
    assert result.per_class == {"x": 1.0, "y": 0.0, "z": 0.5}
    pairs = [(0.5, 0.2), (0.3, 0.1), (0.2, 0.7)]
    expected = -sum(math.log(a) + math.log(b) for a, b in pairs) / 2 / 3
    assert result.loss == pytest.approx(expected, rel=1e-5)
    assert result.scores.labels == [(0, 2), (1, 2)]


def test_a_video_without_a_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="video 1 has no label"):
        evaluate(Written(3), Scored([((0,), [[0.5, 0.3, 0.2]]), ((), [[0.5, 0.3, 0.2]])]))


@pytest.mark.parametrize("clip_scores", [False, True])
def test_scores_are_kept_by_video(clip_scores: bool) -> None:
    videos = Scored([HAND[0], (1, None), *HAND[1:]])
    videos.samples = [(Path(f"/data/{i % 2}/{i}.mp4"), 0) for i in range(5)]
    videos.root = Path("/data")
    scores = evaluate(Written(3), videos, clip_scores=clip_scores).scores
    assert scores.names == ["0/0.mp4", "0/2.mp4", "1/3.mp4", "0/4.mp4"]
    assert scores.classes == ["x", "y", "z"]
    assert scores.labels == [(0,), (1,), (2,), (0,)]
    assert scores.clip_counts.tolist() == [2, 3, 2, 1]
    expected = torch.tensor([clip for _, clips in HAND for clip in clips])
    torch.testing.assert_close(scores.video_scores[1], expected[2:5].mean(0))
    assert (scores.clip_scores is not None) == clip_scores
    if clip_scores:
        torch.testing.assert_close(scores.clip_scores, expected)


def test_networks_see_the_same_batches_whatever_fails_and_however_many_decode() -> None:
    videos = Scored([(0, [[0.7, 0.2, 0.1]] * 2)] * 7)
    videos.clips = 2
    videos.videos[1] = videos.videos[4] = (0, None)
    seen = []
    for workers in (0, 1, 2):
        model = Written(3)
        evaluate(model, videos, batch_size=5, workers=workers)
        seen.append(model.batches)
    # Groups of two videos, of which numbers 1 and 4 are missing.
    assert seen == [[2, 4, 2, 2]] * 3


def test_a_long_video_goes_through_in_parts() -> None:
    model = Written(3)
    evaluate(model, Scored([(0, [[0.7, 0.2, 0.1]] * 7)]), batch_size=3)
    assert model.batches == [3, 3, 1]


def test_bytes_are_normalised_where_the_network_runs() -> None:
    spec = InputSpec(clip_len=1, resize=(1, 8), crop=(1, 8), mean=(0.5, 0, 0), std=(0.25, 1, 1))
    videos = Scored([(0, [[0.7, 0.2, 0.1]])])
    pixels = torch.zeros(1, 3, 1, 1, 8, dtype=torch.uint8)
    pixels[0, 0, 0, 0, :3] = torch.tensor([255, 0, 51])
    videos.items = {0: pixels}
    with pytest.raises(ValueError, match="clips are uint8 and nothing says how to normalise"):
        evaluate(Written(3), videos)
    videos.spec = spec
    scores = evaluate(Written(3), videos).scores.video_scores[0]
    torch.testing.assert_close(scores, torch.tensor([2.0, -2.0, -1.2]).softmax(0))


def test_strict_stops_at_the_first_broken_video() -> None:
    videos = Scored([HAND[0], (1, None), HAND[3]])
    with pytest.raises(VideoError, match="video 1 is damaged"):
        evaluate(Written(3), videos, strict=True)
    videos = Scored(HAND)
    videos.failed = [("a.mp4", "a.mp4: no video")]
    assert evaluate(Written(3), videos).failed == [("a.mp4", "a.mp4: no video")]
    with pytest.raises(VideoError, match=r"1 of 5 videos cannot be decoded.*a\.mp4: no video"):
        evaluate(Written(3), videos, strict=True)


def test_what_the_dataset_tells_is_in_the_result() -> None:
    videos = Scored(HAND)
    videos.missing = [Path("x/gone.mp4")]
    videos.sampling = ClipSampling("random", 4, 3, seed=7)
    videos.spec = InputSpec(clip_len=8, frame_rate=None)
    result = evaluate(Written(3), videos)
    assert result.missing == ["x/gone.mp4"]
    expected = {"sampling": "random", "clips": 4, "crops": 3, "seed": 7, "averaged": "softmax"}
    expected |= {"clip_len": 8, "frame_rate": None, "resize": [128, 171], "crop": [112, 112]}
    assert result.protocol.items() >= expected.items()
    assert result.scores.protocol == result.protocol
    videos.sampling = ClipSampling("dense")
    assert evaluate(Written(3), videos).protocol["clips"] is None


def test_classes_count_the_same_in_their_mean() -> None:
    result = evaluate(Written(3), Scored(HAND))
    assert result.mean_class == 1 / 3


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
    result: EvalResult = evaluate(Written(3), Scored(HAND), clip_scores=True)
    values = json.loads(json.dumps(result.to_dict()))
    assert values["confusion"] == result.confusion.tolist()
    assert values["mean_class"] == 1 / 3
    assert "scores" not in values


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("known", [False, True])
def test_parts_of_videos_come_to_what_whole_ones_do(batch_size: int, known: bool) -> None:
    # All of three clips but one, so that groups and batches end within videos.
    videos = [HAND[1]] * 4 + [(2, None)] + [HAND[1]] * 3
    whole, parted = Scored(videos), PartedScored(videos)
    if known:
        whole.clips = parted.clips = 3
    models, results = (Written(3), Written(3)), []
    for model, dataset in zip(models, (whole, parted), strict=True):
        results.append(evaluate(model, dataset, batch_size=batch_size, clip_scores=True))
    assert results[0].to_dict() == results[1].to_dict()
    assert torch.equal(results[0].scores.clip_scores, results[1].scores.clip_scores)
    assert models[0].batches == models[1].batches
    assert set(parted.read) == {1}


def test_a_video_of_which_a_part_is_damaged_is_left_out_whole() -> None:
    videos = PartedScored([HAND[1], HAND[1], HAND[0]])
    videos.clips = 3
    videos.broken_parts = {(1, 1), (1, 2)}
    result = evaluate(Written(3), videos, batch_size=6)
    assert result.failed == [("video 1", "part 1 of video 1 is damaged")]
    assert (result.videos, result.clips) == (2, 5)
    assert result.scores.labels == [(1,), (0,)]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["x", "y"], r"2 classes are not the model's 3 .* \(number 2 is None, the model's 'z'\)"),
        (["x", "z", "y"], r"3 classes .* \(number 1 is 'z', the model's 'y'\).*=model\.classes"),
        (["0", "1", "2"], None),
        (["x", "y", "z"], None),
        (None, None),
    ],
)
def test_classes_that_are_not_the_models(classes: list[str] | None, message: str | None) -> None:
    model, videos = Written(3), Scored(HAND)
    model.classes, videos.classes = ["x", "y", "z"], classes
    if message is None:
        assert evaluate(model, videos).video_top1 == 2 / 4
    else:
        with pytest.raises(ValueError, match=message):
            evaluate(model, videos)
    model.classes = None
    assert evaluate(model, videos).video_top1 == 2 / 4
    model.classes = ["0", "1", "2"]
    assert evaluate(model, videos).video_top1 == 2 / 4


def test_a_class_far_behind_the_best_keeps_its_rank() -> None:
    videos = Scored([(7, [[1.0]])])
    clip = torch.zeros(1, 3, 1, 1, 8)
    clip[0, 0, 0, 0] = torch.tensor([0.0, 1, 2, 3, 4, 5, 200, 95])
    videos.items = {0: clip}
    result = evaluate(Written(8), videos)
    # In float32 its score is zero, as are those of six others.
    assert result.video_top5 == result.clip_top5 == 1.0
    assert result.scores.video_scores.dtype == torch.float32


class Killed(Scored):
    """Ends the process that reads it, as the kernel does where memory is short."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_is_killed_is_told_in_a_line() -> None:
    told = r"^a decoding process failed \(DataLoader worker .*lower workers \(--workers\)"
    with pytest.raises(ChildProcessError, match=told):
        evaluate(Written(3), Killed(HAND), workers=1)


CAUGHT = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\nRuntimeError: "


@pytest.mark.parametrize(
    "message",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 7 bytes",
    ],
)
def test_a_worker_that_finds_no_memory_is_told_alike(message: str) -> None:
    with pytest.raises(ChildProcessError, match="failed") as caught, worker_deaths():
        raise RuntimeError(CAUGHT + message)
    assert f"(RuntimeError: {message}): " in str(caught.value)


@pytest.mark.parametrize("message", ["", "size mismatch", "allocate memory", f"{CAUGHT}mismatch"])
def test_other_errors_stay_what_they_are(message: str) -> None:
    with pytest.raises(RuntimeError) as caught, worker_deaths():
        raise RuntimeError(message)
    assert str(caught.value) == message

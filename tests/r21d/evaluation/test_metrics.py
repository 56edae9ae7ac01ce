"""Metrics by hand, and against scikit-learn's. About three seconds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from r21d.evaluation import metrics

SCORES = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.45, 0.45], [0.2, 0.2, 0.6]])


def test_ranks_by_hand() -> None:
    assert metrics.label_ranks(SCORES, [(0,), (2,), (1,)]).tolist() == [0, 1, 2]
    # Equal scores: the lower class first.
    assert metrics.label_ranks(SCORES, [(1,), (1,), (0,)]).tolist() == [1, 0, 1]
    assert metrics.label_ranks(torch.zeros(3, 3), [(0,), (1,), (2,)]).tolist() == [0, 1, 2]


def test_one_of_several_labels_is_enough() -> None:
    ranks = metrics.label_ranks(SCORES, [(2, 1), (0,), (0, 1, 2)])
    assert ranks.tolist() == [1, 2, 0]
    assert [metrics.accuracy(ranks, k) for k in (1, 2, 3)] == [1 / 3, 2 / 3, 1.0]


def test_confusion_and_classes_by_hand() -> None:
    confusion = metrics.confusion_matrix(SCORES, [(0,), (0,), (2,)])
    assert confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert confusion.dtype == torch.int64
    assert metrics.per_class_accuracy(confusion) == {0: 0.5, 2: 1.0}


def test_a_video_of_several_labels_counts_in_the_row_of_each() -> None:
    confusion = metrics.confusion_matrix(SCORES, [(0, 1), (1,), (0, 2)])
    assert confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert metrics.per_class_accuracy(confusion) == {0: 0.5, 1: 0.5, 2: 1.0}


def test_the_loss_of_several_labels_is_the_mean_of_each_ones() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert metrics.cross_entropy(logits, (0,)).item() == pytest.approx(-math.log(0.7))
    expected = -(math.log(0.7) + math.log(0.1)) / 2
    assert metrics.cross_entropy(logits, (0, 2)).item() == pytest.approx(expected)
    # The same as against a target that is uniform over the labels.
    target = torch.tensor([[0.5, 0.0, 0.5]])
    stock = torch.nn.functional.cross_entropy(logits, target)
    assert metrics.cross_entropy(logits, (0, 2)).item() == pytest.approx(stock.item())


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([(0,), (1,)], ValueError, "a row for each of the 2 labels"),
        ([(0,), (), (1,)], ValueError, "row 1 has no label"),
        ([(0,), (3,), (1,)], IndexError, r"labels must be in 0\.\.2"),
        ([(0,), (-1,), (1,)], IndexError, r"labels must be in 0\.\.2"),
    ],
)
def test_labels_that_do_not_fit(
    labels: list[tuple[int, ...]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        metrics.label_ranks(SCORES, labels)


def test_nothing_to_measure() -> None:
    assert metrics.label_ranks(torch.zeros(0, 3), []).tolist() == []
    assert metrics.confusion_matrix(torch.zeros(0, 3), []).tolist() == [[0] * 3] * 3
    assert math.isnan(metrics.accuracy(torch.zeros(0), 1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 40),
    classes=st.integers(3, 12),
    k=st.integers(1, 6),
)
def test_single_labels_against_scikit_learn(seed: int, rows: int, classes: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    truth = torch.randint(classes, (rows,), generator=generator).tolist()
    labels = [(label,) for label in truth]
    scores = logits.double().softmax(1)
    names = list(range(classes))
    ranks = metrics.label_ranks(scores, labels)
    if k < classes:  # scikit-learn warns of k that no score can miss
        expected = oracle.top_k_accuracy_score(truth, scores.numpy(), k=k, labels=names)
        assert metrics.accuracy(ranks, k) == pytest.approx(expected, abs=1e-12)
    tops = scores.numpy().argmax(1)
    confusion = metrics.confusion_matrix(scores, labels)
    assert np.array_equal(confusion.numpy(), oracle.confusion_matrix(truth, tops, labels=names))
    present = sorted(set(truth))
    recalls = oracle.recall_score(truth, tops, labels=present, average=None, zero_division=0)
    found = metrics.per_class_accuracy(confusion)
    assert list(found) == present
    assert list(found.values()) == pytest.approx(recalls.tolist(), abs=1e-12)
    losses = [metrics.cross_entropy(logits[i : i + 1], labels[i]).item() for i in range(rows)]
    expected = oracle.log_loss(truth, scores.numpy(), labels=names)
    assert sum(losses) / rows == pytest.approx(expected, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 9), ties=st.booleans())
def test_hits_are_what_the_sorted_scores_say(seed: int, classes: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(8, classes, generator=generator)
    if ties:
        scores = (scores * 3).round()
    several = torch.rand(8, classes, generator=generator) < 0.4
    labels = [tuple(row.nonzero().flatten().tolist()) or (0,) for row in several]
    ranks = metrics.label_ranks(scores, labels)
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices.tolist()
    for k in range(1, classes + 1):
        hits = [bool(set(best[:k]) & set(own)) for best, own in zip(order, labels, strict=True)]
        assert (ranks < k).tolist() == hits

"""Suspect labels by their definition, and where labels were really made wrong."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from prunesampler.pool.suspects import agreement, suspects


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(2, 6), st.sampled_from([1.0, 2.0, 10.0]), st.integers(0, 99))
def test_by_definition(n, classes, times, seed):
    torch.manual_seed(seed)
    p, labels = (3 * torch.randn(n, classes)).softmax(1), torch.randint(0, classes, (n,))
    indices, sure = suspects(p, labels, times)
    truth = {}
    for i in range(n):
        own, best = (
            float(p[i, labels[i]]),
            max(float(p[i, c]) for c in range(classes) if c != labels[i]),
        )
        if best > own * times:
            truth[i] = 1 - own / best
    assert set(indices.tolist()) == set(truth)
    assert sure.tolist() == pytest.approx([truth[i] for i in indices.tolist()], abs=1e-5)
    assert sure.tolist() == sorted(sure.tolist(), reverse=True)


def test_certain_of_another_class_and_of_none():
    p = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    indices, sure = suspects(p, torch.tensor([0, 0, 0]))
    assert (indices.tolist(), sure.tolist()) == ([0], [1.0])


def test_bad_input():
    with pytest.raises(ValueError, match=r"times=0\.5"):
        suspects(torch.rand(3, 2), torch.zeros(3).long(), 0.5)
    with pytest.raises(ValueError, match="run from 0 to 4, and there are probabilities of 2"):
        suspects(torch.rand(3, 2), torch.tensor([0, 4, 1]))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(0, 999))
def test_agreement_is_that_of_scikit_learns_kappa(classes, seed):
    torch.manual_seed(seed)
    labels = torch.randint(0, classes, (200,))
    p = (torch.randn(200, classes) + torch.eye(classes)[labels]).softmax(1)
    right, chance, told = agreement(p, labels)
    kappa = cohen_kappa_score(labels, p.argmax(1), labels=range(classes))
    assert (right - chance) / (1 - chance) == pytest.approx(kappa)
    assert not told or right > chance


def test_guesses_are_seldom_taken_for_knowledge():
    taken = 0
    for seed in range(300):
        torch.manual_seed(seed)
        taken += agreement(torch.randn(100, 4).softmax(1), torch.randint(0, 4, (100,)))[2]
    assert taken <= 3

"""What neighbours say of labels, against scikit-learn's neighbours and loops."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from prunesampler.pool import opinions
from prunesampler.pool.opinions import by_pool, by_wanted


def samples(n, seed, classes=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=draw), torch.randint(0, classes, (n,), generator=draw)


def nearest(x, z, count):
    """Places of the nearest rows of x, by cosine, for each of z."""
    found = NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(x.numpy())
    return found.kneighbors(z.numpy())[1]


@pytest.mark.parametrize("n", [50, 400, 5000])
def test_neighbours_in_the_pool_are_scikit_learns(n):
    (x, labels), (z, sure) = samples(n, 0), samples(30, 1)
    count = min(100, max(1, n // 40))
    found, of_wanted = by_pool(x, labels, z, sure)
    # The nearest of a sample of the pool is itself.
    mine = labels.numpy()[nearest(x, x, count + 1)[:, 1:]] == labels.numpy()[:, None]
    theirs = labels.numpy()[nearest(x, z, count)] == sure.numpy()[:, None]
    for got, same in ((found, mine), (of_wanted, theirs)):
        assert got.shape == (len(same),)
        expected = -np.log((same.sum(1) + 1) / (count + 3))
        assert np.mean(np.isclose(got.numpy(), expected)) > 0.99  # ties may differ


def test_in_a_large_pool_some_are_asked(monkeypatch):
    (x, labels), (z, sure) = samples(1000, 0), samples(30, 1)
    monkeypatch.setattr(opinions, "ASKED", 250)
    some = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:250]
    _, of_wanted = by_pool(x, labels, z, sure)
    _, alone = by_pool(x[some], labels[some], z, sure)
    assert torch.equal(of_wanted, alone)
    whole, _ = by_pool(x, labels, z, sure)
    expected, _ = by_pool(x[some], labels[some], z, sure)
    assert torch.equal(whole[some], expected)  # each without itself


def test_classes_that_take_turns_are_all_asked(monkeypatch):
    monkeypatch.setattr(opinions, "ASKED", 100)
    labels = torch.arange(1000) % 10
    x = torch.eye(10)[labels] + 0.01 * samples(1000, 0)[0][:, :1]
    found, _ = by_pool(x, labels, x[:10], labels[:10])
    assert found.max() < 2  # every label is confirmed by some neighbour


@pytest.mark.parametrize("tile", [7, 4096])
def test_the_wanted_of_the_label_are_those_of_a_loop(tile, monkeypatch):
    (x, labels), (z, sure) = samples(60, 0), samples(9, 1)
    monkeypatch.setattr(opinions, "TILE", tile)
    found, of_wanted = by_wanted(x, labels, z, sure)

    def doubt(row, label, itself=None):
        cosines = [
            float(torch.nn.functional.cosine_similarity(row, other, dim=0))
            for k, (other, given) in enumerate(zip(z, sure, strict=True))
            if given == label and k != itself
        ]
        best = sorted(cosines)[-5:]
        return -sum(best) / len(best) if best else 1.0

    expected = [doubt(row, label) for row, label in zip(x, labels, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    expected = [doubt(z[k], sure[k], k) for k in range(9)]
    assert of_wanted.tolist() == pytest.approx(expected, abs=1e-5)


def test_what_lies_at_the_mean_is_no_error():
    x, labels = torch.zeros(40, 3), torch.arange(40) % 2
    for found in (*by_pool(x, labels, x[:4], labels[:4]), *by_wanted(x, labels, x[:4], labels[:4])):
        assert all(map(math.isfinite, found.tolist()))

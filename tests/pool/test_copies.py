"""Near copies against all pairs compared one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from prunesampler.pool import copies as module
from prunesampler.pool.copies import copies, originals


def by_force(features, similar):
    """Groups by all cosines in double precision."""
    x = features.double()
    x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    _, groups = connected_components((x @ x.T >= similar).numpy())
    counts = np.bincount(groups)
    return [set(np.flatnonzero(groups == g)) for g in range(len(counts)) if counts[g] > 1]


def as_sets(groups):
    found = [set(np.flatnonzero(groups.numpy() == g)) for g in range(int(groups.max()) + 1)]
    assert [min(group) for group in found] == sorted(min(group) for group in found)
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.integers(3, 200), st.sampled_from([1, 3, 60, 100]), st.floats(0.5, 0.999), st.integers(0, 99)
)
def test_as_by_force(n, width, similar, seed):
    torch.manual_seed(seed)
    features = torch.randn(n, width) + 3
    copied = torch.randint(0, n, (n // 3,))
    features[torch.randperm(n)[: len(copied)]] = features[copied] + 0.1 * torch.randn(
        len(copied), width
    )
    cosines = torch.nn.functional.normalize(features.double() - features.double().mean(0), dim=1)
    cosines = cosines @ cosines.T
    if ((cosines - similar).abs() < 1e-5).any():
        return  # rounding decides
    truth = by_force(features, similar)
    found = copies(features, similar)
    assert sorted(map(min, as_sets(found))) == sorted(map(min, truth))
    assert sorted(map(sorted, as_sets(found))) == sorted(map(sorted, truth))


def test_blocks_and_tiles_miss_no_pair(monkeypatch):
    torch.manual_seed(0)
    features = torch.randn(300, 80)
    features[150:] = features[:150] + 0.05 * torch.randn(150, 80)
    whole = copies(features, 0.9)
    for block, tile, pairs in ((7, 16, 3), (64, 64, 1000)):
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr(module, "PAIRS", pairs)
        assert torch.equal(copies(features, 0.9), whole)
    assert len(as_sets(whole)) == 150


def test_thousands_of_one_image():
    torch.manual_seed(0)
    features = torch.randn(20_000, 64)
    features[100:] = features[0]
    groups = copies(features, 0.99)
    assert torch.equal(
        groups, torch.cat([torch.tensor([0]), torch.full((99,), -1), torch.zeros(19_900)]).long()
    )


def test_the_one_that_is_doubted_least_is_kept():
    groups = torch.tensor([1, 0, -1, 0, 1, 0])
    assert originals(groups, torch.tensor([0.2, 0.5, 0.0, 0.1, 0.9, 0.1])).tolist() == [3, 0]
    assert originals(torch.full((4,), -1), torch.rand(4)).tolist() == []
    assert originals(torch.tensor([0, 0]), torch.tensor([0.3, 0.3])).tolist() == [0]


def test_bad_input():
    with pytest.raises(ValueError, match="same features"):
        copies(torch.full((50, 4), 3.3), 0.9)
    with pytest.raises(ValueError, match="is a cosine"):
        copies(torch.randn(5, 4), 1.5)
    with pytest.raises(ValueError, match=r"200001 samples are too many.*200,000"):
        copies(torch.empty(1).expand(200_001, 2), 0.9)

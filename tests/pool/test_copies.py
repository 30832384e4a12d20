"""Near copies against all pairs compared one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components

from prunesampler.influence.hessians import DiagonalHessian
from prunesampler.influence.measurements import Measurements
from prunesampler.pool import copies as module
from prunesampler.pool.copies import copies, originals
from prunesampler.pool.neighbours import directions, repeats, unusual
from prunesampler.select.findings import near_copies


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


@pytest.mark.parametrize("similar", [0.3, 0.9])
def test_one_product_for_all_finds_what_single_pairs_do(similar, monkeypatch):
    torch.manual_seed(0)
    features = torch.randn(1200, 90)
    features[900:] = features[:300] + 0.2 * torch.randn(300, 90)
    found = []
    for dense in (-1, module.BLOCK**2):
        monkeypatch.setattr(module, "DENSE", dense)
        found.append(copies(features, similar))
    assert torch.equal(*found)
    assert sorted(map(sorted, as_sets(found[0]))) == sorted(
        map(sorted, by_force(features, similar))
    )


def test_blocks_and_tiles_miss_no_pair(monkeypatch):
    torch.manual_seed(0)
    features = torch.randn(300, 80)
    features[150:] = features[:150] + 0.05 * torch.randn(150, 80)
    whole = copies(features, 0.9)
    for block, pairs in ((7, 3), (64, 1000)):
        monkeypatch.setattr(module, "BLOCK", block)
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


def turned(*degrees):
    """Directions in a plane, about a mean of zero."""
    angles = torch.tensor([*degrees, *(d + 180 for d in degrees)]).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_the_one_that_is_doubted_least_is_kept():
    features = turned(0.0, 1.0, 90.0)
    groups = copies(features, 0.99)
    assert groups.tolist() == [0, 0, -1, 1, 1, -1]
    doubt = torch.tensor([0.9, 0.1, 0.5, 0.3, 0.3, 0.0])
    assert originals(features, groups, doubt, 0.99).tolist() == [1, 1, 2, 3, 3, 5]
    alone = torch.full((6,), -1)
    assert originals(features, alone, doubt, 0.99).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_chain_loses_only_what_is_near_to_what_stays():
    """One group by a chain of steps of four degrees, where copies are within five."""
    features = turned(*(4.0 * k for k in range(9)))
    near = math.cos(math.radians(5))
    groups = copies(features, near)
    assert groups.tolist() == [0] * 9 + [1] * 9
    doubt = torch.tensor([(k - 4) ** 2 for k in range(9)] * 2).float()
    kept = originals(features, groups, doubt, near)
    assert kept[:9].tolist() == [0, 2, 2, 4, 4, 4, 6, 6, 8]
    cosines = (features * features[kept]).sum(1)
    assert float(cosines.min()) >= near - 1e-6
    assert torch.equal(kept[kept], kept)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 60), st.floats(0.5, 0.99), st.integers(0, 99))
def test_everything_dropped_is_near_to_what_stays(n, similar, seed):
    torch.manual_seed(seed)
    features = torch.randn(n, 3)
    doubt = torch.rand(n)
    kept = originals(features, copies(features, similar), doubt, similar)
    x = directions(features)
    assert float((x * x[kept]).sum(1).min()) >= similar - 2e-6
    stay = (kept == torch.arange(n)).nonzero()[:, 0]
    assert torch.equal(kept[kept], kept)
    assert (doubt[kept] <= doubt).all()
    # The least doubted sample of each group stays.
    groups = copies(features, similar)
    for g in range(int(groups.max()) + 1):
        inside = (groups == g).nonzero()[:, 0]
        assert int(inside[doubt[inside].argmin()]) in stay.tolist()


@pytest.mark.parametrize("width", [3, 5, 8, 16, 64])
def test_points_that_lie_evenly_are_no_copies(width):
    """In few dimensions neighbours are near by chance; one in ten thousand is expected."""
    torch.manual_seed(0)
    found = []
    for features in (torch.randn(3000, width), torch.randn(3000, width) @ torch.randn(width, 200)):
        try:
            found.append(int((copies(features, unusual(features)) >= 0).sum()))
        except ValueError as error:
            assert "too near, or in too few dimensions" in str(error)  # noqa: PT017
            found.append(0)
    assert max(found) <= 4


def test_copies_are_told_however_many_they_are():
    """Every sample twice, or five times."""
    torch.manual_seed(0)
    for times in (2, 5):
        features = torch.randn(2000 // times, 64).repeat(times, 1)
        features += 0.1 * torch.randn(2000, 64)
        groups = copies(features, unusual(features))
        assert int((groups >= 0).sum()) == 2000
        assert int(groups.max()) + 1 == 2000 // times


def test_exact_repeats_are_found_where_near_ones_cannot_be():
    """Half of the pool is one row; and features in two dimensions, some of which come twice."""
    torch.manual_seed(0)
    placeholder = torch.randn(1000, 64)
    placeholder[500:] = placeholder[0]
    flat = torch.randn(500, 2)
    flat[400:] = flat[:100]
    for features, gone in ((placeholder, 500), (flat, 100)):
        groups, first = repeats(features)
        assert len(first) == len(features) - gone
        assert int((groups >= 0).sum()) - int(groups.max() + 1) == gone
        measured = Measurements(
            torch.ones(len(features), 1),
            features,
            DiagonalHessian(torch.ones(len(features), 1)),
            torch.zeros(len(features)),
        )
        finding, _ = near_copies(measured, torch.zeros(len(features)), None)
        assert len(finding) == gone
        assert float(finding.confidence.min()) > 0.999
        assert torch.equal(features[finding.indices], features[finding.originals])


def test_a_class_that_is_tighter_than_others_is_left_alone():
    torch.manual_seed(0)
    y = torch.arange(1000) % 5
    features = 3 * torch.randn(5, 64)[y] + torch.where(y == 0, 0.1, 1.0)[:, None] * torch.randn(
        1000, 64
    )
    measured = Measurements(
        torch.ones(1000, 1), features, DiagonalHessian(torch.ones(1000, 1)), torch.zeros(1000)
    )
    finding, groups = near_copies(measured, torch.zeros(1000), None)
    assert len(finding) == 0
    assert "200 samples lie as near in groups of more than 64 and are left alone" in finding.advice
    assert (groups < 0).all()
    least = float(finding.advice.partition("similar=")[2].split()[0])
    assert len(near_copies(measured, torch.zeros(1000), least - 0.001)[0]) == 199


def test_few_samples_of_many_features():
    """Where an eigensolver does not converge: 96 samples of 4,097 features that hardly differ."""
    torch.manual_seed(0)
    features = torch.ones(96, 4097) + 1e-2 * torch.randn(96, 1) * torch.randn(4097)
    features += 1e-4 * torch.randn(96, 4097)
    features[90:] = features[:6]
    for similar in (0.5, 0.9, 1.0):
        truth = by_force(features, similar - 1e-6)
        assert sorted(map(sorted, as_sets(copies(features, similar)))) == sorted(map(sorted, truth))


def test_features_that_single_precision_cannot_tell():
    torch.manual_seed(0)
    collapsed = torch.randn(5, 64)[torch.arange(500) % 5] + 1e-5 * torch.randn(500, 64)
    with pytest.raises(ValueError, match="too near, or in too few dimensions"):
        unusual(collapsed)
    outlier = torch.randn(500, 64)
    outlier[3] *= 1e7
    with pytest.raises(ValueError, match="samples that are far larger"):
        unusual(outlier)
    with pytest.raises(ValueError, match="20 distinct samples are too few"):
        unusual(torch.randn(20, 64))


def test_bad_input():
    with pytest.raises(ValueError, match="same features"):
        copies(torch.full((50, 4), 3.3), 0.9)
    with pytest.raises(ValueError, match="is a cosine"):
        copies(torch.randn(5, 4), 1.5)
    with pytest.raises(ValueError, match=r"1000001 samples are too many.*1,000,000"):
        copies(torch.empty(1).expand(1_000_001, 2), 0.9)

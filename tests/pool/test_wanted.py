"""Doubts about labels against scikit-learn's layers, and where the junk is known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from prunesampler import BlockCurvature, CrossEntropy, ExactCurvature, SquaredError
from prunesampler.influence.influence import Influence
from prunesampler.influence.measurements import Measurements
from prunesampler.pool import wanted as module
from prunesampler.pool.wanted import Doubts, believed, doubts, own_probability

CLASSES, WIDTH = 4, 20


def samples(n, seed, junk=0):
    """Features of four classes, then junk of other places under labels at random."""
    centres = 1.2 * torch.randn(2 * CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,))
    place = labels.clone()
    place[n - junk :] = torch.randint(CLASSES, 2 * CLASSES, (junk,))
    return centres[place] + torch.randn(n, WIDTH), labels


def measured(x, labels, layer):
    outputs = torch.from_numpy(layer.decision_function(x)).float()
    losses, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    return Measurements(delta, torch.cat([x, torch.ones(len(x), 1)], 1), hessian, losses, labels)


def pool_of(junk, n=800, sure=120, seed=1):
    x, labels = samples(n, seed, junk)
    layer = LogisticRegression(C=1.0).fit(x, labels)
    return measured(x, labels, layer), measured(*samples(sure, seed + 50), layer)


def judged(pool, wanted):
    influence = Influence.build(pool.rows(), ExactCurvature(damping=1e-3).factorise(pool))
    return doubts(pool, wanted, believed(pool, influence))


@pytest.mark.parametrize("junk", [0, 160, 400, 640])
def test_as_many_as_are_not_like_the_wanted(junk):
    pool, wanted = pool_of(junk)
    found = judged(pool, wanted).off_target()
    assert abs(len(found) - junk) < (1 if junk == 0 else 0.15 * len(pool))
    if junk:
        assert float((found >= len(pool) - junk).double().mean()) > (0.6 if junk == 160 else 0.8)


def test_the_layer_of_the_wanted_is_scikit_learns():
    """With the penalty that it chose; the components are all, so only their scale differs."""
    pool, wanted = pool_of(200)
    _, z = module._components(pool.inputs, wanted.inputs)
    layer, kept_out = module._fit(z, wanted.labels, CLASSES)
    losses = []
    for penalty in module.PENALTIES:
        options = {
            "C": 1 / (penalty * len(z)),
            "fit_intercept": False,
            "tol": 1e-8,
            "max_iter": 2000,
        }
        theirs = LogisticRegression(**options).fit(z.numpy(), wanted.labels.numpy())
        near = torch.from_numpy(theirs.predict_proba(z.numpy()))
        losses.append((near - (z @ layer.T).softmax(1)).abs().max().item())
        if losses[-1] < 1e-3:
            break
    assert losses[-1] < 1e-3
    rest = torch.arange(len(z)) != 5
    without = LogisticRegression(**options).fit(z[rest].numpy(), wanted.labels[rest].numpy())
    assert np.allclose(without.predict_proba(z[5:6].numpy())[0], kept_out[5].numpy(), atol=0.02)


def test_labels_that_nobody_wanted_go_first():
    pool, wanted = pool_of(0)
    some = (wanted.labels != 3).nonzero()[:, 0]
    found = judged(pool, wanted.subset(some))
    lacking = pool.labels == 3
    assert torch.equal(found.unknown, lacking)
    assert set(found.off_target()[: int(lacking.sum())].tolist()) == set(
        lacking.nonzero()[:, 0].tolist()
    )


def test_what_of_all_is_alike():
    doubt = torch.zeros(100).double()
    assert len(Doubts(doubt, torch.zeros(30).double(), torch.zeros(100) > 0).off_target()) == 0


def test_large_heads_keep_their_most_probable_outputs():
    torch.manual_seed(0)
    x, labels = torch.randn(300, 12), torch.arange(300) % 150
    x += 4 * torch.nn.functional.one_hot(labels % 12, 12)
    outputs = 5 * x @ torch.randn(12, 300)
    losses, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    whole = Measurements(delta, x, hessian, losses, labels)
    kept = BlockCurvature().keep(whole)
    close = (own_probability(kept) - own_probability(whole)).abs() < 0.02
    assert close.all()
    found = doubts(kept, kept[torch.arange(200)], own_probability(kept))
    assert found.pool.isfinite().all()


def test_bad_input():
    pool, wanted = pool_of(0)
    one = wanted.subset((wanted.labels == 2).nonzero()[:, 0])
    with pytest.raises(ValueError, match="have label 2: .* at least two"):
        judged(pool, one)
    narrow = Measurements(
        wanted.delta, wanted.inputs[:, :7], wanted.hessian, wanted.losses, wanted.labels
    )
    with pytest.raises(ValueError, match="of 7 inputs and 4 outputs, the pool at one of 21"):
        judged(pool, narrow)
    unlabelled = Measurements(wanted.delta, wanted.inputs, wanted.hessian, wanted.losses)
    with pytest.raises(ValueError, match="class of each sample is not known"):
        judged(pool, unlabelled)
    losses, delta, hessian = SquaredError().derivatives(torch.randn(9, 2), torch.randn(9, 2))
    with pytest.raises(ValueError, match="no classes"):
        judged(pool, Measurements(delta, torch.randn(9, 21), hessian, losses))

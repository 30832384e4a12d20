"""Leave-one-out predictions against layers that were really trained without the sample."""

import pytest
import torch
import torch.nn.functional as F

from prunesampler import CrossEntropy, ExactCurvature, SquaredError
from prunesampler.influence.automatic import BlockCurvature
from prunesampler.influence.curvature import KroneckerCurvature
from prunesampler.influence.influence import Influence
from prunesampler.influence.leave_one_out import is_exact, leave_one_out
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Sequences

DECAY = 0.01


def problem(n, width, classes, wrong=0.1, seed=0):
    """Features with a bias, and labels of which some are wrong."""
    torch.manual_seed(seed)
    centres = torch.randn(classes, width).double()
    truth = torch.arange(n) % classes
    x = centres[truth] + 1.5 * torch.randn(n, width).double()
    labels = torch.where(torch.rand(n) < wrong, torch.randint(0, classes, (n,)), truth)
    return torch.cat([x, torch.ones(n, 1)], 1), labels


def fitted(x, labels, classes, decay=DECAY, start=None):
    """The layer at the minimum of the mean loss with this weight decay, shape (C, D)."""
    found = torch.zeros(classes, x.shape[1]).double() if start is None else start.clone()
    found.requires_grad_()
    search = torch.optim.LBFGS(
        [found],
        max_iter=500,
        tolerance_grad=1e-11,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss():
        search.zero_grad()
        value = F.cross_entropy(x @ found.T, labels) + decay / 2 * found.square().sum()
        value.backward()
        return value

    search.step(loss)
    return found.detach()


def measured(x, labels, layer):
    outputs = (x @ layer.T).float()
    losses, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    return Measurements(delta, x.float(), hessian, losses, labels)


def scored(held, curvature):
    return Influence.build(held.rows(), curvature.factorise(held))


def without(x, labels, classes, layer, samples):
    """Probabilities of samples by layers trained on all others."""
    found = []
    for i in samples:
        rest = torch.arange(len(x)) != i
        other = fitted(x[rest], labels[rest], classes, start=layer)
        found.append((other @ x[i]).softmax(0))
    return torch.stack(found)


@pytest.mark.parametrize(
    ("n", "width", "classes"),
    [(300, 10, 3), (120, 20, 4), pytest.param(1000, 40, 6, marks=pytest.mark.slow)],
)
def test_as_if_trained_without_the_sample(n, width, classes):
    x, labels = problem(n, width, classes)
    layer = fitted(x, labels, classes)
    held = measured(x, labels, layer)
    found = leave_one_out(held, scored(held, ExactCurvature(damping=DECAY)))
    samples = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:100]
    truth = without(x, labels, classes, layer, samples)
    own = labels[samples, None]
    inside = (x @ layer.T).softmax(1)[samples].gather(1, own)
    moved = (truth.gather(1, own) - inside).abs()
    off = (found[samples].double().gather(1, own) - truth.gather(1, own)).abs() / moved
    assert float(off.median()) < 0.02
    assert float(off.quantile(0.9)) < 0.2
    # To leave it as it is would be off by all of the distance.
    assert float(moved.median()) > 1e-4


def test_an_approximate_curvature_is_labelled_and_comes_near():
    x, labels = problem(400, 12, 4)
    layer = fitted(x, labels, 4)
    held = measured(x, labels, layer)
    exact = leave_one_out(held, scored(held, ExactCurvature(damping=DECAY)))
    inside = held.hessian.probabilities
    for curvature in (BlockCurvature(damping=DECAY), KroneckerCurvature(damping=DECAY)):
        influence = scored(held, curvature)
        assert not is_exact(influence)
        near = leave_one_out(held, influence)
        own = labels[:, None]
        left = (near - exact).gather(1, own).abs() / (exact - inside).gather(1, own).abs()
        assert float(left.median()) < 0.35


def test_many_classes_keep_the_kept_outputs():
    torch.manual_seed(0)
    x, labels = problem(500, 8, 300, wrong=0.0)
    layer = fitted(x, labels, 300, decay=1e-4)
    curvature = BlockCurvature(damping=1e-4)
    held = measured(x, labels, layer)
    kept = curvature.keep(held)
    found = leave_one_out(kept, scored(kept, curvature))
    assert found.shape == (500, 300)
    assert torch.allclose(found.sum(1), torch.ones(500), atol=1e-5)
    own = labels[:, None]
    inside = held.hessian.probabilities.gather(1, own)
    assert (found.gather(1, own) <= inside * 1.2 + 0.02).float().mean() > 0.95


def test_a_sample_is_never_believed_more_than_with_itself():
    x, labels = problem(200, 6, 3, wrong=0.3)
    held = measured(x, labels, fitted(x, labels, 3))
    found = leave_one_out(held, scored(held, ExactCurvature(damping=DECAY)))
    own = labels[:, None]
    assert (found.gather(1, own) < held.hessian.probabilities.gather(1, own) + 5e-3).all()


def test_losses_without_classes_are_refused():
    losses, delta, hessian = SquaredError().derivatives(torch.randn(9, 2), torch.randn(9, 2))
    held = Measurements(delta, torch.randn(9, 3), hessian, losses)
    with pytest.raises(ValueError, match="no classes"):
        leave_one_out(held, scored(held, ExactCurvature(damping=1.0)))
    x, labels = problem(6, 2, 2)
    tokens = measured(x, labels, torch.zeros(2, 3).double())
    with pytest.raises(ValueError, match="each token"):
        leave_one_out(Sequences(tokens, torch.tensor([3, 3]), 1.0), None)

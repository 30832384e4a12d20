"""Variants of ours that were tried where it was no better than training fewer epochs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from methods import Choice, Influence, Once, everything, infobatch, pruner, redrawn_random
from torch import Tensor
from training import Method, Progress

from prunesampler import Budget, Price, anneal, costs
from prunesampler import Influence as Vectors
from prunesampler.base.indices import complement


class FullEnd:
    """Another method, but all data once no more than so many full epochs' steps are left.

    The steps in all stay the same.
    """

    def __init__(self, method: Method, epochs: int = 2) -> None:
        self._method, self._epochs = method, epochs

    def __call__(self, progress: Progress) -> Choice:
        full = self._epochs * progress.recipe.steps(progress.size)
        return (everything if progress.steps_left <= full else self._method)(progress)


class Tail:
    """Sample by influence: the larger a sample's, the more often, weighed by the inverse chance.

    Inclusion probabilities are proportional to the norm of the influence, at least half and at most
    one, so that the weighted loss is unbiased and its variance small (Katharopoulos and Fleuret,
    ICML 2018).
    """

    def __init__(self) -> None:
        self._chance = torch.empty(0)

    def __call__(self, progress: Progress) -> Choice:
        if not len(self._chance):
            scores = pruner(progress).measure(progress.model)
            assert scores is not None
            norms = costs.influence_norm(scores).float()
            self._chance = inclusion(norms, progress.keep)
        drawn = torch.rand(progress.size, generator=progress.generator()) < self._chance
        kept = drawn.nonzero().flatten()
        weights = 1 / self._chance[kept]
        return kept, weights / weights.mean()


def larger_steps(progress: Progress) -> Choice:
    """All data, every loss weighed as `infobatch` weighs on average: larger steps and nothing else."""
    weight = 1 / (1 - progress.recipe.fraction)
    return everything(progress)[0], torch.full((progress.size,), weight)


def inclusion(norms: Tensor, keep: int, least: float = 0.5) -> Tensor:
    """Chances of inclusion that sum to ``keep``: proportional to the norms, within bounds.

    The lower bound is that share of the mean chance.
    """
    low, high = 0.0, float(keep / norms.min().clamp_min(1e-12))
    floor = least * keep / len(norms)
    for _ in range(100):
        scale = (low + high) / 2
        total = float((scale * norms).clamp(floor, 1.0).sum())
        low, high = (scale, high) if total < keep else (low, scale)
    return (high * norms).clamp(floor, 1.0)


def whole_network(progress: Progress, dimensions: int = 512) -> Tensor:
    """By the influence on all parameters, projected at random to a few hundred dimensions.

    Gradients of all layers, sample by sample, times a random matrix (as TRAK: Park et al., ICML
    2023); the curvature is the gradients' second moment there, with the weight decay, and the search
    is in whitened coordinates, as that of the last layer.
    """
    rows = projected_gradients(progress, dimensions).double()
    moment = rows.T @ rows / len(rows)
    moment += progress.recipe.weight_decay * torch.eye(dimensions)
    factor = torch.linalg.cholesky(moment)
    whitened = torch.linalg.solve_triangular(factor, rows.T, upper=False).T
    solution = anneal(
        Vectors.from_vectors(whitened), Budget(fraction=progress.recipe.fraction),
        labels=progress.images.train.tensors[1], seed=progress.recipe.seed,
    )  # fmt: skip
    return complement(solution.pruned, progress.size)


def projected_gradients(progress: Progress, dimensions: int, batch: int = 100) -> Tensor:
    """Gradients of the loss by all parameters, projected, float32, shape (n, dimensions).

    The random matrix takes 4 bytes for each parameter and dimension: for small networks.
    """
    model = progress.model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    generator = torch.Generator().manual_seed(progress.recipe.seed)
    projection = {
        name: torch.randn(p.numel(), dimensions, generator=generator).to(p.device)
        for name, p in parameters.items()
    }

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, (parameters, buffers), (x[None],))
        return torch.nn.functional.cross_entropy(outputs, y[None])

    gradient = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    rows = []
    for x, y in zip(*(t.split(batch) for t in progress.images.train.tensors), strict=True):
        found = gradient(parameters, x.to(progress.device), y.to(progress.device))
        parts = (found[name].flatten(1) @ projection[name] for name in parameters)
        rows.append((sum(parts) / dimensions**0.5).cpu())  # type: ignore[union-attr]
    model.train()
    return torch.cat(rows)


KEEP_HARD = Price(costs.el2n, weight=0.5)

IDEAS: dict[str, Callable[[], Method]] = {
    "influence, keep hard, refreshed": lambda: Influence(objective=KEEP_HARD, refresh_every=4),
    "influence, keep hard, redrawn": lambda: Influence(objective=KEEP_HARD, redraw_every=1),
    "influence, full end": lambda: FullEnd(Influence()),
    "influence, redrawn, full end": lambda: FullEnd(Influence(redraw_every=1)),
    "random, redrawn, full end": lambda: FullEnd(redrawn_random),
    "InfoBatch, full end": lambda: FullEnd(infobatch),
    "fewer epochs, larger steps": lambda: larger_steps,
    "influence, tail": Tail,
    "influence, whole network": lambda: Once(whole_network),
}

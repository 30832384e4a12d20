"""Samples of one kind in a pool, each with how sure it is, and one sentence of advice for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunesampler.influence.influence import Influence
from prunesampler.influence.leave_one_out import check_classes, is_exact, leave_one_out
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.pool.copies import check_similar, copies, directions, originals, unusual
from prunesampler.pool.suspects import TIMES, suspects
from prunesampler.pool.wanted import doubts, own_probability


@dataclass(frozen=True, eq=False)
class Finding:
    """Samples of one kind, the surest first.

    Args:
        indices: The samples, int64, shape (k,).
        confidence: How sure each is, 0 to 1, shape (k,).
        advice: What was seen and what to do, one sentence.
    """

    indices: Tensor
    confidence: Tensor
    advice: str

    def __len__(self) -> int:
        """Number of samples k."""
        return len(self.indices)


NOTHING = torch.empty(0, dtype=torch.int64), torch.empty(0)


def suspect_labels(measurements: Measured, influence: Influence) -> tuple[Finding, Tensor]:
    """Suspect labels, and the probability of every label as `doubts` takes it, shape (n,); 1 if unknown."""
    unknown = torch.ones(len(measurements))
    try:
        held = check_classes(measurements)
        judged = own_probability(held)
        p = leave_one_out(held, influence)
    except (ValueError, RuntimeError) as error:
        return Finding(*NOTHING, f"not applicable: {error}"), unknown
    assert held.labels is not None
    indices, sure = suspects(p, held.labels)
    how = "" if is_exact(influence) else " (the curvature is approximate)"
    text = f"another class is {TIMES:.0f} times as probable, by the layer without the sample{how}"
    advice = (
        f"{text}: look at them; with sure samples Target(wanted) finds more"
        if len(indices)
        else f"none: nowhere {text}"
    )
    if is_exact(influence):
        judged = p.gather(1, held.labels[:, None])[:, 0]
    return Finding(indices, sure, advice), judged


def near_copies(
    measurements: Measured, doubt: Tensor, similar: float | None
) -> tuple[Finding, Tensor]:
    """Near copies of samples that are doubted less, and the groups that they form."""
    alone = torch.full((len(measurements),), -1)
    if similar is not None:
        check_similar(similar)
    try:
        if isinstance(measurements, Sequences):
            raise ValueError("a sequence has features for each token, not of its own")
        features = measurements.inputs
        least = unusual(features) if similar is None else similar
        groups = copies(features, least)
    except ValueError as error:
        return Finding(*NOTHING, f"not applicable: {error}"), alone
    kept = originals(features, groups, doubt, least)
    gone = (kept != torch.arange(len(kept))).nonzero()[:, 0]
    x = directions(features)
    cosines = (x[gone] * x[kept[gone]]).sum(1).clamp(0, 1)
    order = cosines.argsort(descending=True, stable=True)
    text = f"cosine of the features above {least:.3f}"
    if not len(gone):
        return Finding(*NOTHING, f"none: no pair has a {text}"), groups
    differ = _differing(groups, measurements.tokens.labels)
    labels = f"; in {differ} of them labels differ, which are worth a look" if differ else ""
    advice = f"in {int(groups.max()) + 1} groups, {text}: one of each group is enough{labels}"
    return Finding(gone[order], cosines[order], advice), groups


def _differing(groups: Tensor, labels: Tensor | None) -> int:
    """Number of groups whose samples have more than one label."""
    if labels is None:
        return 0
    inside = groups >= 0
    pairs = torch.stack([groups[inside], labels[inside]]).unique(dim=1)  # type: ignore[no-untyped-call]
    return int((torch.bincount(pairs[0]) > 1).sum())


def off_target(measurements: Measured, wanted: Measured | None, own: Tensor) -> Finding:
    """Samples that are not like the wanted ones; ``own`` is what `suspect_labels` returns.

    Both were measured at the same layer.
    """
    if wanted is None:
        return Finding(
            *NOTHING, "no wanted samples given: give wanted=, the scores of some that are sure"
        )
    try:
        found = doubts(measurements, wanted, own)
    except (ValueError, RuntimeError) as error:  # of numbers that no factorisation takes, too
        return Finding(*NOTHING, f"not applicable: {error}")
    indices, lacking = found.off_target(), int(found.unknown.sum())
    if not len(indices):
        return Finding(
            *NOTHING, f"none: labels are believed as those of the {len(wanted)} wanted samples are"
        )
    ranks = torch.searchsorted(found.wanted.sort().values, found.pool[indices])
    text = f"{lacking} have a label that no wanted sample has; " if lacking else ""
    advice = (
        f"{text}so many labels are doubted more than the {len(wanted)} wanted samples' are: drop them, or take "
        "objective=Target(wanted) with a budget of your own"
    )
    return Finding(indices, (ranks / len(wanted)).float(), advice)

"""Samples of one kind in a pool, each with how sure it is, and one sentence of advice for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunesampler.influence.influence import Influence
from prunesampler.influence.leave_one_out import check_classes, is_exact, leave_one_out
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.pool.copies import check_similar, copies, originals
from prunesampler.pool.neighbours import (
    NEIGHBOUR,
    directions,
    joined,
    large,
    repeats,
    unusual,
)
from prunesampler.pool.suspects import TIMES, agreement, suspects
from prunesampler.pool.wanted import doubts, own_probability


@dataclass(frozen=True, eq=False)
class Finding:
    """Samples of one kind, the surest first.

    Args:
        indices: The samples, int64, shape (k,).
        confidence: How sure each is, 0 to 1, shape (k,).
        advice: What was seen and what to do, one sentence.
        originals: Of near copies, the sample that stays of each, int64, shape (k,); else None.
        believed: Of suspect labels, the class that is believed instead, int64, shape (k,); else None.
    """

    indices: Tensor
    confidence: Tensor
    advice: str
    originals: Tensor | None = None
    believed: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples k."""
        return len(self.indices)


ACT = "drop them, or take objective=Target(wanted) with a budget of your own"
GUESSED = "too few to drop any by; take features of a pretrained network"
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
    judged = p.gather(1, held.labels[:, None])[:, 0] if is_exact(influence) else judged
    right, chance, told = agreement(p, held.labels)
    if not told:
        return Finding(
            *NOTHING,
            f"not applicable: without the sample the layer names the label of {right:.0%} of them, chance of "
            f"{chance:.0%}, so it knows too little to doubt any; train longer, or take fewer features than samples",
        ), judged
    how = "" if is_exact(influence) else " (the curvature is approximate)"
    text = f"another class is {TIMES:.0f} times as probable, by the layer without the sample{how}"
    advice = (
        f"{text}: look at them; with sure samples Target(wanted) finds more"
        if len(indices)
        else f"none: nowhere {text}"
    )
    return Finding(indices, sure, advice, believed=p[indices].argmax(1)), judged


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
        directions(measurements.inputs)
    except ValueError as error:
        return Finding(*NOTHING, f"not applicable: {error}"), alone
    groups, text, beside = _copies(measurements.inputs, similar)
    return _but_one_of_each(measurements, groups, doubt, text, beside), groups


def _copies(features: Tensor, similar: float | None) -> tuple[Tensor, tuple[str, float], str]:
    """Groups of near copies or, where nobody can tell them from neighbours, of exact repeats.

    Returns:
        The groups; what they are, in words, with their least cosine; and what else is to be said.
    """
    exact, _ = repeats(features)
    try:
        least = unusual(features) if similar is None else similar
        groups = copies(features, least)
    except ValueError as error:
        return (
            exact,
            ("features that are exactly the same", 1.0),
            f"; of near ones: not applicable: {error}",
        )
    text = f"a cosine of the features above {least:.3f}", least
    # Who gives a cosine of their own wants all that it finds.
    crowd = large(groups) & (exact < 0)
    if similar is not None or not crowd.any():
        return joined(groups, exact), text, ""
    beside = (
        f"; {int(crowd.sum())} samples lie as near in groups of more than {NEIGHBOUR} and are left alone: a kind of "
        f"their own, or copies that similar={least:.3f} finds"
    )
    return joined(torch.where(large(groups), -1, groups), exact), text, beside


def _but_one_of_each(
    measurements: Measured, groups: Tensor, doubt: Tensor, kind: tuple[str, float], beside: str
) -> Finding:
    """What can go of groups of copies."""
    features, (text, least) = measurements.tokens.inputs, kind
    kept = originals(features, groups, doubt, least)
    gone = (kept != torch.arange(len(kept))).nonzero()[:, 0]
    if not len(gone):
        return Finding(*NOTHING, f"none: no pair has {text}{beside}")
    x = directions(features)
    cosines = (x[gone] * x[kept[gone]]).sum(1).clamp(0, 1)
    cosines[(features[gone] == features[kept[gone]]).all(1)] = 1.0
    order = cosines.argsort(descending=True, stable=True)
    differ, number = _differing(groups, measurements.tokens.labels), int(groups.max()) + 1
    labels = f"; in {differ} of them labels differ, which are worth a look" if differ else ""
    many = f"{number} group{'s' * (number > 1)}"
    advice = f"in {many}, with {text}: one of each group is enough{labels}{beside}"
    return Finding(gone[order], cosines[order], advice, originals=kept[gone[order]])


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
        f"{text}so many labels are doubted more than the {len(wanted)} wanted samples' are, by features that tell the "
        f"class of {found.right:.0%} of these: {ACT if found.known else GUESSED}"
    )
    return Finding(indices, (ranks / len(wanted)).float(), advice)

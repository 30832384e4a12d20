"""What a file holds, in the few facts that matter."""

from __future__ import annotations

import math
from functools import singledispatch

from prunesampler.influence.headroom import advice, headroom
from prunesampler.influence.sequences import Sequences
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.select.verdict import percent
from prunesampler.train.trajectory import Trajectory


@singledispatch
def facts(found: object) -> dict[str, str]:
    """Facts by name, the most important first.

    Args:
        found: A selection, scores or a trajectory.

    Raises:
        TypeError: If it is something else.

    Examples:
        >>> import torch
        >>> told = facts(Trajectory(torch.ones(2, 3)))
        >>> told["kind"], told["epochs"]
        ('trajectory', '2, in which 100% of the samples were seen')
    """
    raise TypeError(f"nothing is known of {type(found).__name__}")


@facts.register
def _of_selection(found: Selection) -> dict[str, str]:
    about, told = found.metadata, {"kind": "selection", "samples": f"{found.num_samples:,}"}
    told["kept"] = of(found.num_samples - len(found.pruned), found.num_samples)
    told["budget"] = str(found.budget)
    if about.get("by"):
        told["chosen by"] = about["by"]
    if about.get("layer"):
        told["layer"] = about["layer"]
    if not math.isnan(found.shift):  # a trajectory chooses without one
        told["verdict"] = found.verdict
        told |= dict(line.split(": ", 1) for line in found.certificate.splitlines())
    if found.weights is not None:
        told["weights"] = (
            f"from {float(found.weights.min()):.3g} to {float(found.weights.max()):.3g}"
        )
    if about.get("headroom") is not None:
        told["headroom"] = _room(about["headroom"])
    return told


@facts.register
def _of_scores(found: Scores) -> dict[str, str]:
    measured, labels = found.measurements, found.labels
    told = {"kind": "scores", "samples": f"{len(found):,}"}
    if isinstance(measured, Sequences):
        told["tokens"] = f"{len(measured.tokens):,}"
    if found.layer:
        told["layer"] = found.layer
    told["parameters"] = f"{measured.parameters:,}, which the loss can tell apart"
    if labels is not None:
        told["classes"] = f"{len(labels.unique()):,}"  # type: ignore[no-untyped-call]
    told["mean loss"] = f"{float(measured.losses.double().mean()):.4g}"
    told["headroom"] = _room(headroom(measured.errors))
    if found.wanted is not None:
        told["wanted"] = f"{len(found.wanted):,} samples"
    return told


@facts.register
def _of_trajectory(found: Trajectory) -> dict[str, str]:
    told = {"kind": "trajectory", "samples": f"{found.num_samples:,}", "epochs": str(len(found))}
    if len(found):
        seen = float((~found.errors.isnan()).float().mean())
        told["epochs"] += f", in which {seen:.0%} of the samples were seen"
    if found.layer:
        told["layer"] = found.layer
    told["errors"] = "in units of the loss" if found.exact else "as shares of their batch's mean"
    if len(found):
        rooms = found.headrooms()
        told["headroom"] = f"{rooms[0]:.2f} after the first epoch; at the end {_room(rooms[-1])}"
    return told


def of(count: float, whole: int) -> str:
    """A number, and its share of the whole.

    Examples:
        >>> of(1500, 6000)
        '1,500 (25 %)'
    """
    return f"{count:,.0f} ({percent(count / whole)})"


def _room(share: float) -> str:
    """The advice of a headroom, without the word."""
    return advice(share).removeprefix("headroom ")

"""Whether a selection is better than a random one: numbers, and the same in plain English."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

BETTER, HARDLY = 0.5, 0.9
"""Below these shares of a random set's shift a set is better than random, or hardly better."""
FEW = 3.0
"""With fewer samples per parameter there is little to choose. With logistic heads on CIFAR-10
features and exact curvature, 3 left a quarter of a random set's shift, and 12 a thirtieth."""
EXACT = ("ExactCurvature", "BlockCurvature")
"""Curvatures whose reported shifts are exact."""

NUMBERS = {
    "measuring_seconds",
    "curvature_seconds",
    "solving_seconds",
    "certificate_seconds",
    "damping",
    "parameters",
    "random_shift",
    "random_newton_shift",
    "residual",
    "mean_loss",
    "headroom",
}
TEXTS = {"curvature", "metric", "layer", "by"}
"""Names of the facts that are numbers, and that are texts; each may be None or missing."""
LARGEST = 2**63
"""Whole numbers beyond it are of no selection."""


class Compared(NamedTuple):
    """The predicted shift of a set, and that of a random set of the same size.

    Examples:
        >>> Compared("to first order", own=0.02, random=1.0).ratio
        0.02
    """

    how: str
    own: float
    random: float

    @property
    def ratio(self) -> float:
        """The set's shift as a share of the random set's; 1 when both are zero."""
        if self.random > 0:
            return self.own / self.random
        return math.inf if self.own > 0 else 1.0

    def __str__(self) -> str:
        share = "" if not self.random > 0 else f", so it is {percent(self.ratio)} of that"
        return f"by {self.own:.3g} {self.how} (a random set by {self.random:.3g}{share})"


def checked_facts(facts: Any) -> dict[str, Any]:
    """Check the facts of a selection that was read from a file, and return them.

    Raises:
        TypeError: If they are not values by name, or a known fact has another type.

    Examples:
        >>> checked_facts({"layer": "fc", "damping": 0.1})
        {'layer': 'fc', 'damping': 0.1}
    """
    if not isinstance(facts, dict):
        raise TypeError(f"metadata must be values by name, got {facts!r}")
    for name, value in facts.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in NUMBERS and not (value is None or number):
            raise TypeError(f"{name} in metadata must be a number, got {value!r}")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise TypeError(f"{name} in metadata is a number beyond 2**63")
        if name in TEXTS and not (value is None or isinstance(value, str)):
            raise TypeError(f"{name} in metadata must be a text, got {value!r}")
    return facts


def compare(shift: float, newton_shift: float, facts: Mapping[str, Any]) -> list[Compared]:
    """Pair each prediction for the set with that for a random set, where both are known.

    Args:
        shift: Norm of the set's first-order shift.
        newton_shift: Norm of the set's Newton shift, or NaN.
        facts: See `prunesampler.select.selection.Selection.metadata`.

    Examples:
        >>> [pair.ratio for pair in compare(0.1, math.nan, {"random_shift": 1.0})]
        [0.1]
    """
    pairs = [
        ("to first order", shift, facts.get("random_shift")),
        ("after a Newton step", newton_shift, facts.get("random_newton_shift")),
    ]
    return [
        Compared(how, own, float(random))
        for how, own, random in pairs
        if random is not None and not math.isnan(own) and not math.isnan(random)
    ]


def largest_ratio(pairs: list[Compared]) -> float:
    """The largest, so least favourable, of the ratios; NaN where there is none.

    Examples:
        >>> largest_ratio([Compared("a", 0.1, 1.0), Compared("b", 0.4, 1.0)])
        0.4
    """
    return max((pair.ratio for pair in pairs), default=math.nan)


def in_words(pairs: list[Compared], pruned: int, num_samples: int, facts: Mapping[str, Any]) -> str:
    """Compare the set with a random one in words, with samples per parameter and likely reasons.

    Args:
        pairs: Predictions for the set and for a random one.
        pruned: Number of samples pruned.
        num_samples: Number of samples in the dataset.
        facts: See `prunesampler.select.selection.Selection.metadata`.

    Examples:
        >>> in_words([], 0, 100, {})
        'Nothing was pruned, so there is nothing to hold against a random set.'
    """
    layer = f"layer {facts['layer']!r}" if facts.get("layer") else "the scored layer"
    parameters = facts.get("parameters")
    room = num_samples / parameters if parameters else None
    sentences = []
    if not pruned:
        sentences.append("Nothing was pruned, so there is nothing to hold against a random set.")
    elif not pairs:
        sentences.append("Nothing is known of random sets, so there is no verdict.")
    else:
        sentences.append(
            f"The set is {_grade(largest_ratio(pairs))}: it shifts {layer} "
            + " and ".join(map(str, pairs))
            + "."
        )
    if room is not None:
        sentences.append(
            f"There are {room:.3g} samples for each of the {parameters} parameters of {layer}."
        )
    if pruned and largest_ratio(pairs) >= BETTER:
        sentences.append(_reason(facts, room))
    return " ".join(sentences)


def percent(share: float) -> str:
    """A share in per cent, with two digits where it is small.

    Examples:
        >>> percent(0.42), percent(0.0123)
        ('42 %', '1.2 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _grade(ratio: float) -> str:
    if ratio < BETTER:
        return "better than a random set"
    return "hardly better than a random set" if ratio < HARDLY else "no better than a random set"


def _reason(facts: Mapping[str, Any], room: float | None) -> str:
    """A sentence with likely reasons why a set is no better than a random one."""
    reasons = []
    if facts.get("cost"):
        reasons.append("the objective is another than the shift")
    if facts.get("curvature") not in (None, *EXACT):
        reasons.append(f"the curvature is approximate ({facts['curvature']})")
    if room is not None and room < FEW:
        reasons.append("there are few samples per parameter, so there is little to choose")
    # Along most parameters the loss is then flat: their own shift says little of the model.
    flat = room is not None and room < 1 and facts.get("metric") == "parameter_distance"
    advice = (
        " In units of the loss, objective=KeepHead(loss_distance), the share is mostly smaller."
    )
    if reasons:
        return f"The usual reason is that {', and that '.join(reasons)}.{advice * flat}"
    return (
        "Few samples per parameter and an approximate curvature are the usual reasons; here look at "
        "the floors per class, the constraints and the solver."
    )

"""Parts of a selection's page that look at single samples: classes, distributions, galleries."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prunesampler.influence.influence import Influence
from prunesampler.influence.leave_one_out import is_exact
from prunesampler.page.charts import Bar, Group, histogram
from prunesampler.page.layout import Chart, Section, Tile
from prunesampler.page.texts import count, figure, percent, sentence
from prunesampler.select.samples import Names, read_samples, spread
from prunesampler.select.sections import class_charts

SHOWN = 24
"""Samples in a gallery."""
WORK, MOST = 5e10, 10_000
"""Multiply-adds that exact norms of influences may take, a few seconds, and of how many samples; they stand for all."""


class Split(Protocol):
    """Samples that are cut in two, as by a selection."""

    @property
    def num_samples(self) -> int:
        """Number of samples n."""

    @property
    def pruned(self) -> Tensor:
        """Indices to prune, int64, ascending."""

    @property
    def kept(self) -> Tensor:
        """Indices that stay, int64, ascending."""


@dataclass(frozen=True)
class Measures:
    """What scores know of each of n samples.

    Args:
        errors: Norm of the gradient of each loss with respect to the outputs, shape (n,).
        labels: Class of each sample, int64, shape (n,), or None.
        influence: Influence of the samples.

    Examples:
        >>> vectors = torch.tensor([[1.0], [-1.0]])
        >>> len(Measures(torch.ones(2), None, Influence.from_vectors(vectors)).errors)
        2
    """

    errors: Tensor
    labels: Tensor | None
    influence: Influence


def classes_section(split: Split, labels: Tensor, names: Names) -> Section:
    """The kept share of every class, the least kept first."""
    overall = len(split.kept) / split.num_samples
    present, places = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    sizes = torch.bincount(places, minlength=len(present))
    stay = torch.bincount(places[split.kept], minlength=len(present))
    shares = stay.double() / sizes
    rows = []
    for k in shares.argsort(stable=True).tolist():
        name, share = names.of(int(present[k])), float(shares[k])
        value = f"{percent(share)} of {count(int(sizes[k]))}"
        rows.append(Bar(name, value, (("kept", share), ("gone", 1 - share))))
    charts = class_charts(
        rows,
        ("Kept share of each class", "The classes that keep least", "The classes that keep most"),
        lambda some: (
            f"Kept share of {len(some)} classes, from {some[0].value} to {some[-1].value}."
        ),
        f"Blue is kept, the paler rest is left out. The dashed line is what all samples keep, {percent(overall)}.",
        overall,
    )
    lost = int((stay == 0).sum())
    worst, best = float(shares.min()), float(shares.max())
    many = "classes keep" if len(rows) > 1 else "class keeps"
    told = (
        f"The {count(len(rows))} {many} from {percent(worst)} to {percent(best)} of their samples."
    )
    if lost:
        told += f" {count(lost)} of them keep{'s' * (lost == 1)} none: Budget(min_per_class=) sets a floor."
    return Section("classes", "Kept share per class", (told,), charts=charts)


def distributions_section(split: Split, measures: Measures) -> Section:
    """Errors and norms of influence of kept and pruned samples."""
    out = torch.zeros(split.num_samples, dtype=torch.bool)
    out[split.pruned] = True
    everyone = torch.arange(len(out))
    some, norms = influence_norms(measures.influence)
    charts = [
        _distribution(
            "Error",
            "The norm of the loss's gradient at the outputs: zero where the model is sure and right.",
            everyone,
            measures.errors,
            out,
        ),
        _distribution(
            "Influence",
            "How far the layer moves without this one sample."
            + (f" Of {count(len(some))} samples." if len(some) < len(out) else ""),
            some,
            norms,
            out,
        ),
    ]
    found = tuple(chart for chart in charts if chart is not None)
    told = "Above the axis what stays, below it what is left out; each as shares of its own kind."
    return Section("distributions", "Errors and influence", (told,), charts=found)


def _distribution(
    title: str, meaning: str, samples: Tensor, values: Tensor, out: Tensor
) -> Chart | None:
    """A histogram of kept and pruned; None where no number is finite."""
    numbers, gone = values.double().cpu().numpy(), out[samples].numpy()
    kept, pruned = numbers[~gone], numbers[gone]
    groups = (
        Group(f"kept: {count(len(kept))}", "kept", kept),
        Group(f"pruned: {count(len(pruned))}", "pruned", pruned),
    )
    if not any(len(group.finite()) for group in groups):
        return None
    medians = [
        f"half of the {group.look} have more than {figure(float(np.median(group.finite())))}"
        for group in groups
        if len(group.finite())
    ]
    said = ", ".join(medians)
    alternative = f"{title} of kept and pruned samples: {said}."
    return Chart(title, histogram(*groups, alternative), f"{meaning} {sentence(said)}")


def influence_norms(
    influence: Influence, work: float = WORK, most: int = MOST
) -> tuple[Tensor, Tensor]:
    """Norms of the influence of samples: of all, or evenly spaced ones where all would take too long.

    Args:
        influence: Influence of n samples.
        work: Multiply-adds that they may take where the curvature is exact.
        most: Number of samples to take there at most.

    Returns:
        Indices, int64, shape (k,), ascending, and norms, float64, shape (k,).

    Examples:
        >>> influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]))
        >>> influence_norms(influence)[1].tolist()
        [1.0, 1.0, 3.0, 3.0]
    """
    step = 1
    if is_exact(influence):
        affordable = min(most, work / (2 * math.prod(influence.gradients.shape) ** 2))
        step = max(1, math.ceil(len(influence) / affordable))
    some = torch.arange(0, len(influence), step)
    part = influence if step == 1 else replace(influence, gradients=influence.gradients[some])
    return some, part.sample_squares().clamp(min=0).sqrt() / len(influence)


def gallery_sections(
    split: Split, dataset: Any, measures: Measures | None, names: Names
) -> list[Section]:
    """Some of the pruned and some of the kept samples, if scores are known from easy to hard."""
    kinds = {"pruned": split.pruned, "kept": split.kept}
    if measures is not None:
        kinds = {name: held[measures.errors[held].argsort()] for name, held in kinds.items()}
    chosen = {name: spread(held, SHOWN) for name, held in kinds.items()}
    samples = read_samples(dataset, [index for some in chosen.values() for index in some])
    found = []
    for name, some in chosen.items():
        tiles = []
        for index in some:
            label, facts = samples[index].label, [("sample", str(index))]
            if measures is not None and measures.labels is not None:
                label = int(measures.labels[index])
            if label is not None:
                facts.append(("class", names.of(label)))
            if measures is not None:
                facts.append(("error", figure(float(measures.errors[index]))))
            said = f"Sample {index}, class {names.of(label)}, {name}"
            tiles.append(Tile(((samples[index].picture, said),), tuple(facts)))
        order = "by their place in the dataset" if measures is None else "from easy to hard"
        told = f"{count(len(tiles))} of {count(len(kinds[name]))}, evenly spaced {order}."
        if tiles:
            title = f"Samples that are {'left out' if name == 'pruned' else 'kept'}"
            found.append(Section(name, title, (told,), tiles=tuple(tiles)))
    return found

"""Where in a training run a selection was made, and what a page says of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from prunesampler.page.charts import Bar, bars
from prunesampler.page.layout import Chart, Section
from prunesampler.page.texts import count, figure, percent
from prunesampler.select.measured import Split

MOST = 12
"""Stretches of epochs that a page shows; of more the first ones."""


@dataclass(frozen=True)
class Moment:
    """Where in a training run a selection was made.

    Args:
        epoch: Epoch that ended before it, counted from 0.
        seconds: Number of seconds that selecting took in all.
        epoch_seconds: Number of seconds that the epoch before it took, or None if unknown.
        lengths: Number of samples of the next epoch and of each after it; empty where the end is unknown.
        before: Indices of the samples that were kept before it, int64, or None if those were all.

    Examples:
        >>> Moment(4, 2.0, 10.0, (30,) * 15, None).title
        'After epoch 4'
    """

    epoch: int
    seconds: float
    epoch_seconds: float | None
    lengths: tuple[int, ...]
    before: Tensor | None

    @property
    def title(self) -> str:
        """When it was, in words."""
        return f"After epoch {self.epoch}"

    @property
    def share(self) -> str:
        """The time that selecting took beside that of an epoch, in words; nothing where that is unknown."""
        if not self.epoch_seconds:
            return ""
        ratio = self.seconds / self.epoch_seconds
        often = f"{ratio:,.0f} times" if ratio > 10 else f"{percent(ratio)} of"
        return f"{often} the epoch before it, which took {figure(self.epoch_seconds)} s"


def plan_section(moment: Moment, num_samples: int) -> Section | None:
    """The number of samples in each epoch that is left, and what that saves; None where the end is unknown.

    Args:
        moment: When the selection was made.
        num_samples: Number of samples n.

    Examples:
        >>> plan_section(Moment(4, 2.0, 10.0, (30,) * 15, None), 50).sentences[0][:53]
        'The 15 epochs that are left have 450 samples together'
    """
    if not moment.lengths:
        return None
    total, epochs = sum(moment.lengths), len(moment.lengths)
    left = "epoch that is left has" if epochs == 1 else "epochs that are left have"
    told = (
        f"The {count(epochs)} {left} {count(total)} samples together, "
        f"{percent(total / (epochs * num_samples))} of what as many epochs on all data have."
    )
    rows = [
        Bar(name, f"{count(size)} samples each", (("kept", min(1.0, size / num_samples)),))
        for name, size in _stretches(moment.lengths, moment.epoch + 1)
    ]
    alternative = "; ".join(f"{row.name}: {row.value}" for row in rows)
    chart = Chart(
        "Samples in each epoch", bars(rows, f"{alternative}."),
        f"Of {count(num_samples)}; later selections have the same budget.",
    )  # fmt: skip
    return Section("plan", "Plan of the run", (told,), charts=(chart,))


def _stretches(lengths: tuple[int, ...], start: int) -> Iterator[tuple[str, int]]:
    """Neighbouring epochs of as many samples, counted from a start, and that number; the first of very many."""
    for number, (size, same) in enumerate(groupby(lengths)):
        end = start + len(list(same))
        if number == MOST:
            return
        yield (f"epoch {start}" if end - start == 1 else f"epochs {start} to {end - 1}"), size
        start = end


def changes_section(split: Split, before: Tensor) -> Section:
    """How many samples came back and how many went, against the set before.

    Args:
        split: The new set.
        before: Indices of the samples that were kept before it, int64.
    """
    n, kept = split.num_samples, len(split.kept)
    stays = int(torch.isin(split.kept, before).sum())
    back, gone = kept - stays, len(before) - stays
    rows = [
        Bar(name, f"{count(size)}, {percent(size / n)}", ((look, size / n),))
        for name, size, look in (
            ("kept again", stays, "kept"),
            ("came back", back, "fair"),
            ("left out now", gone, "pruned"),
            ("left out again", n - kept - gone, "gone"),
        )
    ]
    said = ", ".join(f"{row.name} {row.value}" for row in rows)
    chance = percent(len(before) / n)
    told = (
        f"Of the {count(kept)} samples that stay, {percent(stays / kept)} stayed before, too; of a "
        f"set drawn at random it would be {chance}."
    )
    chart = Chart(
        "Against the set before", bars(rows, f"{said}."), f"Shares of all {count(n)} samples."
    )
    return Section("changes", "What changed", (told,), charts=(chart,))

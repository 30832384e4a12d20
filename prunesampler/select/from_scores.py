"""What a pruner answers from scores at hand, without a pass over the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from prunesampler.base.checks import warn
from prunesampler.base.processes import current_group, together
from prunesampler.influence.automatic import AutoCurvature
from prunesampler.influence.states import class_labels
from prunesampler.influence.weights import SPREAD
from prunesampler.measure.batches import content
from prunesampler.measure.reading import Reading
from prunesampler.measure.scored_set import ScoredSet
from prunesampler.select.choosing import choose_together, weigh_together
from prunesampler.select.scores import Scores, check_same, check_wanted
from prunesampler.select.selection import Selection
from prunesampler.select.selector import Selector
from prunesampler.solve.budget import Budget, Constraints


class AnswersFromScores:
    """The part of `prunesampler.InfluencePruner` that needs no model.

    Attributes:
        num_samples: number of samples n.
        budget: how much to prune.
        progress: whether progress is shown in the terminal.

    Examples:
        >>> from prunesampler import InfluencePruner
        >>> issubclass(InfluencePruner, AnswersFromScores)
        True
    """

    num_samples: int
    budget: Budget
    progress: bool
    _data: ScoredSet
    _selector: Selector

    @property
    def reading(self) -> Reading:
        """How samples are read."""
        raise NotImplementedError

    def _settings(self) -> bytes:
        """The content of all settings that must be the same on all ranks."""
        chosen = self._selector
        constraints = (chosen.constraints or Constraints()).indices(self.num_samples)
        numbers = [self.num_samples, self.reading.batch_size, chosen.seed, repr(self.budget)]
        return content([numbers, *constraints, chosen.objective.settings()])

    def choose_from(self, scores: Scores | None) -> Selection:
        """Select from scores at hand, by this pruner's budget, objective and constraints, without a pass.

        Call it on all processes. The scores may be another pruner's over the same samples, or loaded. Layer,
        loss, curvature, damping and wanted samples are the scores' own; classes are this pruner's
        ``labels=`` or, without them, the scores'.

        Args:
            scores: Scores on rank 0; None on the others.

        Raises:
            TypeError: If they are no scores.
            ValueError: If they are of another dataset, of another curvature than one that was given to this
                pruner, hold no or other wanted samples than the objective needs, or the budget cannot be met.

        Examples:
            >>> import torch
            >>> from prunesampler import InfluencePruner
            >>> data = [(torch.randn(4), i % 3) for i in range(60)]
            >>> scores = InfluencePruner(data, budget=Budget(count=9), progress=False).measure(torch.nn.Linear(4, 3))
            >>> more = InfluencePruner(data, budget=Budget(count=30), progress=False)
            >>> len(more.choose_from(scores).pruned)
            30
        """
        group = self._data.meet("choose_from", self.reading)
        group.check_equal("the pruners", self._settings())

        def ready() -> Scores | None:
            if scores is None and group.rank == 0:
                raise ValueError(
                    "no scores on rank 0: give choose_from what measure returned there"
                )
            if scores is None or group.rank != 0:
                return None
            if not isinstance(scores, Scores):
                raise TypeError(
                    f"choose_from takes scores, got {type(scores).__name__}; read a file with Scores.load(path)"
                )
            check_same(scores, self.num_samples, self._data.look(self.reading))
            return self._adopted(scores)

        held = together(group, ready)
        return self._warned(choose_together(held, self._selector.select, "solving", self.progress))

    def redraw(self, scores: Scores | None, ages: Tensor, *, certify: bool = False) -> Selection:
        """Select again from the same scores; call it on all processes.

        Args:
            scores: Scores that `measure` returned on rank 0; None on the others.
            ages: Number of draws in a row for which each sample was left out, or, as a negative
                number, kept; int64, shape (n,). Zeros give the selection that `select` gives.
            certify: Whether to compute the Newton shift and the kept curvature, which takes longer.

        Raises:
            ValueError: If the scores are of another number of samples.
        """
        group = current_group()
        group.meet("redraw")

        def ready() -> Scores | None:
            if scores is None:
                return None
            check_same(scores, self.num_samples, None)
            return self._relabelled(scores)

        held = together(group, ready)  # an error on rank 0 must reach the others, who wait for it
        choose = partial(self._selector.redraw, ages=ages, certify=certify)
        return choose_together(held, choose, "redrawing", self.progress)

    def weights(
        self, scores: Scores | None, selection: Selection, spread: float = SPREAD
    ) -> Tensor:
        """Weights, float32, shape (n - m,), to fit a head to ``selection.kept`` by ``sample_weight``.

        With them the head is nearer to that of all samples. ``dataclasses.replace(selection,
        weights=...)`` keeps them with the selection. Call this on all processes.

        Args:
            scores: Scores that `measure` returned on rank 0; None on the others.
            selection: Which samples are kept.
            spread: Largest root mean square of ``weights - 1`` (see `kept_weights`).

        Raises:
            ValueError: If the selection is of another dataset, or ``spread`` is not positive.
        """
        current_group().meet("weights")
        return weigh_together(scores, selection, spread)

    def scores_from(self, state: Mapping[str, Any]) -> Scores:
        """Build scores from their ``state_dict`` on rank 0, without a pass over the data.

        Raises:
            ValueError: If the state is incomplete, belongs to another dataset, or holds no wanted samples that
                the objective needs.
        """
        chosen = self._selector
        return self._adopted(
            Scores.from_state(state, self.num_samples, chosen.curvature, chosen.center)
        )

    def _adopted(self, scores: Scores) -> Scores:
        """Scores that another pruner made, with the labels and the metric of this one.

        Raises:
            ValueError: If they hold no or other wanted samples than the objective needs, or were made with
                another curvature.
        """
        objective = self._selector.objective
        mine, theirs = self._selector.curvature, scores.curvature
        if mine not in (AutoCurvature(), theirs) or self._selector.center != scores.centred:
            raise ValueError(
                f"the scores were made with {theirs} and center={scores.centred}, this pruner has {mine} and "
                f"center={self._selector.center}; give it the same, or no curvature=, or measure again"
            )
        if objective.wanted is not None and scores.wanted is None:
            raise ValueError(
                f"{type(objective).__name__} needs wanted samples, and these scores hold none; measure with a "
                "pruner of this objective"
            )
        if objective.wanted is not None:
            look = ScoredSet(objective.wanted)
            check_wanted(scores, look.num_samples, look.look(self.reading))
        return self._relabelled(scores)

    def _relabelled(self, scores: Scores) -> Scores:
        """Scores with the classes and the metric of this pruner."""
        given = self._selector.labels
        labels = scores.labels if given is None else class_labels(given, self.num_samples)
        influence = replace(scores.influence, metric=self._selector.objective.metric)
        return replace(scores, labels=labels, influence=influence)

    def _warned(self, selection: Selection) -> Selection:
        """The selection, with a warning where it is worth little."""
        if current_group().rank != 0:
            return selection
        if not len(selection.pruned) and self.budget.epsilon:
            warn(
                f"no sample was pruned: epsilon={self.budget.epsilon} is below the shift of every set found"
            )
        named = (self._selector.constraints or Constraints()).indices(self.num_samples)[1]
        asked = selection.metadata["cost"] or len(named) == len(selection.pruned)
        if not (selection.beats_random or asked):
            warn(
                f"the {len(selection.pruned)} pruned samples are no better chosen than at random: the "
                f"predicted shift is {selection.ratio:.0%} of a random set's; selection.verdict says more"
            )
        return selection

"""The trials that a budget needs: one for a count, several to find the most an epsilon allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from prunesampler.base.progress import Progress
from prunesampler.solve.problem import Problem, Solution

SCAN = 16
"""Number of counts to try, evenly spaced, if bisection finds nothing."""


class Trials:
    """Problems of one count, one after another, until the budget is met.

    A solver iterates over them and notes a set of low energy for each; then ``solution`` is set.
    For a fraction or a count there is one trial. With epsilon the count is bisected, then single
    samples are added as long as one fits: the set is feasible in float64, and no further sample
    can be added to it (where inverses are iterative, none is tried). The smallest shift usually grows with the count, but not always, so a
    larger set may be missed; if bisection finds nothing, counts are tried from the largest down.
    A cost is ignored where it leads to sets beyond epsilon.

    Args:
        problem: Influence, budget and limits.
        progress: Called with the number of trials done and the number in all, or None.

    Raises:
        ValueError: If the budget cannot be met, or no set within epsilon was found that holds the
            samples that must be pruned.

    Examples:
        >>> from prunesampler import Budget, Influence
        >>> influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]))
        >>> trials = Trials(Problem.of(influence, Budget(count=2)))
        >>> for problem, count in trials:
        ...     trials.note(problem.free[:count])
        >>> trials.solution.pruned.tolist(), trials.solution.norm
        ([0, 1], 0.0)
    """

    def __init__(self, problem: Problem, progress: Progress | None = None) -> None:
        self._problem, self._progress, self._most = problem, progress, problem.count()
        self.solution = problem.solution(problem.forced)
        self._noted: Tensor | None = None

    @property
    def progress(self) -> Progress | None:
        """Where a solver reports its own steps, or None if the trials themselves are reported."""
        return None if self._problem.budget.epsilon is not None else self._progress

    def note(self, pruned: Tensor) -> None:
        """Record the set found for the current trial: indices, int64, ascending."""
        self._noted = pruned

    def __iter__(self) -> Iterator[tuple[Problem, int]]:
        """Yield the problem and the count of each trial."""
        if not len(self._problem):  # constraints have settled everything
            return
        epsilon = self._problem.budget.epsilon
        if epsilon is not None:
            yield from self._within(epsilon)
            return
        yield self._problem, self._most
        assert self._noted is not None
        self.solution = self._problem.solution(self._noted)

    def _within(self, epsilon: float) -> Iterator[tuple[Problem, int]]:
        """Bisect the count; the solution is the largest set found within epsilon."""
        forced, most = len(self._problem.forced), self._most
        low, high, count = forced, most, most
        rounds, done = max(1, most - low).bit_length() + 1, 0
        while low < high:
            before = len(self.solution.pruned)
            yield from self._try(count, epsilon)
            low, high = (count, high) if len(self.solution.pruned) > before else (low, count - 1)
            count = (low + high + 1) // 2
            done += 1
            if self._progress:
                self._progress(min(done, rounds - 1), rounds)
        if len(self.solution.pruned) == forced:
            span = most - forced
            for count in sorted({most - k * span // SCAN for k in range(SCAN)} - {forced})[::-1]:
                yield from self._try(count, epsilon)
                if len(self.solution.pruned) > forced:
                    break
        if self.solution.norm > epsilon:
            raise ValueError(
                f"no set was found that holds the {forced} samples in prune= and shifts the "
                f"parameters by at most epsilon={epsilon:.4g}; alone they shift them by "
                f"{self.solution.norm:.4g}: raise epsilon to that, or prune fewer of them"
            )
        self.solution = _grow(self._problem, self.solution, most, epsilon)
        if self._progress:
            self._progress(rounds, rounds)

    def _try(self, count: int, epsilon: float) -> Iterator[tuple[Problem, int]]:
        """Try a count with its costs, else without; a larger set within epsilon is the solution."""
        plain = [] if self._problem.cost is None else [replace(self._problem, cost=None)]
        for trial in (self._problem, *plain):
            yield trial, count
            assert self._noted is not None
            found = self._problem.solution(self._noted)
            if found.norm <= epsilon:
                if len(found.pruned) > len(self.solution.pruned):
                    self.solution = found
                return


def _grow(problem: Problem, found: Solution, most: int, epsilon: float) -> Solution:
    """Add single samples, the one with the smallest shift first, while one stays within epsilon."""
    if len(found.pruned) >= most or problem.influence.iterative:
        return found
    n, influence, free = len(problem.influence), problem.influence, problem.free
    squares = influence.sample_squares()[free]
    taken = torch.isin(free, found.pruned)
    while True:
        gradient = influence.gradient_sum(found.pruned)
        after = squares + float(influence.squares(gradient[None]))
        after += 2 * influence.products(gradient)[free]
        norms = after.clamp(min=0).sqrt() / (n - len(found.pruned) - 1)
        fits = ~taken & _fitting(problem, found.pruned, most)
        # Rounding may mislead close to epsilon, so the norm of the whole set decides.
        hopeful = (fits & (norms <= epsilon * (1 + 1e-6))).nonzero().flatten()
        for place in hopeful[norms[hopeful].argsort()].tolist():
            larger = problem.solution(torch.cat([found.pruned, free[place, None]]).sort().values)
            if larger.norm <= epsilon:
                found, taken[place] = larger, True
                break
        else:
            return found


def _fitting(problem: Problem, pruned: Tensor, most: int) -> Tensor:
    """Which free samples the floors and the cap still allow to prune; bool, shape (U,)."""
    fits = torch.full((len(problem),), len(pruned) < most)
    floors = problem.budget.floors(problem.labels, min(len(pruned) + 1, len(problem.influence)))
    if floors is None or problem.labels is None:
        return fits
    kept = torch.bincount(problem.labels, minlength=len(floors))
    kept -= torch.bincount(problem.labels[pruned], minlength=len(floors))
    return fits & (kept > floors)[problem.labels[problem.free]]

"""Plots of the shift against the fraction pruned; they need matplotlib."""

from __future__ import annotations

import os

from prunesampler.select.frontier import Frontier


def plot_frontier(frontier: Frontier, path: str | os.PathLike[str]) -> None:
    """Plot the predicted shift of selected and random sets against the fraction pruned.

    Args:
        frontier: Frontier to draw.
        path: Image file to write; its extension determines the format.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile, torch
        >>> from prunesampler import Budget, Selection
        >>> known = {"metadata": {"random_shift": 2.0}, "curvature_share": 0.9}
        >>> selection = Selection(
        ...     torch.tensor([1, 4]), 6, 0.5, 0.6, None, Budget(count=2), **known
        ... )
        >>> plot_frontier(Frontier((selection,)), os.path.join(tempfile.mkdtemp(), "frontier.png"))
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "prunesampler[plots]"') from error
    fraction, shift, newton, random, _ = frontier.array.T
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(100 * fraction, random, "o--", color="0.5", label="random set")
    axes.semilogy(100 * fraction, shift, "o-", color="C0", label="selected, first order")
    axes.semilogy(100 * fraction, newton, "x:", color="C1", label="selected, Newton")
    axes.set_xlabel("samples pruned (%)")
    axes.set_ylabel("predicted shift of the parameters")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(os.fspath(path), dpi=150)

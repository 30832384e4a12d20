"""Plots of the shift against the fraction pruned, and of the headroom; they need matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prunesampler.influence.headroom import COSTS, PAYS
from prunesampler.select.frontier import Frontier


def plot_frontier(frontier: Frontier, path: str | os.PathLike[str]) -> None:
    """Plot the predicted shift of selected and random sets against the fraction pruned.

    Args:
        frontier: Frontier to draw.
        path: Image file to write; its extension determines the format.

    Raises:
        ImportError: If matplotlib is not installed.

    Examples:
        >>> import tempfile, torch
        >>> from prunesampler import Budget, Selection
        >>> known = {"metadata": {"random_shift": 2.0}, "curvature_share": 0.9}
        >>> selection = Selection(
        ...     torch.tensor([1, 4]), 6, 0.5, 0.6, None, Budget(count=2), **known
        ... )
        >>> plot_frontier(Frontier((selection,)), os.path.join(tempfile.mkdtemp(), "frontier.png"))
    """
    figure, axes = _figure()
    fraction, shift, newton, random, _ = frontier.array.T
    axes.semilogy(100 * fraction, random, "o--", color="0.5", label="random set")
    axes.semilogy(100 * fraction, shift, "o-", color="C0", label="selected, first order")
    axes.semilogy(100 * fraction, newton, "x:", color="C1", label="selected, Newton")
    axes.set_xlabel("samples pruned (%)")
    axes.set_ylabel("predicted shift of the parameters")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(os.fspath(path), dpi=150)


def plot_headroom(headrooms: Sequence[float], path: str | os.PathLike[str]) -> None:
    """Plot the headroom of every epoch, and where leaving out easy samples costs or can pay.

    Args:
        headrooms: One for each epoch, as ``Trajectory.headrooms()`` gives them.
        path: Image file to write; its extension determines the format.

    Raises:
        ImportError: If matplotlib is not installed.

    Examples:
        >>> import tempfile
        >>> plot_headroom([0.6, 0.8, 0.92], os.path.join(tempfile.mkdtemp(), "headroom.png"))
    """
    figure, axes = _figure()
    axes.axhspan(0.5, COSTS, color="C3", alpha=0.1, label="fewer epochs on all samples")
    axes.axhspan(PAYS, 1.0, color="C2", alpha=0.1, label="leaving out the easy half can pay")
    axes.plot(range(1, len(headrooms) + 1), headrooms, "o-", color="C0")
    axes.set_ylim(0.5, 1.0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("share of the gradient in the hardest half")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(os.fspath(path), dpi=150)


def _figure() -> tuple[Any, Any]:
    """An empty figure and its axes, outside of pyplot, so that nothing global is touched."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "prunesampler[plots]"') from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    return figure, figure.add_subplot()

"""Plots by matplotlib, on axes of the caller's or on new ones; nothing global is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def axes_for(ax: Any) -> Any:
    """These axes or, for None, new ones outside of pyplot.

    Raises:
        ImportError: If matplotlib is not installed.

    Examples:
        >>> axes_for(None).get_title()
        ''
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "prunesampler[plots]"') from error
    return Figure(figsize=(6, 4), layout="constrained").add_subplot()


def draw_shifts(ax: Any, columns: NDArray[np.float64]) -> Any:
    """Predicted shifts of selected and of random sets against the share pruned.

    Args:
        ax: Axes, or None for new ones.
        columns: Share pruned, shift, Newton shift and shift of random sets, float64, shape (4, k).
    """
    axes, (fraction, shift, newton, random) = axes_for(ax), columns
    axes.semilogy(100 * fraction, random, "o--", color="0.5", label="random set")
    axes.semilogy(100 * fraction, shift, "o-", color="C0", label="selected, first order")
    axes.semilogy(100 * fraction, newton, "x:", color="C1", label="selected, Newton")
    axes.set_xlabel("samples pruned (%)")
    axes.set_ylabel("predicted shift of the parameters")
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def draw_headrooms(ax: Any, headrooms: Sequence[float], costs: float, pays: float) -> Any:
    """The headroom of every epoch, and where leaving out easy samples costs or can pay.

    Args:
        ax: Axes, or None for new ones.
        headrooms: One for each epoch.
        costs: Below this, leaving out the easy costs.
        pays: Above this, it can pay.
    """
    axes = axes_for(ax)
    axes.axhspan(0.5, costs, color="C3", alpha=0.1, label="fewer epochs on all samples")
    axes.axhspan(pays, 1.0, color="C2", alpha=0.1, label="leaving out the easy half can pay")
    axes.plot(range(1, len(headrooms) + 1), headrooms, "o-", color="C0")
    axes.set_ylim(0.5, 1.0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("share of the gradient in the hardest half")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return axes


def draw_bars(ax: Any, values: Mapping[str, float], label: str) -> Any:
    """Lying bars, the first on top, with their values.

    Args:
        ax: Axes, or None for new ones.
        values: Length of each bar by its name.
        label: What the lengths are.
    """
    axes, names = axes_for(ax), list(values)[::-1]
    bars = axes.barh(names, [values[name] for name in names], color="C0")
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.set_xlabel(label)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    return axes

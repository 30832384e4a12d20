"""Hooks on layers that leave no trace in copies of a model, and tell a checkpoint's second run from its first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def _nothing(*args: Any) -> None:
    """What a copy of a hook does."""


class Hook:
    """A forward hook; copies and pickles of the model, such as averages of its weights, get one that does nothing.

    Args:
        ran: Called with the layer's name, the layer and its output.
        name: Name of the layer.

    Examples:
        >>> from copy import deepcopy
        >>> layer = nn.Linear(2, 1)
        >>> seen = []
        >>> handle = layer.register_forward_hook(Hook(lambda name, *_: seen.append(name), "head"))
        >>> outputs = layer(torch.ones(2)), deepcopy(layer)(torch.ones(2))
        >>> seen
        ['head']
    """

    def __init__(self, ran: Callable[[str, nn.Module, Any], None], name: str) -> None:
        self._ran, self._name = ran, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """The layer ran."""
        self._ran(self._name, module, output)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy does nothing."""
        return partial, (_nothing,)


class Repetitions:
    """Tells outputs to which a gradient comes from those that gradient checkpointing computes twice.

    The newer kind of checkpoint runs again in the backward pass, when the gradient of the first run has come. The
    older, reentrant kind runs without gradients first, so that it is the second run that counts.

    Examples:
        >>> repetitions = Repetitions()
        >>> repetitions.has(torch.ones(2)), repetitions.has(torch.ones(2, requires_grad=True))
        (True, False)
    """

    def __init__(self) -> None:
        self._hidden = 0  # runs without gradients since the last one with them

    def has(self, output: Any) -> bool:
        """Whether this output of a layer that ran is one of those, or has no gradient."""
        if not isinstance(output, Tensor) or not output.requires_grad:
            self._hidden += 1
            return True
        if torch._C._current_graph_task_id() == -1:  # not within a backward pass
            self._hidden = 0
            return False
        self._hidden -= 1
        return self._hidden < 0

"""A hook on one layer, whose output becomes the start of the autograd graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.measure.heads import (
    CONVOLUTIONS,
    ROUNDING,
    as_rows,
    computes_linear,
    first_argument,
    linear_output,
)

ALIGNED = 1e-3
"""Largest relative difference, in full precision, at which gradients count as lining up."""


@dataclass
class Tap:
    """A forward hook that keeps a layer's input, and makes its output a leaf of autograd.

    Attributes:
        name: Name of the layer in the model.
        inputs: Inputs of the layer, shape (b, P, D), without the one for the bias.
        outputs: The leaf, shape (b, P, C), in full precision.
        given: The output that the rest of the network continues with.
        bias: Whether the layer has a bias.
        rounded: Whether the rest of the network computes in sixteen bits.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> with attached(layer, Tap("head")) as tap:
        ...     loss = layer(torch.randn(8, 4)).square().sum()
        >>> torch.autograd.grad(loss, tap.leaf)[0].shape
        torch.Size([8, 1, 2])
    """

    name: str
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    given: Tensor | None = None
    bias: bool = True
    rounded: bool = False

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Tensor:
        """Keep the layer's input, and return a copy of the leaf as its output.

        Raises:
            ValueError: If the layer runs again, or does not compute ``W a + b``.
        """
        if self.inputs is not None:
            raise ValueError(
                f"layer {self.name!r} runs more than once in a forward pass, so its gradient is not "
                "rank one; choose another with head=, or pass gradients="
            )
        inputs = first_argument(args, named)
        if not computes_linear(layer, inputs, output):
            raise ValueError(
                f"layer {self.name!r} ({type(layer).__name__}) does not return its weight times its "
                "input plus its bias for inputs of shape (batch, ..., features) (another hook or a "
                "wrapper changes it, or it has a form of its own), so its gradient has another form; "
                "choose another with head=, or pass gradients="
            )
        # The layer runs again in full precision: under autocast its output would be rounded to
        # eight bits, and the gradients of easy samples are differences of such numbers.
        with torch.autocast(inputs.device.type, enabled=False):
            wide = torch.promote_types(inputs.dtype, torch.float32)
            self.inputs = as_rows(inputs.detach(), layer).to(wide, copy=True)
            outputs = linear_output(layer, self.inputs)
        self.bias = getattr(layer, "bias", None) is not None
        self.outputs = outputs.requires_grad_()
        torch.set_grad_enabled(True)  # ends with the no_grad around the whole pass
        shaped = outputs.transpose(1, 2) if isinstance(layer, CONVOLUTIONS) else outputs
        mixed = torch.is_autocast_enabled(inputs.device.type)  # then the next layer takes any dtype
        self.rounded = mixed or output.element_size() <= 2
        self.given = shaped.reshape(output.shape).to(wide if mixed else output.dtype)
        return self.given.clone()  # an activation behind it may work in place

    @property
    def leaf(self) -> Tensor:
        """The layer's outputs.

        Raises:
            ValueError: If the layer did not run.
        """
        if self.outputs is None:
            raise ValueError(
                f"layer {self.name!r} did not run in the forward pass; choose another with head="
            )
        return self.outputs

    @property
    def tolerance(self) -> float:
        """Largest relative difference, in the network's precision, that counts as lining up."""
        return ROUNDING if self.rounded else ALIGNED

    def saw(self, outputs: Tensor) -> bool:
        """Whether the model's output is the layer's output at one position and nothing more."""
        if self.given is None or self.outputs is None or self.outputs.shape[1] != 1:
            return False
        if len(outputs) != len(self.given) or outputs.numel() != self.given.numel():
            return False
        found = outputs.reshape(self.given.shape).to(self.given)
        return torch.allclose(found, self.given, rtol=0.0, atol=0.0, equal_nan=True)

    def saw_at_tokens(self, outputs: Tensor) -> bool:
        """Whether the model's output, (b, T, C), is the layer's output at every token."""
        if self.given is None or outputs.shape != self.given.shape or outputs.dim() != 3:
            return False
        return torch.allclose(
            outputs.to(self.given), self.given, rtol=0.0, atol=0.0, equal_nan=True
        )


@contextmanager
def attached(layer: nn.Module, tap: Tap) -> Iterator[Tap]:
    """Hook a layer for one forward pass, in which nothing before the layer needs gradients.

    Examples:
        >>> layer = nn.Linear(4, 2)
        >>> with attached(layer, Tap("head")) as tap:
        ...     outputs = layer(torch.randn(8, 4))
        >>> tap.saw(outputs), tap.leaf.shape
        (True, torch.Size([8, 1, 2]))
    """
    handle = layer.register_forward_hook(tap, with_kwargs=True)
    try:
        with torch.no_grad():
            yield tap
    finally:
        handle.remove()

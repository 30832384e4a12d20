"""Models with a loss for each token: language models, taggers. A sample is a sequence of tokens.

The gradient of a sequence's loss with respect to the last layer is the sum of its tokens' gradients, so
each token is measured as a sample would be, and what belongs together is known by the counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.measure.losses import CrossEntropy
from prunesampler.measure.taps import Tap

Keep = Callable[[Measured], Measured]

AT_ONCE = 2**24
"""Numbers in the outputs of the tokens that are differentiated at a time."""


@dataclass(frozen=True, kw_only=True)
class TokenCrossEntropy:
    """Softmax cross-entropy at every token, summed over those of a sample.

    The objective is the mean over all tokens of the dataset, as ``torch.nn.CrossEntropyLoss`` takes it
    over those of a batch: a long sequence counts for more than a short one.

    Args:
        run: ``run(model, batch)`` returns the model's outputs, shape (b, T, C) or an object with
            ``.logits``, and the targets, int64, shape (b, T). By default a batch is ``(x, y)``, or a
            mapping with ``labels``.
        ignore_index: Target of tokens that have no loss, such as padding.
        shift: Whether the target of a token is the label of the next one, as with the causal language
            models of transformers, whose labels are their inputs.

    Examples:
        >>> losses = TokenCrossEntropy()
        >>> model = nn.Linear(4, 3)  # three tags
        >>> losses(model, (torch.randn(5, 7, 4), torch.randint(0, 3, (5, 7)))).shape
        torch.Size([5])
    """

    run: Callable[[nn.Module, Any], tuple[Any, Tensor]] | None = None
    ignore_index: int = -100
    shift: bool = False

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Sum of the tokens' losses of every sample, shape (b,)."""
        outputs, targets = self.aligned(*self.outputs_and_targets(model, batch))
        values = F.cross_entropy(
            outputs.transpose(1, 2), targets, ignore_index=self.ignore_index, reduction="none"
        )
        return values.sum(1)

    def outputs_and_targets(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Run the model, by ``run`` or on a batch of the default form.

        Raises:
            ValueError: If the targets are the inputs, but are not shifted.
        """
        outputs, targets = CrossEntropy(run=self.run).outputs_and_targets(model, batch)
        inputs = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if isinstance(inputs, Tensor) and inputs.shape == targets.shape and not self.shift:
            counted = targets != self.ignore_index
            if counted.any() and torch.equal(inputs[counted], targets[counted]):
                raise ValueError(
                    "the labels are the input_ids, so every token would be its own target; pass "
                    "TokenCrossEntropy(shift=True) for a model that predicts the next token"
                )
        return outputs, targets

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (b, T', C) and targets (b, T') of the tokens that may have a loss.

        Raises:
            ValueError: If the shapes do not fit, or a target is no class.
        """
        whole = not targets.is_floating_point() and targets.dim() == 2
        if outputs.dim() != 3 or not whole or outputs.shape[:2] != targets.shape:
            raise ValueError(
                "TokenCrossEntropy takes outputs of shape (batch, tokens, classes) and whole numbers of "
                f"shape (batch, tokens) as targets, got {tuple(outputs.shape)} and {targets.dtype} of "
                f"shape {tuple(targets.shape)}; for one loss per sample use CrossEntropy(), for outputs of "
                "another form pass run=lambda model, batch: (logits, targets)"
            )
        if self.shift:
            outputs, targets = outputs[:, :-1], targets[:, 1:]
        counted = targets[targets != self.ignore_index]
        wrong = counted[(counted < 0) | (counted >= outputs.shape[2])]
        if len(wrong):
            raise ValueError(
                f"targets {sorted(set(wrong.tolist()))[:5]} are out of range: the layer has "
                f"{outputs.shape[2]} outputs; correct them, or name the one for tokens without a loss with "
                f"ignore_index=, which is {self.ignore_index}"
            )
        return outputs, targets.long()


def measure_tokens(
    losses: TokenCrossEntropy, outputs: Tensor, targets: Tensor, tap: Tap, keep: Keep
) -> Sequences:
    """Measurements of the sequences of a batch.

    Args:
        losses: The loss.
        outputs: What the model returned.
        targets: Targets of the batch.
        tap: Has seen the layer run.
        keep: What is kept of the tokens' measurements; it is asked for some of them at a time, so that
            not all of the layer's outputs are differentiated at once.

    Raises:
        ValueError: If the model returns anything but the layer's outputs.
    """
    if not tap.saw_at_tokens(outputs):
        raise ValueError(
            f"the model's outputs, {tuple(outputs.shape)}, are not those of layer {tap.name!r} at every "
            "token (a function behind it, or another order), so a token's gradient is not known; choose "
            "another layer with head=, or pass gradients="
        )
    assert tap.inputs is not None
    seen, targets = losses.aligned(tap.leaf.detach(), targets)
    inputs = tap.inputs[:, : seen.shape[1]]
    counted = targets != losses.ignore_index
    rows, places = counted.nonzero(as_tuple=True)  # those of a sequence together
    parts: list[Measurements] = []
    step = max(1, AT_ONCE // seen.shape[2])
    for row, place in zip(torch.split(rows, step), torch.split(places, step), strict=True):
        values, delta, hessian = CrossEntropy().derivatives(seen[row, place], targets[row, place])
        a = inputs[row, place]
        a = F.pad(a, (0, 1), value=1.0) if tap.bias else a
        parts.append(keep(Measurements(delta, a, hessian, values)).tokens)
    return Sequences(Measurements.cat(parts), counted.sum(1))

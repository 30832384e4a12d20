"""Finds the layer of a network to measure: the last linear one that runs, whatever its type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

ROUNDING = 0.05
"""Largest relative difference between a layer's output, in any precision, and W a + b."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Losses = Callable[[nn.Module, Any], Tensor]
"""``losses(model, batch)`` returns one unreduced loss per sample, shape (b,)."""

PER_TOKEN = "pass losses=TokenCrossEntropy() for a cross-entropy at every token"


@dataclass(frozen=True)
class Head:
    """The layer that was found in a model.

    Args:
        name: Name of the layer in the model.
        beside: Names of trained parameters that reach the loss without passing through the layer:
            between it and the loss, or on a way around it.

    Examples:
        >>> Head("classifier")
        Head(name='classifier', beside=())
    """

    name: str
    beside: tuple[str, ...] = ()


def weight_matrix(layer: nn.Module) -> Tensor | None:
    """The weight that a layer may multiply its inputs by, shape (C, D), or None.

    A 1 x 1 convolution is a linear layer at every position, so its kernel counts as a matrix.

    Examples:
        >>> weight_matrix(nn.Conv2d(8, 3, kernel_size=1)).shape
        torch.Size([3, 8])
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() < 2:
        return None
    if isinstance(layer, nn.Embedding) or weight[0, 0].numel() != 1:
        return None
    return weight.flatten(1)


def as_rows(values: Tensor, layer: nn.Module) -> Tensor:
    """Inputs or outputs of a layer, shape (b, d), (b, ..., d) or (b, d, ...), as (b, P, d).

    P is the number of positions in each sample that the layer is applied to, 1 without any.

    Examples:
        >>> as_rows(torch.randn(2, 8, 5, 5), nn.Conv2d(8, 3, kernel_size=1)).shape
        torch.Size([2, 25, 8])
    """
    if values.dim() == 2:
        return values[:, None]
    if isinstance(layer, CONVOLUTIONS):
        return values.flatten(2).transpose(1, 2)
    return values.flatten(1, -2)


def linear_output(layer: nn.Module, rows: Tensor) -> Tensor:
    """``W a + b`` for rows of shape (b, P, D), in their precision, shape (b, P, C).

    Examples:
        >>> linear_output(nn.Linear(8, 3), torch.randn(2, 1, 8)).shape
        torch.Size([2, 1, 3])
    """
    weight, bias = weight_matrix(layer), getattr(layer, "bias", None)
    assert weight is not None
    return F.linear(
        rows, weight.detach().to(rows), None if bias is None else bias.detach().to(rows)
    )


def computes_linear(layer: nn.Module, inputs: Any, output: Any) -> bool:
    """Whether a layer's output is its weight times its input plus its bias, up to rounding.

    Examples:
        >>> layer, x = nn.Linear(8, 3), torch.randn(2, 8)
        >>> computes_linear(layer, x, layer(x)), computes_linear(layer, x, layer(x).relu())
        (True, False)
    """
    weight = weight_matrix(layer)
    tensors = isinstance(inputs, Tensor) and isinstance(output, Tensor)
    if weight is None or not tensors or not inputs.is_floating_point() or inputs.dim() < 2:
        return False
    rows, given = as_rows(inputs.detach(), layer), as_rows(output.detach(), layer)
    if rows.shape[2] != weight.shape[1] or given.shape != (*rows.shape[:2], weight.shape[0]):
        return False
    wide = torch.promote_types(rows.dtype, torch.float32)
    with torch.autocast(rows.device.type, enabled=False):
        expected = linear_output(layer, rows.to(wide))
    # Numbers that are not finite are reported, with their samples, when all are measured.
    finite = expected.abs() <= torch.finfo(given.dtype).max
    expected, found = expected[finite], given.to(wide)[finite]
    return bool((found - expected).norm() <= ROUNDING * expected.norm())


def first_argument(args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The first argument of a call, by position or by name.

    Examples:
        >>> first_argument((), {"input": 3})
        3
    """
    return args[0] if args else next(iter(named.values()), None)


def check_unreduced(values: Any, size: int) -> None:
    """Check that there is one loss per sample.

    Raises:
        ValueError: If there is not.

    Examples:
        >>> check_unreduced(torch.ones(8), size=8)
    """
    if isinstance(values, Tensor) and values.shape == (size,):
        return
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if isinstance(values, Tensor) and values.dim() > 1:
        raise ValueError(
            f"losses must return one loss per sample, shape ({size},), got {shape}, one per token, "
            f"position or output: {PER_TOKEN}; average over everything but the samples"
        )
    raise ValueError(
        f"losses must return one loss per sample, shape ({size},), got {shape}: the loss is "
        'already reduced, or the model gives another number of outputs; use reduction="none" and '
        "average over everything but the samples"
    )


def find_layer(model: nn.Module, head: nn.Module | str) -> tuple[str, nn.Module]:
    """Name and module of a layer that is given as one of them.

    Raises:
        ValueError: If the model has no such layer, or its weight is not trained for it alone: it is
            frozen, shared, or computed from other parameters.
        TypeError: If it has no weight matrix.

    Examples:
        >>> find_layer(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)), "2")
        ('2', Linear(in_features=4, out_features=3, bias=True))
    """
    modules = dict(model.named_modules())
    names = [n for n, m in modules.items() if (n == head if isinstance(head, str) else m is head)]
    if not names:
        linear = [n for n, m in modules.items() if _looks_linear(m)]
        raise ValueError(
            f"the model has no layer {head!r} to measure; its linear layers are {linear or 'none'}"
        )
    name, layer = names[0], modules[names[0]]
    if weight_matrix(layer) is None:
        raise TypeError(
            f"head {name!r} is {type(layer).__name__}, which has no weight matrix: only the influence "
            "on a linear layer or a 1 x 1 convolution has the closed form used here; choose one with "
            "head=, or pass gradients="
        )
    _check_trained(model, name, layer)
    return name, layer


def _check_trained(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Check that a layer's weight is a parameter that is trained for this layer alone."""
    if parametrize.is_parametrized(layer) or "weight" not in layer._parameters:
        raise ValueError(
            f"the weight of layer {name!r} is computed from other parameters (weight norm, spectral "
            "norm or another parametrisation), so its influence is not theirs; choose another layer "
            "with head=, remove the parametrisation, or pass gradients="
        )
    weight = layer._parameters["weight"]
    assert weight is not None
    # A model without any trained parameter is a copy of a trained one, such as an average of weights.
    if not weight.requires_grad and any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"layer {name!r} is frozen (requires_grad=False), so no sample has influence on it; choose "
            "a layer that is trained with head="
        )
    for other, module in model.named_modules():
        if module is layer:
            continue
        for part, parameter in module._parameters.items():
            if parameter is weight:
                raise ValueError(
                    f"layer {name!r} shares its weight with {f'{other}.{part}'!r}, so its gradient is "
                    "not rank one; untie the weights, or choose another layer with head="
                )


def _looks_linear(layer: nn.Module) -> bool:
    """Whether a layer is linear at every position by its type; its outputs may show otherwise."""
    if isinstance(layer, CONVOLUTIONS):
        return weight_matrix(layer) is not None and layer.groups == 1
    return isinstance(layer, nn.Linear)


@dataclass
class _Cut:
    """A hook that makes a linear layer's output a leaf, so that autograd stops there."""

    leaves: list[Tensor] = field(default_factory=list)

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Any:
        if not _looks_linear(layer) and not (
            "weight" in layer._parameters
            and computes_linear(layer, first_argument(args, named), output)
        ):
            return output
        self.leaves.append(output.detach().requires_grad_())
        return self.leaves[-1].clone()  # an activation behind it may work in place


def find_head(model: nn.Module, batch: Any, losses: Losses, size: int) -> Head:
    """The last linear layer that runs: the one with no other between it and the loss.

    The output of every linear layer is cut from the graph; those that the loss still depends on are
    last. If there are several, the trained one is taken.

    Args:
        model: The model in evaluation mode, on the batch's device.
        batch: A batch that ``losses`` takes.
        losses: One loss per sample.
        size: Number of samples in the batch.

    Raises:
        ValueError: If there is no such layer, or several that cannot be told apart, or it is frozen.

    Examples:
        >>> from prunesampler import CrossEntropy
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> find_head(model, (torch.randn(2, 8), torch.tensor([0, 2])), CrossEntropy(), size=2)
        Head(name='2', beside=())
    """
    modules = {n: m for n, m in model.named_modules() if weight_matrix(m) is not None}
    leaves, values = _cut_outputs(modules, lambda: losses(model, batch))
    check_unreduced(values, size)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    sources = [*(leaf for cuts in leaves.values() for leaf in cuts), *trained.values()]
    reached: set[int] = set()
    if any(leaves.values()) and values.requires_grad:
        gradients = torch.autograd.grad(values.sum(), sources, allow_unused=True)
        reached = {id(s) for s, g in zip(sources, gradients, strict=True) if g is not None}
    ends = [n for n, cuts in leaves.items() if any(id(leaf) in reached for leaf in cuts)]
    last = [name for name in ends if _is_trained(modules[name])] or ends
    if not last:
        linear = [name for name, module in model.named_modules() if _looks_linear(module)]
        raise ValueError(
            f"no linear layer leads to the loss of {type(model).__name__} (linear layers: "
            f"{linear or 'none'}); choose the layer with head=, or pass gradients="
        )
    if len(last) > 1:
        raise ValueError(
            f"the loss depends on {len(last)} last linear layers that cannot be told apart: {last}; "
            "choose one with head="
        )
    find_layer(model, last[0])
    beside = [n for n, p in trained.items() if id(p) in reached]
    for name in ends:  # trained parameters of a frozen layer beside it, such as its bias
        if name != last[0]:
            parts = modules[name].named_parameters(prefix=name, recurse=False)
            beside += [part for part, parameter in parts if parameter.requires_grad]
    return Head(last[0], tuple(beside))


def _cut_outputs(
    modules: dict[str, nn.Module], run: Callable[[], Tensor]
) -> tuple[dict[str, list[Tensor]], Tensor]:
    """The leaves that replace the outputs of each linear layer in a run, and what the run returns."""
    cuts = {name: _Cut() for name in modules}
    handles = [
        module.register_forward_hook(cuts[name], with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        with torch.enable_grad():
            values = run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: cut.leaves for name, cut in cuts.items()}, values


def _is_trained(layer: nn.Module) -> bool:
    """Whether the weight is trained, or the parameters it is computed from."""
    weight = layer._parameters.get("weight")
    if weight is not None:
        return weight.requires_grad
    return any(parameter.requires_grad for parameter in layer.parameters())

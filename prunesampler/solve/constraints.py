"""What a selection must respect beside its budget: samples to keep, to prune, and groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesampler.base.checks import checked_indices


@dataclass(frozen=True, kw_only=True, eq=False)
class Constraints:
    """Samples that must stay, that must go, and samples that stay or go together.

    Args:
        keep: indices of samples that are never pruned, in any order.
        prune: indices of samples that are always pruned; they count towards the budget.
        groups: the group of every sample, shape (n,), whole numbers; samples of one group (frames
            of one video, copies of one image) are kept or pruned together. -1 is a sample of its
            own. A group with a sample in ``keep`` is kept whole, one in ``prune`` pruned whole.

    With groups a budget cannot always be met exactly: then at most so many samples are pruned as it
    says, and fewer by less than the median size of a group. Where most samples are alone the
    median is one, and the budget is met exactly.
    """

    keep: Tensor | Sequence[int] | None = None
    prune: Tensor | Sequence[int] | None = None
    groups: Tensor | Sequence[int] | None = None

    def checked(self, num_samples: int) -> Constraints:
        """The same as int64 tensors, none of them None.

        Raises:
            TypeError: for indices or groups that are not whole numbers.
            ValueError: for an index out of range or given twice, groups of another length.
        """
        return Constraints(
            keep=_indices("keep", self.keep, num_samples),
            prune=_indices("prune", self.prune, num_samples),
            groups=_groups(self.groups, num_samples),
        )

    def unit_of(self, num_samples: int) -> Tensor:
        """The unit of every sample, int64, shape (n,): groups and lone samples, numbered from 0.

        Units are numbered in the order of their first samples.
        """
        groups = _groups(self.groups, num_samples)
        own = torch.arange(num_samples)
        alone = groups < 0
        key = torch.where(alone, own, groups + num_samples)
        _, unit = torch.unique(key, return_inverse=True)
        first = torch.full((int(unit.max()) + 1,), num_samples).scatter_reduce(0, unit, own, "amin")
        rank = torch.empty_like(first)
        rank[first.argsort()] = torch.arange(len(first))
        return rank[unit]

    def to_bytes(self) -> bytes:
        """Content, to compare between processes."""
        parts = (self.keep, self.prune, self.groups)
        return b"|".join(b"" if p is None else torch.as_tensor(p).numpy().tobytes() for p in parts)


def _indices(name: str, indices: Tensor | Sequence[int] | None, num_samples: int) -> Tensor:
    if indices is None:
        return torch.zeros(0, dtype=torch.int64)
    return checked_indices(indices, num_samples, name)


def _groups(groups: Tensor | Sequence[int] | None, num_samples: int) -> Tensor:
    if groups is None:
        return torch.full((num_samples,), -1)
    try:
        tensor = torch.as_tensor(groups)
    except (TypeError, ValueError) as error:
        raise TypeError("groups must be whole numbers, one per sample: number them") from error
    whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
    if whole:
        tensor = tensor.to("cpu", torch.int64)
    if tensor.shape != (num_samples,) or not whole or (tensor < -1).any():
        raise ValueError(
            f"groups must be {num_samples} whole numbers, one per sample, -1 for a sample of its "
            f"own, got {tensor.dtype} of shape {tuple(tensor.shape)}"
            + (f" with a {int(tensor.min())}" if whole and tensor.numel() else "")
        )
    return tensor

"""The dataset that a pruner scores, as all processes of a run see it."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from prunesampler.base.checks import dataset_size
from prunesampler.base.processes import Group, LocalGroup, current_group, together
from prunesampler.measure.probing import check_collate, check_same_labels, explained, probe
from prunesampler.measure.reading import Reading


class ScoredSet:
    """A dataset whose size stays, and of which all processes hold the same samples.

    Args:
        dataset: A map-style dataset.

    Attributes:
        num_samples: number of samples n.
        outline: a hash of a few samples' labels and shapes, once they were looked at.

    Raises:
        TypeError: For anything but a map-style dataset.
        ValueError: For an empty dataset.

    Examples:
        >>> data = ScoredSet([(1.0, 0), (2.0, 1)])
        >>> data.meet("select", Reading()).world
        1
        >>> data.outline == data.look(Reading())
        True
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset, self.num_samples = dataset, dataset_size(dataset)
        self.outline: str | None = None
        self._compared = False  # whether the processes have compared their outlines

    def meet(self, what: str, reading: Reading) -> Group:
        """Wait for all processes, and return their group; the first time, compare samples.

        Args:
            what: Name of the call.
            reading: How samples are read.

        Raises:
            ValueError: If the size has changed, or the collate function draws.
            RuntimeError: If the processes hold other samples, or make other calls.
        """
        group = current_group()
        group.meet(what)
        together(group, self._check_size)
        if not self._compared:
            with explained():
                self.outline = probe(self.dataset, reading, group)
            together(group, lambda: check_collate(self.dataset, reading))
            self._compared = True
        return group

    def look(self, reading: Reading) -> str:
        """The outline, read by this process alone if it is not known yet."""
        if self.outline is None:
            self.outline = probe(self.dataset, reading, LocalGroup())
        return self.outline

    def check_order(self, training_set: Any, reading: Reading) -> None:
        """Warn if labels differ from those of the training set: then the order does too."""
        check_same_labels(training_set, self.dataset, reading)

    def _check_size(self) -> None:
        size = dataset_size(self.dataset)
        if size != self.num_samples:
            raise ValueError(
                f"score_dataset had {self.num_samples} samples and has {size} now; build sampler, "
                "pruner and callback from the dataset as it is trained on"
            )

"""Tells of every selection of a run: in the terminal, to trackers, as a page, and to a function of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesampler.base.checks import warn
from prunesampler.base.processes import current_group
from prunesampler.page.layout import check_tools
from prunesampler.pruner import InfluencePruner
from prunesampler.report.text import figures, summary, tell
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.moment import Moment
from prunesampler.select.samples import InWorker
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.train.pruners import Pruner

if TYPE_CHECKING:
    from accelerate import Accelerator

Log = Callable[[dict[str, float], int], Any]
"""Function that is called with figures by name, and the step."""


class Announcements:
    """What is done with a selection once it is made.

    Args:
        progress: Whether to write to the terminal, rather than the log.
        on_selection: Function called with every selection, or None.
        pages: Writes a page for every selection, or None.

    Examples:
        >>> import torch
        >>> from prunesampler import Budget
        >>> selection = Selection(torch.tensor([1, 4]), 6, 0.5, 0.6, None, Budget(count=2))
        >>> found = []
        >>> told = Announcements(progress=False, on_selection=found.append)
        >>> told.of(selection, Moment(4, 10.0, 20.0, (), None), None, step=5, log=None)
        >>> found[0].pruned.tolist()
        [1, 4]
    """

    def __init__(
        self,
        progress: bool,
        on_selection: Callable[[Selection], None] | None = None,
        pages: Pages | None = None,
    ) -> None:
        self._progress, self._on_selection, self.pages = progress, on_selection, pages

    def of(
        self,
        selection: Selection,
        moment: Moment,
        scores: Scores | None,
        *,
        step: int,
        log: Log | None,
    ) -> None:
        """Tell of a selection; call this on all processes.

        Args:
            selection: The selection.
            moment: When in the run it was made.
            scores: The scores that it was made from, on rank 0 and if there are any.
            step: Step at which trackers record the figures.
            log: Function called with the figures and the step, or None.
        """
        first = current_group().rank == 0
        if first:
            text = summary(moment.epoch, selection, moment.seconds, moment.epoch_seconds)
            tell(text, self._progress)
        if log is not None:
            log(figures(selection, moment.seconds), step)
        if first and self.pages is not None:
            self.pages.write(selection, moment, scores, step)
        if self._on_selection is not None:
            self._on_selection(selection)


class Pages:
    """Writes a page for every selection into a folder, and never fails the run.

    Args:
        folder: The folder, made if it is not there.
        dataset: The dataset, to show some of its samples.
        accelerator: Accelerator whose trackers get the path of each page, or None.
        progress: Whether to name each page in the terminal, rather than the log.

    Raises:
        ImportError: If jinja2 or Pillow is not installed.

    Examples:
        >>> import tempfile, torch
        >>> from prunesampler import Budget
        >>> selection = Selection(torch.tensor([1, 4]), 6, 0.5, 0.6, None, Budget(count=2))
        >>> pages = Pages(tempfile.mkdtemp(), ["a", "b", "c", "d", "e", "f"])
        >>> pages.write(selection, Moment(4, 10.0, 20.0, (), None), None, 5)
        True
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        dataset: Any,
        accelerator: Accelerator | None = None,
        progress: bool = False,
    ) -> None:
        check_tools()
        self._folder, self._dataset, self._accelerator = Path(folder), dataset, accelerator
        self._progress = progress
        self._failed: set[str] = set()

    def write(self, selection: Selection, moment: Moment, scores: Scores | None, step: int) -> bool:
        """Write the page of a selection, whole or not at all; each kind of failure is one warning.

        Returns:
            Whether it was written; its name is that of the epoch that ended before the selection.
        """
        path = self._folder / f"epoch-{moment.epoch:04d}.html"

        def page() -> None:
            self._folder.mkdir(parents=True, exist_ok=True)
            selection.report(path, self._dataset, scores, moment=moment)

        written = self._tried(page, f"no page {path}")
        if written:
            self._tried(lambda: tell(f"Page: {path}", self._progress), f"{path} is not told of")
            if self._accelerator is not None:
                log = partial(self._accelerator.log, {"pruning/report": str(path)}, step)
                self._tried(log, f"trackers did not take the path of {path}")
        return written

    def _tried(self, work: Callable[[], Any], failed: str) -> bool:
        """Whether the work was done: of disks, samples, terminals and trackers nothing may stop a run."""
        try:
            work()
        except Exception as error:
            kind = type(error).__name__
            if kind not in self._failed:
                self._failed.add(kind)
                warn(f"{failed}: {kind}: {error}; training goes on")
            return False
        return True


def shown_dataset(pruner: Pruner, sampler: InfluencePrunedSampler) -> Any:
    """The dataset whose samples pages show: that which is measured, without augmentation, if there is one.

    Where workers read it for measuring, one reads it for pages, too: this process leaves it alone.
    """
    if not isinstance(pruner, InfluencePruner):
        return sampler.dataset
    return InWorker(pruner.dataset) if pruner.reading.num_workers else pruner.dataset

"""Records a trajectory in the training passes themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunesampler.base.checks import warn
from prunesampler.base.processes import current_group
from prunesampler.influence.headroom import headroom
from prunesampler.measure.heads import CONVOLUTIONS, weight_matrix
from prunesampler.measure.isolation import unwrap
from prunesampler.measure.probing import check_loader
from prunesampler.sampling.epoch_iterator import EpochIterator
from prunesampler.sampling.handed_out import HandedOut, Misaligned
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.train.errors import Pool, Units
from prunesampler.train.hooks import Hook, Repetitions
from prunesampler.train.trajectory import Trajectory, from_state, joined, merged, state_of


class TrajectoryRecorder:
    """Records each sample's error as training meets it: nothing is computed a second time.

    Hooks on the last linear layer see its outputs, and in the backward pass the gradient of the loss with
    respect to them. Which samples a batch holds is known from the sampler. With a softmax cross-entropy, in
    any form and precision, the factor by which the loss was divided or scaled is found from the
    gradients themselves, and errors are in units of the loss; with other losses they are shares of the mean of
    their batch.

    A layer that is compiled is not seen: compile the rest of the model. After resuming within an epoch, its rest
    is not recorded.

    Recording never stops a run: where batches are not what the sampler gave out, a warning tells why, and
    recording ends; the epochs before stay.

    Args:
        sampler: Sampler of the training loader.
        loader: The training loader as it is iterated, after ``accelerator.prepare``. In Lightning and the
            Trainer leave it out with the model: their callbacks know both.
        model: The model that is trained, wrapped or not, before it is compiled.
        head: The layer, or its name; by default the linear one that the backward pass reaches first.
        path: File to which the trajectory is written after each epoch, on rank 0, or None. With it, states of
            the callback name the file; otherwise they hold ``2 epochs n`` bytes.

    Raises:
        ValueError: If the loader does not draw from the sampler, its collate function sorts, or its batches are
            made by another process, or only one of loader and model is given.

    Examples:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(6, 4), torch.arange(6) % 3)
        >>> sampler, model = InfluencePrunedSampler(data), nn.Linear(4, 3)
        >>> loader = DataLoader(data, batch_size=2, sampler=sampler)
        >>> recorder = TrajectoryRecorder(sampler, loader, model)
        >>> for x, y in loader:
        ...     nn.functional.cross_entropy(model(x), y).backward()
        >>> recorder.on_epoch_end()
        >>> recorder.trajectory.errors.shape
        torch.Size([1, 6])
    """

    def __init__(
        self,
        sampler: InfluencePrunedSampler,
        loader: Any = None,
        model: nn.Module | None = None,
        *,
        head: nn.Module | str | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.num_samples, self.path = sampler.num_samples, None if path is None else Path(path)
        self._head, self._handed = head, HandedOut(sampler)
        self._model: nn.Module | None = None
        self._loader: Any = None
        self._layer: str | None = None  # known after the first backward pass
        self._handles: dict[str, RemovableHandle] = {}
        self.reset()
        if (loader is None) != (model is None):
            raise ValueError(
                "give the recorder both the loader and the model or, in Lightning and the Trainer, neither"
            )
        if loader is not None and model is not None:
            self.attach(loader, model)

    def attach(self, loader: Any, model: nn.Module) -> None:
        """From the next pass on, record this model over this loader.

        Raises:
            ValueError: If the loader does not draw from the sampler, or the model has no such layer.
        """
        self._handed.follow(loader)
        if self._loader is not loader:
            check_loader(loader)
        self._loader = loader
        if unwrap(model) is not self._model:
            self._model = unwrap(model)
            self._hook(self._model)

    def reset(self) -> None:
        """Begin a new run: what was recorded is forgotten, and why it ended."""
        self._measure_in(Units())
        self._reason: str | None = None  # why this process ended its recording
        self._over = False  # whether all have
        self._doubted = False  # whether an epoch was left out
        self._partial = False  # whether the epoch that runs is the rest of one
        self._rows: list[Tensor] = []
        self._row: Tensor | None = None  # errors of the epoch that runs
        if self._model is not None:
            self._hook(self._model)

    def _hook(self, model: nn.Module) -> None:
        """Hook the layer, or all that it may be until the first backward pass tells."""
        self.remove()
        self._layer = None
        self._early: dict[str, list[int]] = {}  # sizes of the batches that each may have been given
        self._steps: EpochIterator | None = None  # the pass of these batches
        self._samples_of: list[list[int]] = []  # the samples of these batches
        self._repetitions = Repetitions()
        self._pulled_at: list[int] | None = None  # the batch whose gradient came last
        head = self._head
        for name, module in model.named_modules():
            linear = (
                isinstance(module, (nn.Linear, *CONVOLUTIONS)) and weight_matrix(module) is not None
            )
            if (name == head or module is head) if head is not None else linear:
                self._handles[name] = module.register_forward_hook(Hook(self._ran, name))
        if not self._handles:
            names = [name for name, _ in model.named_modules() if name]
            raise ValueError(f"the model has no linear layer to record ({head=}); it has {names}")
        if head is not None:
            self._layer = next(iter(self._handles))

    def _ran(self, name: str, module: nn.Module, output: Any) -> None:
        """The layer ran; if it trains, its gradient will follow."""
        off = self._reason or self._partial or torch.compiler.is_compiling()
        if (
            off
            or self._handed.steps is None
            or not module.training
            or self._repetitions.has(output)
        ):
            return
        try:
            self._expect(name, output)
        except Exception as error:  # recording must never stop a run
            self._stop(str(error) if isinstance(error, Misaligned) else f"{error!r}")

    def _expect(self, name: str, output: Tensor) -> None:
        """Note which samples the gradient is of that will come to this output."""
        if self._layer is not None:
            samples = self._handed.next(len(output))
            output.register_hook(partial(self._pulled, samples, output.detach()))  # type: ignore[no-untyped-call]
            return
        # Which of the layers is last is seen in the backward pass.
        if self._handed.steps is not self._steps:  # in the pass before nothing was trained
            self._steps, self._early = self._handed.steps, {}
        turns = self._early.setdefault(name, [])
        output.register_hook(partial(self._first, name, len(turns), output.detach()))  # type: ignore[no-untyped-call]
        turns.append(len(output))

    def _first(self, name: str, turn: int, output: Tensor, gradient: Tensor) -> None:
        """One of the first gradients of the run arrives; the first of all is that of the last layer."""
        if self._layer is None and self._reason is None:
            self._layer = name
            for other in set(self._handles) - {name}:
                self._handles.pop(other).remove()
            try:
                self._samples_of = [self._handed.next(size) for size in self._early[name]]
            except Misaligned as error:
                self._stop(str(error))
        if name == self._layer and turn < len(self._samples_of):
            self._pulled(self._samples_of[turn], output, gradient)

    def _pulled(self, samples: list[int], output: Tensor, gradient: Tensor) -> None:
        """The gradient of a batch arrives."""
        if self._reason is not None:
            return
        if samples is self._pulled_at:
            self._stop("two backward passes went through one batch, whose gradients add up")
            return
        self._pulled_at = samples
        try:
            self._pool.add(samples, output, gradient.detach())
        except ValueError as error:
            self._stop(str(error))
        except Exception as error:  # recording must never stop a run
            self._stop(f"{error!r}")

    def _measure_in(self, units: Units) -> None:
        self._units, self._pool = units, Pool(units, self._note)

    def _note(self, samples: list[int], errors: Tensor) -> None:
        """Write the errors of a batch, or of several."""
        if self._row is None:
            self._row = torch.full((self.num_samples,), math.nan, device=errors.device)
        self._row[torch.tensor(samples).to(errors.device, non_blocking=True)] = errors

    def _stop(self, reason: str) -> None:
        """End the recording, without ending the run."""
        self._reason, self._row = reason, None
        self._measure_in(self._units)  # what is held is let go
        self.remove()

    def remove(self) -> None:
        """Take the hooks away again."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def on_epoch_end(self, epoch: int | None = None) -> None:
        """Bring together what all processes saw in this epoch; call it on all of them.

        It warns, once, if the recording ended in this epoch, or nothing was seen.

        Args:
            epoch: Epoch that ended, counted from 0; by default the next one.
        """
        if self._over or (epoch is not None and epoch < len(self._rows)):
            return
        group = current_group()
        group.meet("recorder.on_epoch_end")
        row = self._row_of_epoch()
        unseen = torch.full((self.num_samples,), math.nan)
        if row is None and self._reason is None and not self._partial:
            self._stop(
                "no training pass through the layer was seen: the model is compiled, in evaluation mode or "
                "not the one given, or another loader is iterated"
            )
        data = merged(
            group, unseen if row is None else row.cpu(), not self._reason, self._units.exact
        )
        self._row, self._partial = None, False
        if data:
            missing = 0 if epoch is None else epoch - len(self._rows)
            self._rows += [unseen] * max(0, missing)  # epochs before the recording began
            self._rows.append(Trajectory.from_bytes(data).errors[0])
            if self.path is not None and group.rank == 0:
                self._write(self.path)
            return
        self._over = True
        reason = self._reason or "another process could not record, or has another kind of loss"
        self._stop(reason)
        if group.rank == 0:
            warn(f"recording of the trajectory ended after {len(self._rows)} epochs: {reason}")

    def _row_of_epoch(self) -> Tensor | None:
        """Errors of the epoch that ended, or None if nothing was seen or the recording ended."""
        if self._reason is None:
            try:
                self._pool.empty()
            except Exception as error:  # recording must never stop a run
                self._stop(f"{error!r}")
        doubt = self._handed.left_over() if self._reason is None else None
        if doubt and not self._doubted:
            warn(f"errors of this epoch are left out: {doubt}; others are told of no more")
        self._doubted |= doubt is not None
        return torch.full((self.num_samples,), math.nan) if doubt else self._row

    def _write(self, path: Path) -> None:
        """Write the file; a full disk does not stop the run."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.trajectory.save(path)
        except OSError as error:
            warn(f"the trajectory could not be written to {path}: {error}")

    @property
    def trajectory(self) -> Trajectory:
        """What was recorded so far."""
        return joined(self._rows, bool(self._units.exact), self._layer, self.num_samples)

    @property
    def ended(self) -> bool:
        """Whether recording has ended before the run."""
        return self._over

    @property
    def last_headroom(self) -> float | None:
        """Headroom of the last epoch, or None if nothing was recorded of it."""
        share = headroom(self._rows[-1]) if self._rows and not self._over else math.nan
        return None if math.isnan(share) else share

    def state_dict(self) -> dict[str, Any]:
        """The name of the file, or what was recorded."""
        return state_of(self.trajectory, self.path)

    def load_state_dict(self, state: Mapping[str, Any], *, epochs: int, within: bool) -> None:
        """Go on where a run was.

        Args:
            state: What `state_dict` returned.
            epochs: Number of epochs that had ended.
            within: Whether an epoch was running, whose rest is then not recorded.

        Raises:
            ValueError: If the file is not there, damaged, or of another dataset.
        """
        found = from_state(state, self.path, self.num_samples)
        self._rows = list(found.errors[:epochs])
        self._measure_in(Units(found.exact if self._rows else None))
        self._partial = within

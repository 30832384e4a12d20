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
from prunesampler.base.processes import Group, current_group
from prunesampler.measure.heads import CONVOLUTIONS, weight_matrix
from prunesampler.measure.isolation import unwrap
from prunesampler.sampling.handed_out import HandedOut, Misaligned
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.train.errors import error_norms, scale_of
from prunesampler.train.trajectory import Trajectory, joined


class TrajectoryRecorder:
    """Records each sample's error as training meets it: nothing is computed a second time.

    Hooks on the last linear layer see its outputs, and in the backward pass the gradient of the loss with
    respect to them. Which samples a batch holds is known from the sampler. With a softmax cross-entropy, in
    any form and precision, the factor by which the loss was divided or scaled is found from the
    gradients themselves, and errors are in units of the loss; with other losses they are shares of the mean of
    their batch.

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
        ValueError: If the loader does not draw from the sampler, or its batches are made by another process.

    Example:
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
        self._sampler, self._head = sampler, head
        self._handed: HandedOut | None = None
        self._model: nn.Module | None = None
        self._layer: str | None = None
        self._exact: bool | None = None  # known after the first batch
        self._factor: Tensor | None = None  # of the last batch whose loss was a cross-entropy
        self._reason: str | None = None  # why this process ended its recording
        self._over = False  # whether all have
        self._partial = False  # whether the epoch that runs is the rest of one
        self._rows: list[Tensor] = []
        self._row: Tensor | None = None  # errors of the epoch that runs
        self._handles: dict[str, RemovableHandle] = {}
        if loader is not None and model is not None:
            self.attach(loader, model)

    def attach(self, loader: Any, model: nn.Module) -> None:
        """From the next pass on, record this model over this loader.

        Raises:
            ValueError: If the loader does not draw from the sampler, or the model has no such layer.
        """
        if self._handed is None:
            self._handed = HandedOut(self._sampler, loader)
        self._handed.follow(loader)
        if unwrap(model) is not self._model:
            self.remove()
            self._model, self._layer = unwrap(model), None
            self._hook(self._model, self._head)

    def reset(self) -> None:
        """Begin a new run: what was recorded is forgotten."""
        self._rows, self._row, self._exact, self._factor = [], None, None, None
        self._partial = False

    def _hook(self, model: nn.Module, head: nn.Module | str | None) -> None:
        """Hook the layer, or all that it may be until the first backward pass tells."""
        for name, module in model.named_modules():
            linear = (
                isinstance(module, (nn.Linear, *CONVOLUTIONS)) and weight_matrix(module) is not None
            )
            if (name == head or module is head) if head is not None else linear:
                self._handles[name] = module.register_forward_hook(partial(self._ran, name))
        if not self._handles:
            raise ValueError(
                f"the model has no linear layer to record ({head or 'head=None'}); name one with head="
            )
        if head is not None:
            self._layer = next(iter(self._handles))

    def _ran(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """The layer ran; if it trains, its gradient will follow."""
        if (
            self._reason
            or not module.training
            or not isinstance(output, Tensor)
            or not output.requires_grad
        ):
            return
        if self._layer is None:  # which of them is last is seen in the backward pass
            output.register_hook(partial(self._first, name, output.detach()))  # type: ignore[no-untyped-call]
        else:
            samples = self._samples(len(output))
            if samples is not None:
                output.register_hook(partial(self._pulled, samples, output.detach()))  # type: ignore[no-untyped-call]

    def _first(self, name: str, output: Tensor, gradient: Tensor) -> None:
        """The first gradient of the run arrives: this is the last layer."""
        if self._layer is not None:
            return
        self._layer = name
        for other in set(self._handles) - {name}:
            self._handles.pop(other).remove()
        samples = self._samples(len(output))
        if samples is not None:
            self._pulled(samples, output, gradient)

    def _pulled(self, samples: list[int], output: Tensor, gradient: Tensor) -> None:
        """Note the errors of a batch; nothing waits for the device after the first one."""
        norms, scale = error_norms(gradient), None
        if self._exact is not False and output.dim() in (2, 3) and output.shape[-1] > 1:
            scale = scale_of(output, gradient)
        if self._exact is None:
            self._exact = scale is not None and bool(scale.fits)
        if self._exact and scale is not None:
            known = scale.factor * len(samples)
            if self._factor is not None:
                known = torch.where(scale.fits, known, self._factor)
            self._factor = known
            norms = norms * len(samples) / known
        else:
            norms = norms / norms.mean()
        if self._row is None:
            self._row = torch.full((self.num_samples,), math.nan, device=norms.device)
        places = torch.tensor(samples).to(norms.device, non_blocking=True)
        self._row[places] = torch.where(norms.isfinite(), norms, math.nan)

    def _samples(self, size: int) -> list[int] | None:
        """Samples of the batch that the layer is given, or None if that cannot be known any more."""
        assert self._handed is not None
        try:
            return self._handed.next(size)
        except Misaligned as error:
            self._stop(str(error))
            return None

    def _stop(self, reason: str) -> None:
        """End the recording, without ending the run."""
        self._reason, self._row = reason, None
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
        if self._over:
            return
        group, row = current_group(), self._row
        unseen = torch.full((self.num_samples,), math.nan)
        if row is None and self._reason is None and not self._partial:
            self._stop(
                "no training pass through the layer was seen (a compiled model, or another one)"
            )
        data = _together(
            group, unseen if row is None else row.cpu(), self._reason is None, self._exact
        )
        self._row, self._partial = None, False
        if data:
            missing = 0 if epoch is None else epoch - len(self._rows)
            self._rows += [unseen] * max(0, missing)  # epochs before the recording began
            self._rows.append(Trajectory.from_bytes(data).errors[0])
            if self.path is not None and group.rank == 0:
                self.trajectory.save(self.path)
            return
        self._over = True
        reason = self._reason or "another process could not record"
        self._stop(reason)
        if group.rank == 0:
            warn(f"recording of the trajectory ended after {len(self._rows)} epochs: {reason}")

    @property
    def trajectory(self) -> Trajectory:
        """What was recorded so far."""
        return joined(self._rows, bool(self._exact), self._layer, self.num_samples)

    def state_dict(self) -> dict[str, Any]:
        """The name of the file, or what was recorded."""
        if self.path is not None:
            return {"file": self.path.name}
        data = self.trajectory.to_bytes()
        return {"trajectory": torch.frombuffer(bytearray(data), dtype=torch.uint8)}

    def load_state_dict(self, state: Mapping[str, Any], *, epochs: int, within: bool) -> None:
        """Go on where a run was.

        Args:
            state: What `state_dict` returned.
            epochs: Number of epochs that had ended.
            within: Whether an epoch was running, whose rest is then not recorded.

        Raises:
            ValueError: If the file is not there, damaged, or of another dataset.
        """
        self._partial = within
        if "trajectory" in state:
            found = Trajectory.from_bytes(state["trajectory"].numpy().tobytes())
        elif self.path is None or not self.path.exists():
            raise ValueError(
                f"the trajectory of this state is in a file of its own, {state.get('file')}; give the recorder "
                "the path= that the run had"
            )
        else:
            found = Trajectory.load(self.path)
        found.check(self.num_samples, 0)
        self._rows, self._exact = list(found.errors[:epochs]), found.exact if len(found) else None


def _together(group: Group, row: Tensor, good: bool, exact: bool | None) -> bytes:
    """A trajectory of one epoch, from the errors that all processes saw; empty if one saw nothing."""
    ranks = [torch.tensor([rank]) for rank in range(group.world)]
    states = group.gather(torch.tensor([[good, bool(exact)]]), ranks)
    rows = group.gather(row[None], ranks)
    whole: bytes | None = None
    if states is not None and rows is not None:
        alike = len(set(states[:, 1].tolist())) == 1
        # Where two processes saw a sample, as padding has it, the mean.
        seen = Trajectory(rows.nanmean(0, keepdim=True)).to_bytes()
        whole = seen if bool(states[:, 0].all()) and alike else b""
    return group.broadcast_bytes(whole)

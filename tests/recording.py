"""A training run that notes by itself what a recorder should find: the dataset hands out its indices."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import InfluencePrunedSampler
from prunesampler.train.recorder import TrajectoryRecorder


def indexed(n=60, classes=4, seed=0):
    """Samples of 8 numbers, their classes and their indices."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=draw)
    return TensorDataset(x, torch.randint(0, classes, (n,), generator=draw), torch.arange(n))


def network(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, classes))


def distances(outputs, targets, smoothing=0.0):
    """``||p - t||`` of every sample."""
    p = outputs.detach().double().softmax(-1)
    t = F.one_hot(targets, p.shape[-1]).double()
    return (p - (1 - smoothing) * t - smoothing / p.shape[-1]).norm(dim=-1).float()


class Truth:
    """The errors of every epoch, as a loop notes them that knows its indices."""

    def __init__(self, n):
        self.n, self.rows = n, []

    def begin(self):
        self.rows.append(torch.full((self.n,), math.nan))

    def note(self, index, outputs, targets, **options):
        self.rows[-1][index] = distances(outputs, targets, **options)

    @property
    def errors(self):
        return torch.stack(self.rows)


def close(found, truth, rtol=2e-3):
    """Whether two trajectories are equal up to half precision, and unseen in the same places."""
    return found.shape == truth.shape and torch.allclose(
        found, truth, rtol=rtol, atol=1e-6, equal_nan=True
    )


class Loop:
    """A plain training loop over a sampler, with a recorder and its truth."""

    def __init__(
        self,
        model=None,
        n=60,
        recorded=True,
        sampler=None,
        loader=DataLoader,
        path=None,
        head=None,
        **options,
    ):
        self.data = indexed(n)
        self.sampler = InfluencePrunedSampler(self.data, **(sampler or {}))
        self.loader = loader(self.data, **{"batch_size": 8, "sampler": self.sampler, **options})
        self.model = network() if model is None else model
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.2)
        self.recorder = None
        if recorded:
            self.recorder = TrajectoryRecorder(
                self.sampler, self.loader, self.model, head=head, path=path
            )
        self.truth, self.losses, self.batches = Truth(n), [], []

    def step(self, x, y, index):
        outputs = self.model(x)
        self.truth.note(index, outputs, y)
        return F.cross_entropy(outputs, y)

    def epoch(self, stop=None, end=True):
        self.model.train()
        self.truth.begin()
        for k, (x, y, index) in enumerate(self.loader):
            if k == stop:
                break
            loss = self.step(x, y, index)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            self.batches.append(index.tolist())
        if end and self.recorder is not None:
            self.recorder.on_epoch_end()

    @property
    def found(self):
        return self.recorder.trajectory.errors

    def is_right(self, **options):
        return close(self.found, self.truth.errors, **options)

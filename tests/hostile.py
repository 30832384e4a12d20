"""Datasets as people write them, each of which was read wrongly once."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

MAIN = os.getpid()


class Rows:
    """A file of float32 rows that closes when nobody holds it any more, as those of h5py do."""

    def __init__(self, path, width):
        self.file, self.width = open(path, "rb", buffering=0), width  # noqa: SIM115

    def __getitem__(self, index):
        self.file.seek(4 * index * self.width)
        threading.Event().wait(1e-4)  # time for another process to move the shared place
        row = np.frombuffer(self.file.read(4 * self.width), np.float32)
        return torch.from_numpy(row.copy())

    def __del__(self):
        self.file.close()


class Lazy(Dataset):
    """Rows of a file that is opened on first use, as with h5py, LMDB or tar; unlike them slow to read.

    Args:
        path: of float32 rows.
        width: of a row.
        size: number of rows.
    """

    def __init__(self, path, width, size):
        self.path, self.width, self.size, self.file, self.opened = path, width, size, None, False

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not self.opened:
            self.file, self.opened = Rows(self.path, self.width), True
        return self.file[index], index % 3


class Shards(Lazy):
    """The same with a mapping of files."""

    def __init__(self, path, width, size):
        super().__init__(path, width, size)
        self.files = {}

    def __getitem__(self, index):
        shard = index % 2
        if shard not in self.files:
            self.files[shard] = Rows(self.path, self.width)
        return self.files[shard][index], index % 3


class Flags(Dataset):
    """Opens files into a list and notes elsewhere that it did, in an object of another kind."""

    def __init__(self, path, width, size):
        self.path, self.width, self.size = path, width, size
        self.files, self.opened, self.seen = [None, None], [False, False], set()
        self.store = SimpleNamespace(row=None)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        shard = index % 2
        if not self.opened[shard]:
            self.files[shard], self.opened[shard] = Rows(self.path, self.width), True
            self.store.row = Rows(self.path, self.width)
        self.seen.add(index)
        return self.files[shard][index] + 0 * self.store.row[index], index % 3


class OwnRandom(Dataset):
    """Augments with random generators of its own, one of them in a transform."""

    def __init__(self, size=120):
        self.rng, self.transform = np.random.default_rng(0), Jitter()
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(size, 8, generator=generator), torch.arange(size) % 3

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.transform(self.x[index]) + float(self.rng.normal()) * 0.1, self.y[index]


class Jitter:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, x):
        return x + 0.1 * torch.randn(x.shape, generator=self.generator)


class WorkersOnly(Dataset):
    """Cannot be read in the main process."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        assert os.getpid() != MAIN, "read in the main process"
        return self.data[index]


class Views(Dataset):
    """Returns views of one tensor that the caller must not write to, and counts what was read."""

    def __init__(self, x, y):
        self.x, self.y, self.reads = x, y, 0

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        self.reads += 1
        return self.x[index], self.y[index]


class Slow(Dataset):
    """Takes its time for every sample."""

    def __init__(self, data, seconds=1e-3):
        self.data, self.seconds = data, seconds

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return self.data[index]


class Unpicklable(Dataset):
    """Holds a lock and a function without a name, and cannot be copied."""

    def __init__(self, data):
        self.data, self.lock, self.change = data, threading.Lock(), lambda x: x

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        with self.lock:
            x, y = self.data[index]
            return self.change(x), y


HOSTILE = {
    "slow": lambda path, x, y: Slow(TensorDataset(x, y)),
    "in workers only": lambda path, x, y: WorkersOnly(TensorDataset(x, y)),
    "views": lambda path, x, y: Views(x, y),
    "a file opened on first use": lambda path, x, y: Lazy(path, x.shape[1], len(y)),
    "several files": lambda path, x, y: Shards(path, x.shape[1], len(y)),
    "files and flags": lambda path, x, y: Flags(path, x.shape[1], len(y)),
    "random generators of its own": lambda path, x, y: OwnRandom(len(y)),
    "nothing that can be pickled": lambda path, x, y: Unpicklable(TensorDataset(x, y)),
}
"""Every kind, made from float32 rows, once in a file and once as a tensor, and their labels."""


def trace_of(part):
    """What a dataset holds, to compare before and after; counts of reads are no trace."""
    if isinstance(part, torch.Tensor):
        return part.numpy().tobytes()
    if isinstance(part, torch.Generator):
        return part.get_state().tolist()
    if isinstance(part, np.random.Generator):
        return part.bit_generator.state
    if isinstance(part, (list, tuple)):
        return [trace_of(each) for each in part]
    if isinstance(part, dict):
        return {key: trace_of(each) for key, each in part.items()}
    if isinstance(part, (Dataset, SimpleNamespace, Jitter)):
        return {k: trace_of(v) for k, v in vars(part).items() if k != "reads"}
    return repr(part)

"""Measurements that are filled batch by batch, in memory and on disk."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import Budget, InfluencePruner, SquaredError
from prunesampler.base import memory
from prunesampler.base.memory import Room, available_bytes, gibibytes
from prunesampler.influence.measurements import Measurements
from prunesampler.measure.filling import Filling


def batch(size, labels=True, width=3, dtype=torch.float32):
    draw = torch.Generator().manual_seed(size)
    outputs, targets = torch.randn(size, 2, generator=draw), torch.zeros(size, 2)
    losses, delta, hessian = SquaredError().derivatives(outputs, targets)
    inputs = torch.randn(size, width, generator=draw).to(dtype)
    return Measurements(delta, inputs, hessian, losses, torch.arange(size) if labels else None)


def filled(parts, room=None):
    filling = Filling(sum(map(len, parts)), room or Room())
    for part in parts:
        filling.add(part)
    return filling.measurements()


@pytest.mark.parametrize("on_disk", [False, True])
def test_filled_measurements_are_concatenated_ones(on_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ON_DISK", 0)
    parts = [batch(4), batch(3), batch(1)]
    found = filled(parts, Room(tmp_path if on_disk else None)).tensors()
    assert found.keys() == parts[0].tensors().keys()
    for name in found:
        expected = torch.cat([part.tensors()[name] for part in parts])
        assert torch.equal(found[name], expected), name
        assert found[name].dtype == expected.dtype
    assert not list(tmp_path.iterdir())  # the files have no names


def test_labels_that_a_batch_lacks_and_precisions_that_differ():
    both = filled([batch(2), batch(2, labels=False)])
    assert both.labels is None
    assert len(both[torch.tensor([3])]) == 1  # was an IndexError: 2 labels of 4 samples
    assert filled([batch(2, labels=False), batch(2)]).labels is None
    assert filled([batch(2), batch(2, dtype=torch.float64)]).inputs.dtype == torch.float64
    with pytest.raises(ValueError, match=r"from \(3,\) to \(4,\) \(inputs\)"):
        filled([batch(2), batch(2, width=4)])


def test_selections_with_storage_are_the_same(few_digits, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    plain = InfluencePruner(few_digits, budget=Budget(count=80), progress=False).select(model)
    monkeypatch.setattr(memory, "ON_DISK", 0)
    stored = InfluencePruner(few_digits, budget=Budget(count=80), progress=False, storage=tmp_path)
    assert torch.equal(stored.select(model).pruned, plain.pruned)
    assert not list(tmp_path.iterdir())


def test_storage_that_cannot_be_used_is_refused(few_digits, tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"storage='.*nowhere' cannot be written to \(No such file"
    ):
        InfluencePruner(few_digits, budget=Budget(count=80), storage=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"needs 2.1e\+06 GiB, but .* are free there"):
        Room(tmp_path).empty((2**40, 2**10), torch.float16)


def test_memory_that_does_not_suffice_is_told_before_the_pass(monkeypatch):
    seen = []

    class Counting(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    dataset = TensorDataset(torch.randn(2000, 8), torch.arange(2000) % 3)
    monkeypatch.setattr("prunesampler.select.estimate.available_bytes", lambda: 10_000)
    pruner = InfluencePruner(dataset, budget=Budget(count=80), progress=False, batch_size=50)
    with pytest.raises(ValueError, match="9.31e-06 GiB are free: measure a layer of fewer inputs"):
        pruner.select(Counting(8, 3))
    assert sum(seen) <= 150


def test_free_memory_is_what_the_kernel_and_the_control_group_leave(tmp_path):
    assert available_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  9 kB\nMemAvailable:     2048 kB\n")
    assert available_bytes(tmp_path) == 2048 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert available_bytes(tmp_path) == 2048 * 1024
    (group / "memory.max").write_text("1500\n")
    assert available_bytes(tmp_path) == 500
    (group / "memory.max").write_text("900\n")
    assert available_bytes(tmp_path) == 0
    assert gibibytes(3 * 2**28) == "0.75 GiB"
    assert available_bytes(Path("/")) != 0

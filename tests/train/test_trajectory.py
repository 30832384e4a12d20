import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from prunesampler import Budget
from prunesampler.base.files import pack
from prunesampler.base.processes import LocalGroup
from prunesampler.select.selection import Selection
from prunesampler.train.trajectory import KIND, Trajectory, joined, merged

NAN = math.nan


@st.composite
def tables(draw):
    """Tables of errors, of any size, some of them unknown."""
    epochs, n = draw(st.integers(0, 4)), draw(st.integers(1, 6))
    scale = draw(st.sampled_from([1e-42, 1e-30, 1.0, 1e30, 3e38]))
    cells = st.one_of(st.just(NAN), st.just(0.0), st.floats(0, 1, width=32))
    rows = draw(st.lists(st.lists(cells, min_size=n, max_size=n), min_size=epochs, max_size=epochs))
    return (torch.tensor(rows, dtype=torch.float64).reshape(epochs, n) * scale).float()


@given(tables(), st.booleans(), st.sampled_from([None, "head.fc"]))
def test_a_file_holds_half_precision_of_any_size(errors, exact, layer):
    found = Trajectory.from_bytes(Trajectory(errors, exact, layer).to_bytes())
    assert (found.exact, found.layer, found.errors.shape) == (exact, layer, errors.shape)
    assert torch.equal(found.errors.isnan(), errors.isnan())
    if len(
        errors
    ):  # to 11 bits, or of what is 10,000 times smaller than the largest, to as much of it
        largest = errors.nan_to_num(0.0).amax(1, keepdim=True)
        allowed = 2**-11 * errors + 2**-24 * largest + 1e-44
        assert bool(((found.errors - errors).abs() <= allowed)[~errors.isnan()].all())
    again = Trajectory.from_bytes(found.to_bytes())
    assert torch.allclose(again.errors, found.errors, rtol=1e-3, atol=1e-44, equal_nan=True)


def test_a_file_has_two_bytes_a_sample_and_epoch(tmp_path):
    path = tmp_path / "run.safetensors"
    Trajectory(torch.rand(12, 1000)).save(path)
    assert 2 * 12 * 1000 < path.stat().st_size < 2 * 12 * 1000 + 1000
    assert Trajectory.load(path).num_samples == 1000
    assert list(tmp_path.iterdir()) == [path]


def broken():
    """Files that are not whole trajectories, and what is said of them."""
    good = Trajectory(torch.rand(2, 3)).to_bytes()
    halves, units = torch.rand(2, 3).half(), torch.ones(2)
    header = {"exact": True, "layer": None}
    selection = Selection(torch.tensor([1]), 3, 0.1, 0.1, None, Budget(count=1)).to_bytes()
    found = [
        (b"", "not a file of"),
        (b"\x00" * 64, "not a file of"),
        (good[:-1], "not a whole file of"),
        (good[:20], "not a file of"),
        (good + b"x", "not a whole file of"),
        (selection, "this is 'prunesampler.selection'"),
        (save({"errors": halves}), "not a file of"),
        (pack((KIND[0], 9), header, {}), "version 9"),
    ]
    parts = [
        ({}, header),
        ({"errors": halves}, header),
        ({"errors": halves.float(), "units": units}, header),
        ({"errors": halves, "units": units[:1]}, header),
        ({"errors": halves, "units": units.half()}, header),
        ({"errors": halves[0], "units": units}, header),
        ({"errors": halves, "units": units}, {"layer": None}),
        ({"errors": halves, "units": units}, {"exact": 1}),
        ({"errors": halves, "units": units}, {"exact": True, "layer": 3}),
    ]
    found += [(pack(KIND, head, tensors), "not a whole file of") for tensors, head in parts]
    wrong = [-halves, halves / 0, halves[:, :0]]
    found += [
        (pack(KIND, header, {"errors": part, "units": units}), "errors must be") for part in wrong
    ]
    return found


@pytest.mark.parametrize("number", range(len(broken())))
def test_files_that_are_not_whole_trajectories(number, tmp_path):
    data, message = broken()[number]
    path = tmp_path / "run.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"run.safetensors: .*{message}"):
        Trajectory.load(path)


def test_every_cut_of_a_file_is_noticed():
    good = Trajectory(torch.rand(2, 3)).to_bytes()
    for size in range(len(good)):
        with pytest.raises(ValueError, match="not a"):
            Trajectory.from_bytes(good[:size])


def test_a_file_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        Trajectory.load(Path("nowhere") / "run.safetensors")


@pytest.mark.parametrize(
    "errors",
    [
        torch.rand(3),
        torch.rand(2, 3).double(),
        torch.zeros(2, 0),
        torch.tensor([[-1.0]]),
        torch.tensor([[math.inf]]),
    ],
)
def test_errors_that_cannot_be(errors):
    with pytest.raises(ValueError, match="errors must be"):
        Trajectory(errors)


def test_last_seen_and_since_when():
    found = Trajectory(
        torch.tensor([[1.0, 2.0, NAN, 4.0], [5.0, NAN, NAN, 6.0], [NAN, NAN, NAN, 7.0]])
    )
    assert found.last_seen().nan_to_num(-1).tolist() == [5.0, 2.0, -1.0, 7.0]
    assert found.last_seen(2).nan_to_num(-1).tolist() == [5.0, 2.0, -1.0, 6.0]
    assert found.last_seen(1).nan_to_num(-1).tolist() == [1.0, 2.0, -1.0, 4.0]
    assert found.last_seen(0).isnan().all()
    assert found.unseen_for().tolist() == [1, 2, 3, 0]
    assert (len(found), found.num_samples) == (3, 4)
    assert found.headrooms() == pytest.approx([5 / 7, 6 / 11, 0.5])
    nothing = joined([], True, None, 5)
    assert nothing.unseen_for().tolist() == [0] * 5
    assert nothing.last_seen().isnan().all()


def test_in_words():
    errors = torch.tensor([[0.0, 0.0, 0.1, 0.9]])
    assert str(Trajectory(errors)).startswith(
        "1 epochs of 4 samples, 100% seen; at the end headroom 1.00"
    )
    assert str(joined([], True, None, 4)) == "0 epochs of 4 samples, 0% seen"
    assert "headroom unknown" in str(Trajectory(torch.full((1, 4), NAN)))


def test_of_another_dataset_or_too_short():
    found = Trajectory(torch.rand(2, 3))
    found.check(3, 2)
    with pytest.raises(ValueError, match="of 3 samples, the dataset has 4"):
        found.check(4)
    with pytest.raises(ValueError, match="has 2 epochs, but 3 are needed"):
        found.check(3, 3)


class Two(LocalGroup):
    """A first process of two, to which the other's part is known beforehand."""

    world = 2

    def __init__(self, row, good=True, exact=True):
        self.parts = [torch.tensor([[good, exact]]), row[None]]

    def gather(self, rows, places, room=None):
        return torch.cat([rows, self.parts.pop(0)])


def test_what_two_processes_saw_comes_together():
    mine, other = torch.tensor([0.5, NAN, 1.5, NAN]), torch.tensor([NAN, 0.25, 0.5, NAN])
    whole = Trajectory.from_bytes(merged(Two(other), mine, True, True)).errors
    assert whole.nan_to_num(-1).tolist() == [[0.5, 0.25, 1.0, -1.0]]  # the mean of what both saw
    assert merged(Two(other, good=False), mine, True, True) == b""
    assert merged(Two(other, exact=False), mine, True, True) == b""

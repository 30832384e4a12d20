import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from prunesampler import Budget, Selection
from prunesampler.files import write_atomically
from prunesampler.selection import complement


def selection(pruned=(1, 4), n=6, **changes):
    values = {"shift": 0.5, "newton_shift": 0.6, "bound": None, "budget": Budget(count=2)}
    return Selection(torch.tensor(pruned), n, **{**values, **changes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one.*none"),
        ({"fraction": 0.4, "count": 3}, r"exactly one.*\['fraction', 'count'\]"),
        ({"fraction": 0.0}, "fraction must lie between 0 and 1, got 0.0"),
        ({"fraction": 1.0}, "got 1.0"),
        ({"fraction": 40}, "got 40.0; 0.4 prunes 40 %"),
        ({"fraction": float("nan")}, "got nan"),
        ({"count": 0}, "count must be a whole number of at least 1, got 0"),
        ({"epsilon": -0.1}, "epsilon must be zero or more and finite, got -0.1"),
        ({"epsilon": float("nan")}, "got nan"),
        ({"epsilon": 1.0, "max_fraction": 1.0}, "max_fraction must lie between 0 and 1, got 1.0"),
        ({"fraction": 0.4, "min_per_class": -1}, "min_per_class must be zero or more, got -1"),
    ],
)
def test_wrong_budgets(arguments, message):
    with pytest.raises(ValueError, match=message):
        Budget(**arguments)


def test_numbers_of_numpy_and_torch_become_pythons_own():
    budget = Budget(fraction=np.float32(0.5), min_per_class=np.int64(2))
    assert type(budget.fraction) is float
    assert type(budget.min_per_class) is int
    assert type(Budget(epsilon=torch.tensor(0.5)).epsilon) is float
    assert type(Budget(count=np.int64(5)).count) is int


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 2.5}, "count must be a whole number, got 2.5"),
        ({"fraction": "0.4"}, "fraction must be a number, got '0.4'"),
        ({"fraction": True}, "fraction must be a number, got True"),
        ({"epsilon": [1]}, "epsilon must be a number"),
    ],
)
def test_what_is_no_number(arguments, message):
    with pytest.raises(TypeError, match=message):
        Budget(**arguments)


@pytest.mark.parametrize(
    ("budget", "n", "size"),
    [
        (Budget(fraction=0.4), 50_000, 20_000),
        (Budget(fraction=0.3), 10, 3),
        (Budget(count=7), 10, 7),
        (Budget(epsilon=1.0, max_fraction=0.7), 10, 7),
    ],
)
def test_sizes_are_met_exactly(budget, n, size):
    assert budget.size(n) == size


@pytest.mark.parametrize(
    ("budget", "n"),
    [(Budget(count=10), 10), (Budget(count=11), 10), (Budget(fraction=0.01), 10),
     (Budget(fraction=0.99), 10)],
)  # fmt: skip
def test_budgets_that_prune_nothing_or_everything(budget, n):
    with pytest.raises(ValueError, match="ask for 1 to 9"):
        budget.size(n)


def test_floors():
    labels = torch.tensor([0, 0, 0, 2, 2])
    assert Budget(count=1, min_per_class=2).floors(labels).tolist() == [2, 0, 2]
    assert Budget(count=1).floors(None) is None
    assert Budget(count=1, min_per_class=0).floors(labels) is None
    with pytest.raises(ValueError, match="min_per_class=2 needs the class of every sample"):
        Budget(count=1, min_per_class=2).floors(None)


def test_kept_is_the_rest():
    assert selection().kept.tolist() == [0, 2, 3, 5]


@given(st.integers(1, 50).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_complement(case):
    n, indices = case
    found = complement(torch.tensor(sorted(indices), dtype=torch.int64), n)
    assert found.tolist() == sorted(set(range(n)) - indices)


@pytest.mark.parametrize("pruned", [[4, 1], [1, 1], [-1, 2], [1, 6], list(range(6)), [1.0, 2.0]])
def test_wrong_indices(pruned):
    with pytest.raises(ValueError, match="pruned"):
        selection(pruned)


def test_saving_and_loading(tmp_path):
    before = selection(bound=1.25, metadata={"damping": 0.01, "curvature": "ExactCurvature"})
    before.save(tmp_path / "pruned.safetensors")
    after = Selection.load(tmp_path / "pruned.safetensors")
    assert torch.equal(after.pruned, before.pruned)
    for name in ("num_samples", "shift", "newton_shift", "bound", "budget", "metadata"):
        assert getattr(after, name) == getattr(before, name)


def header(**changes):
    good = json.loads(json.loads(_text(selection().to_bytes()))["__metadata__"]["header"])
    return {"header": json.dumps({**good, **changes})}


def _text(data):
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a file",
        selection().to_bytes()[:-3],
        save({"pruned": torch.tensor([1])}),
        save({"pruned": torch.tensor([1])}, {"header": "[]"}),
        save({"other": torch.tensor([1])}, header()),
        save({"pruned": torch.tensor([1])}, header(format="something else")),
        save({"pruned": torch.tensor([1])}, header(version=99)),
        save({"pruned": torch.tensor([1.0])}, header()),
        save({"pruned": torch.tensor([9])}, header()),
        save({"pruned": torch.tensor([1])}, header(num_samples="6")),
        save({"pruned": torch.tensor([1])}, header(shift=[1])),
        save({"pruned": torch.tensor([1])}, header(budget={"fraction": 2})),
        save({"pruned": torch.tensor([1])}, header(budget={"evil": 2})),
        save({"pruned": torch.tensor([1])}, header(budget=None)),
    ],
    ids=range(15),
)
def test_files_that_are_no_selections_are_refused_by_name(data, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="bad.safetensors"):
        Selection.load(path)


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(place, value):
    data = bytearray(selection().to_bytes())
    data[place % len(data)] = value
    try:
        found = Selection.from_bytes(bytes(data))
    except ValueError:
        return
    assert len(found.kept) + len(found.pruned) == found.num_samples


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

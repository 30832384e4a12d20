import inspect
import json
import math
import os
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch.utils.data import TensorDataset

from prunesampler import Budget, InfluencePruner, Selection
from prunesampler.base.files import STATE, pack, pack_state, unpack_state, write_atomically
from prunesampler.base.indices import complement


def selection(pruned=(1, 4), n=6, **changes):
    values = {"shift": 0.5, "newton_shift": 0.6, "bound": None, "budget": Budget(count=2)}
    return Selection(torch.as_tensor(pruned), n, **{**values, **changes})


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
    assert budget.count_of(n) == size


@pytest.mark.parametrize(
    ("budget", "n"),
    [(Budget(count=10), 10), (Budget(count=11), 10), (Budget(fraction=0.01), 10),
     (Budget(fraction=0.99), 10)],
)  # fmt: skip
def test_budgets_that_prune_nothing_or_everything(budget, n):
    with pytest.raises(ValueError, match="ask for 1 to 9"):
        budget.count_of(n)


@pytest.mark.parametrize(
    ("budget", "n", "message"),
    [
        (
            Budget(fraction=0.2),
            2,
            "fraction=0.2 of 2 samples prunes 0; .*: ask for 1, as count=1 does",
        ),
        (Budget(count=2), 2, "count=2 of 2 samples prunes 2; .*: ask for 1, as count=1 does"),
        (Budget(epsilon=1.0, max_fraction=0.3), 3, "prunes 0; .*: raise it to 1/3 or more"),
        (Budget(count=1), 1, "a dataset of 1 sample cannot be pruned: .* 2 or more"),
    ],
)
def test_budgets_for_hardly_any_samples(budget, n, message):
    with pytest.raises(ValueError, match=message):
        budget.count_of(n)
    assert Budget(count=1).count_of(2) == Budget(epsilon=1.0, max_fraction=1 / 3).count_of(3) == 1


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


def test_weights_are_saved_and_loaded(tmp_path):
    before = selection(weights=torch.tensor([1.5, 0.0, 1.0, 1.5]))
    before.save(tmp_path / "pruned.safetensors")
    after = Selection.load(tmp_path / "pruned.safetensors")
    assert torch.equal(after.weights, before.weights)
    assert torch.equal(after.pruned, before.pruned)
    assert Selection.from_bytes(selection().to_bytes()).weights is None


def test_files_of_releases_without_weights_load():
    assert Selection.from_bytes(save({"pruned": torch.tensor([1, 4])}, header())).weights is None


BAD_WEIGHTS = {
    "float64": (torch.ones(4, dtype=torch.float64), r"float32 of shape \(4,\).*got torch.float64"),
    "whole numbers": (torch.ones(4, dtype=torch.int64), "got torch.int64"),
    "one for every sample": (torch.ones(6), r"got torch.float32 of shape \(6,\)"),
    "none": (torch.ones(0), r"of shape \(0,\)"),
    "a column": (torch.ones(4, 1), r"of shape \(4, 1\)"),
    "negative": (torch.tensor([1.0, -0.5, 1.0, 1.0]), "got -0.5 for kept sample 1; take them from"),
    "not a number": (torch.tensor([1.0, 1.0, math.nan, 1.0]), "got nan for kept sample 2"),
    "infinite": (torch.tensor([math.inf, 1.0, 1.0, 1.0]), "got inf for kept sample 0"),
}


@pytest.mark.parametrize(("weights", "message"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_weights_that_are_none_are_refused(weights, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        selection(weights=weights)
    path = tmp_path / "bad.safetensors"
    path.write_bytes(save({"pruned": torch.tensor([1, 4]), "weights": weights}, header()))
    with pytest.raises(ValueError, match=f"bad.safetensors: weights must be .*{message}"):
        Selection.load(path)


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


DEEP = "[" * 100_000
BAD_FACTS = [
    {"damping": "x"}, {"random_shift": [1]}, {"parameters": True}, {"layer": 3}, {"curvature": {}},
    {"random_newton_shift": "1"}, [["damping", 1]], None, "facts", 3,
]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        save({"pruned": torch.tensor([1])}, {"header": DEEP}),
        save({"pruned": torch.tensor([1])}, header(num_samples=10**15)),
        save({"pruned": torch.tensor([1])}, header(shift=10**400)),
        save({"pruned": torch.tensor([1])}, header(budget={"epsilon": 10**400})),
        (8 + len(DEEP)).to_bytes(8, "little") + DEEP.encode(),
        *(save({"pruned": torch.tensor([1])}, header(metadata=facts)) for facts in BAD_FACTS),
    ],
    ids=range(5 + len(BAD_FACTS)),
)
def test_files_made_to_harm_are_refused_by_name(data, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="bad.safetensors"):
        Selection.load(path)


def state_file(state):
    return pack(STATE, {"state": state}, {"a": torch.tensor([1])})


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"dict": {"a": value}}
    return value


@pytest.mark.parametrize(
    "data",
    [
        save({"a": torch.tensor([1])}, {"header": DEEP}),
        state_file({"tensor": ["a"]}),
        state_file({"tensor": "b"}),
        state_file({"dict": [1]}),
        state_file("text"),
        state_file(3),
        state_file(nested(400)),
    ],
    ids=range(7),
)
def test_states_made_to_harm_are_refused(data):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300 + len(inspect.stack()))  # reading back recurses deeper than JSON
    try:
        with pytest.raises(ValueError, match="prunesampler.state"):
            unpack_state(data)
    finally:
        sys.setrecursionlimit(limit)


def test_a_state_comes_back_whole():
    state = {"a": torch.tensor([1, 2]), "b": {"c": None, "d": [1, "x"], "e": {"f": torch.ones(2)}}}
    found = unpack_state(pack_state(state))
    assert torch.equal(found["a"], state["a"])
    assert torch.equal(found["b"]["e"]["f"], torch.ones(2))
    assert found["b"]["d"] == [1, "x"]


FACTS = {"parameters": 3, "curvature": "ExactCurvature", "layer": "fc", "random_shift": 1.0}


@pytest.mark.parametrize(
    ("shift", "newton", "facts", "ratio", "words"),
    [
        (0.25, 0.2, {"random_newton_shift": 1.0}, 0.25,
         ["The set is better than a random set: it shifts layer 'fc' by 0.25 to first order (a random "
          "set by 1, so it is 25 % of that) and by 0.2 after a Newton step (a random set by 1, so it is "
          "20 % of that). There are 2 samples for each of the 3 parameters of layer 'fc'."]),
        (0.25, 0.6, {"random_newton_shift": 1.0}, 0.6,
         ["hardly better than a random set", "is that there are few samples per parameter"]),
        (0.25, 2.0, {"random_newton_shift": 1.0}, 2.0, ["no better than a random set", "200 % of"]),
        (0.95, float("nan"), {}, 0.95, ["no better than a random set", "by 0.95 to first order"]),
        (0.95, 0.1, {"random_newton_shift": None}, 0.95, ["no better", "few samples"]),
        (0.0009, 0.0009, {"random_newton_shift": 1.0}, 0.0009, ["better than a random", "0.09 %"]),
        (0.95, 0.9, {"parameters": 1, "curvature": "KroneckerCurvature"}, 0.95,
         ["The usual reason is that the curvature is approximate (KroneckerCurvature)."]),
        (0.95, 0.9, {"parameters": 100, "metric": "parameter_distance"}, 0.95,
         ["little to choose. In units of the loss, objective=KeepHead(loss_distance), the share is"]),
        (0.95, 0.9, {"parameters": 1, "cost": True}, 0.95,
         ["The usual reason is that the objective is another than the shift."]),
        (0.95, 0.9, {"parameters": 1}, 0.95, ["the floors per class, the constraints and the solver"]),
        (0.0, 0.0, {"random_shift": 0.0, "random_newton_shift": 0.0}, 1.0, ["(a random set by 0)"]),
        (0.5, 0.5, {"random_shift": 0.0}, float("inf"), ["no better than a random set"]),
        (0.5, 0.5, {"random_shift": float("nan")}, None, ["there is no verdict. There are 2 samples"]),
        (0.25, 0.5, {"layer": None}, 0.25, ["it shifts the scored layer by 0.25"]),
    ],
)  # fmt: skip
def test_verdicts(shift, newton, facts, ratio, words):
    found = selection(shift=shift, newton_shift=newton, metadata={**FACTS, **facts})
    assert found.ratio == pytest.approx(math.nan if ratio is None else ratio, nan_ok=True)
    assert found.beats_random == (ratio is None or ratio < 0.9)
    assert all(part in found.verdict for part in words)
    if found.beats_random and (ratio is None or ratio < 0.5):
        assert "reason" not in found.verdict
    assert Selection.from_bytes(found.to_bytes()).verdict == found.verdict


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, "Nothing is known of random sets, so there is no verdict."),
        ({"random_shift": 5.0, "parameters": 2, "damping": 0.1, "curvature": "ExactCurvature"},
         "The set is better than a random set: it shifts the scored layer by 0.5 to first order (a "
         "random set by 5, so it is 10 % of that). There are 3 samples for each of the 2 parameters "
         "of the scored layer."),
    ],
)  # fmt: skip
def test_files_of_older_releases_have_a_verdict(facts, verdict):
    found = Selection.from_bytes(save({"pruned": torch.tensor([1, 4])}, header(metadata=facts)))
    assert found.beats_random
    assert found.verdict == verdict
    assert "predicted: shift 0.5 to first order" in found.certificate


def test_nothing_pruned_is_no_failure():
    found = selection(torch.zeros(0, dtype=torch.int64), shift=0.0, metadata={"random_shift": 0.0})
    assert math.isnan(found.ratio)
    assert found.beats_random
    assert found.verdict == "Nothing was pruned, so there is nothing to hold against a random set."


def test_what_is_proved():
    assert selection().proved is None
    found = selection(bound=0.5, loss_bound=0.25, metadata={"damping": 0.1})
    assert found.proved.startswith("shift <= 0.5, mean loss changed by <= 0.25, if only this layer")
    assert f"proved: {found.proved}\n" in found.certificate


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(place, value):
    data = bytearray(selection(weights=torch.tensor([1.5, 0.0, 1.0, 1.5])).to_bytes())
    data[place % len(data)] = value
    try:
        found = Selection.from_bytes(bytes(data))
    except ValueError:
        return
    assert len(found.kept) + len(found.pruned) == found.num_samples
    assert found.weights is None or bool((found.weights >= 0).all())
    assert found.verdict
    assert found.certificate


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


@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=6).filter(lambda c: sum(c) >= 2),
    st.integers(0, 5), st.floats(0.02, 0.98),
)  # fmt: skip
def test_equal_classes_are_as_even_as_they_can_be(counts, least, share):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n = len(labels)
    kept = n - min(max(1, round(share * n)), n - 1)
    found = (
        Budget(count=n - kept, min_per_class=least, per_class="equal")
        .floors(labels, n - kept)
        .tolist()
    )
    floors = [min(c, least) for c in counts][: len(found)]
    assert all(f <= k <= c for f, k, c in zip(floors, found, counts, strict=False))
    if sum(floors) <= kept:
        assert sum(found) == kept
    for a, floor in zip(found, floors, strict=True):
        for b, count in zip(found, counts, strict=False):
            assert a <= b + 1 or a == floor or b == count


@pytest.mark.filterwarnings("ignore:the .* pruned samples are no better")
def test_a_selection_keeps_as_many_of_every_class():
    torch.manual_seed(0)
    labels = torch.cat([torch.zeros(100), torch.ones(40), torch.full((15,), 2)]).long()
    data = TensorDataset(torch.randn(155, 6), labels)
    model = torch.nn.Linear(6, 3)
    for fraction, expected in ((0.5, [31, 31, 15]), (0.9, [5, 5, 5]), (0.2, [69, 40, 15])):
        budget = Budget(fraction=fraction, per_class="equal")
        found = InfluencePruner(data, budget=budget, progress=False).select(model)
        assert sorted(torch.bincount(labels[found.kept]).tolist(), reverse=True) == expected
        assert Selection.from_bytes(found.to_bytes()).budget == budget


def test_equal_classes_are_not_proportional_ones():
    with pytest.raises(ValueError, match='give per_class="equal", or proportional=True'):
        Budget(count=3, per_class="equal", proportional=True)
    with pytest.raises(ValueError, match="per_class='same'"):
        Budget(count=3, per_class="same")
    with pytest.raises(ValueError, match='per_class="equal" needs the class of every sample'):
        Budget(count=1, per_class="equal").floors(None)


def test_numbers_that_nothing_counts_are_refused():
    found = Selection(
        torch.tensor([1]), 5, 0.1, 0.1, None, Budget(count=1), {"parameters": 10**400}
    )
    with pytest.raises(ValueError, match="parameters in metadata is a number beyond"):
        Selection.from_bytes(found.to_bytes())

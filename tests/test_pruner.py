import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from prunesampler import (
    BinaryCrossEntropy,
    Budget,
    ExactCurvature,
    HeadGradients,
    IdentityCurvature,
    InfluencePruner,
    KroneckerCurvature,
    Selection,
    SquaredError,
    anneal,
)

quick = partial(anneal, moves=20_000)


def pruner(data, **options):
    return InfluencePruner(
        data, **{"budget": Budget(fraction=0.4), "solver": quick, "progress": False, **options}
    )


def train(model, data, epochs, after_epoch=lambda model: None):
    """A run that uses global random numbers everywhere; returns every loss."""
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    losses = []
    for _ in range(epochs):
        model.train()
        for x, y in DataLoader(data, 32, shuffle=True):
            noise = torch.rand(1) + np.random.rand() + random.random()
            loss = F.cross_entropy(model(x) + noise * 1e-3 * torch.randn(10), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        after_epoch(model)
    return losses


class Noisy(Dataset):
    """Draws global random numbers for every item."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return x + 0.01 * torch.randn(64) + np.random.rand() + random.random(), y


def test_a_run_that_scores_but_never_prunes_has_bitwise_the_same_losses(model, few_digits):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    alone = train(model, few_digits, 3)
    model.load_state_dict(state)
    for workers in (0, 2):
        model.load_state_dict(state)
        scoring = pruner(few_digits, num_workers=workers)
        assert train(model, few_digits, 3, scoring.select) == alone
    model.load_state_dict(state)
    with pytest.warns(UserWarning, match="another item"):
        assert train(model, few_digits, 3, pruner(Noisy(few_digits)).select) == alone


def test_gradients_and_optimizer_state_are_untouched(model, few_digits):
    F.cross_entropy(model(few_digits[:][0]), few_digits[:][1]).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    pruner(few_digits).select(model)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert [p._version for p in model.parameters()] == versions
    assert model.training


def test_batch_size_and_workers_do_not_change_the_measurements(model, few_digits):
    shifts = [
        pruner(few_digits, batch_size=b, num_workers=w, curvature=IdentityCurvature())
        .select(model).metadata["random_shift"]
        for b, w in [(7, 0), (256, 0), (50, 2)]
    ]  # fmt: skip
    assert shifts == pytest.approx([shifts[0]] * 3, rel=1e-5)


def test_the_same_call_gives_the_same_selection(model, few_digits):
    first, second = (pruner(few_digits, seed=3).select(model) for _ in range(2))
    assert torch.equal(first.pruned, second.pruned)
    assert first.shift == second.shift
    assert len(first.pruned) == 80
    assert first.shift < 0.7 * first.metadata["random_shift"]


@pytest.mark.parametrize("curvature", [ExactCurvature(), KroneckerCurvature(), IdentityCurvature()])
def test_every_curvature_selects(curvature, model, few_digits):
    selection = pruner(few_digits, curvature=curvature).select(model)
    assert selection.metadata["curvature"] == type(curvature).__name__
    assert selection.shift < selection.metadata["random_shift"]


def test_labels_set_the_floors(model, few_digits):
    rare = torch.arange(200) % 2
    rare[:4] = 2
    budget = Budget(fraction=0.9, min_per_class=4)
    selection = pruner(few_digits, labels=rare, budget=budget).select(model)
    assert set(range(4)) <= set(selection.kept.tolist())
    by_loss = pruner(few_digits, budget=Budget(fraction=0.9, min_per_class=2)).select(model)
    assert torch.bincount(few_digits[:][1][by_loss.kept]).min() >= 2


class Dicts(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y = self.data[index]
        return {"inputs": x, "labels": y}


class TakesKeywords(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return {"logits": self.model(inputs)}


def test_mappings_and_other_tasks(model, few_digits):
    plain = pruner(few_digits).select(model)
    mapping = pruner(Dicts(few_digits)).select(TakesKeywords(model))
    assert torch.equal(mapping.pruned, plain.pruned)

    x, y = few_digits[:]
    regression = TensorDataset(x, y.float())
    network = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 1))
    assert len(pruner(regression, losses=SquaredError()).select(network).pruned) == 80
    yes_no = TensorDataset(x, (y > 4).float()[:, None])
    assert len(pruner(yes_no, losses=BinaryCrossEntropy()).select(network).pruned) == 80
    own = pruner(
        regression,
        losses=lambda m, b: F.huber_loss(m(b[0])[:, 0], b[1], reduction="none"),
        budget=Budget(fraction=0.4, min_per_class=0),
    )
    assert len(own.select(network).pruned) == 80


def test_a_gradient_source_of_ones_own(model, few_digits):
    source = HeadGradients("0", lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"))
    selection = pruner(
        few_digits, gradients=source, curvature=KroneckerCurvature(damping=0.1)
    ).select(model)
    assert selection.metadata["parameters"] == 16 * 65


def test_without_centring_nothing_is_proved(model, few_digits):
    literal = pruner(few_digits, center=False, curvature=ExactCurvature(damping=0.01)).select(model)
    centred = pruner(few_digits, curvature=ExactCurvature(damping=0.01)).select(model)
    assert literal.bound is None
    assert centred.bound >= centred.newton_shift
    assert literal.shift != pytest.approx(centred.shift, rel=0.05)


def test_a_collate_function_of_ones_own(model, few_digits):
    def collate(items):
        xs, ys = zip(*items, strict=True)
        return {"inputs": torch.stack(xs), "labels": torch.tensor(ys)}

    plain = pruner(few_digits).select(model)
    own = pruner(few_digits, collate_fn=collate).select(TakesKeywords(model))
    assert torch.equal(own.pruned, plain.pruned)


def test_progress_bars_can_be_silenced(model, few_digits, capsys):
    pruner(few_digits).select(model)
    assert capsys.readouterr() == ("", "")
    pruner(few_digits, progress=True).select(model)
    assert "measuring" in capsys.readouterr().err


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (Stream(), {}, TypeError, "Stream is not a map-style dataset"),
        (DataLoader(TensorDataset(X)), {}, TypeError, "pass the dataset itself, not a loader"),
        (TensorDataset(X[:0]), {}, ValueError, "TensorDataset is empty"),
        (TensorDataset(X), {"budget": Budget(count=4)}, ValueError, "prunes 4.*ask for 1 to 3"),
        (TensorDataset(X), {"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        (TensorDataset(X), {"labels": [0, 1]}, ValueError, r"labels must be 4 whole numbers.*\(2,\)"),
        (TensorDataset(X), {"labels": [0, 1, -1, 0]}, ValueError, "labels must be 4 whole numbers"),
        (
            TensorDataset(X), {"head": "fc", "gradients": HeadGradients("fc")},
            ValueError, "gradients= replaces head= and losses=",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(data, options, error, message):
    with pytest.raises(error, match=message):
        pruner(data, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.4}, r"budget must be a Budget, such as Budget\(fraction=0.4\), got 0.4"),
        ({"losses": nn.CrossEntropyLoss()}, "losses must be a function.*CrossEntropyLoss"),
        ({"losses": F.cross_entropy}, "losses must be a function.*cross_entropy"),
        ({"losses": BinaryCrossEntropy}, "losses must be a function.*BinaryCrossEntropy"),
        ({"curvature": ExactCurvature}, "curvature must be an object such as ExactCurvature"),
        ({"solver": "anneal"}, "solver must be a function.*'anneal'"),
        ({"labels": ["a", "b", "c", "d"]}, "labels must be whole numbers"),
    ],
)
def test_what_only_looks_like_an_argument(options, message):
    with pytest.raises(TypeError, match=message):
        pruner(TensorDataset(X), **options)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got -1"):
        pruner(TensorDataset(X), seed=-1)


def test_a_model_that_is_none(few_digits):
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got OrderedDict"):
        pruner(few_digits).select(nn.Linear(64, 10).state_dict())


NO_FLOOR = Budget(fraction=0.4, min_per_class=0)


def test_integer_regression_targets_are_no_classes(few_digits):
    x, y = few_digits[:]
    data = TensorDataset(x, torch.arange(200) * 10**9 - 5)
    scaled = lambda m, b: SquaredError().values(m(b[0]), b[1] / 1e11)  # noqa: E731
    network = nn.Sequential(nn.Linear(64, 1))
    assert len(pruner(data, losses=scaled, budget=NO_FLOOR).select(network).pruned) == 80
    data = TensorDataset(x, y - 7)
    assert len(pruner(data, losses=SquaredError()).select(network).pruned) == 80


def test_compiled_models_and_inference_mode(model, few_digits):
    model.eval()
    expected = pruner(few_digits).select(model).pruned
    model.compile(backend="eager")
    model(few_digits[:2][0])
    assert torch.equal(pruner(few_digits).select(model).pruned, expected)
    with torch.inference_mode():
        assert torch.equal(pruner(few_digits).select(model).pruned, expected)


def spoiled(data, index, value):
    x, y = (t.clone() for t in data[:])
    x[index] = value
    return TensorDataset(x, y)


def test_bad_samples_are_named(model, few_digits):
    with pytest.raises(ValueError, match=r"not finite for samples \[7, 150\];"):
        pruner(spoiled(few_digits, [7, 150], float("nan"))).select(model)
    x, y = few_digits[:]
    with pytest.raises(
        ValueError, match=r"labels \[10\] are out of range: the layer has 10 outputs"
    ):
        pruner(TensorDataset(x, y.clamp(min=10))).select(model)
    with pytest.raises(ValueError, match="all 200 samples have label 3"):
        pruner(TensorDataset(x, torch.full((200,), 3))).select(model)


def test_wrong_models_and_losses_leave_no_trace(model, few_digits):
    model.train()
    wrong = {
        "already reduced": pruner(few_digits, losses=lambda m, b: F.cross_entropy(m(b[0]), b[1])),
        "min_per_class=30 keeps 200 in 10 classes, which lets at most 0 go": pruner(
            few_digits, budget=Budget(fraction=0.9, min_per_class=30)
        ),
        "no layer 'fc'": pruner(few_digits, head="fc"),
    }
    for message, wrong_pruner in wrong.items():
        with pytest.raises(ValueError, match=message):
            wrong_pruner.select(model)
        assert model.training
    with pytest.raises(TypeError, match="BatchNorm1d, which has no weight matrix"):
        pruner(few_digits, head="1").select(model)
    with pytest.raises(ValueError, match="meta device"):
        pruner(few_digits).select(nn.Linear(64, 10, device="meta"))


def test_an_augmented_score_dataset_is_warned_of_once(model, few_digits):
    noisy = pruner(Noisy(few_digits))
    with pytest.warns(UserWarning, match="another item .* evaluation transform"):
        noisy.select(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noisy.select(model)


def test_a_model_that_returns_fewer_outputs_than_samples(few_digits):
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head(x[::2])

    losses = lambda m, b: F.cross_entropy(m(b[0]), b[1][::2], reduction="none")  # noqa: E731
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(1,\): .* another number of outputs"):
        pruner(few_digits, losses=losses).select(Pools())


def test_an_epsilon_that_is_too_small_says_so(model, few_digits):
    with pytest.warns(UserWarning, match="no sample was pruned: epsilon=1e-09 is below the shift"):
        pruner(few_digits, budget=Budget(epsilon=1e-9)).select(model)


def test_a_network_that_is_not_finite_names_samples_and_not_the_loss():
    inputs = torch.randn(40, 8)
    inputs[7] = float("nan")
    wide = TensorDataset(inputs, torch.arange(40) % 300)
    with pytest.raises(ValueError, match=r"not finite for samples \[7\]"):
        pruner(wide, budget=Budget(count=4, min_per_class=0)).select(nn.Linear(8, 300))


def test_epsilon_that_prunes_nothing(model, few_digits):
    selection = pruner(few_digits, budget=Budget(epsilon=0.0)).select(model)
    assert len(selection.kept) == 200
    assert isinstance(selection, Selection)

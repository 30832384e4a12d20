from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hostile import Views
from timm.data.loader import MultiEpochsDataLoader, PrefetchLoader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, TensorDataset, default_collate
from torchvision.transforms import v2

from prunesampler import (
    Budget,
    CrossEntropy,
    ExactCurvature,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
    TrajectoryRecorder,
    anneal,
    replace_sampler,
)

quick = partial(anneal, moves=1_000)
pytestmark = pytest.mark.filterwarnings("ignore:.*no better chosen than at random")


def pruner(data, **options):
    options = {"budget": Budget(fraction=0.4), "solver": quick, "progress": False, **options}
    return InfluencePruner(data, **options)


def images(few_digits):
    x, y = few_digits.tensors
    return TensorDataset(x.view(-1, 1, 8, 8), y)


def mixed(items):
    """The collate function of torchvision's references."""
    return v2.RandomChoice([v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])(
        *default_collate(items)
    )


def masked(items):
    """Random masking, as language models are trained with."""
    x, y = default_collate(items)
    return x * (torch.rand_like(x) > 0.15), y


def popping(items):
    """Takes its items apart, as is done with rows of Hugging Face."""
    labels = torch.tensor([item.pop("class") for item in items])
    return torch.stack([item.pop("image") for item in items]), labels


def test_a_collate_function_that_takes_items_apart(few_digits, model):
    rows = [{"image": x, "class": int(y)} for x, y in few_digits]
    copies = Copies(rows)
    assert len(pruner(copies, collate_fn=popping).select(model).pruned) == 80


class Copies(Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return dict(self.rows[index])


def test_classes_are_not_guessed_from_something_else(few_digits, model):
    x, y = few_digits.tensors
    third = lambda m, b: F.cross_entropy(m(b[0]), b[2], reduction="none")  # noqa: E731
    domains = TensorDataset(x, torch.zeros(200, dtype=torch.int64), y)
    budget = Budget(fraction=0.4, min_per_class=0)
    assert len(pruner(domains, losses=third, budget=budget).select(model).pruned) == 80
    one = TensorDataset(x, torch.zeros(200, dtype=torch.int64))
    other = lambda m, b: F.cross_entropy(m(b[0]), y[:1].expand(len(b[0])), reduction="none")  # noqa: E731
    assert len(pruner(one, losses=other, budget=budget).select(model).pruned) == 80


@pytest.mark.parametrize("collate", [mixed, masked])
def test_a_collate_function_that_draws_is_named_and_draws_no_number_of_the_run(collate, few_digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"collate_fn {collate.__name__} makes another batch"):
        pruner(images(few_digits), collate_fn=collate).check(model)
    loader = DataLoader(images(few_digits), 16, collate_fn=collate)
    with pytest.raises(ValueError, match=f"collate_fn {collate.__name__} makes another batch"):
        pruner(images(few_digits), like=loader).check(model)
    pruner(images(few_digits), like=loader, collate_fn=default_collate).check(model)
    assert torch.equal(torch.get_rng_state(), state)


def by_size(items):
    """As for packed sequences that are sorted by their length."""
    return default_collate(sorted(items, key=lambda item: -float(item[0].sum())))


def test_a_collate_function_that_sorts_is_refused(few_digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(
        ValueError, match=r"collate_fn by_size makes the same batch .* enforce_sorted"
    ):
        pruner(images(few_digits), collate_fn=by_size).check(model)
    same = TensorDataset(torch.ones(30, 64), torch.arange(30) % 3)
    sampler = InfluencePrunedSampler(few_digits)
    loader = DataLoader(few_digits, 8, sampler=sampler, collate_fn=by_size)
    with pytest.raises(ValueError, match="whose loss is whose"):
        TrajectoryRecorder(sampler, loader, model)
    drawing = DataLoader(
        few_digits, 8, sampler=sampler, collate_fn=lambda items: by_size(items)[::-1]
    )
    with pytest.raises(ValueError, match="whose loss is whose"):
        TrajectoryRecorder(sampler, drawing, model)
    few = InfluencePrunedSampler(same)  # whose items are all alike but for their labels
    TrajectoryRecorder(few, DataLoader(same, 8, sampler=few), model)


def test_loaders_that_hold_a_loader_or_a_sampler_of_samplers(few_digits, model):
    sampler = InfluencePrunedSampler(few_digits)
    ahead = MultiEpochsDataLoader(few_digits, batch_size=17, sampler=sampler, drop_last=True)
    pruner(few_digits).check(model, loader=ahead)  # its last batch is dropped
    loader = DataLoader(few_digits, 17, sampler=sampler, drop_last=True)
    wrapped = PrefetchLoader(loader, device=torch.device("cpu"))
    pruner(few_digits).check(model, loader=wrapped)
    with pytest.raises(
        TypeError, match="got PrefetchLoader; if it wraps one, .*like=loader.loader"
    ):
        pruner(few_digits, like=wrapped)
    with pytest.raises(
        TypeError, match=r"loader.loader = replace_sampler\(loader.loader, sampler\)"
    ):
        replace_sampler(wrapped, sampler)
    assert pruner(few_digits, like=wrapped.loader).reading.batch_size == 17


def test_a_network_that_is_certain_of_everything_for_now_passes_the_trial(few_digits):
    model = nn.Sequential(nn.Linear(64, 10))
    with torch.no_grad():
        model[0].weight.mul_(1e8)
    pruner(few_digits).check(model)
    callback = PruningCallback(InfluencePrunedSampler(few_digits), pruner(few_digits))
    callback.on_epoch_end(0, model)
    absolute = lambda m, b: (m(b[0])[:, 0] - b[1]).abs()  # noqa: E731
    with pytest.raises(ValueError, match="the loss has no curvature in the layer's output"):
        pruner(few_digits, losses=absolute).check(model)


class Pictures(Dataset):
    """Batches as mappings with keys of their own, of which the loss alone knows the form."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return {"image": self.x[index], "class": int(self.y[index])}


@pytest.fixture
def rare(digits):
    """Two classes of which there are few samples."""
    x, y = digits[:600]
    keep = (y > 1) | (torch.arange(600) < 12)
    return x[keep], y[keep]


def kept_per_class(data, y, **options):
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    selection = pruner(data, budget=Budget(fraction=0.88), **options).select(model)
    return y[selection.kept].bincount(minlength=10)


def own(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def own_pictures(model, batch):
    return F.cross_entropy(model(batch["image"]), batch["class"], reduction="none")


def test_rare_classes_keep_their_floor_whatever_the_form_of_batches(rare):
    x, y = rare
    run = CrossEntropy(run=lambda model, batch: (model(batch["image"]), batch["class"]))
    usual = kept_per_class(TensorDataset(x, y), y)
    assert usual.min() >= 1
    assert torch.equal(kept_per_class(Pictures(x, y), y, losses=run), usual)
    assert torch.equal(kept_per_class(TensorDataset(x, F.one_hot(y, 10).float()), y), usual)
    assert kept_per_class(TensorDataset(x, y), y, losses=own).min() >= 1
    assert kept_per_class(Pictures(x, y), y, losses=own_pictures, labels=y).min() >= 1
    with pytest.warns(
        UserWarning, match="min_per_class=1 is off: pass labels=, or losses=CrossEntr"
    ):
        kept = kept_per_class(Pictures(x, y), y, losses=own_pictures)
    assert kept.min() == 0  # or the floors above would prove nothing


def test_run_keeps_closed_form_bound_and_the_set(few_digits, model):
    options = {"curvature": ExactCurvature(damping=0.1)}
    usual = pruner(few_digits, **options).select(model)
    run = CrossEntropy(run=lambda model, batch: (model(batch["image"]), batch["class"]))
    other = pruner(Pictures(*few_digits.tensors), losses=run, **options).select(model)
    assert torch.equal(usual.pruned, other.pruned)
    assert (usual.bound, usual.loss_bound) == (other.bound, other.loss_bound)


def test_a_batch_that_puts_samples_together_is_said(few_digits):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(16, track_running_stats=False)
    model = nn.Sequential(nn.Linear(64, 16), norm, nn.Linear(16, 10))
    with pytest.warns(UserWarning, match="depends on the other samples in its batch"):
        pruner(few_digits).check(model)


def test_a_last_batch_of_one_sample_is_found_before_training(few_digits, model):
    sampler = InfluencePrunedSampler(few_digits)  # 120 kept = 7 * 17 + 1
    loader = DataLoader(few_digits, 17, sampler=sampler)
    with pytest.warns(
        UserWarning, match="batches of 17 the last one is of a single.*drop_last=True"
    ):
        pruner(few_digits).check(model, loader=loader)
    callback = PruningCallback(sampler, pruner(few_digits))
    callback.watch(loader=loader)
    with pytest.warns(UserWarning, match="batch norm cannot train"):
        callback.on_epoch_end(0, model)
    dropping = DataLoader(few_digits, 17, sampler=sampler, drop_last=True)
    pruner(few_digits).check(model, loader=dropping)
    small = DataLoader(few_digits, 128, sampler=sampler, drop_last=True)
    with pytest.raises(
        ValueError, match="has 120 samples, fewer than a batch of 128, .*would be empty"
    ):
        pruner(few_digits).check(model, loader=small)
    with pytest.warns(UserWarning, match="the 120 kept samples are fewer than a batch of 128"):
        pruner(few_digits).check(model, loader=DataLoader(few_digits, 128, sampler=sampler))
    batches = DataLoader(few_digits, batch_sampler=BatchSampler(sampler, 128, drop_last=True))
    with pytest.raises(ValueError, match="every pruned epoch would be empty"):
        pruner(few_digits).check(model, loader=batches)
    without = nn.Sequential(nn.Linear(64, 10))
    pruner(few_digits).check(without, loader=loader)
    with pytest.warns(UserWarning, match="the loader iterates a RandomSampler, not an Influence"):
        pruner(few_digits).check(model, loader=DataLoader(few_digits, 17, shuffle=True))


def test_errors_at_the_first_batch_say_what_we_were_doing(few_digits):
    x, y = few_digits.tensors
    ragged = [(x[i][: 60 + i % 3], int(y[i])) for i in range(200)]
    for head in (None, "0"):
        with pytest.raises(RuntimeError, match="equal size") as caught:
            pruner(ragged, head=head).select(nn.Sequential(nn.Linear(64, 10)))
        if hasattr(caught.value, "add_note"):  # Python 3.11
            assert "while prunesampler ran the model on a batch" in caught.value.__notes__[0]


def test_another_dataset_of_the_same_size(few_digits, model):
    x, y = few_digits.tensors
    saved = PruningCallback(InfluencePrunedSampler(few_digits), pruner(few_digits), warmup_epochs=1)
    saved.on_epoch_end(0, model)
    state = saved.state_dict()
    other = TensorDataset(x, y.flip(0))
    with pytest.raises(ValueError, match="the state is of another dataset of the same size"):
        PruningCallback(InfluencePrunedSampler(other), pruner(other)).load_state_dict(state)
    same = TensorDataset(x + 1e-3, y)  # as another version of an image library would decode it
    PruningCallback(InfluencePrunedSampler(same), pruner(same)).load_state_dict(state)
    older = {key: value for key, value in state.items() if key != "data"}
    PruningCallback(InfluencePrunedSampler(other), pruner(other)).load_state_dict(older)


def test_a_dataset_that_grew(few_digits, model):
    data = Views(*few_digits.tensors)
    sampler, chooser = InfluencePrunedSampler(data), pruner(data)
    data.y = torch.cat([data.y, data.y])
    with pytest.raises(ValueError, match="had 200 samples and has 400 now"):
        list(sampler)
    with pytest.raises(ValueError, match="had 200 samples and has 400 now"):
        chooser.select(model)

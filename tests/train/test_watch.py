"""The warnings that save a run: each when it should come, once, and not otherwise."""

import gc
import warnings
import weakref

import pytest
import torch
from test_callback import make
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import BatchSampler, DataLoader, Subset, TensorDataset
from transformers import get_cosine_schedule_with_warmup

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback
from prunesampler.measure.batches import label_of
from prunesampler.sampling.loaders import batch_size_of, sampler_of
from prunesampler.train.watch import schedule_length


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)


def run(callback, model, epochs=5, scheduler=None, ticks=None, order=None, iterate=True):
    """Epochs without training; the warnings that come, with their places."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(epochs):
            for _ in range((ticks or -(-len(callback.sampler) // 16)) if scheduler else 0):
                scheduler.optimizer.step()
                scheduler.step()
            callback.sampler.set_epoch(epoch if order is None else order[epoch])
            if iterate:
                list(callback.sampler)
            callback.on_epoch_end(epoch, model)
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught]


def test_a_run_as_it_should_be_hears_nothing(few_digits, model):
    sampler, callback = make(few_digits, epochs=5)
    scheduler = schedulers.CosineAnnealingLR(
        optimizer(), callback.planned_steps(epochs=5, batch_size=16)
    )
    callback.watch(loader=DataLoader(few_digits, 16, sampler=sampler), scheduler=scheduler)
    assert run(callback, model, scheduler=scheduler) == []


def test_a_sampler_that_nobody_iterates(few_digits, model):
    _, callback = make(few_digits)
    (message,) = run(callback, model, iterate=False)
    assert message.startswith("nobody iterated the sampler in epoch 2")


def test_a_resumed_epoch_that_has_no_batch_left(few_digits, model):
    """As Lightning ends it once more, from a checkpoint after validation."""
    _, callback = make(few_digits)
    run(callback, model, epochs=3)
    _, resumed = make(few_digits)
    resumed.load_state_dict(callback.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.on_epoch_end(3, model)
    with pytest.warns(UserWarning, match="nobody iterated the sampler in epoch 4"):
        resumed.on_epoch_end(4, model)


def test_epochs_that_repeat_an_order(few_digits, model):
    _, callback = make(few_digits)
    (message,) = run(callback, model, order=[0, 1, 0, 1, 2])
    assert message.startswith("epoch 2 ran in the order of epoch 0: call loader.set_epoch(epoch)")


def test_a_kept_set_smaller_than_a_batch(few_digits, model):
    sampler, callback = make(few_digits, Budget(count=190))
    callback.watch(loader=DataLoader(few_digits, 16, sampler=sampler))
    (message,) = run(callback, model)
    assert message.startswith("the 10 kept samples are fewer than a batch of 16")
    sampler, callback = make(few_digits, Budget(count=190))
    callback.watch(loader=DataLoader(few_digits, 16, sampler=sampler, drop_last=True))
    with pytest.raises(ValueError, match="every pruned epoch would be empty"):
        run(callback, model)


FULL = 5 * 13  # steps of five epochs on all samples; the plan has 2 * 13 + 3 * 8 = 50


@pytest.mark.parametrize(
    "build",
    [
        lambda o: schedulers.CosineAnnealingLR(o, FULL),
        lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=FULL),
        lambda o: schedulers.LinearLR(o, 1.0, 0.0, total_iters=FULL),
        lambda o: schedulers.PolynomialLR(o, total_iters=FULL),
        lambda o: schedulers.MultiStepLR(o, [20, FULL]),
        lambda o: schedulers.SequentialLR(
            o,
            [schedulers.LinearLR(o, 0.1, total_iters=9), schedulers.CosineAnnealingLR(o, FULL - 9)],
            [9],
        ),
        lambda o: get_cosine_schedule_with_warmup(o, 5, FULL),
    ],
)
def test_a_schedule_that_is_longer_than_the_run(build, few_digits, model):
    _, callback = make(few_digits, epochs=5)
    scheduler = build(optimizer())
    callback.watch(scheduler=scheduler)
    (message,) = run(callback, model, scheduler=scheduler)
    assert f"{type(scheduler).__name__} is sized for 65 steps, this run makes 50" in message


@pytest.mark.parametrize(
    ("build", "ticks"),
    [
        (lambda o: schedulers.CosineAnnealingLR(o, 50), None),
        (lambda o: schedulers.CosineAnnealingLR(o, 5), 1),  # once per epoch
        (lambda o: schedulers.LinearLR(o, 0.1, total_iters=9), None),  # a warm-up
        (lambda o: schedulers.StepLR(o, 1000), None),
        (lambda o: schedulers.LambdaLR(o, lambda step: 1.0), None),
        (lambda o: schedulers.CosineAnnealingWarmRestarts(o, 1000), None),
        (lambda o: get_cosine_schedule_with_warmup(o, 5, 50), None),
    ],
)
def test_schedules_that_fit_or_have_no_end(build, ticks, few_digits, model):
    _, callback = make(few_digits, epochs=5)
    scheduler = build(optimizer())
    callback.watch(scheduler=scheduler)
    assert run(callback, model, scheduler=scheduler, ticks=ticks) == []


def test_last_epochs_on_all_data_count(few_digits, model):
    _, callback = make(few_digits, epochs=5, final_full_epochs=1)
    steps = callback.planned_steps(epochs=5, batch_size=16)
    assert steps == 3 * 13 + 2 * 8
    scheduler = schedulers.CosineAnnealingLR(optimizer(), steps)
    callback.watch(scheduler=scheduler)
    assert run(callback, model, scheduler=scheduler) == []


def test_a_scheduler_that_hides_its_length_has_none():
    assert schedule_length(schedulers.ExponentialLR(optimizer(), 0.9)) is None
    assert schedule_length(schedulers.MultiStepLR(optimizer(), [])) is None


def test_labels_in_another_order(few_digits, model):
    x, y = few_digits.tensors
    shuffled = TensorDataset(x.flip(0), y.flip(0))
    pruner = InfluencePruner(shuffled, budget=Budget(fraction=0.4), progress=False)
    callback = PruningCallback(InfluencePrunedSampler(few_digits), pruner, warmup_epochs=1)
    (message,) = run(callback, model, epochs=3)
    assert message.startswith("sample 0 has label 0 in the training set and 9 in score_dataset")


def test_augmented_images_are_not_other_labels(few_digits, model):
    x, y = few_digits.tensors

    class Augmented(TensorDataset):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + torch.rand(1), int(label)

    pruner = InfluencePruner(few_digits, budget=Budget(fraction=0.4), progress=False)
    callback = PruningCallback(InfluencePrunedSampler(Augmented(x, y)), pruner, warmup_epochs=1)
    before = torch.get_rng_state()
    assert run(callback, model, epochs=2) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_set_that_only_workers_can_read_ends_nothing(few_digits, model):
    class Unreadable(TensorDataset):
        def __getitem__(self, index):
            raise OSError("open the file in worker_init_fn")

    sampler = InfluencePrunedSampler(Unreadable(*few_digits.tensors))
    pruner = InfluencePruner(few_digits, budget=Budget(fraction=0.4), progress=False)
    assert run(PruningCallback(sampler, pruner, warmup_epochs=1), model, epochs=2) == []


def test_schedulers_of_another_kind_are_left_alone(few_digits, model):
    class Scheduler:
        def step(self):
            """Keep no count."""

    _, callback = make(few_digits, epochs=5)
    callback.watch(scheduler=Scheduler())
    assert run(callback, model) == []


def test_a_second_pass_within_an_epoch_is_no_other_order(few_digits, model):
    sampler, callback = make(few_digits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(4):
            sampler.set_epoch(epoch)
            list(sampler)
            list(sampler)  # for the training accuracy
            callback.on_epoch_end(epoch, model)


def test_an_earlier_run_is_not_held(few_digits, model):
    _, callback = make(few_digits)
    scheduler = schedulers.StepLR(optimizer(), 9)
    callback.watch(scheduler=scheduler)
    alive = weakref.ref(scheduler.optimizer)
    run(callback, model)
    callback.reset()
    assert callback.selection is None
    assert len(callback.sampler) == 200
    del scheduler
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("item", "label"),
    [
        ((0, 3), 3),
        ([0, torch.tensor(3)], 3),
        ({"labels": 3}, 3),
        ({"label": 3}, 3),
        ({"text": 3}, None),
        ((0, 0.5), None),
        ((0, torch.ones(2, dtype=torch.int64)), None),
        ((0, "cat"), None),
        ((0, None), None),
        ((0, {"boxes": [1]}), None),
        ({"labels": ["a", "b"]}, None),
        ({"label": [[1], [2, 3]]}, None),
        ((0, 1, 2), 1),
        ((0, 0.5, 2), None),
        (3, None),
    ],
)
def test_what_counts_as_a_label(item, label):
    assert label_of(item) == label


def test_the_sampler_and_the_batch_size_of_loaders(few_digits):
    sampler = InfluencePrunedSampler(few_digits)
    batches = BatchSampler(sampler, 7, False)
    for loader, size in [
        (DataLoader(few_digits, 5, sampler=sampler), 5),
        (DataLoader(few_digits, batch_sampler=batches), 7),
        (DataLoader(few_digits, batch_size=None, sampler=sampler), None),
    ]:
        assert sampler_of(loader) is sampler
        assert batch_size_of(loader) == size
    assert sampler_of(DataLoader(Subset(few_digits, [1]))) is not sampler
    assert sampler_of(object()) is None

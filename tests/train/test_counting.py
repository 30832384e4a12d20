import gc
import logging
import warnings
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from timm.data.loader import MultiEpochsDataLoader
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback, anneal

pytestmark = pytest.mark.filterwarnings("ignore:.*no better chosen than at random")


def make(data, *, sampler=None, **options):
    pruner = InfluencePruner(
        data, budget=Budget(fraction=0.4), solver=partial(anneal, moves=1_000), progress=False
    )
    sampler = sampler or InfluencePrunedSampler(data)
    return sampler, PruningCallback(sampler, pruner, **{"warmup_epochs": 2, **options})


def test_epochs_counted_from_one(few_digits, model):
    _, callback = make(few_digits)
    with pytest.raises(
        ValueError, match="the first call is on_epoch_end.1, model., but epochs count"
    ):
        callback.on_epoch_end(1, model)
    assert callback.catch_up(1, model) is None  # a run that did resume there says so
    assert callback.on_epoch_end(1, model) is not None


def test_a_call_after_every_step_and_one_in_an_earlier_epoch(few_digits, model):
    _, callback = make(few_digits)
    callback.on_epoch_end(0, model)
    with pytest.raises(
        ValueError, match=r"on_epoch_end\(0, model\) was called before: .* every step"
    ):
        callback.on_epoch_end(0, model)
    callback.on_epoch_end(1, model)
    with pytest.raises(ValueError, match=r"comes after epoch 1: .* pruning.reset\(\) first"):
        callback.on_epoch_end(0, model)
    callback.reset()
    assert callback.on_epoch_end(0, model) is None
    with pytest.raises(ValueError, match="epoch must be a whole number of at least 0, got 0.5"):
        callback.on_epoch_end(0.5, model)


def test_epochs_without_a_call(few_digits, model):
    _, callback = make(few_digits)
    callback.on_epoch_end(0, model)
    with pytest.warns(UserWarning, match="on_epoch_end was not called for epochs 1 to 2"):
        callback.on_epoch_end(3, model)
    list(callback.sampler)
    callback.sampler.set_epoch(5)
    list(callback.sampler)
    with pytest.warns(UserWarning, match="on_epoch_end was not called for epoch 4,"):
        callback.on_epoch_end(5, model)


def test_a_callback_that_nobody_calls(few_digits):
    sampler, callback = make(few_digits)
    for _ in range(3):
        list(sampler)
    with pytest.warns(UserWarning, match="3 passes .* nobody has called the PruningCallback"):
        list(sampler)
    list(sampler)  # said once
    del callback
    alone = InfluencePrunedSampler(few_digits)  # without a callback there is nothing to say
    for _ in range(4):
        list(alone)


def test_a_loop_that_breaks_early_gets_another_order_in_every_epoch(few_digits, model):
    sampler, callback = make(few_digits, warmup_epochs=4)
    loader, orders = DataLoader(range(200), 8, sampler=sampler), []
    for epoch in range(7):
        batches = iter(loader)
        orders.append(torch.cat([next(batches) for _ in range(5)]).tolist())
        callback.on_epoch_end(epoch, model)
    assert len({tuple(order) for order in orders}) == 7
    assert len({index for order in orders[:4] for index in order}) > 100
    for epoch, order in enumerate(orders[4:], 4):
        assert order == sampler.indices(epoch)[:40]


def test_another_run_on_a_sampler_that_is_restricted_already(few_digits, model):
    sampler, callback = make(few_digits, warmup_epochs=1)
    callback.on_epoch_end(0, model)
    with pytest.warns(UserWarning, match=r"restricted to 120 of 200 .* sampler.restart\(\) first"):
        make(few_digits, sampler=sampler)
    sampler.restart()
    make(few_digits, sampler=sampler)


def test_passes_that_train_nothing(few_digits, model):
    sampler, callback = make(few_digits)
    list(sampler)  # statistics of the data
    for epoch in range(5):
        list(sampler)
        callback.on_epoch_end(epoch, model)
        list(sampler)  # accuracy on the training set


def test_an_epoch_that_is_set_stays(few_digits, model):
    sampler, callback = make(few_digits)
    sampler.set_epoch(7)
    callback.on_epoch_end(0, model)
    assert sampler.epoch == 7


def test_resuming_at_another_epoch_than_the_saved_one_leads_to(few_digits, model):
    sampler, callback = make(few_digits)
    for epoch in range(3):
        list(sampler)
        callback.on_epoch_end(epoch, model)
    state = callback.state_dict()
    length = len(DataLoader(few_digits, 10, sampler=sampler))  # 12 batches, before pruning 20
    wrong = (20 + 20 + 12) // length  # as accelerate's complete_cv_example.py finds its place
    assert wrong == 4
    again = make(few_digits)[1]
    again.load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"is 4, but 3 epochs had ended.*epoch_length=\"constant\""
    ):
        again.on_epoch_end(wrong, model)
    again.on_epoch_end(3, model)
    assert length == 12

    again = make(few_digits)[1]
    again.load_state_dict(state)
    with pytest.raises(ValueError, match="is 1, but 3 epochs had ended"):
        again.on_epoch_end(1, model)


def test_a_script_that_resumes_behind_its_last_epoch_trains_nothing_and_is_told(
    few_digits, model, caplog
):
    sampler, callback = make(few_digits)
    callback.on_epoch_end(0, model)
    state = callback.state_dict()
    again = make(few_digits)[1]
    again.load_state_dict(state)
    with caplog.at_level(logging.WARNING, logger="prunesampler"):
        del again
        gc.collect()
    assert "a state after 1 epochs was loaded, but no epoch was trained" in caplog.text
    caplog.clear()
    again = make(few_digits)[1]
    again.load_state_dict(state)
    again.on_epoch_end(1, model)
    with caplog.at_level(logging.WARNING, logger="prunesampler"):
        del again
        gc.collect()
    assert not caplog.records
    assert sampler is callback.sampler


@pytest.mark.filterwarnings("ignore:Length of")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_runs_ahead(workers, few_digits, model):
    sampler, callback = make(few_digits)
    options = {"prefetch_factor": 4} if workers else {}
    loader = MultiEpochsDataLoader(
        range(200), batch_size=8, sampler=sampler, num_workers=workers, **options
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(6):
            for _ in loader:
                pass
            callback.on_epoch_end(epoch, model)
    said = [str(w.message) for w in caught if "runs ahead" in str(w.message)]
    assert bool(said) == bool(workers)
    assert all("on_selection=" in text for text in said)


@pytest.mark.filterwarnings("ignore:Length of")
def test_a_loader_that_runs_ahead_and_is_made_to_begin_anew(few_digits, model):
    sampler, callback = make(few_digits, on_selection=lambda _: loader.reset())
    loader = Infinite(range(200), batch_size=8, sampler=sampler, num_workers=2)
    for epoch in range(5):
        seen = torch.cat(list(loader)).tolist()
        assert sorted(seen) == sampler.kept.tolist()
        callback.on_epoch_end(epoch, model)


class Infinite(MultiEpochsDataLoader):
    """With a way to begin anew, as that of ultralytics has."""

    def reset(self):
        self.iterator = DataLoader.__iter__(self)


def test_a_state_from_within_a_pruned_epoch_says_how_long_that_is(few_digits, model, caplog):
    def resumed(**options):
        accelerator = Accelerator(cpu=True)
        sampler = InfluencePrunedSampler(few_digits, **options)
        callback = make(few_digits, sampler=sampler, accelerator=accelerator)[1]
        for epoch in range(2):
            list(sampler)
            callback.on_epoch_end(epoch, model)
        pass_at_hand = iter(sampler)
        next(pass_at_hand)
        state = callback.state_dict()
        again = make(
            few_digits,
            sampler=InfluencePrunedSampler(few_digits, **options),
            accelerator=accelerator,
        )[1]
        caplog.clear()
        again.load_state_dict(state)
        again.on_epoch_end(2, model)
        return caplog.text

    assert "from within epoch 2, which has 120 samples where a full one has 200" in resumed()
    assert "from within" not in resumed(epoch_length="constant")


def test_a_schedule_of_timm_that_counts_updates_by_the_length_of_the_loader(few_digits, model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    by_update = CosineLRScheduler(optimizer, 100, t_in_epochs=False)
    with pytest.warns(UserWarning, match=r"CosineLRScheduler places itself at epoch \* len"):
        make(few_digits)[1].watch(scheduler=by_update)
    make(few_digits)[1].watch(scheduler=CosineLRScheduler(optimizer, 100))
    constant = InfluencePrunedSampler(few_digits, epoch_length="constant")
    make(few_digits, sampler=constant)[1].watch(scheduler=by_update)


class Fails(torch.nn.Module):
    """A part of a network that gives no numbers."""

    def forward(self, x):
        return x * float("nan")


def test_a_selection_that_fails_need_not_end_the_run(few_digits):
    good = torch.nn.Sequential(torch.nn.Linear(64, 10))
    bad = torch.nn.Sequential(Fails(), torch.nn.Linear(64, 10))
    with pytest.raises(ValueError, match="not finite for samples"):
        make(few_digits, warmup_epochs=1)[1].on_epoch_end(0, bad)
    options = {"on_error": "continue", "warmup_epochs": 1, "refresh_every": 3}
    sampler, callback = make(few_digits, **options)
    message = r"PRUNING FAILED after epoch 0.*200 of 200 samples"
    with pytest.warns(UserWarning, match=message) as caught:
        assert [callback.on_epoch_end(epoch, bad) for epoch in range(3)] == [None] * 3
    assert len(caught) == 1
    assert len(sampler) == 200
    assert callback.on_epoch_end(3, good) is not None  # at the next refresh it is tried again
    with pytest.raises(ValueError, match="called before"):  # a wrong call is not what failed
        callback.on_epoch_end(3, good)
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'continue', got 'skip'"):
        make(few_digits, on_error="skip")


def test_a_trial_that_fails_is_no_pruning_that_failed(few_digits, model):
    options = {"on_error": "continue", "warmup_epochs": 3}
    sampler, callback = make(few_digits, **options)
    headless = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
    message = r"trial measurement after epoch 0 failed, so the selection before epoch 3 is likely"
    with pytest.warns(UserWarning, match=message) as caught:
        assert [callback.on_epoch_end(epoch, headless) for epoch in range(2)] == [None] * 2
    assert len(caught) == 1
    with pytest.warns(
        UserWarning, match="FAILED after epoch 2.*200 of 200 samples: the same error"
    ):
        callback.on_epoch_end(2, headless)
    callback.reset()
    with pytest.warns(UserWarning, match=message):
        callback.on_epoch_end(0, headless)
    assert callback.on_epoch_end(1, model) is None
    assert callback.on_epoch_end(2, model) is not None
    assert len(sampler) == 120


def test_two_callbacks_on_one_sampler_count_its_passes_each_for_itself(few_digits, model):
    sampler, early = make(few_digits, warmup_epochs=1)
    _, late = make(few_digits, warmup_epochs=3, sampler=sampler)
    for epoch in range(6):  # a warning is an error here
        assert len(list(sampler)) == (200 if epoch == 0 else 120)
        for callback in (early, late):
            callback.on_epoch_end(epoch, model)
    for callback in (early, late):
        with pytest.warns(UserWarning, match="nobody iterated the sampler in epoch 6"):
            callback.on_epoch_end(6, model)

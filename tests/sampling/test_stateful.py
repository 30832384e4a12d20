"""torchdata's StatefulDataLoader: a run that stops within an epoch goes on at the next batch."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback, anneal

pytestmark = pytest.mark.slow
EPOCHS, BATCH = 4, 16


class Training:
    """A plain loop that can stop after any batch and hand over its state."""

    def __init__(self, dataset, model, workers, told=False):
        self.dataset, self.model = dataset, copy.deepcopy(model)
        self.model[3].p = 0.0
        self.sampler = InfluencePrunedSampler(dataset)
        self.loader = StatefulDataLoader(
            range(len(dataset)), BATCH, sampler=self.sampler, num_workers=workers
        )
        pruner = InfluencePruner(
            dataset, budget=Budget(fraction=0.4), solver=partial(anneal, moves=5000), progress=False
        )
        self.pruning = PruningCallback(
            self.sampler, pruner, warmup_epochs=1, redraw_every=1, epochs=EPOCHS
        )
        steps = self.pruning.planned_steps(epochs=EPOCHS, batch_size=BATCH)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, steps)
        self.parts = (self.model, self.optimizer, self.schedule, self.pruning, self.loader)
        self.epoch, self.log, self.told = 0, [], told

    def state(self):
        return copy.deepcopy([self.epoch, *(part.state_dict() for part in self.parts)])

    def run(self, stop=None, ended=None, early=None):
        """Train on; return the state after so many batches or epochs, if that is before the end.

        ``early`` counts epochs too, but saves before their `on_epoch_end`.
        """
        while self.epoch < EPOCHS:
            self.model.train()
            if self.told:
                self.sampler.set_epoch(self.epoch)
            for batch in self.loader:
                x, y = self.dataset[batch]
                loss = F.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.schedule.step()
                self.log.append((self.epoch, batch.tolist(), loss.item()))
                if len(self.log) == stop:
                    return self.state()
            self.epoch += 1
            if self.epoch == early:
                return self.state()
            self.pruning.on_epoch_end(self.epoch - 1, self.model)
            if self.epoch == ended:
                return self.state()
        return None

    def resume(self, state, order):
        self.epoch = state[0]
        for part, held in order(list(zip(self.parts, state[1:], strict=True))):
            part.load_state_dict(held)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_at_the_next_batch(workers, few_digits, model):
    whole = Training(few_digits, model, workers)
    whole.run()
    assert len(whole.log) == 13 + 3 * 8
    assert whole.schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-9)
    for stop in (5, 12, 13, 14, 20, 21, 22, 36) if workers == 0 else (12, 20, 21):
        part, rest = Training(few_digits, model, workers), Training(few_digits, model, workers)
        state = part.run(stop)
        rest.resume(state, reversed if stop % 2 else list)
        rest.run()
        assert part.log == whole.log[:stop]
        assert rest.log == whole.log[stop:], stop
        assert torch.equal(rest.model[0].weight, whole.model[0].weight)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_whose_workers_are_ahead_does_not_undo_a_selection(
    workers, told, few_digits, model
):
    """With workers its state holds the sampler as it was before the epoch ended."""
    make = partial(Training, few_digits, model, workers, told)
    whole = make()
    whole.run()
    for ended in (1, 2, 3):
        part, rest = make(), make()
        rest.resume(part.run(ended=ended), reversed if ended % 2 else list)
        rest.run()
        assert part.log + rest.log == whole.log, ended


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_that_was_saved_too_early_is_caught_up_on(workers, told, few_digits, model):
    make = partial(Training, few_digits, model, workers, told)
    whole = make()
    whole.run()
    for early in (1, 2, 3):
        part, rest = make(), make()
        rest.resume(part.run(early=early), list)
        rest.pruning.catch_up(early, rest.model)
        rest.run()
        assert part.log + rest.log == whole.log, early


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_alone_that_is_told_its_epochs(workers):
    def make():
        sampler = InfluencePrunedSampler(range(40))
        sampler.restrict(range(30))
        return sampler, StatefulDataLoader(range(40), 8, sampler=sampler, num_workers=workers)

    def epoch(number, sampler, loader):
        sampler.set_epoch(number)
        return torch.cat(list(loader)).tolist()

    sampler, loader = make()
    orders = [epoch(number, sampler, loader) for number in range(3)]
    sampler, loader = make()
    assert [epoch(number, sampler, loader) for number in range(2)] == orders[:2]
    state = loader.state_dict()
    sampler, loader = make()
    loader.load_state_dict(state)
    assert epoch(2, sampler, loader) == orders[2]

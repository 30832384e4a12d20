"""Under Lightning, what the plan said is what happens, and resuming changes nothing."""

import csv
import warnings
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
from conftest import Jobs
from jobs import pruner
from lightning.pytorch.callbacks import Callback, LearningRateFinder, ModelCheckpoint
from lightning_jobs import BATCH, Counting, Ours, late, objects, run_late, trainer_with
from torch.utils.data import DataLoader

from prunesampler import CrossEntropy, InfluencePrunedSampler
from prunesampler.integrations.lightning import PruningCallback

EVERYWHERE = ["plan", "resume", "dropped"]
job = Jobs("lightning_jobs.py", {1: [*EVERYWHERE, "odd", "twice"], 2: EVERYWHERE})
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path"),  # without saver
]


@pytest.mark.parametrize("processes", [1, 2])
def test_epochs_shrink_and_validation_and_schedule_stay_alive(processes):
    ranks = job("plan", processes)
    assert len(ranks[0]["found"]) == (5 if processes == 1 else 4)
    for name in ranks[0]["found"]:
        rows = [rank["found"][name] for rank in ranks]
        kept = rows[0]["kept"]
        assert len(kept) == 120
        for epoch in range(5):
            expected = range(200) if epoch < 2 else kept
            drawn = [list(chain(*row["batches"][str(epoch)])) for row in rows]
            assert set().union(*drawn) == set(expected), name
            assert sum(map(len, drawn)) == len(expected)
            batches = -(-len(expected) // (16 * processes))
            assert {len(row["batches"][str(epoch)]) for row in rows} == {batches}
        for row in rows:
            assert row["validated"] == [0, 1, 2, 3, 4]
            assert row["steps"] == row["planned"] == (50 if processes == 1 else 26)
            assert row["lr"] == pytest.approx(0, abs=1e-9)
            assert row["kept"] == kept


@pytest.mark.parametrize("processes", [1, 2])
def test_every_checkpoint_leads_to_the_same_end(processes):
    for rank in job("resume", processes):
        for found in rank["found"].values():
            whole = found["whole"]
            for epoch, rest in found["rest"].items():
                coming = {e: batches for e, batches in whole["batches"].items() if e > epoch}
                assert rest["batches"] == coming
                assert rest["losses"] == whole["losses"][-len(rest["losses"]) :]
                assert rest["validated"] == [int(e) for e in coming]
                for name in ("weights", "kept", "steps", "lr"):
                    assert rest[name] == whole[name], name


@pytest.mark.parametrize("processes", [1, 2])
def test_a_plan_without_last_batches(processes):
    for rank in job("dropped", processes):
        found = rank["found"]
        steps = [len(batches) for batches in found["batches"].values()]
        # 159 kept samples are 80 on each of two processes, which is five batches of 16
        assert steps == ([12, 12, 9, 9, 9] if processes == 1 else [6, 6, 5, 5, 5])
        assert found["planned"] == found["steps"] == sum(steps)


def test_dry_runs_and_resuming_just_before_the_epochs_on_all_data():
    (found,) = job("odd", 1)
    assert found["dry"]["steps"] == 1
    whole, again = found["whole"], found["again"]
    assert [len(batches) for batches in whole.values()] == [13, 13, 8, 13, 13]
    assert again == {epoch: whole[epoch] for epoch in ("3", "4")}
    assert "the last batch of epoch 2, and the next epoch is longer" in found["refused"]


def test_a_second_fit_starts_anew_and_loggers_get_the_figures():
    (found,) = job("twice", 1)
    assert found["sizes"] == [200, 200, 120]
    with open(found["log"]) as file:
        rows = [row for row in csv.DictReader(file) if row.get("pruning/kept")]
    assert [(row["pruning/kept"], row["step"]) for row in rows] == [("120.0", "26")]
    assert float(rows[0]["pruning/shift"]) > 0


def end(module, sampler):
    return module.batches, sampler.kept.tolist(), module.network[0].weight.sum().item()


@pytest.mark.parametrize("where", ["datamodule", "lightning_module"])
def test_data_made_in_setup(where, few_digits, tmp_path):
    pruning, loader = objects(few_digits)
    module = Counting()
    trainer_with(pruning).fit(module, loader)
    expected = end(module, pruning.sampler)
    assert expected[0] == {0: 10, 1: 10, 2: 6, 3: 6}

    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module, pruning, _ = run_late(where, few_digits, saver)
    assert end(module, pruning.sampler) == expected
    assert pruning.selection.kept.tolist() == expected[1]
    for epoch in range(3):
        path = tmp_path / f"epoch={epoch}.ckpt"
        module, pruning, _ = run_late(where, few_digits, checkpoint=path)
        rest = {e: n for e, n in expected[0].items() if e > epoch}
        assert end(module, pruning.sampler) == (rest, *expected[1:]), epoch


@pytest.mark.parametrize("where", ["datamodule", "lightning_module"])
def test_each_fit_prunes_the_data_that_its_setup_made(where, few_digits):
    module, pruning, trainer = run_late(where, few_digits, max_epochs=3)
    first, source = pruning.sampler, trainer.datamodule
    trainer.fit_loop.max_epochs = 4  # the same run goes on
    trainer.fit(module, datamodule=source)
    assert module.batches == {0: 10, 1: 10, 2: 6, 3: 6}
    assert pruning.sampler is not first
    assert pruning.sampler.kept.tolist() == first.kept.tolist()
    module.batches.clear()
    trainer_with(pruning, max_epochs=3).fit(module, datamodule=source)  # another begins
    assert module.batches == {0: 10, 1: 10, 2: 6}
    assert (source or module).setups == 3


def test_steps_are_planned_once_the_data_are_there(few_digits):
    class Planned(Ours):
        def configure_optimizers(self):
            self.planned = pruning.planned_steps(epochs=4, batch_size=BATCH)
            return super().configure_optimizers()

    pruning, module = late("lightning_module"), Planned(few_digits)
    with pytest.raises(RuntimeError, match=r"ask later, as in configure_optimizers\(\)"):
        pruning.planned_steps(epochs=4, batch_size=BATCH)
    trainer = trainer_with(pruning)
    trainer.fit(module)
    assert module.planned == trainer.global_step == 10 + 10 + 6 + 6


@pytest.mark.parametrize("functions", [False, True])
def test_a_callback_that_is_added_in_setup(functions, few_digits, tmp_path):
    class Adding(Ours):
        def setup(self, stage):
            super().setup(stage)
            self.pruning = (
                late("lightning_module")
                if functions
                else PruningCallback(self.sampler, pruner(self.train_set), warmup_epochs=2)
            )
            self.trainer.callbacks.append(self.pruning)

    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole, again = Adding(few_digits), Adding(few_digits)
    trainer_with(saver).fit(whole)
    assert whole.batches == {0: 10, 1: 10, 2: 6, 3: 6}
    trainer_with().fit(again, ckpt_path=tmp_path / "epoch=2.ckpt")
    assert again.batches == {3: 6}
    assert again.sampler.kept.tolist() == whole.sampler.kept.tolist()


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
def test_a_callback_that_is_added_later_still(hook, few_digits):
    pruning, loader = objects(few_digits)

    class Adding(Callback):
        pass

    def add(self, trainer, pl_module):
        trainer.callbacks.append(pruning)

    setattr(Adding, hook, add)
    module, trainer = Counting(), trainer_with(Adding())
    trainer.fit(module, loader)
    assert module.batches == {0: 10, 1: 10, 2: 6, 3: 6}
    assert trainer.reload_dataloaders_every_n_epochs == 0


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed"])
def test_precisions(precision, few_digits):
    pruning, loader = objects(few_digits)
    module = Counting()
    trainer_with(pruning, precision=precision).fit(module, loader)
    assert module.batches == {0: 10, 1: 10, 2: 6, 3: 6}
    assert len(pruning.sampler.kept) == 120


def test_a_module_without_forward(few_digits):
    class Bare(Counting):
        forward = pl.LightningModule.forward

    pruning, loader = objects(few_digits, warmup_epochs=1)
    with pytest.raises((TypeError, ValueError), match=r"Bare has no forward.*run="):
        trainer_with(pruning).fit(Bare(), loader)

    sampler = InfluencePrunedSampler(few_digits)
    losses = CrossEntropy(run=lambda model, batch: (model.network(batch[0]), batch[1]))
    told = PruningCallback(sampler, pruner(few_digits, losses=losses), warmup_epochs=2)
    module = Bare()
    trainer_with(told).fit(module, DataLoader(few_digits, BATCH, sampler=sampler))
    assert module.batches == {0: 10, 1: 10, 2: 6, 3: 6}

    usual, loader = objects(few_digits)
    trainer_with(usual).fit(Counting(), loader)
    assert sampler.kept.tolist() == usual.sampler.kept.tolist()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("limits", [{"max_epochs": -1, "max_steps": 30}, {"max_epochs": 5}])
def test_no_epoch_ends_twice(limits, few_digits, tmp_path):
    """With max_steps, Lightning calls on_train_epoch_end again when it resumes from there."""

    def run(*callbacks, checkpoint=None):
        drawn = []
        pruning, loader = objects(
            few_digits, warmup_epochs=1, redraw_every=1, on_selection=drawn.append
        )
        trainer_with(pruning, *callbacks, **limits).fit(Counting(), loader, ckpt_path=checkpoint)
        return drawn

    whole = run(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    for epoch in range(3):
        rest = run(checkpoint=tmp_path / f"epoch={epoch}.ckpt")
        assert len(rest) == len(whole) - epoch - 1
        assert rest[0].kept.tolist() == whole[epoch + 1].kept.tolist()


def test_what_is_usual_is_no_mistake(few_digits, tmp_path):
    """Short runs, runs before the run and runs that are over: nothing of it is warned of."""
    pruning, loader = objects(few_digits)
    trainer_with(pruning, fast_dev_run=True).fit(Counting(), loader)
    trainer_with(pruning, limit_train_batches=0).fit(Counting(), loader)
    short = Counting()
    trainer_with(pruning, limit_train_batches=3).fit(short, loader)
    assert short.batches == {0: 3, 1: 3, 2: 3, 3: 3}

    finder, saver = LearningRateFinder(num_training_steps=35), ModelCheckpoint(tmp_path, "end")
    found = Counting()
    found.lr = 0.1
    trainer_with(pruning, finder, saver, default_root_dir=tmp_path).fit(found, loader)
    assert len(pruning.sampler.kept) == 120
    over, module = objects(few_digits)[0], Counting()
    trainer_with(over).fit(module, loader, ckpt_path=tmp_path / "end.ckpt")
    assert module.batches == {}
    assert over.sampler.kept.tolist() == pruning.sampler.kept.tolist()


def test_checkpoints_with_the_kept_set_as_a_tensor(few_digits, tmp_path):
    """As releases before the base64 text wrote them."""
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    pruning, loader = objects(few_digits)
    trainer_with(pruning, saver).fit(Counting(), loader)
    checkpoint = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    state = checkpoint["callbacks"][pruning.state_key]
    state["sampler"]["kept"] = pruning.sampler.kept
    state.pop("data", None)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    again, loader = objects(few_digits)
    module = Counting()
    trainer_with(again).fit(module, loader, ckpt_path=tmp_path / "old.ckpt")
    assert module.batches == {3: 6}
    assert again.sampler.kept.tolist() == pruning.sampler.kept.tolist()


def test_a_run_that_goes_on_without_a_selection(few_digits):
    def broken(model, batch):
        raise ValueError("no such luck")

    sampler = InfluencePrunedSampler(few_digits)
    chooser = pruner(few_digits, losses=broken)
    pruning = PruningCallback(sampler, chooser, warmup_epochs=2, on_error="continue")
    module = Counting()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer_with(pruning).fit(module, DataLoader(few_digits, BATCH, sampler=sampler))
    assert module.batches == {0: 10, 1: 10, 2: 10, 3: 10}
    assert sum("no such luck" in str(each.message) for each in said) == 1

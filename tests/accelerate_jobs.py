"""Jobs under accelerate, on one process and on two."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.utils import GradientAccumulationPlugin
from job_runner import FOLDER, WORLD, main
from jobs import data, network, pruner
from torch.utils.data import DataLoader

from prunesampler import Budget, InfluencePrunedSampler, PruningCallback

MODES = {
    "default": {},
    "split": {"split_batches": True},
    "uneven": {"even_batches": False},
    "dispatch": {"dispatch_batches": True},
    "dispatch and split": {"dispatch_batches": True, "split_batches": True},
    "seedable": {"use_seedable_sampler": True},
    "stateful": {"use_stateful_dataloader": True},
}


class Training:
    """A prepared run; the batches are indices, so that it is seen who got what."""

    def __init__(
        self,
        size=110,
        mode="default",
        accumulate=1,
        epochs=4,
        drop_last=False,
        workers=0,
        **options,
    ):
        plugin = GradientAccumulationPlugin(num_steps=accumulate)
        self.accelerator = accelerator = Accelerator(
            cpu=True,
            dataloader_config=DataLoaderConfiguration(**MODES[mode]),
            gradient_accumulation_plugin=plugin,
        )
        assert accelerator.num_processes == WORLD
        self.data, model = data(size), network()
        self.sampler = InfluencePrunedSampler(self.data)
        loader = DataLoader(
            torch.arange(size), 8, sampler=self.sampler, drop_last=drop_last, num_workers=workers
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        # 64 samples stay: as many whole batches on each rank, which accelerate needs if uneven
        chooser = pruner(self.data, budget=Budget(count=size - 64))
        self.pruning = PruningCallback(
            self.sampler, chooser, **{"warmup_epochs": 1, "epochs": epochs, **options},
            accelerator=accelerator,
        )  # fmt: skip
        split = MODES[mode].get("split_batches", False)
        self.planned = self.pruning.planned_steps(
            epochs=epochs, batch_size=8, num_processes=1 if split else WORLD,
            gradient_accumulation_steps=accumulate, drop_last=drop_last,
        )  # fmt: skip
        ticks = self.planned * (1 if split else WORLD)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=ticks)
        self.model, self.optimizer, self.loader, self.schedule = accelerator.prepare(
            model, optimizer, loader, schedule
        )
        self.steps, self.batches = 0, {}

    def epoch(self, epoch, loader=None, stop=None):
        self.model.train()
        self.loader.set_epoch(epoch)
        for number, batch in enumerate(loader or self.loader):
            self.batches.setdefault(epoch, []).append(batch.tolist())
            with self.accelerator.accumulate(self.model):
                x, y = self.data[batch]
                loss = torch.nn.functional.cross_entropy(self.model(x), y)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
                self.steps += self.accelerator.sync_gradients
            if number + 1 == stop:
                return
        self.pruning.on_epoch_end(epoch, self.model)

    def result(self):
        return {
            "batches": [self.batches[epoch] for epoch in sorted(self.batches)],
            "kept": self.sampler.kept.tolist(),
            "planned": self.planned,
            "steps": self.steps,
            "lr": self.schedule.get_last_lr()[0],
        }


def modes():
    """Four epochs, of which three are pruned, in every mode."""
    found = {}
    cases = [(mode, 1, False) for mode in MODES]
    for mode, accumulate, drop_last in [*cases, ("default", 3, False), ("default", 1, True)]:
        training = Training(mode=mode, accumulate=accumulate, drop_last=drop_last)
        for epoch in range(4):
            training.epoch(epoch)
        found[f"{mode}, {accumulate}, {drop_last}"] = training.result()
    return {"found": found}


def fresh(**options):
    """A new run, as a new process would make it."""
    Accelerator().free_memory()
    training = Training(**options)
    training.accelerator.load_state(str(FOLDER / "state"))
    return training


def middle():
    """Stopped in the middle of a pruned epoch, and resumed by skipping what was done."""
    whole = Training(epochs=5)
    for epoch in range(5):
        whole.epoch(epoch)
    found = {"whole": whole.result()["batches"]}
    for mode in ("default", "stateful"):
        part = Training(mode=mode, epochs=5)
        part.epoch(0)
        part.epoch(1)
        part.epoch(2, stop=2)
        part.accelerator.save_state(str(FOLDER / "state"))
        again = fresh(mode=mode, epochs=5)
        again.loader.set_epoch(2)  # first: what skips takes the epoch from it
        rest = None if mode == "stateful" else skip_first_batches(again.loader, 2)
        again.epoch(2, rest)
        for epoch in (3, 4):
            again.epoch(epoch)
        found[mode] = [*part.result()["batches"][:2], part.batches[2] + again.batches[2],
                       again.batches[3], again.batches[4]]  # fmt: skip
        found[f"{mode} lr"] = again.schedule.get_last_lr()[0]
    for workers in (0, 2):  # saved between two epochs; workers are ahead of the training
        options = {"mode": "stateful", "epochs": 5, "workers": workers}
        part = Training(**options)
        for epoch in range(2):
            part.epoch(epoch)
        part.accelerator.save_state(str(FOLDER / "state"))
        again = fresh(**options)
        for epoch in (2, 3, 4):
            again.epoch(epoch)
        found[f"between, {workers}"] = part.result()["batches"] + again.result()["batches"]
    return found


def redrawn():
    """Kept sets of redraws after every epoch, with a checkpoint in between."""

    def run(training, epochs):
        kept = []
        for epoch in epochs:
            training.epoch(epoch)
            kept.append(training.sampler.kept.tolist())
        return kept

    options = {"size": 107, "redraw_every": 1, "epochs": 8}
    training = Training(**options)
    before = run(training, range(2))
    training.accelerator.save_state(str(FOLDER / "state"))
    after = run(training, range(2, 5))
    return {"kept": before + after, "again": run(fresh(**options), range(2, 5))}


def tracked():
    """A selection with TensorBoard and its page, beside one without."""
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(FOLDER))
    accelerator.init_trackers("run")
    dataset = data(110)
    sampler = InfluencePrunedSampler(dataset)
    pages = FOLDER / f"pages-{WORLD}"
    pruning = PruningCallback(
        sampler, pruner(dataset), warmup_epochs=1, accelerator=accelerator, report=pages
    )
    selection = pruning.on_epoch_end(0, network(), step=14)
    without = pruner(dataset).select(network()).kept.tolist()
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:  # end_training would end the processes' group, too
        tracker.finish()
    return {
        "shift": selection.shift, "newton_shift": selection.newton_shift, "folder": str(FOLDER / "run"),
        "kept": sampler.kept.tolist(), "plain": without,
        "pages": sorted(map(str, pages.iterdir())),
    }  # fmt: skip


if __name__ == "__main__":
    main(globals())

"""Jobs under Lightning, on one process and on two, and what the tests in the same process run."""

from __future__ import annotations

import lightning.pytorch
import pytorch_lightning
import torch
import torch.nn.functional as F
from job_runner import FOLDER, WORLD, main
from jobs import data, network, pruner
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import Budget, InfluencePrunedSampler
from prunesampler.integrations.lightning import PruningCallback

EPOCHS, BATCH = 5, 20


def module(flavour):
    """A LightningModule of either package, which notes what it trains on and when it validates."""

    class Module(flavour.LightningModule):
        def __init__(self, steps, loader=None):
            super().__init__()
            self.network, self.planned, self.loader = network(), steps, loader
            self.network[3].p = 0.0  # Lightning does not keep random states
            self.batches, self.validated, self.losses = {}, [], []

        def forward(self, x):
            return self.network(x)

        def training_step(self, batch, number):
            x, y, index = batch
            self.batches.setdefault(self.current_epoch, []).append(index.tolist())
            loss = F.cross_entropy(self(x), y)
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch, number):
            x, y, _ = batch
            self.log("loss", F.cross_entropy(self(x), y), sync_dist=True)

        def on_validation_epoch_end(self):
            self.validated.append(self.current_epoch)

        def train_dataloader(self):
            return self.loader()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.planned)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    return Module


def fit(
    *, checkpoint=None, workers=0, hook=False, flavour=lightning.pytorch, early=None, budget=None,
    saver=None, drop_last=False, functions=False, **options
):  # fmt: skip
    torch.manual_seed(0)
    x, y = data(200).tensors
    indexed, scored = TensorDataset(x, y, torch.arange(len(x))), TensorDataset(x, y)
    sampler = InfluencePrunedSampler(indexed)

    def loader():
        return DataLoader(indexed, 16, sampler=sampler, num_workers=workers, drop_last=drop_last)

    chooser = pruner(scored, **({"budget": budget} if budget else {}))
    settings = {"warmup_epochs": 2, **options.pop("pruning", {})}
    pruning = PruningCallback(sampler, chooser, **settings)
    steps = pruning.planned_steps(
        epochs=EPOCHS, batch_size=16, num_processes=WORLD, drop_last=drop_last
    )
    if functions:  # of the trainer
        pruning = PruningCallback(lambda trainer: sampler, lambda trainer: chooser, **settings)
    model = module(flavour)(steps, loader)
    callbacks = [pruning]
    callbacks += [saver] if saver else []
    if early is not None:
        callbacks.append(
            ModelCheckpoint(FOLDER / f"early {early}", "{epoch}", "loss", save_top_k=-1,
                            save_on_train_epoch_end=not early)
        )  # fmt: skip
    trainer = flavour.Trainer(
        **{
            "max_epochs": EPOCHS, "accelerator": "cpu", "devices": WORLD, "callbacks": callbacks,
            "strategy": "ddp" if WORLD > 1 else "auto", "enable_progress_bar": False,
            "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0,
            "enable_checkpointing": bool(saver) or early is not None, **options,
        }
    )  # fmt: skip
    train, held_out = None if hook else loader(), DataLoader(indexed, 50)
    trainer.fit(model, train, held_out, ckpt_path=checkpoint)
    return model, sampler, trainer, pruning


def result(model, sampler, trainer):
    return {
        "batches": {epoch: model.batches[epoch] for epoch in sorted(model.batches)},
        "losses": model.losses,
        "validated": model.validated,
        "kept": sampler.kept.tolist(),
        "steps": trainer.global_step,
        "planned": model.planned,
        "lr": trainer.optimizers[0].param_groups[0]["lr"],
        "weights": model.network[0].weight.sum().item(),
    }


def plan():
    """Loaders that are passed and loaders from a hook, with and without workers, both packages."""
    cases = {"passed": {}, "hook": {"hook": True}, "workers": {"workers": 2}}
    cases["functions"] = {"functions": True}
    if WORLD == 1:
        cases["older name"] = {"flavour": pytorch_lightning}
    return {"found": {name: result(*fit(**case)[:3]) for name, case in cases.items()}}


def resume():
    """From every checkpoint, of runs that save after validation and at the end of the epoch."""
    found = {}
    for early in (True, False):
        whole = result(*fit(early=early)[:3])
        rest = {}
        for epoch in range(EPOCHS - 1):
            path = FOLDER / f"early {early}" / f"epoch={epoch}.ckpt"
            rest[epoch] = result(*fit(early=None, checkpoint=path)[:3])
        found["after validation" if early else "at the end"] = {"whole": whole, "rest": rest}
    return {"found": found}


def odd():
    """What is done less often: a dry run, several loaders, last epochs on all data, drop_last."""
    found = {}
    _, _, trainer, _ = fit(fast_dev_run=True, pruning={"final_full_epochs": 2})
    found["dry"] = {"steps": trainer.global_step}
    options = {"pruning": {"final_full_epochs": 2}}
    found["whole"] = result(*fit(early=True, **options)[:3])["batches"]
    path = FOLDER / "early True" / "epoch=2.ckpt"  # after validation, before all samples come back
    found["again"] = result(*fit(checkpoint=path, **options)[:3])["batches"]
    saver = ModelCheckpoint(FOLDER, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(saver=saver, **options)
    try:  # the last batch of the epoch before
        fit(checkpoint=FOLDER / f"step={2 * 13 + 8}.ckpt", **options)
    except ValueError as error:
        found["refused"] = str(error)
    return found


def dropped():
    """The last batch is left out; each process gets as many samples."""
    return {"found": result(*fit(drop_last=True, budget=Budget(count=200 - 159))[:3])}


def twice():
    """The same callback in a second fit starts anew; a logger gets the figures."""
    logger = CSVLogger(FOLDER, "log")
    model, sampler, trainer, pruning = fit(logger=logger, log_every_n_steps=1)
    before = sampler.kept
    trainer = lightning.pytorch.Trainer(
        max_epochs=3, accelerator="cpu", callbacks=[pruning], enable_progress_bar=False,
        enable_model_summary=False, logger=False, enable_checkpointing=False,
    )  # fmt: skip
    model.batches.clear()
    model.planned = 13 + 13 + 8
    trainer.fit(model, model.loader())
    sizes = [sum(map(len, model.batches[epoch])) for epoch in range(3)]
    return {"sizes": sizes, "kept": len(before), "log": f"{logger.log_dir}/metrics.csv"}


class Counting(lightning.pytorch.LightningModule):
    """Notes how many batches each epoch has."""

    def __init__(self, *, rate=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.network, self.rate = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)), rate
        self.batches = {}

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, number):
        self.batches[self.current_epoch] = self.batches.get(self.current_epoch, 0) + 1
        return F.cross_entropy(self.network(batch[0]).float(), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


class Ours(Counting):
    """A module that makes its data, and what prunes it, in ``setup``."""

    def __init__(self, data, **options):
        super().__init__(**options)
        self.data, self.setups = data, 0

    def setup(self, stage):
        self.train_set = TensorDataset(*self.data.tensors)
        self.sampler = InfluencePrunedSampler(self.train_set)
        self.setups += 1

    def train_dataloader(self):
        return DataLoader(self.train_set, BATCH, sampler=self.sampler)


class Theirs(lightning.pytorch.LightningDataModule):
    """A DataModule that makes its data in ``setup``."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    setup, train_dataloader = Ours.setup, Ours.train_dataloader
    setups = 0


def trainer_with(*callbacks, **options):
    defaults = {
        "max_epochs": 4, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }  # fmt: skip
    return lightning.pytorch.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def objects(data, *, warmup_epochs=2, **options):
    """A callback over these data, and a loader that it prunes."""
    sampler = InfluencePrunedSampler(data)
    pruning = PruningCallback(sampler, pruner(data), warmup_epochs=warmup_epochs, **options)
    return pruning, DataLoader(data, BATCH, sampler=sampler)


def late(where, **options):
    """A callback over the data that a module or a DataModule is going to make."""
    return PruningCallback(
        lambda trainer: getattr(trainer, where).sampler,
        lambda trainer: pruner(getattr(trainer, where).train_set),
        **{"warmup_epochs": 2, **options},
    )


def run_late(where, data, *callbacks, checkpoint=None, **options):
    pruning = late(where)
    module, source = (Counting(), Theirs(data)) if where == "datamodule" else (Ours(data), None)
    trainer = trainer_with(pruning, *callbacks, **options)
    trainer.fit(module, datamodule=source, ckpt_path=checkpoint)
    return module, pruning, trainer


if __name__ == "__main__":
    main(globals())

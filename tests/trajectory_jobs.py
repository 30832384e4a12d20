"""Jobs that record a trajectory, on one process and on two, and note themselves what it should hold."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from job_runner import FOLDER, RANK, WORLD, main
from jobs import failure
from recording import Truth, indexed, network
from torch import nn
from torch.utils.data import DataLoader, Dataset

from prunesampler import Budget, InfluencePrunedSampler, PruningCallback
from prunesampler.train.hardest import TrajectoryPruner
from prunesampler.train.recorder import TrajectoryRecorder

EPOCHS, WARMUP = 5, 2


def chooser(recorder, n):
    """Keeps 32 samples: as many whole batches of 8 on each rank, which some sharing modes need."""
    return TrajectoryPruner(recorder, budget=Budget(count=n - 32), mix=0.25, progress=False)


def result(recorder, truth, sampler, kept):
    found = recorder.trajectory
    return {
        "found": found.errors.tolist(),
        "truth": truth.errors.tolist(),
        "exact": found.exact,
        "layer": found.layer,
        "kept": [*kept, sampler.kept.tolist()],
    }


def plain():
    """Data-parallel training without a framework; on one process without that."""
    if WORLD > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    found = {}
    for name, options in {
        "plain": {}, "workers": {"num_workers": 2}, "drop_last": {"drop_last": True}
    }.items():  # fmt: skip
        data = indexed(61)
        sampler = InfluencePrunedSampler(data, num_replicas=WORLD, rank=RANK)
        loader = DataLoader(data, 8, sampler=sampler, **options)
        model = network()
        model = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
        path = FOLDER / f"{name}.safetensors"
        recorder = TrajectoryRecorder(sampler, loader, model, path=path)
        pruning = PruningCallback(
            sampler, chooser(recorder, 61), warmup_epochs=WARMUP, refresh_every=1
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.2)
        truth, kept = Truth(61), []
        for epoch in range(EPOCHS):
            truth.begin()
            kept.append(sampler.kept.tolist())
            for x, y, index in loader:
                outputs = model(x)
                truth.note(index, outputs, y)
                optimizer.zero_grad()
                F.cross_entropy(outputs, y).backward()
                optimizer.step()
            pruning.on_epoch_end(epoch, model)
        found[name] = result(recorder, truth, sampler, kept)
        found[name]["file"] = path.exists()
    return {"found": found}


def one_cannot_record():
    """The second rank trains on two views of each sample."""
    if WORLD > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    data = indexed(64)
    sampler = InfluencePrunedSampler(data, num_replicas=WORLD, rank=RANK)
    loader, model = DataLoader(data, 8, sampler=sampler), network()
    recorder = TrajectoryRecorder(sampler, loader, model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(3):
            for x, y, _ in loader:
                if RANK == 1 and epoch == 1:
                    x, y = torch.cat([x, x]), torch.cat([y, y])
                F.cross_entropy(model(x), y).backward()
            recorder.on_epoch_end(epoch)
    said = [str(warning.message) for warning in caught if "trajectory" in str(warning.message)]
    return {"said": said, "epochs": len(recorder.trajectory)}


MODES = {
    "default": {},
    "split": {"split_batches": True},
    "uneven": {"even_batches": False},
    "seedable": {"use_seedable_sampler": True},
    "stateful": {"use_stateful_dataloader": True},
}


def accelerated(n, precision="no", accumulate=1, workers=0, **mode):
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.utils import GradientAccumulationPlugin
    from job_runner import forget_accelerate

    forget_accelerate()
    accelerator = Accelerator(
        cpu=True, mixed_precision=precision, dataloader_config=DataLoaderConfiguration(**mode),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
    )  # fmt: skip
    assert accelerator.num_processes == WORLD
    data = indexed(n)
    sampler = InfluencePrunedSampler(data)
    loader = DataLoader(data, 8, sampler=sampler, num_workers=workers)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    recorder = TrajectoryRecorder(sampler, loader, model)
    pruning = PruningCallback(
        sampler,
        chooser(recorder, n),
        warmup_epochs=WARMUP,
        refresh_every=1,
        accelerator=accelerator,
    )
    truth, kept = Truth(n), []
    for epoch in range(EPOCHS):
        truth.begin()
        kept.append(sampler.kept.tolist())
        loader.set_epoch(epoch)
        for x, y, index in loader:
            with accelerator.accumulate(model):
                outputs = model(x)
                truth.note(index, outputs, y)
                accelerator.backward(F.cross_entropy(outputs, y))
                optimizer.step()
                optimizer.zero_grad()
        pruning.on_epoch_end(epoch, model)
    return result(recorder, truth, sampler, kept)


def sharing():
    """Every way in which accelerate shares out batches, but one that is refused."""
    found = {
        name: accelerated(64 if name == "uneven" else 61, **mode) for name, mode in MODES.items()
    }
    found["workers"] = accelerated(61, workers=2)
    found["bf16"] = accelerated(61, precision="bf16")
    found["accumulated"] = accelerated(61, accumulate=3)
    refused = failure(lambda: accelerated(64, dispatch_batches=True))
    return {"found": found, "refused": refused}


def lightning():
    """A run under Lightning, whose loader is made again when the kept set changes."""
    import lightning.pytorch as pl

    from prunesampler.integrations.lightning import PruningCallback as LightningCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.truth, self.kept = network(), Truth(61), []

        def on_train_epoch_start(self):
            self.truth.begin()
            self.kept.append(self.sampler[0].kept.tolist())

        def training_step(self, batch, number):
            x, y, index = batch
            outputs = self.network(x)
            self.truth.note(index, outputs, y)
            return F.cross_entropy(outputs, y)

        def validation_step(self, batch, number):
            self.network(batch[0])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.2)

    found = {}
    for name, options in {
        "plain": {}, "accumulated": {"accumulate_grad_batches": 3}, "bf16": {"precision": "bf16-mixed"},
        "workers": {"workers": 2},
    }.items():  # fmt: skip
        data = indexed(61)
        sampler = InfluencePrunedSampler(data)
        loader = DataLoader(data, 8, sampler=sampler, num_workers=options.pop("workers", 0))
        recorder, module = TrajectoryRecorder(sampler), Module()
        module.sampler = [sampler]
        pruning = LightningCallback(
            sampler, chooser(recorder, 61), warmup_epochs=WARMUP, refresh_every=1
        )
        trainer = pl.Trainer(
            max_epochs=EPOCHS, accelerator="cpu", devices=WORLD, callbacks=[pruning], logger=False,
            strategy="ddp" if WORLD > 1 else "auto", enable_progress_bar=False, num_sanity_val_steps=0,
            enable_model_summary=False, enable_checkpointing=False, **options,
        )  # fmt: skip
        trainer.fit(module, loader, DataLoader(data, 16))
        found[name] = result(recorder, module.truth, sampler, module.kept)
    return {"found": found}


class Mappings(Dataset):
    """Samples as the Trainer likes them."""

    def __init__(self, n=61):
        self.data = indexed(n)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y, _ = self.data[index]
        return {"x": x, "labels": y, "index": index}


def trainer():
    """A run under the Hugging Face Trainer, with and without accumulation."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from prunesampler.integrations.transformers import PruningCallback as TrainerPruning
    from prunesampler.integrations.transformers import PruningTrainerMixin

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.truth = network(), Truth(61)

        def forward(self, x, labels=None, index=None):
            logits = self.network(x)
            if self.training:
                self.truth.note(index, logits, labels)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Begins(TrainerCallback):
        def on_epoch_begin(self, args, state, control, model=None, **others):
            model.truth.begin()
            kept.append(sampler.kept.tolist())

    class PruningTrainer(PruningTrainerMixin, Trainer):
        pass

    found = {}
    for name, length, options in [
        ("shrink", "shrink", {}),
        ("constant", "constant", {"gradient_accumulation_steps": 3}),
        ("bf16", "shrink", {"bf16": True}),
    ]:
        sampler, kept = InfluencePrunedSampler(Mappings(), epoch_length=length), []
        recorder = TrajectoryRecorder(sampler)
        pruning = TrainerPruning(
            sampler, chooser(recorder, 61), warmup_epochs=WARMUP, refresh_every=1
        )
        settings = TrainingArguments(
            output_dir=str(FOLDER / name), num_train_epochs=EPOCHS, use_cpu=True, report_to=[],
            per_device_train_batch_size=8, learning_rate=0.01, disable_tqdm=True,
            eval_strategy="epoch", save_strategy="no", logging_strategy="no", **options,
        )  # fmt: skip
        model = Model()
        PruningTrainer(
            model, settings, train_dataset=Mappings(), eval_dataset=Mappings(20),
            callbacks=[pruning, Begins()],
        ).train()  # fmt: skip
        found[name] = result(recorder, model.truth, sampler, kept)
    return {"found": found}


if __name__ == "__main__":
    main(globals())

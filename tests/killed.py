"""Runs that are killed again and again, and must end as if nothing had happened.

``python killed.py KIND PROCESSES FOLDER KILLS``: trains once undisturbed and once with so many
kills, each in a phase (training, scoring, solving, saving) and at a moment that chance chooses. Every
batch is logged with its indices and its loss. Children are forked, so that a kill costs no imports.
"""

from __future__ import annotations

import io
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import lightning.pytorch
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from jobs import data, network, pruner
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler import Budget, InfluencePrunedSampler, PruningCallback, anneal
from prunesampler.base.files import write_atomically
from prunesampler.influence.influence import Influence
from prunesampler.integrations.lightning import PruningCallback as LightningPruningCallback

EPOCHS, BATCH, SIZE = 6, 24, 144
PHASES = ("train", "score", "solve", "save")


class Run:
    """What all kinds share: data, sampler and pruner, and notes of what happens."""

    def __init__(self, folder, rank, pipe):
        self.folder, self.pipe, self.step = folder, pipe, 0
        self.log = (folder / f"log-{rank}.jsonl").open("a")
        self.data, run = data(SIZE), self
        self.sampler = InfluencePrunedSampler(self.data)

        class Scored(TensorDataset):
            def __getitem__(self, index):
                if index == SIZE // 2:
                    run.note("score")
                return super().__getitem__(index)

        def solver(influence, budget, **options):
            run.note("solve")
            return anneal(influence, budget, moves=20_000, **options)

        self.pruner = pruner(Scored(*self.data.tensors), solver=solver)
        self.schedule = {"warmup_epochs": 1, "refresh_every": 2, "redraw_every": 1}

    def note(self, phase):
        os.write(self.pipe, bytes([PHASES.index(phase)]))

    def batch(self, epoch, indices, loss):
        line = json.dumps([epoch, self.step, indices.tolist(), loss.item().hex()])
        self.log.write(f"\n{line}\n")  # the line before may have been cut off
        self.log.flush()
        self.step += 1
        self.note("train")


def loop(run, loader, every):
    """A plain loop that saves after each epoch, and after every so many batches."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    pruning = PruningCallback(run.sampler, run.pruner, **run.schedule, epochs=EPOCHS)
    parts = {"model": model, "optimizer": optimizer, "pruning": pruning}
    if isinstance(loader, StatefulDataLoader):
        parts["loader"] = loader
    path, first = run.folder / "checkpoint.pt", 0
    if path.exists():
        held = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(held[name])
        torch.set_rng_state(held["random"])
        first, run.step = held["epoch"], held["step"]

    def save(epoch):
        run.note("save")
        held = {name: part.state_dict() for name, part in parts.items()}
        held |= {"epoch": epoch, "step": run.step, "random": torch.get_rng_state()}
        content = io.BytesIO()
        torch.save(held, content)
        write_atomically(path, content.getvalue())

    for epoch in range(first, EPOCHS):
        model.train()
        for indices in loader:
            x, y = run.data[indices]
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.batch(epoch, indices, loss)
            if every and run.step % every == 0:
                save(epoch)
        pruning.on_epoch_end(epoch, model)
        save(epoch + 1)


def plain(run):
    torch.manual_seed(1)
    generator = torch.Generator()  # without one, every pass draws from the global random numbers
    loop(run, DataLoader(range(SIZE), BATCH, sampler=run.sampler, generator=generator), None)


def stateful(run):
    torch.manual_seed(1)
    generator = torch.Generator()
    loop(run, StatefulDataLoader(range(SIZE), BATCH, sampler=run.sampler, generator=generator), 4)


def accelerated(run):
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True)
    )
    torch.manual_seed(1 + accelerator.process_index)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    loader = DataLoader(
        range(SIZE), BATCH, sampler=run.sampler, generator=torch.Generator().manual_seed(0)
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    pruning = PruningCallback(
        run.sampler, run.pruner, **run.schedule, epochs=EPOCHS, accelerator=accelerator
    )
    saved = sorted(run.folder.glob("epoch-*"))
    first = int(saved[-1].name[6:]) if saved else 0
    if saved:
        accelerator.load_state(str(saved[-1]))
        run.step = int((saved[-1] / "step").read_text())
    for epoch in range(first, EPOCHS):
        loader.set_epoch(epoch)
        model.train()
        for indices in loader:
            x, y = run.data[indices]
            loss = F.cross_entropy(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            run.batch(epoch, indices, loss)
        pruning.on_epoch_end(epoch, model)
        run.note("save")
        partial = run.folder / "partial"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (partial / "step").write_text(str(run.step))
            os.replace(partial, run.folder / f"epoch-{epoch + 1}")
        accelerator.wait_for_everyone()


class Module(lightning.pytorch.LightningModule):
    def __init__(self, run):
        super().__init__()
        self.network, self.held = network(), [run]
        self.network[3].p = 0.0  # Lightning does not keep random states

    def forward(self, x):
        return self.network(x)

    def training_step(self, indices, number):
        (run,) = self.held
        x, y = run.data[indices]
        loss = F.cross_entropy(self(x), y)
        run.step = self.global_step
        run.batch(self.current_epoch, indices, loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, 0.9)


class NotedCheckpoint(ModelCheckpoint):
    def _save_checkpoint(self, trainer, path):
        trainer.lightning_module.held[0].note("save")
        super()._save_checkpoint(trainer, path)


def lightned(run):
    loader = DataLoader(range(SIZE), BATCH, sampler=run.sampler)
    checkpoint = NotedCheckpoint(run.folder, "{epoch}", save_top_k=-1)
    pruning = LightningPruningCallback(run.sampler, run.pruner, **run.schedule)
    trainer = lightning.pytorch.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[pruning, checkpoint],
    )  # fmt: skip
    saved = sorted(run.folder.glob("epoch=*.ckpt"))
    trainer.fit(Module(run), loader, ckpt_path=saved[-1] if saved else None)


KINDS = {"plain": plain, "stateful": stateful, "accelerate": accelerated, "lightning": lightned}


def start(kind, processes, folder):
    """Fork the processes of a run; their ids and the reading ends of their pipes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = {}
    for rank in range(processes):
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
            children[child] = reading
            continue
        try:
            if processes > 1:
                os.environ.update(
                    MASTER_ADDR="localhost", MASTER_PORT=str(port), RANK=str(rank),
                    LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
                )  # fmt: skip
            KINDS[kind](Run(folder, rank, writing))
            code = 0
        except BaseException as error:
            sys.stderr.write(f"rank {rank}: {error!r}\n")
            code = 1
        sys.stderr.flush()
        os._exit(code)
    return children


def finish(children):
    """Wait for the processes; how they ended."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for pipe in children.values():
        os.close(pipe)
    return codes


def drained(children, phase, count):
    """Read notes until so many of a phase have come, or all processes have ended."""
    open_ends = set(children.values())
    while open_ends:
        for pipe in select.select(list(open_ends), [], [])[0]:
            notes = os.read(pipe, 4096)
            if not notes:
                open_ends.discard(pipe)
            count -= 0 if phase is None else notes.count(PHASES.index(phase))
            if phase is not None and count <= 0:
                return True
    return False


def main(kind, processes, folder, kills):
    whole, killed, chance = folder / "whole", folder / "killed", random.Random(kind)
    whole.mkdir(parents=True)
    killed.mkdir()
    children = start(kind, processes, whole)
    drained(children, None, 0)
    assert finish(children) == [0] * processes
    done = dict.fromkeys(PHASES, 0)
    runs = 0
    while sum(done.values()) < kills:
        phase = min(PHASES, key=lambda name: done[name])
        children = start(kind, processes, killed)
        if not drained(children, phase, chance.randint(1, 12 if phase == "train" else 2)):
            assert finish(children) == [0] * processes  # it came to its end, so begin again
            runs += 1
            for path in killed.iterdir():
                if not path.name.startswith("log"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            continue
        time.sleep(chance.uniform(0, 0.01))
        for child in chance.sample(list(children), len(children)):
            os.kill(child, signal.SIGKILL)
        finish(children)
        done[phase] += 1
    children = start(kind, processes, killed)
    drained(children, None, 0)
    assert finish(children) == [0] * processes
    sys.stdout.write(json.dumps({"kills": done, "runs": runs + 1}) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    vectors = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    anneal(Influence.from_vectors(vectors), Budget(count=3), moves=10)  # compiled once, for all
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

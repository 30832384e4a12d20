"""Jobs under the Hugging Face Trainer, and what the tests in the same process run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from job_runner import FOLDER, WORLD, main
from jobs import data, network, pruner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from prunesampler import InfluencePrunedSampler
from prunesampler.integrations.transformers import PruningCallback, PruningTrainerMixin

EPOCHS = 5


class Mappings(Dataset):
    """The digits as the Trainer likes them, with their indices for the tests."""

    def __init__(self, count=200, indexed=True):
        self.x, self.y = data(count).tensors
        self.indexed = indexed

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        item = {"x": self.x[index], "labels": self.y[index]}
        return {**item, "index": index} if self.indexed else item

    @property
    def pairs(self):
        return self.x, self.y


class Texts(Dataset):
    """Texts as numbers, of 3 to 12 each, with the text itself and a label."""

    def __init__(self, label, count=100):
        draw = torch.Generator().manual_seed(0)
        self.rows = []
        for index in range(count):
            size = int(torch.randint(3, 13, (), generator=draw))
            codes = torch.randint(2, 64, (size,), generator=draw).tolist()
            self.rows.append({"text": f"no. {index}", "input_ids": codes, label: index % 3})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def padded(rows):
    """A collator as people write them."""
    longest = max(len(row["input_ids"]) for row in rows)
    codes = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    return {
        "input_ids": torch.tensor(codes),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def tokenizer():
    words = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.batches = network(), []

    def forward(self, x, labels=None, index=None):
        logits = self.network(x)
        if self.training and index is not None:
            self.batches.append(index.tolist())
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class PruningTrainer(PruningTrainerMixin, Trainer):
    pass


def arguments(folder, **options):
    return TrainingArguments(
        **{
            "output_dir": str(folder), "num_train_epochs": EPOCHS, "use_cpu": True,
            "per_device_train_batch_size": 16, "learning_rate": 0.01, "report_to": [],
            "disable_tqdm": True, "eval_strategy": "epoch", "save_strategy": "no",
            "logging_strategy": "epoch", **options,
        }
    )  # fmt: skip


def make(name, *, constant=True, accumulate=1, trainer_class=PruningTrainer, **options):
    length = "constant" if constant else "shrink"
    sampler = InfluencePrunedSampler(Mappings(), epoch_length=length)
    pruning = PruningCallback(sampler, pruner(Mappings(indexed=False)), warmup_epochs=2)
    settings = arguments(FOLDER / name, gradient_accumulation_steps=accumulate, **options)
    trainer = trainer_class(
        Model(), settings, train_dataset=Mappings(), eval_dataset=Mappings(50), callbacks=[pruning]
    )
    return trainer, sampler, pruning


def train(name, *, checkpoint=None, **options):
    trainer, sampler, pruning = make(name, **options)
    trainer.train(resume_from_checkpoint=checkpoint)
    log = trainer.state.log_history
    return {
        "batches": trainer.model.batches,
        "evaluations": sum("eval_loss" in row for row in log),
        "logged": [row for row in log if "pruning/kept" in row],
        "steps": trainer.state.global_step,
        "max_steps": trainer.state.max_steps,
        "planned": pruning.steps_of(trainer.args),
        "epoch": trainer.state.epoch,
        "lr": trainer.lr_scheduler.get_last_lr()[0],
        "kept": sampler.kept.tolist(),
        "weights": trainer.model.network[0].weight.sum().item(),
    }


def plan():
    cases = {
        f"{length} {accumulate}": {"constant": length == "constant", "accumulate": accumulate}
        for length in ("constant", "shrink")
        for accumulate in (1, 2)
    }
    return {"found": {name: train(name, **case) for name, case in cases.items()}}


def resume():
    """From checkpoints within an epoch, at its last step, and after its end."""
    every = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    whole = train("steps", **every)
    epoch = 13 if WORLD == 1 else 7
    if WORLD > 1:
        torch.distributed.barrier()
    rest = {
        step: train("again", checkpoint=FOLDER / "steps" / f"checkpoint-{step}", **every)
        for step in (epoch, 2 * epoch, 2 * epoch + 1, 3 * epoch, 3 * epoch + 2)
    }
    ended = train("epochs", save_strategy="epoch")
    if WORLD > 1:
        torch.distributed.barrier()
    path = FOLDER / "epochs" / f"checkpoint-{2 * epoch}"
    rest_of_ended = train("again", checkpoint=path, save_strategy="epoch")
    return {"whole": whole, "rest": rest, "ended": ended, "rest of ended": rest_of_ended}


def twice():
    """Trained again with the same trainer, it begins again with all samples."""
    found = {}
    for length in ("constant", "shrink"):
        trainer, *_ = make(f"twice {length}", constant=length == "constant")
        steps = []
        for _ in range(2):
            trainer.train()
            steps.append([len(trainer.model.batches), trainer.state.global_step])
            trainer.model.batches.clear()
        found[length] = steps
    return {"found": found}


def refused(work):
    try:
        work()
    except (ValueError, TypeError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refusals():
    train("pruned", constant=False, save_strategy="epoch")
    train("early", save_strategy="steps", save_steps=4, num_train_epochs=1)
    (FOLDER / "early" / "checkpoint-4" / "pruning.safetensors").unlink()
    cases = {
        "resume": {"constant": False, "checkpoint": FOLDER / "pruned" / "checkpoint-34"},
        "missing": {"checkpoint": FOLDER / "early" / "checkpoint-4"},
        "max_steps": {"constant": False, "max_steps": 30},
        "accumulation": {"constant": False, "accumulate": 3},
        "fraction": {"constant": False, "num_train_epochs": 2.5},
        "no mixin": {"trainer_class": Trainer},
        "lengths": {"train_sampling_strategy": "group_by_length"},
        "batch size": {"constant": False, "auto_find_batch_size": True},
    }
    return {name: refused(lambda case=case: train("x", **case)) for name, case in cases.items()}


if __name__ == "__main__":
    main(globals())

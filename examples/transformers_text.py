"""A tiny BERT learns which module of Python's library a line of code is from. Nothing is downloaded.

Needs `pip install "prunesampler[examples,transformers]"`. Lines that end in `# +` are new.
"""

import argparse
import decimal
import inspect
import random
import typing
import unittest.mock
from types import ModuleType

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner  # +
from prunesampler.integrations.transformers import PruningCallback, PruningTrainerMixin  # +

LENGTH = 48  # characters of a line that are read


class Lines(Dataset):
    """Lines of code as bytes, in the form that the Trainer passes to the model by name."""

    def __init__(self, lines: list[tuple[str, int]]) -> None:
        codes = [list(line.encode()[:LENGTH]) for line, _ in lines]
        self.ids = torch.tensor([code + [0] * (LENGTH - len(code)) for code in codes])
        self.labels = torch.tensor([label for _, label in lines])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": self.labels[index]}


def lines_of(modules: list[ModuleType]) -> list[tuple[str, int]]:
    found = [
        (line.strip(), label)
        for label, module in enumerate(modules)
        for line in inspect.getsource(module).splitlines()
        if len(line.strip()) > 12
    ]
    random.Random(0).shuffle(found)
    return found


class PruningTrainer(PruningTrainerMixin, Trainer):  # +
    """The Trainer with our sampler."""  # +


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=2500)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output-dir", default="runs/transformers")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()

    lines = lines_of([decimal, typing, unittest.mock])[: options.lines]
    cut = len(lines) * 4 // 5
    train_set, test_set = Lines(lines[:cut]), Lines(lines[cut:])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=LENGTH, num_labels=3,
    )  # fmt: skip
    arguments = TrainingArguments(
        options.output_dir, num_train_epochs=options.epochs, per_device_train_batch_size=32,
        learning_rate=1e-3, lr_scheduler_type="cosine", eval_strategy="epoch", save_strategy="epoch",
        logging_strategy="epoch", report_to=[], use_cpu=not torch.cuda.is_available(), seed=0,
    )  # fmt: skip
    sampler = InfluencePrunedSampler(train_set, epoch_length="constant")  # +
    pruner = InfluencePruner(train_set, budget=Budget(fraction=0.4))  # +
    pruning = PruningCallback(sampler, pruner, warmup_epochs=2)  # +
    # - trainer = Trainer(
    trainer = PruningTrainer(  # +
        BertForSequenceClassification(config),
        arguments,
        train_dataset=train_set,
        eval_dataset=test_set,
        compute_metrics=lambda p: {"accuracy": float((p[0].argmax(1) == p[1]).mean())},
        callbacks=[pruning],  # +
    )
    trainer.train(resume_from_checkpoint=options.resume)
    accuracy = trainer.evaluate()["eval_accuracy"]
    rate = trainer.lr_scheduler.get_last_lr()[0]
    print(f"test accuracy {accuracy:.2%}, last learning rate {rate:.1e}")


if __name__ == "__main__":
    main()

"""Lightning. Lines that end in `# +` are new, lines that begin with `# -` were there before.

Needs `pip install "prunesampler[examples,lightning]"`.
"""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner  # +
from prunesampler.integrations.lightning import PruningCallback  # +

EPOCHS, BATCH = 20, 64


class Classifier(pl.LightningModule):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def training_step(self, batch, number: int) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, number: int) -> None:
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def main() -> None:
    pl.seed_everything(0)
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
    train_set = TensorDataset(images[:1400], labels[:1400])
    held_out = DataLoader(TensorDataset(images[1400:], labels[1400:]), 200)
    # - callbacks = []
    # - loader = DataLoader(train_set, BATCH, shuffle=True)
    # - steps = EPOCHS * len(loader)
    sampler = InfluencePrunedSampler(train_set)  # +
    loader = DataLoader(train_set, BATCH, sampler=sampler)  # +
    pruner = InfluencePruner(train_set, budget=Budget(fraction=0.4))  # +
    pruning = PruningCallback(sampler, pruner, warmup_epochs=5)  # +
    callbacks = [pruning]  # +
    steps = pruning.planned_steps(epochs=EPOCHS, batch_size=BATCH)  # +
    callbacks.append(ModelCheckpoint("runs/lightning", monitor="accuracy", mode="max"))
    trainer = pl.Trainer(
        max_epochs=EPOCHS, accelerator="auto", devices=1, callbacks=callbacks, logger=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(steps), loader, held_out)
    (schedule,) = trainer.lr_scheduler_configs
    print(
        f"test accuracy {trainer.callback_metrics['accuracy']:.2%}, "
        f"last learning rate {schedule.scheduler.get_last_lr()[0]:.1e}"
    )


if __name__ == "__main__":
    main()

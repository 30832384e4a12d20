"""Stop within an epoch, go on at the very next batch: torchdata's StatefulDataLoader.

Needs `pip install "prunesampler[examples]" torchdata`. The script trains once without a stop and
once in two halves, the second from a file alone, and compares.
"""

import io
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback
from prunesampler.base.files import write_atomically

EPOCHS, BATCH = 8, 64

x, y = load_digits(return_X_y=True)
train_set = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


class Training:
    """Everything that a checkpoint holds."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        sampler = InfluencePrunedSampler(train_set)
        self.loader = StatefulDataLoader(train_set, BATCH, sampler=sampler)
        pruner = InfluencePruner(train_set, budget=Budget(fraction=0.4))
        self.pruning = PruningCallback(sampler, pruner, warmup_epochs=3, epochs=EPOCHS)
        steps = self.pruning.planned_steps(epochs=EPOCHS, batch_size=BATCH)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.epoch, self.losses = 0, []

    def parts(self) -> dict[str, object]:
        names = ("model", "optimizer", "schedule", "pruning", "loader")
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path) -> None:
        content = io.BytesIO()
        state = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({**state, "epoch": self.epoch}, content)
        write_atomically(path, content.getvalue())

    def load(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.epoch = state["epoch"]

    def train(self, stop: int | None = None) -> None:
        """Train to the end, or for so many batches."""
        while self.epoch < EPOCHS:
            for batch, targets in self.loader:
                loss = F.cross_entropy(self.model(batch), targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.schedule.step()
                self.losses.append(loss.item())
                if len(self.losses) == stop:
                    return
            self.pruning.on_epoch_end(self.epoch, self.model)
            self.epoch += 1


whole, first, second = Training(), Training(), Training()
whole.train()
with tempfile.TemporaryDirectory() as folder:
    checkpoint = Path(folder) / "checkpoint.pt"
    first.train(stop=100)  # in the middle of the fifth epoch, the second on the kept samples
    first.save(checkpoint)
    second.load(checkpoint)
second.train()
assert first.losses + second.losses == whole.losses
print(f"{len(whole.losses)} losses, the same with and without a stop after {len(first.losses)}")

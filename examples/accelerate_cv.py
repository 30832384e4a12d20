"""An ordinary accelerate script. Lines that end in `# +` are new, lines that begin with `# -` were there before.

Run it with `python`, `accelerate launch` or `torchrun --nproc_per_node 2`; killed, it goes on by itself.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback  # +

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch-size", type=int, default=64, help="per process")
parser.add_argument("--output-dir", type=Path, default=Path("runs/accelerate_cv"))
options = parser.parse_args()

accelerator = Accelerator(
    cpu=not torch.cuda.is_available(), log_with="tensorboard", project_dir=options.output_dir
)
accelerator.init_trackers("log")
set_seed(0)
x, y = load_digits(return_X_y=True)
images, labels = torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
train_set = TensorDataset(images[:1400], labels[:1400])
test_set = TensorDataset(images[1400:], labels[1400:])
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
    nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
epochs, batch_size, processes = options.epochs, options.batch_size, accelerator.num_processes
# - train_loader = DataLoader(train_set, batch_size, shuffle=True)
# - steps = epochs * -(-len(train_loader) // processes)
sampler = InfluencePrunedSampler(train_set)  # +
train_loader = DataLoader(train_set, batch_size, sampler=sampler)  # +
pruner = InfluencePruner(train_set, budget=Budget(fraction=0.4))  # +
rules = {"warmup_epochs": 5, "epochs": epochs}  # +
pruning = PruningCallback(sampler, pruner, **rules, accelerator=accelerator)  # +
plan = {"epochs": epochs, "batch_size": batch_size, "num_processes": processes}  # +
steps = pruning.planned_steps(**plan)  # +
# A scheduler that accelerate prepared steps once per process.
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * processes)
test_loader = DataLoader(test_set, 200)
model, optimizer, train_loader, test_loader, schedule = accelerator.prepare(
    model, optimizer, train_loader, test_loader, schedule
)

checkpoints = sorted(options.output_dir.glob("epoch-*"))
if checkpoints:
    accelerator.load_state(str(checkpoints[-1]))
first = int(checkpoints[-1].name.removeprefix("epoch-")) if checkpoints else 0
for epoch in range(first, epochs):
    model.train()
    train_loader.set_epoch(epoch)
    for batch, targets in train_loader:
        loss = F.cross_entropy(model(batch), targets)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    pruning.on_epoch_end(epoch, model)  # +

    accelerator.wait_for_everyone()
    accelerator.save_state(str(options.output_dir / "partial"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(options.output_dir / "partial", options.output_dir / f"epoch-{epoch + 1:03d}")
        shutil.rmtree(options.output_dir / f"epoch-{epoch:03d}", ignore_errors=True)

model.eval()
right = 0
for batch, targets in test_loader:
    with torch.no_grad():
        answers = accelerator.gather_for_metrics((model(batch).argmax(1), targets))
    right += int((answers[0] == answers[1]).sum())
accelerator.print(
    f"test accuracy {right / len(test_set):.2%}, last learning rate {schedule.get_last_lr()[0]:.1e}"
)
accelerator.end_training()

"""A plain PyTorch loop. Lines that end in `# +` are new, lines that begin with `# -` were there before."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback  # +

EPOCHS, BATCH = 20, 64

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
images, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
train_set = TensorDataset(images[:1400], labels[:1400])
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
# - loader = DataLoader(train_set, BATCH, shuffle=True)
# - steps = EPOCHS * len(loader)
sampler = InfluencePrunedSampler(train_set)  # +
loader = DataLoader(train_set, BATCH, sampler=sampler)  # +
pruner = InfluencePruner(train_set, budget=Budget(fraction=0.4), like=loader)  # +
pruner.check(model, loader=loader)  # +
pruning = PruningCallback(sampler, pruner, warmup_epochs=5)  # +
steps = pruning.planned_steps(epochs=EPOCHS, batch_size=BATCH)  # +
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

for epoch in range(EPOCHS):
    model.train()
    for batch, targets in loader:
        loss = F.cross_entropy(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    pruning.on_epoch_end(epoch, model)  # +

model.eval()
with torch.no_grad():
    accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean()
print(f"test accuracy {accuracy:.2%}, last learning rate {schedule.get_last_lr()[0]:.1e}")

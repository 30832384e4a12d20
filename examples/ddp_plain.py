"""Data-parallel training in plain PyTorch: `torchrun --nproc_per_node 2 examples/ddp_plain.py`.

Lines that end in `# +` are new, lines that begin with `# -` were there before.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback  # +

# - from torch.utils.data import DistributedSampler

EPOCHS, BATCH = 20, 32

dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
images, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
train_set = TensorDataset(images[:1400], labels[:1400])
device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
if torch.cuda.is_available():
    torch.cuda.set_device(device)
network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
model = DistributedDataParallel(network)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
# - sampler = DistributedSampler(train_set)
sampler = InfluencePrunedSampler(train_set, num_replicas=world, rank=rank)  # +
loader = DataLoader(train_set, BATCH, sampler=sampler)
# - steps = EPOCHS * len(loader)
pruner = InfluencePruner(train_set, budget=Budget(fraction=0.4))  # +
pruning = PruningCallback(sampler, pruner, warmup_epochs=5, epochs=EPOCHS)  # +
steps = pruning.planned_steps(epochs=EPOCHS, batch_size=BATCH)  # +
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

for epoch in range(EPOCHS):
    model.train()
    sampler.set_epoch(epoch)
    for batch, targets in loader:
        loss = F.cross_entropy(model(batch.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    pruning.on_epoch_end(epoch, model)  # +

if rank == 0:
    network.eval()
    with torch.no_grad():
        accuracy = (
            (network(images[1400:].to(device)).argmax(1).cpu() == labels[1400:]).float().mean()
        )
    print(f"test accuracy {accuracy:.2%}, last learning rate {schedule.get_last_lr()[0]:.1e}")
dist.destroy_process_group()

"""A network that memorises wrong labels: two networks, each on its half, say which to leave out.

    python examples/wrong_labels.py
    python examples/wrong_labels.py --wrong 0.2 --seeds 0 1 2 3

A share of the digits' labels is drawn anew. `cross_split` makes two halves; a network trains on each and is
measured on all; `suspects_from` names the labels that are not the likeliest for the network which did not see them, and a
third network trains on the rest. Beside it: all data for a sixth and a third of the epochs, for as many, and for twice as
many (more than the three networks cost together), all data with label smoothing, and the truth. Prints the
test accuracy, the share of wrong labels among what is trained on, and processor seconds.
"""

import argparse
import time
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from data import digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import (
    Budget,
    IdentityCurvature,
    InfluencePrunedSampler,
    InfluencePruner,
    cross_split,
    suspects_from,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--wrong", type=float, default=0.4, help="share of wrong labels")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
given = parser.parse_args()
images = digits()
x, truth = images.train.tensors


def train(data: TensorDataset, kept: Tensor, epochs: float, smoothing: float = 0.0) -> nn.Module:
    """A network, for as many steps as so many epochs on all data."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()
    )
    model.append(nn.Linear(256, images.classes))
    sampler = InfluencePrunedSampler(data, epoch_length="constant")
    sampler.restrict(kept)
    loader = DataLoader(data, 50, sampler=sampler)
    steps = round(epochs * len(loader))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    while steps > 0:
        for batch, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), labels, label_smoothing=smoothing).backward()
            optimizer.step()
            schedule.step()
            steps -= 1
            if not steps:
                break
    return model.eval()


def suspects(data: TensorDataset, seed: int) -> Tensor:
    """Samples that the network which did not see them does not believe."""
    split = cross_split(len(data), seed)
    # Only predictions are needed, and no curvature. Half of the passes, before much is memorised.
    pruner = InfluencePruner(
        data, budget=Budget(fraction=0.5), curvature=IdentityCurvature(), progress=False
    )
    first, second = (
        pruner.measure(train(data, half, given.epochs / 4)) for half in (split.first, split.second)
    )
    return suspects_from(first, second, split, times=1).indices


rows: dict[str, list[tuple[float, float, float]]] = {}
for seed in given.seeds:
    torch.manual_seed(seed)
    wrong = torch.rand(len(x)) < given.wrong
    other = (truth + torch.randint(1, images.classes, (len(x),))) % images.classes
    data = TensorDataset(x.float() / 16, torch.where(wrong, other, truth))
    every = torch.arange(len(x))
    for name, epochs, smoothing in (
        ("all data", given.epochs, 0.0), ("all data, a third as long", given.epochs / 3, 0.0),
        ("all data, a sixth as long", given.epochs / 6, 0.0),
        ("all data, twice as long", 2 * given.epochs, 0.0), ("all data, label smoothing", given.epochs, 0.2),
        ("without suspects", given.epochs, 0.0), ("truth known", given.epochs, 0.0),
    ):  # fmt: skip
        started, kept = time.process_time(), every
        if name == "without suspects":
            kept = every[~torch.isin(every, suspects(data, seed))]
        if name == "truth known":
            kept = every[~wrong]
        model = train(data, kept, epochs, smoothing)
        seconds = time.process_time() - started
        right = model(images.test.tensors[0].float() / 16).argmax(1) == images.test.tensors[1]
        found = (float(right.float().mean()), float(wrong[kept].float().mean()), seconds)
        rows.setdefault(name, []).append(found)
print("| trained on | test accuracy % | wrong among it % | seconds |\n|---|---|---|---|")
for name, found in rows.items():
    accuracy, share, seconds = ([run[k] for run in found] for k in range(3))
    error = f" ± {100 * stdev(accuracy) / len(found) ** 0.5:.1f}" if len(found) > 1 else ""
    print(
        f"| {name} | {100 * mean(accuracy):.1f}{error} | {100 * mean(share):.1f} | {mean(seconds):.1f} |"
    )

"""What is wrong with a pool of samples, and what a layer gains without it.

    python examples/audit.py
    python examples/features.py --data-dir CIFAR --output features.safetensors
    python examples/audit.py --features features.safetensors

The pool holds samples of the first half of the classes, the wanted ones: a part under wrong labels, and some twice,
nearly. And it holds junk: samples of the other classes under wanted labels. 100 more are known as good. A linear
layer is trained on the pool and measured; the scores are saved, loaded and audited, and what is found is dropped.
Prints the audit, the accuracy on clean test samples, and how well wrong labels (junk has one, too) are found: by us,
and by cleanlab with our leave-one-out probabilities and with cross-validated ones. Default: pixels of digits.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from features import Features
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import (
    Budget,
    ExactCurvature,
    InfluencePrunedSampler,
    InfluencePruner,
    Scores,
    Selection,
    Target,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--features", type=Path, help="a file of features.py")
parser.add_argument("--wrong", type=float, default=0.15, help="share of wrong labels")
parser.add_argument("--junk", type=int, default=200, help="samples of other classes")
parser.add_argument("--copies", type=int, default=60, help="samples that are there twice")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--path", type=Path, default=Path("runs/scores.safetensors"))
given = parser.parse_args()
given.path.parent.mkdir(parents=True, exist_ok=True)
torch.manual_seed(given.seed)
EPOCHS, PENALTY = 40, 0.01


def digit_pixels() -> Features:
    x, y = map(torch.from_numpy, load_digits(return_X_y=True))
    test = torch.arange(len(y)) % 4 == 0
    return Features(x[~test].float(), y[~test], x[test].float(), y[test])


def train(data: TensorDataset, kept: Selection | Tensor) -> nn.Linear:
    """A linear layer, after as many steps as if all samples were kept."""
    model = nn.Linear(data.tensors[0].shape[1], classes)
    sampler = InfluencePrunedSampler(data, seed=given.seed, epoch_length="constant")
    sampler.restrict(kept)
    loader = DataLoader(data, 50, sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, weight_decay=PENALTY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for batch, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(batch), targets).backward()
            optimizer.step()
            schedule.step()
    return model


def row(name: str, flagged: Tensor) -> str:
    right = int(spoiled[flagged].sum())
    return f"| {name} | {len(flagged)} | {right / max(len(flagged), 1):.0%} | {right / int(spoiled.sum()):.0%} |"


found = Features.load(given.features) if given.features else digit_pixels()
classes, y = (int(found.y.max()) + 1) // 2, found.y
x, test_x = (
    (part - found.x.mean(0)) / found.x.std() for part in (found.x.float(), found.test_x.float())
)
order = torch.randperm(len(y))
good, junk = order[y[order] < classes], order[y[order] >= classes][: given.junk]
good, wanted = good[100:], TensorDataset(x[good[:100]], y[good[:100]])
twice, wrong = good[torch.randperm(len(good))[: given.copies]], torch.rand(len(good)) < given.wrong
other = (y[good] + torch.randint(1, classes, wrong.shape)) % classes
labels = torch.cat(
    [torch.where(wrong, other, y[good]), torch.randint(classes, junk.shape), y[twice]]
)
noise = 0.02 * torch.randn(len(labels), x.shape[1])  # so that no two are quite the same
pool = TensorDataset(x[torch.cat([good, junk, twice])] + noise, labels)
spoiled = torch.cat([wrong, torch.ones_like(junk) > 0, torch.zeros_like(twice) > 0])

everything = train(pool, torch.arange(len(pool)))
pruner = InfluencePruner(
    pool, budget=Budget(fraction=0.5), curvature=ExactCurvature(damping=PENALTY),
    objective=Target(wanted), progress=False,
)  # fmt: skip
pruner.measure(everything).save(given.path)
scores = Scores.load(given.path)
audit = scores.audit()
gone = audit.drop("copies", "suspects", "off_target")
cleaner = InfluencePruner(pool, budget=Budget(count=len(gone.prune)), constraints=gone)
cleaned = cleaner.choose_from(scores)
print(f"{audit}\n\n| trained on | samples | test accuracy |\n|---|---|---|")
for name, data, kept in (
    ("everything", pool, torch.arange(len(pool))),
    ("cleaned", pool, cleaned.kept),
    ("truth known", pool, (~spoiled).nonzero()[:, 0]),
    ("the wanted alone", wanted, torch.arange(len(wanted))),
):
    right = train(data, kept)(test_x).argmax(1) == found.test_y
    accuracy = float(right[found.test_y < classes].float().mean())
    print(f"| {name} | {len(kept)} | {accuracy:.1%} |")

print("\n| wrong labels, by | flagged | precision | recall |\n|---|---|---|---|")
print(row("the audit's suspects", audit.suspects.indices))
print(row("its suspects and off-target", audit.drop("suspects", "off_target").prune))
try:  # cleanlab's licence is the AGPL, so it is no dependency of ours: you decide
    from cleanlab.filter import find_label_issues
except ImportError:
    print("cleanlab is not installed, so its lines are left out: pip install cleanlab")
else:
    fit = LogisticRegression(C=1 / (PENALTY * len(pool)), max_iter=1000)
    crossed = cross_val_predict(fit, pool.tensors[0], labels, method="predict_proba")
    for name, probabilities in (
        ("our leave-one-out", scores.leave_one_out().numpy()),
        ("five-fold", crossed),
    ):
        flagged = find_label_issues(labels=labels.numpy(), pred_probs=probabilities, n_jobs=1)
        print(row(f"cleanlab, {name}", torch.from_numpy(flagged)))

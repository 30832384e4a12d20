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
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import Budget, ExactCurvature, InfluencePruner, Scores, Target
from prunesampler import InfluencePrunedSampler as Sampler

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--features", type=Path, help="a file of features.py")
parser.add_argument("--wrong", type=float, default=0.15, help="share of wrong labels")
parser.add_argument("--junk", type=int, default=200, help="samples of other classes")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--path", type=Path, default=Path("runs/scores.safetensors"))
given = parser.parse_args()
given.path.parent.mkdir(parents=True, exist_ok=True)
torch.manual_seed(given.seed)
EPOCHS, PENALTY, TWICE = 40, 0.01, 60


def train(data: TensorDataset, kept: Tensor) -> nn.Linear:
    """A linear layer, after as many steps as if all samples were kept."""
    model, sampler = nn.Linear(x.shape[1], classes), Sampler(data, epoch_length="constant")
    sampler.restrict(kept)
    loader = DataLoader(data, 50, sampler=sampler)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.9, weight_decay=PENALTY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(loader))
    for batch, targets in (batch for _ in range(EPOCHS) for batch in loader):
        optimizer.zero_grad()
        F.cross_entropy(model(batch), targets).backward()
        optimizer.step()
        schedule.step()
    return model


def tell(name: str, flagged: Tensor) -> None:
    right = int(spoiled[flagged].sum())
    share = right / max(len(flagged), 1)
    print(f"| {name} | {len(flagged)} | {share:.0%} | {right / int(spoiled.sum()):.0%} |")


pixels, digits = map(torch.from_numpy, load_digits(return_X_y=True))
pixels, of_test = pixels.float(), torch.arange(len(digits)) % 4 == 0
found = Features(pixels[~of_test], digits[~of_test], pixels[of_test], digits[of_test])
found = Features.load(given.features) if given.features else found
x, test_x = ((part - found.x.mean(0)) / found.x.std() for part in (found.x, found.test_x))
y, classes, order = found.y, (int(found.y.max()) + 1) // 2, torch.randperm(len(found.y))
good, junk = order[y[order] < classes], order[y[order] >= classes][: given.junk]
good, wanted = good[100:], TensorDataset(x[good[:100]], y[good[:100]])
twice, wrong = good[torch.randperm(len(good))[:TWICE]], torch.rand(len(good)) < given.wrong
other = (y[good] + torch.randint(1, classes, wrong.shape)) % classes
parts = [torch.where(wrong, other, y[good]), torch.randint(classes, junk.shape), y[twice]]
labels, spoiled = torch.cat(parts), torch.cat([wrong, junk >= 0, twice < 0])
noise = 0.02 * torch.randn(len(labels), x.shape[1])  # so that no two are quite the same
pool = TensorDataset(x[torch.cat([good, junk, twice])] + noise, labels)

everything, curvature = train(pool, torch.arange(len(pool))), ExactCurvature(damping=PENALTY)
target, half = Target(wanted), Budget(fraction=0.5)
pruner = InfluencePruner(pool, budget=half, curvature=curvature, objective=target, progress=False)
pruner.measure(everything).save(given.path)
scores = Scores.load(given.path)
audit = scores.audit()
rows = {"everything": torch.arange(len(pool)), "cleaned": audit.kept("copies", "off_target")}
rows["the half that Target keeps"] = pruner.choose_from(scores).kept
rows |= {"truth known": (~spoiled).nonzero()[:, 0], "the wanted alone": torch.arange(100)}
print(f"{audit}\n\n| trained on | samples | accuracy |\n|---|---|---|")
for name, kept in rows.items():
    model = train(wanted if name == "the wanted alone" else pool, kept)
    right = (model(test_x).argmax(1) == found.test_y)[found.test_y < classes]
    print(f"| {name} | {len(kept)} | {right.float().mean():.1%} |")
print("\n| wrong labels by | flagged | precision | recall |\n|---|---|---|---|")
tell("suspects", audit.suspects.indices)
tell("suspects and off-target", audit.drop("suspects", "off_target").prune)
try:  # cleanlab is under the AGPL, so it is never installed with us: that is for you to decide
    from cleanlab.filter import find_label_issues
except ImportError:
    print("cleanlab is not installed: with it, two more lines are printed")
    raise SystemExit from None
fit = LogisticRegression(C=1 / (PENALTY * len(pool)), max_iter=1000)
crossed = cross_val_predict(fit, pool.tensors[0], labels, method="predict_proba")
held_out = {"leave-one-out": scores.leave_one_out().numpy(), "five-fold": crossed}
for name, probabilities in held_out.items():
    flags = find_label_issues(labels=labels.numpy(), pred_probs=probabilities, n_jobs=1)
    tell(f"cleanlab, {name}", torch.from_numpy(flags.nonzero()[0]))

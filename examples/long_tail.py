"""A long tail of classes: the last layer fitted anew on a balanced selection, beside what costs nothing.

    python examples/long_tail.py
    python examples/long_tail.py --ratio 20 --seeds 0 1 2 3 4

The digits are thinned so that the rarest class has a fiftieth of the commonest. A network trains on all that is left;
then its last layer is fitted again: on as many samples of every class (`Budget(per_class="equal")`), chosen by
influence and at random, on all with weights by class, and not at all but with the classes' log shares subtracted from its
outputs (logit adjustment; Menon et al., ICLR 2021). Beside it: a network trained on samples drawn class by class.
Prints the accuracy on test images, the mean over the classes.
"""

import argparse
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from data import digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from prunesampler import Budget, InfluencePruner, Price

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--ratio", type=float, default=50.0, help="commonest class to rarest")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
given = parser.parse_args()
images = digits()
CLASSES, DECAY = images.classes, 1e-3


def thinned(seed: int) -> TensorDataset:
    """Training images with exponentially falling counts, another order of the classes for each seed."""
    x, y = images.train.tensors
    draw = torch.Generator().manual_seed(seed)
    place = torch.randperm(CLASSES, generator=draw)[y]
    share = given.ratio ** (-place / (CLASSES - 1))
    kept = torch.rand(len(y), generator=draw) < share
    return TensorDataset(x[kept].float() / 16, y[kept])


def train(data: TensorDataset, balanced: bool) -> nn.Sequential:
    """A network on all samples, or on samples drawn so that all classes come as often."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
    model = nn.Sequential(body, nn.Linear(32, CLASSES))
    weights = 1 / torch.bincount(data.tensors[1], minlength=CLASSES).clamp(min=1)[data.tensors[1]]
    drawn = WeightedRandomSampler(weights.tolist(), len(data)) if balanced else None
    loader = DataLoader(data, 32, sampler=drawn, shuffle=drawn is None)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=given.epochs * len(loader)
    )
    for _ in range(given.epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def refitted(features: Tensor, labels: Tensor, weight: Tensor | None = None) -> nn.Linear:
    """A last layer at the minimum of its penalised loss."""
    layer = nn.Linear(features.shape[1], CLASSES)
    search = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        penalty = sum(p.square().sum() for p in layer.parameters())
        value = F.cross_entropy(layer(features), labels, weight=weight) + DECAY / 2 * penalty
        value.backward()
        return value

    search.step(loss)
    return layer


def accuracy(outputs: Tensor) -> float:
    """Mean over the classes, in percent."""
    right, y = outputs.argmax(1) == images.test.tensors[1], images.test.tensors[1]
    return 100 * mean(float(right[y == c].float().mean()) for c in range(CLASSES))


rows: dict[str, list[float]] = {}
for seed in given.seeds:
    torch.manual_seed(seed)
    data, test = thinned(seed), images.test.tensors[0].float() / 16
    labels, counts = data.tensors[1], torch.bincount(data.tensors[1], minlength=CLASSES)
    model, balanced = train(data, balanced=False), train(data, balanced=True)
    with torch.no_grad():
        features, seen = model[0](data.tensors[0]), model[0](test)
        found = {
            "trained on all": model(test),
            "trained on samples drawn class by class": balanced(test),
            "logits adjusted": model(test) - (counts / len(data)).clamp(min=1e-9).log(),
        }
    keep = (
        2 * CLASSES * int(counts.clamp(min=2).min())
    )  # equal classes, as far as the rarest has them
    budget = Budget(count=len(data) - keep, per_class="equal")
    chance = Price(torch.rand(len(data)), shift=False)
    for name, objective in (("chosen", None), ("at random", chance)):
        pruner = InfluencePruner(data, budget=budget, objective=objective, progress=False)
        kept = pruner.select(model).kept
        found[f"last layer anew, equal classes {name}"] = refitted(features[kept], labels[kept])(
            seen
        )
    weight = len(data) / counts.clamp(min=1) / CLASSES
    found["last layer anew, weights by class"] = refitted(features, labels, weight)(seen)
    for name, outputs in found.items():
        rows.setdefault(name, []).append(accuracy(outputs))
print("| | accuracy %, mean over classes |\n|---|---|")
for name, values in rows.items():
    error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    print(f"| {name} | {mean(values):.1f}{error} |")

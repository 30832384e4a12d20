"""Do accuracies on a part of the samples rank settings as all samples do? Sets by influence beside rivals.

    python examples/benchmarks/search.py
    python examples/benchmarks/search.py --images CIFAR --first 5000 --epochs 8 --choosing-epochs 2 \\
        --batch-size 64 --json runs/search-cifar.jsonl

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg; without it, these are scikit-learn's digits. Sixteen small
networks and learning rates are each trained on all samples and on 10 and 30 % of them. A search sees only the
accuracies on a validation part, a quarter of the training images; what it should have found is
the accuracy on the test images after training on all samples, as a mean over the seeds. Every run is a
line of JSON in --json; runs that are there are not run again, and --minutes 0 only shows what is there.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images
from methods import highest, pruner
from results import Job, Results, Row, read, show, spread
from setting import device
from time_to_accuracy import load
from training import Progress, Recipe, accuracy, clock, fresh, train

from prunesampler import InfluencePrunedSampler, Trajectory, TrajectoryRecorder

SHARES = (0.1, 0.3)
ALL, FEWER, INFLUENCE, HARDEST = "all samples", "all samples, fewer epochs", "influence", "hardest"
RANDOM, LONGER, AS_LONG = "random", "random, longer", "random, as long as all"
ON_A_PART = (INFLUENCE, RANDOM, HARDEST, FEWER, LONGER)
Seeds = dict[int, list[Row]]
Found = dict[tuple[str, float], Seeds]  # runs of all settings by row and share, and by seed


@dataclass(frozen=True)
class Setting:
    """What a search varies."""

    width: int
    depth: int
    activation: str
    lr: float

    def build(self, channels: int, classes: int) -> nn.Sequential:
        """Convolutions, the first three of which halve the image and all but the first double the width."""
        layers, inputs = list[nn.Module](), channels
        for number in range(self.depth):
            outputs, stride = self.width * 2 ** min(number, 2), 2 if number < 3 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), getattr(nn, self.activation)()]
            inputs = outputs
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
        return nn.Sequential(*layers)


SETTINGS = [Setting(*s) for s in product((8, 24), (2, 4), ("ReLU", "Tanh"), (0.2, 0.02))]


class Search:
    """All that the runs of one benchmark share: the images, and the sets that were chosen of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.brief = options, options.choosing_epochs
        whole = load(options.images, options.cache)
        whole = whole if options.first is None else whole.first(options.first)
        order = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(1))
        parts = order.tensor_split([len(order) // 4])
        validation, rest = (TensorDataset(*whole.train[part]) for part in parts)
        # Training reports the accuracy on what is given as test images: here those of the search.
        self.images = Images(rest, validation, whole.classes, whole.padding, whole.mirrored)
        self.test, self.size = whole.test, len(rest)
        self.chooser, self.chosen = cache(self._train_chooser), cache(self._choose)

    def recipe(self, lr: float, share: float, seed: int) -> Recipe:
        return Recipe(self.options.epochs, 0, 1 - share, self.options.batch_size, lr, seed=seed)

    def steps(self, row: str, share: float) -> int:
        """The share of what all samples take, for a set and for fewer epochs alike.

        A random set that is trained longer takes the steps that choosing by influence costs, too: the brief
        run and, for the scoring, one epoch, shared among the settings.
        """
        epoch = max(1, self.size // self.options.batch_size)
        if row in (ALL, AS_LONG):
            return self.options.epochs * epoch
        more = (self.brief + 1) / self.options.settings if row == LONGER else 0.0
        return max(1, round((share * self.options.epochs + more) * epoch))

    def _train_chooser(self, seed: int) -> tuple[nn.Sequential, Trajectory, float]:
        """A short run of the first setting on all samples, its errors recorded, and its seconds."""
        started, (x, y) = clock(device()), (t.to(device()) for t in self.images.train.tensors)
        model = fresh(self.images, SETTINGS[0].build, seed).to(device())
        indices, batch, lr = range(self.size), self.options.batch_size, SETTINGS[0].lr
        sampler = InfluencePrunedSampler(indices, seed=seed)
        loader = DataLoader(indices, batch, sampler=sampler, drop_last=True)
        recorder, steps = TrajectoryRecorder(sampler, loader, model), self.brief * len(loader)
        optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=5e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
        for epoch in range(self.brief):
            for picked in loader:
                loss = F.cross_entropy(model(self.images.augment(x[picked])), y[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            recorder.on_epoch_end(epoch)
        recorder.remove()
        return model, recorder.trajectory, clock(device()) - started

    def _choose(self, row: str, share: float, seed: int) -> tuple[Tensor, float]:
        """Indices to train on, and the seconds that it took to choose them."""
        if row in (ALL, FEWER):
            return torch.arange(self.size), 0.0
        recipe = self.recipe(SETTINGS[0].lr, share, seed)
        if row not in (INFLUENCE, HARDEST):
            draw = torch.Generator().manual_seed(seed)
            return torch.randperm(self.size, generator=draw)[: recipe.keep(self.size)], 0.0
        model, trajectory, spent = self.chooser(seed)
        started = clock(device())
        if row == INFLUENCE:
            kept = pruner(Progress(self.images, recipe, model, 0)).select(model).kept
        else:  # a sample that no whole batch held has no error, and counts as hard
            kept = highest(trajectory.last_seen().nan_to_num(torch.inf), recipe.keep(self.size))
        return kept, spent + clock(device()) - started

    def run(self, job: Job) -> Row:
        """Train one setting; the test images are looked at only where all samples were trained on."""
        setting, row, share, seed = SETTINGS[job["setting"]], job["row"], job["share"], job["seed"]
        (kept, choosing), steps = self.chosen(row, share, seed), self.steps(row, share)
        network = fresh(self.images, setting.build, seed)
        recipe = self.recipe(setting.lr, share, seed)
        made = train(self.images, network, recipe, lambda _: (kept, None), steps, device())
        test = accuracy(made.model, self.test, device()) if row == ALL else None
        measures = {"validation": made.accuracy, "test": test, "steps": steps, "samples": len(kept)}
        return {**measures, "seconds": made.seconds, "choosing": choosing}


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Seed by seed, so that a run cut short has whole ones; last those that take as long as all samples."""
    rows = [(ALL, 1.0), *((row, share) for share in SHARES for row in ON_A_PART)]
    for some in (rows, [(AS_LONG, share) for share in SHARES]):
        for seed, (row, share), number in product(options.seeds, some, range(options.settings)):
            yield {"row": row, "share": share, "seed": seed, "setting": number}


def complete(rows: list[Row], count: int) -> Found:
    """The runs of all settings in their order; seeds of which one is missing are left out."""
    found: Found = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row["setting"]):
        found[row["row"], row["share"]][row["seed"]].append(row)
    whole = {k: {s: r for s, r in seeds.items() if len(r) == count} for k, seeds in found.items()}
    return {key: seeds for key, seeds in whole.items() if seeds}


def agreement(looks: list[float], truth: list[float]) -> float:
    """Spearman's rank correlation; 0 where all settings look alike, since that ranks nothing."""
    alike = len(set(looks)) < 2 or len(set(truth)) < 2
    return 0.0 if alike else float(spearmanr(looks, truth).statistic)


def regret(looks: list[float], truth: list[float]) -> float:
    """Points below the best setting of the one that looks best; of several that do, their mean."""
    picked = [true for look, true in zip(looks, truth, strict=True) if look == max(looks)]
    return 100 * (max(truth) - mean(picked))


def averaged(seeds: Seeds, without: int | None = None) -> list[float]:
    """Mean test accuracy of every setting over the seeds, or over those but one."""
    runs = (runs for seed, runs in seeds.items() if seed != without)
    return [mean(run["test"] for run in same) for same in zip(*runs, strict=True)]


def table(rows: list[Row], count: int) -> Table:
    """What each way to search finds."""
    made = Table(
        "searched on", "share %", "seeds", "rank correlation", "to random", "to fewer epochs",
        "regret, points", "seconds", "choosing s",
    )  # fmt: skip
    found = complete(rows, count)
    truth = averaged(found[ALL, 1.0]) if found else []
    looks = {
        key: {seed: [run["validation"] for run in runs] for seed, runs in seeds.items()}
        for key, seeds in found.items()
    }
    ranks = {key: {s: agreement(v, truth) for s, v in look.items()} for key, look in looks.items()}
    for (name, share), own in ranks.items():
        rivals = [{} if row == name else ranks.get((row, share), {}) for row in (RANDOM, FEWER)]
        beside = [[own[s] - rival[s] for s in own if s in rival] for rival in rivals]
        runs = found[name, share].values()
        choosing = [mean(run["choosing"] for run in some) for some in runs]
        training = [sum(run["seconds"] for run in some) for some in runs]
        made.add_row(
            name, f"{100 * share:.0f}", str(len(own)), spread([*own.values()], ".2f"),
            *(spread(differences, "+.2f") for differences in beside),
            spread([regret(look, truth) for look in looks[name, share].values()], ".2f"),
            spread([sum(both) for both in zip(choosing, training, strict=True)], ".1f"),
            spread(choosing, ".1f"),
        )  # fmt: skip
        if name == ALL and len(own) > 1:
            # Its own run is in the mean above, which flatters it; here it is not.
            pairs = [(v, averaged(found[ALL, 1.0], s)) for s, v in looks[ALL, 1.0].items()]
            both = [spread([f(*pair) for pair in pairs], ".2f") for f in (agreement, regret)]
            made.add_row("... by the other seeds", "100", str(len(own)), both[0], "", "", both[1])
    return made


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--images", type=Path, help="folder of train/ and test/ (default: digits)")
    made.add_argument("--cache", type=Path, help="file that keeps the decoded images")
    made.add_argument("--first", type=int, help="use so many of the training images, at random")
    made.add_argument("--epochs", type=int, default=20, help="on all samples")
    made.add_argument("--choosing-epochs", type=int, default=4, help="of the run that chooses")
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--settings", type=int, default=len(SETTINGS), help="search among the first")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--minutes", type=float, help="begin no run after so many")
    made.add_argument("--json", type=Path, default=Path("runs/search.jsonl"))
    return made.parse_args()


def main() -> None:
    options = arguments()
    names = ("first", "epochs", "choosing_epochs", "batch_size", "settings")
    same = {name: getattr(options, name) for name in names}
    same["images"] = options.images.name if options.images else "digits"
    search = cache(lambda: Search(options))
    Results(options.json, same).run(jobs(options), lambda job: search().run(job), options.minutes)
    show(table(read(options.json), options.settings))


if __name__ == "__main__":
    main()

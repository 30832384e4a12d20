"""Jobs in plain PyTorch, on one process and on two: what is selected, and what is refused."""

from __future__ import annotations

import warnings
from functools import partial

import torch
import torch.nn.functional as F
from job_runner import RANK, WORLD
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from prunesampler import (
    Budget,
    HeadGradients,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
    SquaredError,
    TokenCrossEntropy,
    anneal,
)

quick = partial(anneal, moves=50_000)


def data(count=300):
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x[:count] / 16, dtype=torch.float32), torch.tensor(y[:count]))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )


def pruner(dataset, **options):
    defaults = {
        "budget": Budget(fraction=0.4),
        "solver": quick,
        "progress": False,
        "batch_size": 32,
    }
    return InfluencePruner(dataset, **{**defaults, **options})


def train(after_epoch):
    """Data-parallel training with batch norm, dropout and global random numbers."""
    model = network()
    torch.manual_seed(100 + RANK)
    if WORLD > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    dataset, losses = data(), []
    for _ in range(3):
        model.train()
        order = torch.randperm(len(dataset))[: 150 * 2 // WORLD]
        for chosen in order.split(25):
            x, y = dataset[chosen]
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        after_epoch(model)
    return losses


def select():
    """The kept set of a fixed model, and which samples each rank measured."""
    x, y = data().tensors
    seen = []
    source = HeadGradients("4")

    def record(model, batch):
        seen.extend(batch[2].tolist())
        return source(model, batch[:2])

    selection = pruner(TensorDataset(x, y, torch.arange(len(x))), gradients=record).select(
        network()
    )
    return {"kept": selection.kept.tolist(), "shift": selection.shift, "measured": seen}


def select_after_uneven_buffers():
    """Ranks whose batch norm statistics differ, as they do after an epoch, agree all the same."""
    model = network()
    if RANK:
        model[1].running_mean += 1
    kept = pruner(data()).select(model).kept.tolist()
    return {"kept": kept, "mean": float(model[1].running_mean.mean())}


def sequences():
    """Texts of different lengths, whose tokens have losses of their own."""
    draw = torch.Generator().manual_seed(0)
    words = [torch.randint(0, 9, (1 + i % 7,), generator=draw) for i in range(90)]
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)

    def padded(texts):
        return pad(texts), pad([text % 4 for text in texts], padding_value=-100)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 4))
    options = {"losses": TokenCrossEntropy(), "collate_fn": padded, "batch_size": 8}
    selection = pruner(words, **options).select(model)
    return {"kept": selection.kept.tolist(), "shift": selection.shift}


def more_ranks_than_batches():
    return {"kept": pruner(data(60), batch_size=64).select(network()).kept.tolist()}


def bitwise():
    alone = train(lambda model: None)
    measured = train(lambda model: pruner(data()).select(model))
    return {"losses": alone, "equal": alone == measured}


def trial():
    """Losses and layers that need more than one sample in a batch."""
    x, y = data(80).tensors
    dataset = TensorDataset(x, (y > 4).float())

    def losses(model, batch):
        return F.binary_cross_entropy_with_logits(
            model(batch[0]).squeeze(), batch[1], reduction="none"
        )

    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    model = nn.Sequential(nn.Linear(64, 8), norm, nn.ReLU(), nn.Linear(8, 1))
    sampler = InfluencePrunedSampler(dataset, num_replicas=WORLD, rank=RANK)
    chooser = pruner(
        dataset, losses=losses, batch_size=64, budget=Budget(count=20, min_per_class=0)
    )
    pruning = PruningCallback(sampler, chooser, warmup_epochs=2)
    for epoch in range(2):
        pruning.on_epoch_end(epoch, model)
    return {"kept": sampler.kept.tolist()}


def failure(work):
    try:
        work()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def bad_sample():
    """A sample in the second rank's share has no finite loss."""
    x, y = (t.clone() for t in data().tensors)
    x[40] = float("nan")
    return {"error": failure(lambda: pruner(TensorDataset(x, y)).select(network()))}


def bad_budget():
    """Only rank 0 solves, so only rank 0 finds out."""
    budget = Budget(fraction=0.9, min_per_class=25)
    return {"error": failure(lambda: pruner(data(), budget=budget).select(network()))}


def bad_redraw():
    """Only rank 0 holds scores, so only rank 0 sees that they are of another dataset."""
    scores = pruner(data(200)).measure(network())
    ages = torch.zeros(300, dtype=torch.int64)
    return {"error": failure(lambda: pruner(data()).redraw(scores, ages))}


def different_seeds():
    dataset = data()
    sampler = InfluencePrunedSampler(dataset, seed=RANK)
    pruning = PruningCallback(sampler, pruner(dataset), warmup_epochs=1)
    return {"error": failure(lambda: pruning.on_epoch_end(0, network()))}


def different_data():
    return {"error": failure(lambda: pruner(data(200 - 40 * RANK)).select(network()))}


def different_pruners():
    return {"error": failure(lambda: pruner(data(), seed=RANK).select(network()))}


def different_models():
    model = network()
    with torch.no_grad():
        model[4].weight += RANK
    return {"error": failure(lambda: pruner(data()).select(model))}


def different_losses():
    losses = (
        {"losses": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none")} if RANK else {}
    )
    return {"error": failure(lambda: pruner(data(), **losses).select(network()))}


def refused_on_one_rank():
    """One rank's sampler serves a loader that drops its last batch, the other's does not."""
    dataset = data()
    sampler = InfluencePrunedSampler(dataset)
    pruning = PruningCallback(sampler, pruner(dataset), warmup_epochs=1)
    if RANK:
        sampler.require_batch(200)
    return {"error": failure(lambda: pruning.on_epoch_end(0, network()))}


def different_splits():
    """Every rank draws its own training set, as random_split does without a generator."""
    torch.manual_seed(100 + RANK)
    part, _ = torch.utils.data.random_split(data(), [200, 100])
    return {"error": failure(lambda: pruner(part).check(network()))}


def random_data():
    """Every rank makes its own numbers, without classes to tell them by."""
    generator = torch.Generator().manual_seed(RANK)
    made = TensorDataset(*torch.rand(2, 60, 1, generator=generator))
    options = {"losses": SquaredError(), "budget": Budget(count=9)}
    return {"error": failure(lambda: pruner(made, **options).check(nn.Sequential(nn.Linear(1, 1))))}


def without_replicas():
    """The README's diff in a plain data-parallel script: every rank has all samples."""
    dataset = data()
    pruning = PruningCallback(InfluencePrunedSampler(dataset), pruner(dataset))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pruning.on_epoch_end(0, network())
    return {"said": [str(warning.message) for warning in caught]}


def plain_ranks():
    """A rank-aware sampler without accelerate: both ranks' indices after pruning."""
    dataset = data(101)
    sampler = InfluencePrunedSampler(dataset, num_replicas=WORLD, rank=RANK)
    pruning = PruningCallback(sampler, pruner(dataset), warmup_epochs=1)
    pruning.on_epoch_end(0, network())
    return {"indices": list(sampler), "kept": sampler.kept.tolist()}

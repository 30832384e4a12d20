"""Models of every precision in every wrapper, and datasets of every odd kind, can be selected with."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from hostile import OwnRandom, WorkersOnly, trace_of
from torch import nn

from prunesampler import Budget, CrossEntropy, InfluencePruner, anneal

quick = partial(anneal, moves=20_000)
pytestmark = pytest.mark.filterwarnings("ignore:.*no better chosen than at random")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Holder(nn.Module):
    """Holds a model in an attribute, as wrappers of people's own do."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Autocast(Holder):
    """Runs in bfloat16 whatever the weights are."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


WRAPPERS = {
    "plain": lambda model: model,
    "evaluating": lambda model: model.eval(),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "held": Holder,
    "held and compiled": lambda model: torch.compile(Holder(model), backend="eager"),
    "autocast": Autocast,
}


def network(dtype, device="cpu"):
    """With everything that measuring could disturb: dropout and batch norm."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)]
    return nn.Sequential(*layers).to(device, dtype)


def pruner_of(data, dtype=torch.float32, **options):
    def run(model, batch):
        return model(batch[0].to(dtype)), batch[1]

    return InfluencePruner(
        data,
        budget=Budget(fraction=0.4), losses=CrossEntropy(run=run), solver=quick, progress=False,
        **options,
    )  # fmt: skip


def global_numbers():
    return (
        random.getstate()[1][:9],
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def state_of(model):
    """All that measuring could change in a model."""
    modules = list(model.modules())
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [tensor.detach().double().cpu().numpy().tobytes() for tensor in tensors],
        [parameter.grad for parameter in model.parameters()],
        [parameter.requires_grad for parameter in model.parameters()],
        [module.training for module in modules],
        [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in modules
        ],
        global_numbers(),
    )


def runs(model, x):
    """Whether torch itself can run the model, its training pass too."""
    try:
        model(x).float().sum().backward()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_models_of_every_precision_in_every_wrapper(dtype, wrapper, few_digits):
    x = few_digits.tensors[0][:8].to(dtype)
    if not runs(WRAPPERS[wrapper](network(dtype)), x):
        pytest.skip("torch cannot run this on the CPU")
    model = WRAPPERS[wrapper](network(dtype))
    before = state_of(model)
    selection = pruner_of(few_digits, dtype).select(model)
    assert state_of(model) == before
    assert len(selection.pruned) == 80
    assert selection.shift > 0
    if dtype in (torch.float32, torch.float64) and wrapper != "autocast":
        plain = pruner_of(few_digits, dtype).select(network(dtype))
        assert torch.equal(selection.kept, plain.kept)
        assert selection.shift == plain.shift


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_lower_precisions_come_near_the_full_one(wrapper, few_digits):
    """Not in the set, which rounding changes, but in what a random set of its size would do."""
    full = pruner_of(few_digits).select(network(torch.float32))
    half = pruner_of(few_digits, torch.bfloat16).select(WRAPPERS[wrapper](network(torch.bfloat16)))
    found, expected = (each.metadata["random_shift"] for each in (half, full))
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.filterwarnings("ignore:score_dataset gives another item")
@pytest.mark.parametrize("workers", [0, 2])
def test_hostile_datasets_are_selected_from_without_a_trace(workers, hostile_dataset):
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    before = trace_of(hostile_dataset), state_of(model)
    pruner = pruner_of(hostile_dataset, num_workers=workers)
    if workers == 0 and isinstance(hostile_dataset, WorkersOnly):
        with pytest.raises(AssertionError, match="read in the main process"):
            pruner.select(model)
    else:
        assert len(pruner.select(model).pruned) == 48
    assert (trace_of(hostile_dataset), state_of(model)) == before


def test_the_traces_of_hostile_datasets_can_be_seen(hostile_dataset):
    """The test above would see them."""
    if isinstance(hostile_dataset, WorkersOnly):
        return
    before = trace_of(hostile_dataset)
    x, _ = hostile_dataset[3]
    read = trace_of(hostile_dataset) != before
    if hasattr(hostile_dataset, "x") and not isinstance(hostile_dataset, OwnRandom):
        x += 1
        assert trace_of(hostile_dataset) != before
    assert read == (hasattr(hostile_dataset, "path") or isinstance(hostile_dataset, OwnRandom))


def test_a_dataset_that_changes_is_told_of(hostile_dataset):
    workers = 1 if isinstance(hostile_dataset, WorkersOnly) else 0
    pruner = pruner_of(hostile_dataset, num_workers=workers)
    if isinstance(hostile_dataset, OwnRandom):
        with pytest.warns(UserWarning, match="score_dataset gives another item"):
            pruner.check(nn.Linear(8, 3))
    else:
        pruner.check(nn.Linear(8, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gpu_selects_as_the_cpu_does(dtype, few_digits):
    def run(model, batch):
        return model(batch[0].to("cuda", dtype)), batch[1].to("cuda")

    here = pruner_of(few_digits, dtype).select(network(dtype))
    pruner = InfluencePruner(
        few_digits,
        budget=Budget(fraction=0.4), losses=CrossEntropy(run=run), solver=quick, progress=False,
    )  # fmt: skip
    there = pruner.select(network(dtype, "cuda"))
    assert len(there.pruned) == len(here.pruned)
    # Rounding may lead annealing to another set; what a random set would do is the same.
    random = here.metadata["random_shift"]
    assert there.metadata["random_shift"] == pytest.approx(random, rel=1e-3)
    assert there.shift == pytest.approx(here.shift, rel=0.5)

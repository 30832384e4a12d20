"""Files that the commands are tried on, and what a command said."""

import math
import re

import torch
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

from prunesampler import Budget, ExactCurvature, InfluencePruner, Selection, Trajectory
from prunesampler.cli.app import app

NAN = math.nan


class Mine(ExactCurvature):
    """A curvature that this package does not know."""


def scores_of(data, layer=None, losses=None, curvature=None):
    pruner = InfluencePruner(
        data, budget=Budget(count=9), losses=losses, curvature=curvature, progress=False
    )
    torch.manual_seed(1)
    return pruner, pruner.measure(layer or nn.Linear(16, 3))


def chosen(pruned, n, **more):
    return Selection(
        torch.tensor(pruned, dtype=torch.int64), n, 0.5, NAN, None, Budget(count=2), **more
    )


def fill(folder):
    """Put a file of every kind into a folder, all of the same 60 samples."""
    torch.manual_seed(0)
    x, y = 3 * torch.randn(60, 16), torch.arange(60) % 3
    x[59] = x[56]  # a copy of the same class
    data = TensorDataset(x, y)
    pruner, scores = scores_of(data)
    scores.save(folder / "scores")
    scores_of(data)[1].save(folder / "wanted")
    scores_of(data, nn.Linear(16, 3, bias=False))[1].save(folder / "other")
    scores_of(TensorDataset(x, (y + 1) % 3))[1].save(folder / "elsewhere")
    scores_of(data, curvature=Mine())[1].save(folder / "mine")
    pruner.choose_from(scores).save(folder / "selection")
    chosen([0, 2, 5], 60, metadata={"by": "the trajectory"}).save(folder / "other selection")
    errors = torch.rand(3, 60)
    errors[1, 7] = NAN
    Trajectory(errors, layer="head.fc").save(folder / "trajectory")
    Trajectory(errors[:2], exact=False).save(folder / "short")


def invoke(*arguments):
    """Run a command; what it wrote, and its exit code."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


def said(found):
    """What a command wrote to stdout, with single spaces; it must have gone well."""
    assert found.exit_code == 0, found.stderr
    assert not found.stderr
    return re.sub(r" +", " ", found.stdout)


def refused(found):
    """The one line on stderr; nothing may be on stdout."""
    assert found.exit_code == 2, (found.stdout, found.exception)
    assert isinstance(found.exception, SystemExit)
    assert not found.stdout
    (line,) = found.stderr.splitlines()
    return line

"""Train on less data: prune the samples whose removal would move the trained parameters least."""

from importlib.metadata import PackageNotFoundError, version

from prunesampler.influence.automatic import AutoCurvature, BlockCurvature
from prunesampler.influence.curvature import (
    Curvature,
    ExactCurvature,
    IdentityCurvature,
    KroneckerCurvature,
)
from prunesampler.influence.influence import Influence, loss_distance, parameter_distance
from prunesampler.measure.gradients import HeadGradients
from prunesampler.measure.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from prunesampler.measure.tokens import TokenCrossEntropy
from prunesampler.pruner import InfluencePruner
from prunesampler.sampling.loaders import replace_sampler
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.audit import Audit
from prunesampler.select.frontier import Frontier
from prunesampler.select.objectives import KeepHead, Objective, Price, Target, WantedLoss
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.select.splits import cross_split, suspects_from
from prunesampler.solve.annealing import anneal
from prunesampler.solve.budget import Budget, Constraints
from prunesampler.train.callback import PruningCallback
from prunesampler.train.hardest import TrajectoryPruner
from prunesampler.train.pruners import Pruner
from prunesampler.train.recorder import TrajectoryRecorder
from prunesampler.train.trajectory import Trajectory

try:
    __version__ = version("prunesampler")  # pyproject.toml is its one source
except PackageNotFoundError:  # a copy of the source that was never installed
    __version__ = "unknown"

__all__ = [
    "Audit",
    "AutoCurvature",
    "BinaryCrossEntropy",
    "BlockCurvature",
    "Budget",
    "Constraints",
    "CrossEntropy",
    "Curvature",
    "ExactCurvature",
    "Frontier",
    "HeadGradients",
    "IdentityCurvature",
    "Influence",
    "InfluencePrunedSampler",
    "InfluencePruner",
    "KeepHead",
    "KroneckerCurvature",
    "Objective",
    "Price",
    "Pruner",
    "PruningCallback",
    "Scores",
    "Selection",
    "SquaredError",
    "Target",
    "TokenCrossEntropy",
    "Trajectory",
    "TrajectoryPruner",
    "TrajectoryRecorder",
    "WantedLoss",
    "anneal",
    "cross_split",
    "loss_distance",
    "parameter_distance",
    "replace_sampler",
    "suspects_from",
]

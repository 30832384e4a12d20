"""Train on less data: prune the samples whose removal would move the trained parameters least."""

from prunesampler.annealing import anneal, exchange
from prunesampler.callback import PruningCallback
from prunesampler.curvature import ExactCurvature, IdentityCurvature, KroneckerCurvature
from prunesampler.gradients import HeadGradients
from prunesampler.influence import Influence
from prunesampler.loaders import replace_sampler
from prunesampler.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from prunesampler.pruner import InfluencePruner
from prunesampler.sampler import InfluencePrunedSampler
from prunesampler.selection import Budget, Selection
from prunesampler.solvers import exhaustive

__all__ = [
    "BinaryCrossEntropy",
    "Budget",
    "CrossEntropy",
    "ExactCurvature",
    "HeadGradients",
    "IdentityCurvature",
    "Influence",
    "InfluencePrunedSampler",
    "InfluencePruner",
    "KroneckerCurvature",
    "PruningCallback",
    "Selection",
    "SquaredError",
    "anneal",
    "exchange",
    "exhaustive",
    "replace_sampler",
]

"""Train on less data: prune the samples whose removal would move the trained parameters least."""

from prunesampler.annealing import anneal
from prunesampler.budget import Budget
from prunesampler.callback import PruningCallback
from prunesampler.constraints import Constraints
from prunesampler.curvature import ExactCurvature, IdentityCurvature, KroneckerCurvature
from prunesampler.exchange import exchange
from prunesampler.frontier import Frontier
from prunesampler.gradients import HeadGradients
from prunesampler.influence import Influence, loss_distance, parameter_distance
from prunesampler.loaders import replace_sampler
from prunesampler.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from prunesampler.pruner import InfluencePruner
from prunesampler.sampler import InfluencePrunedSampler
from prunesampler.selection import Selection
from prunesampler.solvers import cheapest, exhaustive

__all__ = [
    "BinaryCrossEntropy",
    "Budget",
    "Constraints",
    "CrossEntropy",
    "ExactCurvature",
    "Frontier",
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
    "cheapest",
    "exchange",
    "exhaustive",
    "loss_distance",
    "parameter_distance",
    "replace_sampler",
]

"""Measurements that several tests work on."""

import torch

from prunesampler import CrossEntropy
from prunesampler.influence.measurements import Measurements


def cross_entropy_samples(n: int, classes: int, features: int) -> Measurements:
    """Measurements of n samples with random inputs and outputs."""
    torch.manual_seed(1)
    inputs = torch.cat([torch.randn(n, features), torch.ones(n, 1)], dim=1)
    outputs, labels = torch.randn(n, classes), torch.randint(0, classes, (n,))
    values, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    return Measurements(delta, inputs, hessian, values, labels)

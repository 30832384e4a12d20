"""Inverse curvatures of a head for `engine_peers.py`: this package's, and those of published libraries.

A library is imported when its solver is made, since none of them is a dependency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from engine_data import measured
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from prunesampler import Curvature, Influence
from prunesampler.base.memory import Room
from prunesampler.influence.influence import loss_distance

TOLERANCE, MOST_STEPS = 1e-3, 1000
"""Where curvlinops' conjugate gradients end: at the residual where ours do by default."""
BATCH = 1024
"""Samples at a time where that does not change an answer."""


@dataclass(frozen=True)
class Problem:
    """A trained head, its data, the samples to leave out, and the damping.

    Args:
        inputs: Features with a column of ones, shape (n, D).
        labels: Class of each sample, int64, shape (n,).
        weights: Weights and biases of the head side by side, shape (C, D).
        pruned: The samples to leave out, int64, shape (m,).
        damping: Added to the diagonal of the curvature.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor
    pruned: Tensor
    damping: float

    @classmethod
    def load(cls, path: Path, damping: float) -> Problem:
        """Read what `engine_peers.py` has saved."""
        held = load_file(path)
        return cls(held["inputs"], held["labels"], held["weights"], held["pruned"], damping)

    @property
    def dataset(self) -> TensorDataset:
        """Features, without the column of ones, and labels."""
        return TensorDataset(self.inputs[:, :-1].contiguous(), self.labels)

    @property
    def whole(self) -> DataLoader[Any]:
        """All samples as one batch, which the libraries want where batches would change an answer."""
        return DataLoader(self.dataset, batch_size=len(self.labels))

    def model(self) -> nn.Sequential:
        """The head, in a container since two of the libraries look for layers by their names."""
        head = nn.Linear(self.weights.shape[1] - 1, len(self.weights))
        with torch.no_grad():
            head.weight.copy_(self.weights[:, :-1])
            head.bias.copy_(self.weights[:, -1])
        return nn.Sequential(head)

    def gradient(self, model: nn.Module) -> list[Tensor]:
        """Sum of the set's centred gradients g, one tensor for each parameter."""
        share = torch.full((len(self.labels),), -len(self.pruned) / len(self.labels))
        share[self.pruned] += 1.0
        losses = F.cross_entropy(model(self.inputs[:, :-1]), self.labels, reduction="none")
        return list(torch.autograd.grad((share * losses).sum(), list(model.parameters())))


def joined(parts: list[Tensor]) -> Tensor:
    """Weights and biases side by side, (C, D)."""
    return torch.cat([parts[0], parts[1][:, None]], 1).detach()


class Solver(Protocol):
    """One way to do the job."""

    def shift(self, problem: Problem) -> Tensor:
        """``H^-1 g``, shape (C, D)."""

    def own(self, problem: Problem) -> Tensor | None:
        """``g_i^T H^-1 g_i`` of every sample, shape (n,), or None where a library does not give it."""


class Prunesampler:
    """This package, from the measurements on: the curvature and its blocks are made inside."""

    def __init__(self, curvature: Callable[..., Curvature]) -> None:
        self.curvature = curvature

    def shift(self, problem: Problem) -> Tensor:
        held = measured(problem.inputs, problem.labels, problem.weights, Room())
        self.rows = held.rows()
        self.factorised = self.curvature(damping=problem.damping).factorise(held)
        mean = self.rows.sum() / len(held)
        target = self.rows.sum(problem.pruned) - len(problem.pruned) * mean
        return held.hessian.expand(self.factorised.apply_inverse(target))

    def own(self, problem: Problem) -> Tensor:
        del problem
        influence = Influence.build(
            self.rows, self.factorised, center=False, metric=loss_distance
        )  # whitens too: the rows of a search are in the seconds
        return influence.sample_squares()


class CurvlinopsKronecker:
    """The inverse of Kronecker factors, made with the exact second derivatives of the loss.

    Args:
        operator: The operator, given the library.
    """

    def __init__(self, operator: Callable[[Any], Any]) -> None:
        import curvlinops

        self.library, self.operator = curvlinops, operator(curvlinops)

    def inverse(self, problem: Problem, model: nn.Module) -> Any:
        """The library's operator, which multiplies lists of tensors."""
        factors = self.operator(
            model, nn.CrossEntropyLoss(), list(model.parameters()), list(problem.whole),
            fisher_type=self.library.FisherType.TYPE2,
            separate_weight_and_bias=False,
            check_deterministic=False,
        )  # fmt: skip
        return self.library.KFACInverseLinearOperator(
            factors, damping=problem.damping, use_exact_damping=True
        )

    def shift(self, problem: Problem) -> Tensor:
        model = problem.model()
        return joined(self.inverse(problem, model) @ problem.gradient(model))

    def own(self, problem: Problem) -> None:
        """None: the library multiplies, and knows no gradients of single samples."""


class CurvlinopsGradients:
    """Conjugate gradients on the exact GGN.

    Args:
        guide: What preconditions them, if anything.
    """

    def __init__(self, guide: CurvlinopsKronecker | None = None) -> None:
        import curvlinops
        from curvlinops.examples import IdentityLinearOperator

        self.library, self.identity, self.guide = curvlinops, IdentityLinearOperator, guide

    def shift(self, problem: Problem) -> Tensor:
        model = problem.model()
        parameters = list(model.parameters())
        ggn = self.library.GGNLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, list(problem.whole), check_deterministic=False
        )
        one = self.identity([p.shape for p in parameters], ggn.device, ggn.dtype)
        guide = self.guide.inverse(problem, model).__matmul__ if self.guide else None
        inverse = self.library.CGInverseLinearOperator(
            ggn + problem.damping * one,
            tolerance=TOLERANCE,
            max_iter=MOST_STEPS,
            preconditioner=guide,
        )
        return joined(inverse @ problem.gradient(model))

    def own(self, problem: Problem) -> None:
        """None: it would take an inverse for each sample."""


class Dattri:
    """An attributor of dattri, whose ``transform_test_rep`` is ``H^-1`` applied to flat gradients.

    Args:
        make: Makes it from the library's attributors, a task, and the problem.
        each: Whether an inverse is cheap enough to transform the gradients of all samples.
    """

    def __init__(self, make: Callable[[Any, Any, Problem], Any], each: bool = False) -> None:
        from dattri import task
        from dattri.algorithm import influence_function

        self.library, self.task, self.make, self.each = influence_function, task, make, each

    def shift(self, problem: Problem) -> Tensor:
        model = problem.model()

        def loss(parameters: dict[str, Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
            outputs = torch.func.functional_call(model, parameters, (data[0],))
            return F.cross_entropy(outputs, data[1].long())  # its LiSSA makes labels floats

        task = self.task.AttributionTask(loss, model, model.state_dict())
        self.attributor = self.make(self.library, task, problem)
        self.attributor.cache(problem.whole)
        parts = problem.gradient(model)
        flat = torch.cat([part.flatten() for part in parts])
        with torch.no_grad():  # else its conjugate gradients keep the graphs of all steps
            found = self.attributor.transform_test_rep(0, flat[None])[0]
        sizes = [part.numel() for part in parts]
        return joined([p.view_as(q) for p, q in zip(found.split(sizes), parts, strict=True)])

    def own(self, problem: Problem) -> Tensor | None:
        if not self.each:
            return None
        found = []
        for batch in DataLoader(problem.dataset, batch_size=BATCH):
            rows = self.attributor.generate_train_rep(0, tuple(part[None] for part in batch))
            found.append((rows * self.attributor.transform_test_rep(0, rows)).sum(1).detach())
        return torch.cat(found)


class Kronfluence:
    """EK-FAC of kronfluence, of labels that are drawn from the head's own answers.

    It hands out scores and no vectors: ``H^-1 g`` is computed here, from the factors that it saves.
    """

    def __init__(self) -> None:
        import kronfluence

        class HeadTask(kronfluence.task.Task):  # type: ignore[misc]
            """Summed cross-entropy, as loss and as measurement."""

            def compute_train_loss(
                self, batch: Any, model: nn.Module, sample: bool = False
            ) -> Tensor:
                outputs, labels = model(batch[0]), batch[1]
                if sample:
                    labels = torch.multinomial(outputs.detach().softmax(1), 1)[:, 0]
                return F.cross_entropy(outputs, labels, reduction="sum")

            def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
                return self.compute_train_loss(batch, model)

        self.library, self.head_task = kronfluence, HeadTask()

    def shift(self, problem: Problem) -> Tensor:
        target = joined(problem.gradient(problem.model())).double()
        model = self.library.prepare_model(problem.model(), self.head_task)
        self.folder = tempfile.TemporaryDirectory()
        self.analyzer = self.library.Analyzer(
            "head", model, self.head_task, cpu=True, disable_tqdm=True, output_dir=self.folder.name
        )
        self.analyzer.fit_all_factors("factors", problem.dataset, per_device_batch_size=BATCH)
        held = {
            name: next(iter(of_layers.values())).double()
            for name, of_layers in self.analyzer.load_all_factors("factors").items()
        }
        left, right = held["gradient_eigenvectors"], held["activation_eigenvectors"]
        values = held["lambda_matrix"] / held["num_lambda_processed"]
        turned = left.T @ target @ right / (values + problem.damping)
        return left @ turned @ right.T

    def own(self, problem: Problem) -> Tensor:
        self.analyzer.compute_self_scores(
            "own", "factors", problem.dataset, per_device_train_batch_size=BATCH,
            score_args=self.library.ScoreArguments(damping_factor=problem.damping),
            overwrite_output_dir=True,
        )  # fmt: skip
        found: Tensor = next(iter(self.analyzer.load_self_scores("own").values()))
        return found

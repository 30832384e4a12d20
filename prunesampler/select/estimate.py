"""What a selection will take, told from one batch before anything large is made."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from prunesampler.base.memory import available_bytes, gibibytes
from prunesampler.base.processes import current_group
from prunesampler.influence.automatic import AutoCurvature, BlockCurvature
from prunesampler.influence.blocks import block_rank, block_samples
from prunesampler.influence.curvature import Curvature, ExactCurvature, KroneckerCurvature
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.influence.sparse import least_share, significant
from prunesampler.influence.top_rows import TopHessian
from prunesampler.select.verdict import FEW
from prunesampler.solve.annealing import MIN_MOVES, MOVES_PER_SAMPLE, default_flips

SEARCHED = 4e9
"""Multiply-adds that a compiled search does in a second on one core, about."""
STEPS, INVERSES = 12, 4
"""Steps of conjugate gradients, about, and inverses: of the set and a random one, two of each."""
LONG, LARGE = 10.0, 2**30
"""Seconds, and bytes, above which a selection is announced."""
VECTORS = 8
"""Matrices of the layer's shape, float64, that an inverse has at a time."""
SWAP = 2000
"""What a swap takes beside its products, in multiply-adds."""


@dataclass(frozen=True)
class Work:
    """What a curvature and a search with it take: bytes, and multiply-adds."""

    bytes: float
    curvature: float
    search: float
    certificate: float


@dataclass(frozen=True)
class Estimate:
    """What a selection will take.

    Args:
        num_samples: Number of samples n.
        parameters: Number of parameters R of the layer that the loss can tell apart.
        curvature: Name of the curvature.
        bytes_measured: Memory for the measurements of all samples, on rank 0.
        bytes_part: Memory for the measurements of its part, on every other rank.
        bytes_work: Memory for the curvature and the search, on rank 0 beside the measurements.
        seconds: Seconds of ``measuring`` (0 if unknown), ``curvature``, ``solving`` and
            ``certificate``. They are within a factor of two or so.

    Examples:
        >>> seconds = {"measuring": 60.0, "curvature": 2.0, "solving": 1.5, "certificate": 5.0}
        >>> str(Estimate(50_000, 50_787, "BlockCurvature", 2**28, 0, 2**29, seconds))[:77]
        'a selection takes about 68 s (measuring 60, curvature 2, solving 1.5, certifi'
    """

    num_samples: int
    parameters: int
    curvature: str
    bytes_measured: int
    bytes_part: int
    bytes_work: int
    seconds: dict[str, float]

    @property
    def samples_per_parameter(self) -> float:
        """The more there are, the smaller the shift of a good set, as a share of a random one's."""
        return self.num_samples / self.parameters

    @property
    def notable(self) -> bool:
        """Whether it takes so long, or so much memory, that a user should hear of it beforehand."""
        return sum(self.seconds.values()) > LONG or self.bytes_measured + self.bytes_work > LARGE

    def __str__(self) -> str:
        known = {name: took for name, took in self.seconds.items() if took}
        stages = ", ".join(f"{name} {took:.2g}" for name, took in known.items())
        others = f", {gibibytes(self.bytes_part)} on others" if self.bytes_part else ""
        few = ", which is few: expect a good part of a random set's shift"
        return (
            f"a selection takes about {sum(known.values()):.2g} s ({stages}) and "
            f"{gibibytes(self.bytes_measured + self.bytes_work)} on rank 0{others}, with "
            f"{self.curvature}; there are {self.samples_per_parameter:.3g} samples for each of the "
            f"{self.parameters} parameters{few if self.samples_per_parameter < FEW else ''}"
        )


def estimate(
    batch: Measured, num_samples: int, curvature: Curvature, seconds: float, world: int
) -> Estimate:
    """Extrapolate from the measurements of one batch.

    Args:
        batch: Measurements of one batch, as the curvature keeps them.
        num_samples: Number of samples n in all.
        curvature: The curvature in use.
        seconds: Seconds that measuring the batch took.
        world: Number of processes.
    """
    curvature = _chosen(curvature, batch, num_samples)
    work = _work(batch, num_samples, curvature)
    rate = _products_per_second()
    each = bytes_per_sample(batch)
    return Estimate(
        num_samples=num_samples,
        parameters=batch.parameters,
        curvature=type(curvature).__name__,
        bytes_measured=math.ceil(each * num_samples),
        bytes_part=math.ceil(each * num_samples / world) if world > 1 else 0,
        bytes_work=math.ceil(work.bytes),
        seconds={
            "measuring": seconds * num_samples / len(batch) / world,
            "curvature": work.curvature / rate,
            "solving": work.search / SEARCHED,
            "certificate": work.certificate / rate,
        },
    )


class Announced:
    """Says what all samples will take, once the first batch is measured.

    Args:
        num_samples: Number of samples n.
        curvature: The curvature in use.
        on_disk: Whether the measurements go to a disk.
        say: Called with a sentence if a selection takes long, or much memory.

    Examples:
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(2, 1), torch.ones(2, 1))
        >>> batch = Measurements(delta, torch.ones(2, 3), hessian, losses)
        >>> said = []
        >>> announced = Announced(10**8, ExactCurvature(), on_disk=True, say=said.append)
        >>> announced(batch)
        >>> said[0][:31]
        'prunesampler: beside the pass, '
    """

    def __init__(
        self, num_samples: int, curvature: Curvature, *, on_disk: bool, say: Callable[[str], None]
    ) -> None:
        self._num_samples, self._curvature = num_samples, curvature
        self._on_disk, self._say, self._said = on_disk, say, False

    def __call__(self, kept: Measured) -> None:
        """Look at what is kept of a batch's measurements.

        Raises:
            ValueError: If memory will not suffice for all of them.
        """
        group = current_group()
        if not self._said and group.rank == 0:
            check_room(kept, self._num_samples, self._curvature, on_disk=self._on_disk)
            expected = estimate(kept, self._num_samples, self._curvature, 0.0, group.world)
            if expected.notable:
                self._say(f"prunesampler: beside the pass, {expected}")
        self._said = True


def check_room(batch: Measured, num_samples: int, curvature: Curvature, *, on_disk: bool) -> None:
    """Find out from one batch whether memory would run out on rank 0.

    Args:
        batch: Measurements of one batch, as the curvature keeps them.
        num_samples: Number of samples n in all.
        curvature: The curvature in use.
        on_disk: Whether the measurements go to a disk.

    Raises:
        ValueError: If more is needed than is free, with the numbers and ways out.
    """
    curvature = _chosen(curvature, batch, num_samples)
    free, held = available_bytes(), bytes_per_sample(batch) * num_samples
    work = _work(batch, num_samples, curvature).bytes
    if free is None or (0 if on_disk else held) + work <= free:
        return
    ways = ["measure a layer of fewer inputs (project the features first)"]
    if not on_disk and work <= free:
        ways.insert(0, "put the measurements on a disk with storage=")
    less = _work(batch, num_samples, KroneckerCurvature()).bytes
    if not isinstance(batch.hessian, TopHessian) and (0 if on_disk else held) + less <= free:
        ways.append("take curvature=KroneckerCurvature(), which needs less and is approximate")
    raise ValueError(
        f"{num_samples} samples with {batch.shape[1]} inputs of the layer{_each(batch)} need {gibibytes(held)} for their "
        f"measurements{' on the disk' * on_disk} and {gibibytes(work)} for {type(curvature).__name__}, but "
        f"{gibibytes(free)} are free: {', or '.join(ways)}"
    )


def bytes_per_sample(batch: Measured) -> int:
    """Bytes that the measurements of a sample take, on average.

    Examples:
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(2, 1), torch.ones(2, 1))
        >>> bytes_per_sample(Measurements(delta, torch.ones(2, 3), hessian, losses))
        24
    """
    return math.ceil(batch.bytes() / len(batch))


def _tokens(batch: Measured, num_samples: int) -> int:
    """Number of tokens of all samples: the number of samples itself, if they are no sequences."""
    return num_samples * len(batch.tokens) // len(batch)


def _each(batch: Measured) -> str:
    many = isinstance(batch, Sequences)
    return f" at some {len(batch.tokens) / len(batch):.0f} tokens each" if many else ""


def _chosen(curvature: Curvature, batch: Measured, num_samples: int) -> Curvature:
    """The curvature itself, or the one that will be chosen for all samples."""
    if isinstance(curvature, AutoCurvature):
        return curvature.of(_tokens(batch, num_samples), batch.parameters, batch.hessian.size()[0])
    return curvature


def _work(batch: Measured, num_samples: int, curvature: Curvature) -> Work:
    """Bytes and multiply-adds; of a curvature of the user's own only what everyone needs is known."""
    (outputs, _), (rows, columns) = batch.hessian.size(), batch.shape
    n = _tokens(batch, num_samples)
    size, moves = rows * columns, max(MOVES_PER_SAMPLE * num_samples, MIN_MOVES)
    kept = batch.tokens.delta.shape[1] if isinstance(batch.hessian, TopHessian) else outputs
    inverse = STEPS * 2.0 * n * kept * columns
    gradients = 0 if isinstance(batch.hessian, TopHessian) else 4 * n * rows
    if isinstance(curvature, ExactCurvature):
        products = n * size**2 + size**3 / 2
        matrices = 4.0 * num_samples * size + 32.0 * size**2
        return Work(gradients + matrices, products, moves * (4.0 * size + SWAP), 2 * inverse)
    if isinstance(curvature, KroneckerCurvature):
        products = n * (outputs**2 + 3 * columns**2) + 10 * (outputs**3 + columns**3)
        copies = 4.0 * n * (rows + columns)
        return Work(gradients + copies, products, 4.0 * moves * size, 4.0 * n * size / outputs)
    if isinstance(curvature, BlockCurvature):
        return _block_work(batch, num_samples, gradients, inverse)
    return Work(gradients, 0.0, 0.0, 0.0)


def _block_work(batch: Measured, num_samples: int, gradients: float, inverse: float) -> Work:
    """What blocks, sparse rows and flips take."""
    outputs, columns = batch.hessian.size()[0], batch.shape[1]
    n, tokens, rank = _tokens(batch, num_samples), batch.tokens, block_rank(outputs, columns)
    entries = len(significant(tokens.delta, least_share(tokens.delta))[0]) / len(batch)
    subspace = outputs * min(n, block_samples(rank)) * columns * rank * 7.0
    copies = 0.0 if tokens.inputs.dtype == torch.float16 else 2.0 * n * columns
    flips = default_flips(num_samples, num_samples / batch.parameters, entries)
    return Work(
        bytes=gradients
        + copies
        + 4 * num_samples * entries * (rank + 5)
        + (4.0 * rank + 8 * VECTORS) * outputs * columns,
        curvature=subspace + num_samples * entries * columns * rank,
        search=1.5 * flips * entries * (columns + rank),
        certificate=INVERSES * inverse,
    )


def _products_per_second() -> float:
    """Multiply-adds of a matrix product in float32 in a second, on this machine now."""
    square = torch.ones(512, 512)
    square @ square
    started = time.perf_counter()
    for _ in range(4):
        square @ square
    return 4 * 512.0**3 / (time.perf_counter() - started)

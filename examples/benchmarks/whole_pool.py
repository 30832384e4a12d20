"""What is in CIFAR-10: an audit of all 50,000 images on features of a pretrained network, and its page.

    python examples/benchmarks/pretrained.py --images CIFAR --output features.safetensors
    python examples/benchmarks/whole_pool.py --images CIFAR --features features.safetensors

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg. A linear head is fitted to 128 principal components; every
200th image is taken as sure. Seconds are those of one processor core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from pools_data import load as load_features
from pools_methods import DECAY, fitted
from time_to_accuracy import load

from prunesampler import AutoCurvature, Budget, InfluencePruner, Target

EACH = 200
"""One of so many images is sure."""


class Shown(Dataset[tuple[Tensor, int]]):
    """Images with their classes and the names of these, as pages show them."""

    def __init__(self, images: TensorDataset, classes: list[str]) -> None:
        self.classes, self._held = classes, images.tensors

    def __len__(self) -> int:
        return len(self._held[0])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = (part[index] for part in self._held)
        return image, int(label)


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--images", type=Path, required=True, help="folder of train/ and test/")
    made.add_argument("--cache", type=Path, help="file that keeps the decoded images")
    made.add_argument("--features", type=Path, required=True, help="by pretrained.py")
    made.add_argument("--output", type=Path, default=Path("runs/whole_pool"), help="folder")
    options = made.parse_args()
    torch.set_num_threads(1)
    images = load(options.images, options.cache).train
    shown = Shown(images, sorted(path.name for path in (options.images / "train").iterdir()))
    x, y = load_features(options.features).x, images.tensors[1]
    data, sure = TensorDataset(x, y), TensorDataset(x[::EACH], y[::EACH])
    pruner = InfluencePruner(
        data, budget=Budget(fraction=0.4), objective=Target(sure), curvature=AutoCurvature(damping=DECAY),
        progress=False,
    )  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    page, other = options.output / "pool.html", options.output / "selection.html"
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        started = time.process_time()
        found = work()
        seconds[name] = round(time.process_time() - started, 2)
        return found

    model = fitted(data, len(shown.classes))
    scores = timed("measuring", lambda: pruner.measure(model))
    audit = timed("audit", scores.audit)
    timed("page of the audit", lambda: audit.report(page, shown))
    selection = timed("selection", lambda: pruner.choose_from(scores))
    timed("page of the selection", lambda: selection.report(other, shown, scores))
    print(audit)
    sizes = {path.name: path.stat().st_size for path in (page, other)}
    print(json.dumps({"samples": len(shown), "seconds": seconds, "bytes": sizes}))


if __name__ == "__main__":
    main()

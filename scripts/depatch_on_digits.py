"""Train a small PVT v2 with and without DePatch on handwritten digits, and print the accuracies: docs/backbone.md.

python scripts/depatch_on_digits.py

A digit of scikit-learn is 16 to 40 pixels high, somewhere in an image of 48x48 pixels. Both networks of a seed begin
with the same weights, and see the same images in the same order.
"""

import argparse
import statistics
import time

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpt_zoo.data.digits import Digits, read_digits
from dpt_zoo.models import with_depatch
from dpt_zoo.utils.markdown import table

SIDE = 48  # of an image, in pixels
HEIGHTS = (16, 40)  # of a digit, in pixels
BATCH = 32
NETWORKS = {"PVT v2 B0, one block in each stage": False, "the same with DePatch": True}  # whether deformable


def place(digits: Digits, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return images `(N, 1, 48, 48)` with a digit in a random size and place in each, and the labels `(N,)`."""
    images = torch.zeros(len(digits.labels), 1, SIDE, SIDE)
    for image, digit in zip(images, torch.from_numpy(digits.images / 16).float(), strict=True):
        height = int(rng.integers(HEIGHTS[0], HEIGHTS[1] + 1))
        top, left = rng.integers(SIDE - height + 1, size=2)
        ink = F.interpolate(digit[None, None], (height, height), mode="bilinear", align_corners=False)
        image[:, top : top + height, left : left + height] = ink[0]
    return images, torch.from_numpy(digits.labels)


def train(seed: int, deformable: bool, epochs: int) -> float:
    """Train one network, and return its accuracy on the test digits in percent."""
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model("pvt_v2_b0", in_chans=1, num_classes=10, depths=(1, 1, 1, 1))
    if deformable:
        model = with_depatch(model)
    rng = np.random.default_rng(seed)
    test_images, test_labels = place(read_digits("test"), np.random.default_rng(0))
    digits = read_digits("train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(digits.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(epochs):
        images, labels = place(digits, rng)
        order = torch.from_numpy(rng.permutation(len(labels)))
        for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        predicted = torch.cat([model.eval()(part).argmax(1) for part in test_images.split(BATCH)])
    return 100 * (predicted == test_labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, metavar="N", help="%(default)s")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (%(default)s)")
    args = parser.parse_args()
    accuracies: dict[str, list[float]] = {name: [] for name in NETWORKS}
    seconds = dict.fromkeys(NETWORKS, 0.0)
    for seed in range(args.seeds):
        for name, deformable in NETWORKS.items():
            start = time.process_time()
            accuracies[name].append(train(seed, deformable, args.epochs))
            seconds[name] += (time.process_time() - start) / args.seeds
            print(f"{name}, seed {seed}: {accuracies[name][-1]:.1f} %", flush=True)
    rows = [
        [name, *(f"{accuracy:.1f}" for accuracy in (*each, statistics.mean(each))), f"{seconds[name]:.0f} s"]
        for name, each in accuracies.items()
    ]
    header = ["network", *(f"seed {seed}" for seed in range(args.seeds)), "mean", "processor time of a run"]
    print(table(header, rows, f"l{'r' * (args.seeds + 2)}"))


if __name__ == "__main__":
    main()

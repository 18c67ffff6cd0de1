"""Times RoIAlign of one picture's four levels by torchvision and as a sparse matrix product.

    python benchmarks/roi_align.py [--quick]

Every call pools all boxes from all four levels (128, 64, 32, 16 cells a side); building the matrix is included. Both
get float32 maps; `sparse` is timed on channels-last maps, and on the other layout, which it has to rearrange, too.
"""

from __future__ import annotations

import argparse

import torch
from common import difference, heading, machine, row, say, time_in_turn

from gpt4roi.models.roi_align import roi_align

SIDES = (128, 64, 32, 16)
PICTURE = 224


def random_rois(count: int) -> torch.Tensor:
    """Draws boxes of every size inside the picture; float[count, 5]."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0)) * PICTURE
    return torch.cat([torch.zeros(count, 1), corners.min(1).values, corners.max(1).values], dim=1)


def pool(maps: list[torch.Tensor], rois: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Pools all boxes from all levels."""
    return [roi_align(level, rois, 14, level.shape[-1] / PICTURE, 2, backend) for level in maps]


def differentiate(maps: list[torch.Tensor], rois: torch.Tensor, backend: str, weights: list[torch.Tensor]) -> tuple:
    """Pools and returns the gradient of a weighted sum to each level."""
    maps = [level.detach().requires_grad_() for level in maps]
    return torch.autograd.grad(pool(maps, rois, backend), maps, weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 channels, 8 boxes")
    parser.add_argument("--boxes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rois = random_rois(8 if args.quick else args.boxes)
    say(machine())
    say(heading(["torchvision", "sparse, other layout", "sparse"]))
    for channels in (64,) if args.quick else (256, 1024):
        compare(rois, channels, args.repeats)


def compare(rois: torch.Tensor, channels: int, repeats: int) -> None:
    """Times both ways forward, and forward and backward, and compares their results."""
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, channels, side, side, generator=draw) for side in SIDES]
    last = [level.to(memory_format=torch.channels_last) for level in maps]
    weights = [torch.randn(len(rois), channels, 14, 14, generator=draw) for _ in SIDES]
    weights_last = [weight.to(memory_format=torch.channels_last) for weight in weights]
    title = f"{channels} channels, {len(rois)} boxes"
    with torch.no_grad():
        forward = {
            "torchvision": lambda: pool(maps, rois, "torchvision"),
            "sparse, other layout": lambda: pool(maps, rois, "sparse"),
            "sparse": lambda: pool(last, rois, "sparse"),
        }
        say(row(f"{title}: forward", time_in_turn(forward, repeats)))
    both = {
        "torchvision": lambda: differentiate(maps, rois, "torchvision", weights),
        "sparse, other layout": lambda: differentiate(maps, rois, "sparse", weights),
        "sparse": lambda: differentiate(last, rois, "sparse", weights_last),
    }
    say(row(f"{title}: with backward", time_in_turn(both, repeats)))
    outputs = zip(pool(last, rois, "sparse"), pool(maps, rois, "torchvision"), strict=True)
    gradients = zip(both["sparse"](), both["torchvision"](), strict=True)
    say(
        f"  largest difference: outputs {max(difference(*pair) for pair in outputs):.1e}, "
        f"gradients {max(difference(*pair) for pair in gradients):.1e} of the largest value"
    )


if __name__ == "__main__":
    main()

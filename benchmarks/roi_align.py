"""Times RoIAlign of one image's four levels by torchvision and as a sparse matrix product.

    python benchmarks/roi_align.py [--quick]

Every call pools all boxes from all four levels (128, 64, 32, 16 cells a side); building the matrix is included. Both
get float32 maps; `sparse` is timed on channels-last maps, and on the other layout, which it has to rearrange, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from common import Row, argument_parser, devices, difference, positive, report, rows, time_in_turn

from gpt4roi.models.kernels.roi_align import roi_align

SIDES = (128, 64, 32, 16)
IMAGE = 224
TOLERANCE = 1e-5


def random_rois(count: int) -> torch.Tensor:
    """Draws boxes of every size inside the image; float[count, 5]."""
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(0)) * IMAGE
    return torch.cat([torch.zeros(count, 1), corners.min(1).values, corners.max(1).values], dim=1)


def pool(maps: list[torch.Tensor], rois: torch.Tensor, backend: str) -> list[torch.Tensor]:
    """Pools all boxes from all levels."""
    return [roi_align(level, rois, 14, level.shape[-1] / IMAGE, 2, backend) for level in maps]


def differentiate(maps: list[torch.Tensor], rois: torch.Tensor, backend: str, weights: list[torch.Tensor]) -> tuple:
    """Pools and returns the gradient of a weighted sum to each level."""
    maps = [level.detach().requires_grad_() for level in maps]
    return torch.autograd.grad(pool(maps, rois, backend), maps, weights)


def measure(quick: bool, boxes: int = 32, repeats: int = 5) -> Iterator[Row]:
    """Compares the implementations on every device, at two widths."""
    rois = random_rois(8 if quick else boxes)
    for device in devices():
        for channels in (64,) if quick else (256, 1024):
            yield from compare(rois.to(device), channels, repeats)


def compare(rois: torch.Tensor, channels: int, repeats: int) -> Iterator[Row]:
    """Times each way forward, and forward and backward, and compares their results."""
    draw, device = torch.Generator().manual_seed(1), rois.device
    maps = [torch.randn(1, channels, side, side, generator=draw).to(device) for side in SIDES]
    last = [level.to(memory_format=torch.channels_last) for level in maps]
    weights = [torch.randn(len(rois), channels, 14, 14, generator=draw).to(device) for _ in SIDES]
    weights_last = [weight.to(memory_format=torch.channels_last) for weight in weights]
    with torch.no_grad():
        forward = {
            "torchvision": lambda: pool(maps, rois, "torchvision"),
            "sparse, other layout": lambda: pool(maps, rois, "sparse"),
            "sparse": lambda: pool(last, rois, "sparse"),
        }
        spent = time_in_turn(forward, repeats, device=device.type)
        off = max(map(difference, pool(last, rois, "sparse"), pool(maps, rois, "torchvision")))
    title = f"{channels} channels, {len(rois)} boxes"
    yield from rows(f"{title}: forward", spent, _judge("outputs", off), device=device.type)
    both = {
        "torchvision": lambda: differentiate(maps, rois, "torchvision", weights),
        "sparse, other layout": lambda: differentiate(maps, rois, "sparse", weights),
        "sparse": lambda: differentiate(last, rois, "sparse", weights_last),
    }
    spent = time_in_turn(both, repeats, device=device.type)
    off = max(map(difference, both["sparse"](), both["torchvision"]()))
    yield from rows(f"{title}: with backward", spent, _judge("gradients", off), device=device.type)


def _judge(what: str, off: float) -> str:
    assert off < TOLERANCE, f"{what} differ by {off} of the largest value"
    return f"{what} differ by {off:.0e} of the largest"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--boxes", type=positive, default=32)
    parser.add_argument("--repeats", type=positive, default=5)
    args = parser.parse_args()
    report(measure(args.quick, args.boxes, args.repeats), args)


if __name__ == "__main__":
    main()

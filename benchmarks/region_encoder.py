"""Times the region encoder of the released model's sizes against the plain formulation of the same function.

    python benchmarks/region_encoder.py [--quick]

The plain formulation is the tests' (tests/models/plain_region_encoder.py): every map at its full size. Both use the
same weights, drawn at random, and one picture, in float32.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from common import difference, heading, machine, row, say, time_in_turn

from gpt4roi.models.region_encoder import RegionEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
from plain_region_encoder import plain_region_features


def build(channels: int, width: int, backend: str) -> RegionEncoder:
    """Builds an encoder for four levels of 16 x 16 cells of a 224-pixel picture, with fresh weights."""
    torch.manual_seed(0)
    config = SimpleNamespace(
        num_fusion_rounds=5,
        fusion_groups=64,
        roi_output_size=14,
        roi_sampling_ratio=2,
        roi_align_backend=backend,
        position_hidden_size=256,
        text_config=SimpleNamespace(hidden_size=width, initializer_range=0.02),
    )
    tower = SimpleNamespace(
        image_size=224, grid_size=16, level_strides=[14] * 4, hidden_size=channels, level_channels=[channels] * 4
    )
    return RegionEncoder(config, tower)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="width 64 and two counts of boxes")
    parser.add_argument("--channels", type=int, default=1024)
    parser.add_argument("--boxes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--backends", nargs="+", default=["torchvision", "auto"], help="RoIAlign of the fast one")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--warm-ups", type=int, default=0)
    parser.add_argument("--no-backward", action="store_true", help="leave the backward pass out")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.channels, args.boxes, args.repeats, args.warm_ups = 64, [1, 32], 3, 1
    torch.set_num_threads(args.threads)
    say(f"{machine()}; width {args.channels}")
    say(heading(["plain", *(f"ours, {backend}" for backend in args.backends)]))
    for count in args.boxes:
        compare(count, args)


def compare(count: int, args: argparse.Namespace) -> None:
    """Times forward, and forward and backward, for a number of boxes and compares the results."""
    encoder = build(args.channels, 4 * args.channels, args.backends[0])
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randn(1, args.channels, 16, 16, generator=draw) for _ in range(4)]
    corners = torch.rand(count, 2, 2, generator=draw)
    boxes = [torch.cat([corners.min(1).values, corners.max(1).values], dim=1)]
    results: dict[str, torch.Tensor] = {}
    gradients: dict[str, list[torch.Tensor]] = {}

    def run(way: str, backend: str, backward: bool) -> None:
        encoder.pooler.backend = backend
        with torch.set_grad_enabled(backward):
            features = plain_region_features(encoder, maps, boxes) if way == "plain" else encoder(maps, boxes)
            results[way] = features.detach()
            if backward:
                encoder.zero_grad()
                features.square().sum().backward()
                gradients[way] = [weight.grad for weight in encoder.parameters()]

    ways = {"plain": "torchvision", **{f"ours, {backend}": backend for backend in args.backends}}
    for backward in (False,) if args.no_backward else (False, True):
        calls = {way: partial(run, way, backend, backward) for way, backend in ways.items()}
        title = f"{count} box(es): {'with backward' if backward else 'forward'}"
        say(row(title, time_in_turn(calls, args.repeats, args.warm_ups)))
    for way in list(ways)[1:]:
        line = f"  {way}: outputs differ by {difference(results[way], results['plain']):.1e} of the largest"
        if gradients:
            pairs = zip(gradients[way], gradients["plain"], strict=True)
            norms = [abs(ours.norm() / plain.norm() - 1).item() for ours, plain in pairs]
            line += f", gradient norms by {max(norms):.1e}"
        say(line)


if __name__ == "__main__":
    main()

"""Times the region encoder of the released model's sizes against the plain formulation of the same function.

    python benchmarks/region_encoder.py [--quick]

The plain formulation is the tests' (tests/models/plain_region_encoder.py): every map at its full size. Both use the
same weights, drawn at random, and one image, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from common import Row, argument_parser, devices, difference, positive, report, rows, time_in_turn

from gpt4roi.models.kernels.roi_align import BACKENDS
from gpt4roi.models.region_encoder import RegionEncoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))
from plain_region_encoder import plain_region_features

TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-3
IMAGE, PATCH = 224, 14


def build(channels: int, width: int, backend: str, side: int = IMAGE) -> RegionEncoder:
    """Builds an encoder for four levels of an image in patches of 14 pixels, with fresh weights."""
    torch.manual_seed(0)
    config = SimpleNamespace(
        num_fusion_rounds=5,
        fusion_groups=64,
        roi_output_size=14,
        roi_sampling_ratio=2,
        roi_align_backend=backend,
        position_hidden_size=256,
        tokens_per_region=1,
        region_shape="box",
        text_config=SimpleNamespace(hidden_size=width, initializer_range=0.02),
    )
    tower = SimpleNamespace(
        image_size=side,
        grid_size=side // PATCH,
        level_strides=[PATCH] * 4,
        hidden_size=channels,
        level_channels=[channels] * 4,
    )
    return RegionEncoder(config, tower)


def measure(
    quick: bool,
    channels: int = 1024,
    boxes: Sequence[int] = (1, 8, 32),
    backends: Sequence[str] = ("torchvision", "auto"),
    repeats: int = 3,
    backward: bool = True,
) -> Iterator[Row]:
    """Compares both formulations on every device, forward, and forward and backward."""
    if quick:
        channels, boxes = 64, (1, 32)
    for device in devices():
        for count in boxes:
            comparison = Comparison(channels, count, backends, device)
            yield from comparison.rows(False, repeats)
            if backward:
                yield from comparison.rows(True, repeats)


class Comparison:
    """One image with a number of boxes through both formulations, with the same weights."""

    def __init__(self, channels: int, count: int, backends: Sequence[str], device: str, side: int = IMAGE) -> None:
        self.title = f"width {channels}, {count} box{'es' if count > 1 else ''}"
        self.device = device
        self.encoder = build(channels, 4 * channels, backends[0], side).to(device)
        draw = torch.Generator().manual_seed(1)
        self.maps = [
            torch.randn(1, channels, side // PATCH, side // PATCH, generator=draw).to(device) for _ in range(4)
        ]
        corners = torch.rand(count, 2, 2, generator=draw)
        self.boxes = [torch.cat([corners.min(1).values, corners.max(1).values], dim=1).to(device)]
        self.ways = {"plain": "torchvision", **{f"ours, {backend}": backend for backend in backends}}
        self.outputs: dict[str, torch.Tensor] = {}
        self.norms: dict[str, torch.Tensor] = {}

    def run(self, way: str, backward: bool) -> None:
        """Computes the region features, and the gradient of their square, and keeps them."""
        encoder = self.encoder
        encoder.pooler.backend = self.ways[way]
        with torch.set_grad_enabled(backward):
            call = partial(plain_region_features, encoder) if way == "plain" else encoder
            features = call(self.maps, self.boxes)
            self.outputs[way] = features.detach()
            if backward:
                encoder.zero_grad()
                features.square().sum().backward()
                self.norms[way] = torch.stack([weight.grad.norm() for weight in encoder.parameters()])

    def rows(self, backward: bool, repeats: int) -> list[Row]:
        """Times every way and says how far the results are apart."""
        calls = {way: partial(self.run, way, backward) for way in self.ways}
        # At full width a call takes many seconds, beside which the first one's allocations are nothing.
        warm_ups = 0 if self.device == "cpu" and self.maps[0].shape[1] > 256 else 1
        spent = time_in_turn(calls, repeats, warm_ups, self.device)
        off = max(difference(self.outputs[way], self.outputs["plain"]) for way in self.ways)
        assert off < TOLERANCE, f"{self.title}: outputs differ by {off} of the largest"
        equal = f"outputs differ by {off:.0e} of the largest"
        if backward:
            off = max((self.norms[way] / self.norms["plain"] - 1).abs().max().item() for way in self.ways)
            assert off < GRADIENT_TOLERANCE, f"{self.title}: norms of gradients differ by {off}"
            equal += f", gradient norms by {off:.0e}"
        kind = "with backward" if backward else "forward"
        return rows(f"{self.title}: {kind}", spent, equal, device=self.device)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--channels", type=positive, default=1024)
    parser.add_argument("--boxes", type=positive, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--backends", nargs="+", default=["torchvision", "auto"], choices=BACKENDS, help="RoIAlign of the fast one"
    )
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--no-backward", action="store_true", help="leave the backward pass out")
    args = parser.parse_args()
    wanted = (args.channels, args.boxes, args.backends, args.repeats, not args.no_backward)
    report(measure(args.quick, *wanted), args)


if __name__ == "__main__":
    main()

"""3x3 convolutions with a quarter of the multiplications, for wide maps on the CPU: Winograd's F(4x4, 3x3).

Two polynomials are multiplied by their values: evaluate both at enough points, multiply value by value, interpolate.
A convolution is the transpose of that. Along a line, four results y come from six neighbouring values x and the three
taps w, with constant matrices that follow from six points:

    y = R [(T w) * (D x)]        R: 4 x 6, T: 6 x 3, D: 6 x 6, `*` value by value

On a map each matrix works on both axes, and each of the 6 x 6 values is a vector of channels: `*` becomes 36 matrix
products that mix channels, for every 4 x 4 results, instead of 9 for each one: 36 / 16 = 2.25 instead of 9.
(Lavin and Gray, arXiv:1509.09308.)
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""And infinity. Exact in binary, and close to each other in size, which keeps rounding errors small."""
RESULTS, TAPS = 4, 3
NODES = RESULTS + TAPS - 1

TILES = 4
"""D and R are applied to so many tiles at once, as one larger matrix: a product of matrices is faster than sums."""
BLOCK = TILES * RESULTS
HALO = TAPS - 1

DIRECT, TILED = 7.0, RESULTS**-2 * NODES**2
"""Multiplications of a cell and a pair of channels; directly they are 9, each of them somewhat faster (measured)."""
CELL_COST, WEIGHT_COST = 650, 3700
"""What D and R cost a cell and channel, and T a pair of channels, in multiplications that take as long (measured)."""


def is_cheaper(cells: int, weight: torch.Tensor) -> bool:
    """Tells whether convolving so many cells this way is faster than directly; weight: float[O, C, 3, 3]."""
    return is_supported(weight) and _cost(cells, weight) < DIRECT * weight[:, :, 0, 0].numel() * cells


def cheapest(cells: int, weight: torch.Tensor) -> float:
    """Returns the cost of convolving so many cells in the faster way, in multiplications."""
    if is_cheaper(cells, weight):
        return _cost(cells, weight)
    return (DIRECT if is_supported(weight) else 9) * weight[:, :, 0, 0].numel() * cells


def _cost(cells: int, weight: torch.Tensor) -> float:
    outputs, channels = weight.shape[:2]
    pairs = outputs * channels
    return (TILED * pairs + CELL_COST * (outputs + channels)) * cells + WEIGHT_COST * pairs


def is_supported(weight: torch.Tensor) -> bool:
    """Tells whether the device has no such kernels of its own and the precision is enough."""
    kind = weight.device.type
    return kind == "cpu" and weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(kind)


def convolve(maps: list[torch.Tensor], weight: torch.Tensor) -> list[torch.Tensor]:
    """Convolves maps of any sizes with the same kernels, with zeros around each.

    maps: list of float[K, C, H, W]; weight: float[O, C, 3, 3]. Returns a list of float[K, O, H, W], channels-last.
    """
    blocks = [_cut(values) for values in maps]
    results = _ConvolveBlocks.apply(torch.cat(blocks, dim=1), weight)
    parts = results.split([block.shape[1] for block in blocks], dim=1)
    return [_join(part, values.shape) for part, values in zip(parts, maps, strict=True)]


def _cut(values: torch.Tensor) -> torch.Tensor:
    """Cuts maps into blocks that overlap by two cells; float[BLOCK + 2, N, BLOCK + 2, C], N blocks in all."""
    height, width = values.shape[-2:]
    right, below = 1 + -width % BLOCK, 1 + -height % BLOCK
    padded = F.pad(values.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
    windows = padded.unfold(1, BLOCK + HALO, BLOCK).unfold(2, BLOCK + HALO, BLOCK)
    return rearrange(windows, "k m n c i j -> i (k m n) j c")


def _join(blocks: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Puts float[BLOCK, N, BLOCK, O] together to maps of K images, H x W; float[K, O, H, W], channels-last."""
    images, _, height, width = shape
    rows = rearrange(blocks, "i (k m n) j o -> k (m i) (n j) o", k=images, m=-(-height // BLOCK))
    return rows[:, :height, :width].contiguous().permute(0, 3, 1, 2)


class _ConvolveBlocks(torch.autograd.Function):
    """Convolves blocks; float[BLOCK + 2, N, BLOCK + 2, C] becomes float[BLOCK, N, BLOCK, O].

    The gradient is written out because it needs no more than the blocks: what D makes of them is computed again, and
    a product is forgotten as soon as it is used. Autograd would keep 36 values of every 16 cells, or compute them
    twice.
    """

    @staticmethod
    def forward(ctx, blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(blocks, weight)
        side, count, _, channels = blocks.shape
        of_taps, of_data, of_results = _matrices(blocks.dtype)
        taps = rearrange(weight, "o c i j -> (i j) (o c)")
        rows = (of_data.flatten(0, 1) @ blocks.flatten(1)).view(NODES, TILES * count, side, channels)
        gather = of_results.expand(TILES * count, -1, -1)
        bands = []
        for node in range(NODES):
            kernels = (_of_tap_pairs(of_taps, node) @ taps).unflatten(1, (-1, channels))
            columns = [
                _along_columns(of_data, column, rows[node]).flatten(0, 1) @ kernel.t()
                for column, kernel in enumerate(kernels)
            ]
            mixed = torch.cat([values.view(TILES * count, TILES, -1) for values in columns], dim=1)
            bands.append(torch.bmm(gather, mixed).view(TILES, -1))
        return (of_results @ torch.cat(bands)).view(BLOCK, count, BLOCK, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The loss may be differentiated inside autocast, which would take only some of the products to half precision.
        with torch.autocast("cpu", enabled=False):
            return _gradients(gradient, *ctx.saved_tensors)


def _gradients(gradient: torch.Tensor, blocks: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the gradients of the blocks and of the kernels; gradient: float[BLOCK, N, BLOCK, O]."""
    side, count, _, channels = blocks.shape
    of_taps, of_data, of_results = _matrices(blocks.dtype)
    taps = rearrange(weight, "o c i j -> (i j) (o c)")
    rows = (of_data.flatten(0, 1) @ blocks.flatten(1)).view(NODES, TILES * count, side, channels)
    bands = (of_results.t() @ gradient.flatten(1)).view(NODES, TILES * count, BLOCK, -1)
    scatter = of_results.t().expand(TILES * count, -1, -1)
    of_rows, of_all_taps = torch.zeros_like(rows), torch.zeros_like(taps)
    for node in range(NODES):
        pairs = _of_tap_pairs(of_taps, node)
        kernels = (pairs @ taps).unflatten(1, (-1, channels))
        of_kernels = torch.empty_like(kernels)
        of_mixed = torch.bmm(scatter, bands[node]).unflatten(1, (NODES, TILES))
        for column, kernel in enumerate(kernels):
            values = of_mixed[:, column].flatten(0, 1)
            torch.mm(values.t(), _along_columns(of_data, column, rows[node]).flatten(0, 1), out=of_kernels[column])
            back = of_data[column].t().expand(TILES * count, -1, -1)
            of_rows[node].baddbmm_(back, (values @ kernel).view(TILES * count, TILES, channels))
        of_all_taps.addmm_(pairs.t(), of_kernels.flatten(1))
    of_blocks = (of_data.flatten(0, 1).t() @ of_rows.view(NODES * TILES, -1)).view_as(blocks)
    return of_blocks, rearrange(of_all_taps, "(i j) (o c) -> o c i j", i=TAPS, c=channels)


def _along_columns(of_data: torch.Tensor, column: int, rows: torch.Tensor) -> torch.Tensor:
    """Applies D along the other axis: one node's float[M, BLOCK + 2, C] become one column's float[M, TILES, C]."""
    return torch.bmm(of_data[column].expand(len(rows), -1, -1), rows)


def _of_tap_pairs(of_taps: torch.Tensor, node: int) -> torch.Tensor:
    """Returns float[6, 9], T on both axes: what the nine taps of a kernel become at a row's six nodes."""
    return torch.einsum("i,bj->bij", of_taps[node], of_taps).flatten(1)


def _matrices(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns T [6, 3], and D and R for a line of TILES tiles: [6, TILES, BLOCK + 2], [BLOCK, 6 * TILES]."""
    data = torch.linalg.inv(_values(NODES)).T
    result = _values(RESULTS).T
    of_data = torch.zeros(NODES, TILES, BLOCK + HALO, dtype=torch.float64)
    of_results = torch.zeros(BLOCK, NODES, TILES, dtype=torch.float64)
    for tile in range(TILES):
        start = tile * RESULTS
        of_data[:, tile, start : start + NODES] = data
        of_results[start : start + RESULTS, :, tile] = result
    return _values(TAPS).to(dtype), of_data.to(dtype), of_results.flatten(1).to(dtype)


def _values(coefficients: int) -> torch.Tensor:
    """Returns the matrix that takes coefficients of a polynomial, lowest first, to its values at the points."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    finite = points[:, None] ** torch.arange(coefficients)
    infinite = torch.zeros(1, coefficients, dtype=torch.float64)
    infinite[0, -1] = 1
    return torch.cat([finite, infinite])

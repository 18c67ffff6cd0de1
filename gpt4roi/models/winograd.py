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
    return serves(weight) and _cost(cells, weight) < DIRECT * weight[:, :, 0, 0].numel() * cells


def cheapest(cells: int, weight: torch.Tensor) -> float:
    """Returns the cost of convolving so many cells in the faster way, in multiplications."""
    if is_cheaper(cells, weight):
        return _cost(cells, weight)
    return (DIRECT if serves(weight) else 9) * weight[:, :, 0, 0].numel() * cells


def _cost(cells: int, weight: torch.Tensor) -> float:
    outputs, channels = weight.shape[:2]
    pairs = outputs * channels
    return (TILED * pairs + CELL_COST * (outputs + channels)) * cells + WEIGHT_COST * pairs


def serves(weight: torch.Tensor) -> bool:
    """Tells whether the device has no such kernels of its own, the precision is enough, and nothing is learnt.

    The gradient can be had, but takes longer than that of PyTorch's kernels.
    """
    kind = weight.device.type
    if kind != "cpu" or torch.is_autocast_enabled(kind) or (weight.requires_grad and torch.is_grad_enabled()):
        return False
    return weight.dtype in (torch.float32, torch.float64)


def convolve(maps: list[torch.Tensor], weight: torch.Tensor) -> list[torch.Tensor]:
    """Convolves maps of any sizes with the same kernels, with zeros around each.

    maps: list of float[K, C, H, W]; weight: float[O, C, 3, 3]. Returns a list of float[K, O, H, W], channels-last.
    """
    blocks = [_cut(values) for values in maps]
    results = _convolve_blocks(torch.cat(blocks, dim=1), weight)
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
    """Puts float[BLOCK, N, BLOCK, O] together to maps of K pictures, H x W; float[K, O, H, W], channels-last."""
    pictures, _, height, width = shape
    rows = rearrange(blocks, "i (k m n) j o -> k (m i) (n j) o", k=pictures, m=-(-height // BLOCK))
    return rows[:, :height, :width].contiguous().permute(0, 3, 1, 2)


def _convolve_blocks(blocks: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convolves blocks; float[BLOCK + 2, N, BLOCK + 2, C] becomes float[BLOCK, N, BLOCK, O]."""
    side, count, _, channels = blocks.shape
    of_taps, of_data, of_results = (matrix.to(blocks.dtype) for matrix in _matrices())
    taps = rearrange(weight, "o c i j -> (i j) (o c)")
    rows = (of_data.flatten(0, 1) @ blocks.flatten(1)).view(NODES, TILES * count, side, channels)
    spread = of_data[:, None].expand(-1, TILES * count, -1, -1)
    gather = of_results.expand(TILES * count, -1, -1)
    bands = []
    for node in range(NODES):
        kernels = torch.einsum("i,bj->bij", of_taps[node], of_taps).flatten(1) @ taps
        mixed = [
            torch.bmm(spread[column], rows[node]).view(-1, channels) @ kernel.view(-1, channels).t()
            for column, kernel in enumerate(kernels)
        ]
        mixed = torch.cat([values.view(TILES * count, TILES, -1) for values in mixed], dim=1)
        bands.append(torch.bmm(gather, mixed).view(TILES, -1))
    return (of_results @ torch.cat(bands)).view(BLOCK, count, BLOCK, -1)


def _matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns T float64[6, 3], and D and R for a line of TILES tiles: [6, TILES, BLOCK + 2], [BLOCK, 6 * TILES]."""
    data = torch.linalg.inv(_values(NODES)).T
    result = _values(RESULTS).T
    of_data = torch.zeros(NODES, TILES, BLOCK + HALO, dtype=torch.float64)
    of_results = torch.zeros(BLOCK, NODES, TILES, dtype=torch.float64)
    for tile in range(TILES):
        start = tile * RESULTS
        of_data[:, tile, start : start + NODES] = data
        of_results[start : start + RESULTS, :, tile] = result
    return _values(TAPS), of_data, of_results.flatten(1)


def _values(coefficients: int) -> torch.Tensor:
    """Returns the matrix that takes coefficients of a polynomial, lowest first, to its values at the points."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    finite = points[:, None] ** torch.arange(coefficients)
    infinite = torch.zeros(1, coefficients, dtype=torch.float64)
    infinite[0, -1] = 1
    return torch.cat([finite, infinite])

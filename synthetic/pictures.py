"""A bank of tileable pictures with the statistics of photographs, which materials wear as textures.

Fractal noise whose phases the channels share, dead leaves (shapes that hide each other, of all sizes), cells,
ornaments, scratches, fibres and lettering. Every process makes the same bank, once, on the CPU.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .noise import hash_unit

NUM_PICTURES = 48
SIZE = 256
"""Texels along an edge of a picture."""

LEVELS = 8
"""Sizes of every picture that are kept, each half of the one before."""

_SEED = 77


class Strokes(NamedTuple):
    """How the shapes of a dead-leaves picture are drawn; lengths are half axes in texels.

    aspect    length over width: drawn between a third of this (or 1) and this
    spread    radians by which shapes turn away from a common direction
    boxes     share of shapes with corners
    shading   how much brightness changes across a shape
    """

    number: int
    smallest: float
    largest: float
    aspect: float = 2.0
    spread: float = 3.2
    boxes: float = 0.4
    shading: float = 0.15


class _Random:
    """Single numbers from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)


def _fractal(random: _Random, slope: float, stretch: float = 1.0, size: int = SIZE) -> torch.Tensor:
    """(3, size, size) noise of unit variance with the amplitude spectrum f^-slope; the channels share most phases.

    stretch  how much longer its structures are along one random direction
    """
    fy, fx = torch.meshgrid(torch.fft.fftfreq(size), torch.fft.fftfreq(size), indexing="ij")
    angle = random.uniform(0, math.pi)
    along, across = fx * math.cos(angle) + fy * math.sin(angle), fy * math.cos(angle) - fx * math.sin(angle)
    frequency = ((along * stretch) ** 2 + across**2).sqrt()
    amplitude = torch.where(frequency > 0, frequency.clamp(min=1e-4) ** -slope, 0.0)
    noise = torch.fft.ifft2(torch.fft.fft2(random.normal(3, size, size)) * amplitude).real
    shared = torch.tensor([[1.0, 0.0, 0.0], [0.75, 0.66, 0.0], [0.55, 0.3, 0.78]])
    return _standard(torch.einsum("ij,jhw->ihw", shared, _standard(noise)))


def _standard(picture: torch.Tensor) -> torch.Tensor:
    """Zero mean and unit variance of every channel."""
    mean = picture.mean((-2, -1), keepdim=True)
    return (picture - mean) / picture.std((-2, -1), keepdim=True).clamp(min=1e-4)


def _paint(random: _Random, canvas: torch.Tensor, strokes: Strokes) -> torch.Tensor:
    """The canvas (3, size, size) under opaque shapes whose sizes r follow r^-3, as those of things in photos do."""
    painted, size = canvas.numpy().copy(), canvas.shape[-1]
    low, high = strokes.smallest**-2, strokes.largest**-2
    drawn = torch.rand(strokes.number, 10, generator=random.generator).double()
    length = (low + (high - low) * drawn[:, 0]) ** -0.5
    slimmest = max(1.0, strokes.aspect / 3)
    width = (length / (slimmest + (strokes.aspect - slimmest) * drawn[:, 1])).clamp(min=0.7)
    angle = random.uniform(0, math.pi) + strokes.spread * (drawn[:, 2] - 0.5)
    tone = 3.4 * drawn[:, 4:5] - 1.7
    tint = random.normal(strokes.number, 3) * torch.tensor([0.1, 0.7, 0.8])
    colour = (tone * torch.tensor([1.0, 0.6, 0.4]) + tint).float().numpy()
    shade = (strokes.shading * (6 * drawn[:, 5:7] - 3)).tolist()
    middle = (drawn[:, 7:9] * size).long().tolist()
    boxes = (drawn[:, 3] < strokes.boxes).tolist()
    for k, (l, w, c, s) in enumerate(
        zip(*(x.tolist() for x in (length, width, angle.cos(), angle.sin())), strict=True)
    ):
        reach = min(math.ceil(math.hypot(l, w) if boxes[k] else l) + 1, size // 2 - 1)
        offset = np.arange(-reach, reach + 1, dtype=np.float32)
        u = (offset[None] * c + offset[:, None] * s) / l
        v = (offset[:, None] * c - offset[None] * s) / w
        inside = np.maximum(abs(u), abs(v)) < 1 if boxes[k] else u * u + v * v < 1
        place = np.ix_(range(3), *((np.arange(-reach, reach + 1) + m) % size for m in middle[k]))
        shape = colour[k][:, None, None] + (shade[k][0] * u + shade[k][1] * v)
        painted[place] = np.where(inside, shape, painted[place])
    return torch.from_numpy(painted)


def _dead_leaves(random: _Random) -> torch.Tensor:
    strokes = Strokes(
        int(random.uniform(250, 700)),
        random.log_uniform(2.5, 7),
        random.uniform(40, 90),
        random.uniform(1.2, 4),
        boxes=random.uniform(-0.3, 1),
    )
    return _paint(random, _fractal(random, 1.0), strokes) + 0.35 * _fractal(random, random.uniform(0.6, 1.1))


def _cells(random: _Random) -> torch.Tensor:
    """Cobbles, cracked earth, scales: the cells of random points with joints between them."""
    count = int(random.log_uniform(30, 260))
    points = torch.rand(count, 2, generator=random.generator)
    grid = (torch.arange(SIZE) + 0.5) / SIZE
    off = [((grid[:, None] - points[:, k]).abs()) for k in range(2)]
    off = [torch.minimum(x, 1 - x).square() for x in off]
    distance = (off[1][:, None] + off[0][None]).sqrt() * math.sqrt(count)
    nearest, which = distance.topk(2, largest=False)
    tone = random.normal(count, 3)
    tone = tone * torch.tensor([0.7, 0.6, 0.6]) + tone[:, :1] * torch.tensor([0.0, 0.4, 0.3])
    joint = ((nearest[..., 1] - nearest[..., 0]) / random.uniform(0.06, 0.3)).clamp(0, 1)
    dome = 1 - random.uniform(0, 1.2) * nearest[..., 0].square()
    picture = tone[which[..., 0]].permute(2, 0, 1) * 0.6 + dome * torch.tensor([1.0, 0.3, 0.2])[:, None, None]
    return picture * joint - 1.5 * (1 - joint) + 0.3 * _fractal(random, 0.9)


def _ornament(random: _Random) -> torch.Tensor:
    """A motif that repeats and mirrors, as on tiles, carpets and carved stone."""
    size = (64, 128)[random.uniform() < 0.4]
    motif = _paint(random, _fractal(random, 1.4, size=size), Strokes(60, 3, size / 4, 3, boxes=0.2))
    motif = motif + 0.5 * _fractal(random, 1.3, size=size)
    motif = motif + motif.flip(-1)
    if random.uniform() < 0.7:
        motif = motif + motif.flip(-2)
    if random.uniform() < 0.5:
        motif = motif + motif.transpose(-1, -2)
    motif = torch.tanh(random.uniform(0.8, 3) * _standard(motif))
    return motif.repeat(1, SIZE // size, SIZE // size) + 0.25 * _fractal(random, 0.9)


def _scratches(random: _Random) -> torch.Tensor:
    base = 0.8 * _fractal(random, random.uniform(0.9, 1.4), random.uniform(1, 4))
    lines = Strokes(int(random.uniform(60, 200)), 10, 100, 90, random.uniform(0.3, 3.2), 1.0, 0.0)
    return _paint(random, base, lines)


def _fibres(random: _Random) -> torch.Tensor:
    """Grass, straw, fur, bark, foliage: thin shapes over each other."""
    strokes = Strokes(
        int(random.uniform(1200, 1800)),
        random.uniform(4, 8),
        random.uniform(14, 40),
        random.uniform(3, 12),
        random.uniform(0.3, 3.2),
        0.0,
        0.25,
    )
    return _paint(random, 0.6 * _fractal(random, 1.2) - 0.8, strokes) + 0.2 * _fractal(random, 0.8)


def _lettering(random: _Random) -> torch.Tensor:
    """Rows of small upright strokes on a plain ground: signs, posters, labels."""
    picture = 0.12 * _fractal(random, 1.2) + random.uniform(0.3, 1) * torch.tensor([1.0, 0.5, 0.3])[:, None, None]
    y = int(random.uniform(4, 20))
    while y < SIZE - 24:
        height = int(random.log_uniform(6, 34))
        x, ink = int(random.uniform(4, 60)), random.uniform(-2.2, -1.2)
        end = int(random.uniform(0.5, 0.98) * SIZE)
        stroke = max(1, height // 6)
        while x + height < min(end, SIZE):
            width = max(3, int(height * random.uniform(0.35, 0.8)))
            if random.uniform() < 0.85:
                for _ in range(3):
                    if random.uniform() < 0.5:
                        left = x + int(random.uniform(0, width - stroke + 0.99))
                        picture[:, y : y + height, left : left + stroke] = ink
                    else:
                        top = y + int(random.uniform(0, height - stroke + 0.99))
                        picture[:, top : top + stroke, x : x + width] = ink
            x += width + stroke + 1
        y += height + int(random.uniform(4, 24))
    return picture


@cache
def _pictures() -> torch.Tensor:
    """All pictures (NUM_PICTURES, 3, SIZE, SIZE) in [0, 1]: brightness, and two more channels that go along with it."""
    random = _Random(torch.Generator().manual_seed(_SEED))
    makers = (
        *(8 * [lambda r: _fractal(r, r.uniform(0.8, 1.5), r.log_uniform(1, 4))]),
        *(10 * [_dead_leaves]),
        *(7 * [_cells]),
        *(7 * [_ornament]),
        *(5 * [_scratches]),
        *(6 * [_fibres]),
        *(5 * [_lettering]),
    )
    assert len(makers) == NUM_PICTURES
    return (0.5 + 0.25 * torch.stack([_standard(make(random)) for make in makers])).clamp(0, 1)


@cache
def picture_bank(device: torch.device) -> torch.Tensor:
    """All pictures at all sizes as flat int32, three channels of 10 bits in each; the largest size comes first.

    The first call on a device takes seconds and must not be recorded in a CUDA graph.
    """
    parts, level = [], _pictures()
    for _ in range(LEVELS):
        bits = (level * 1023).round().to(torch.int32)
        parts.append((bits[:, 0] | (bits[:, 1] << 10) | (bits[:, 2] << 20)).flatten())
        level = F.avg_pool2d(level, 2)
    return torch.cat(parts).to(device)


def look_up(
    bank: torch.Tensor, picture: torch.Tensor, u: torch.Tensor, v: torch.Tensor, footprint: torch.Tensor
) -> list[torch.Tensor]:
    """Three channels in [0, 1] of the pictures (...) int32 at u to the right and v down (...), both in tiles.

    footprint  (...) tiles a pixel: decides which size is looked up, between its texels bilinearly
    """
    level = (torch.log2((footprint * SIZE).clamp(min=1e-6)) + 0.5).floor().clamp(0, LEVELS - 1).to(torch.int32)
    size = SIZE >> level
    start = (NUM_PICTURES * 4 * (SIZE * SIZE - size * size)) // 3 + picture * size * size
    x, y = u * size - 0.5, v * size - 0.5
    left, top = x.floor(), y.floor()
    across, down = x - left, y - top
    column, row = left.to(torch.int32), top.to(torch.int32)
    channels = [torch.zeros_like(u) for _ in range(3)]
    for corner in range(4):
        i, j = corner & 1, corner >> 1
        bits = bank[(start + ((row + j) & (size - 1)) * size + ((column + i) & (size - 1))).long()]
        weight = (across if i else 1 - across) * (down if j else 1 - down)
        channels = [channel + weight * hash_unit(bits, k) for k, channel in enumerate(channels)]
    return channels

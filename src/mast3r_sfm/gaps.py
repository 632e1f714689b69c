"""The network's matches, made exact on the whole photos, where local features leave gaps."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from mast3r_sfm.densify import dense_depth
from mast3r_sfm.errors import InputError
from mast3r_sfm.geometry import project, rays, to_world
from mast3r_sfm.images.loading import read_photo
from mast3r_sfm.options import RefinementOptions
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.placing import Start
from mast3r_sfm.tracks import LocalFeatures
from mast3r_sfm.tracks.templates import corners, find_again
from mast3r_sfm.types import View

_MAX_SHIFT = 3.0  # of a place from where a match of the network has it, network pixels
_AFFINE_STEP = 2  # network pixels over which the distortion of a patch is measured
_MAX_STRETCH = 4.0  # of the area of a patch; more is an edge of a surface, not a change of the viewpoint


@dataclass(frozen=True)
class _Photo:
    """A photo at the size that features are looked for in.

    grey    (h, w) uint8
    colour  (h, w, 3) uint8
    scale   (2,) its pixels per pixel of the original
    corners (rows, columns, 2) pixels of the original: the best place in every block of the network's image
    depth   (H, W) of the network's image
    mask    (height, width) bool of the original, True where it is used; None: everywhere
    """

    grey: np.ndarray
    colour: np.ndarray
    scale: np.ndarray
    corners: np.ndarray
    depth: np.ndarray
    mask: np.ndarray | None

    def to_small(self, xy: np.ndarray) -> np.ndarray:
        return (xy + 0.5) * self.scale - 0.5

    def to_original(self, xy: np.ndarray) -> np.ndarray:
        return (xy + 0.5) / self.scale - 0.5

    def shows(self, xy: np.ndarray) -> np.ndarray:
        """(..., ) bool: pixels (..., 2) of the original are known and used."""
        known = np.isfinite(xy).all(-1)
        if self.mask is None:
            return known
        height, width = self.mask.shape
        x, y = np.moveaxis(
            np.clip(np.rint(np.where(known[..., None], xy, 0)).astype(int), 0, [width - 1, height - 1]), -1, 0
        )
        return known & self.mask[y, x]


def fill_gaps(
    images: Sequence[View],
    data: PairwiseData,
    start: Start,
    features: Sequence[LocalFeatures],
    weak: Collection[int],
    options: RefinementOptions,
    subsample: int,
) -> tuple[list[LocalFeatures], dict[tuple[int, int], np.ndarray]]:
    """Features of the members of a start with places added to them, and the matches of those places by pair of members.

    features  of every member
    weak      positions of members whose features are too few; pairs without one of them are left as they are

    In every block of a network image the place that is told best from its neighbours is looked for in the other photo
    of each pair, beginning where the network's match of that block says.
    """
    position_of = {index: k for k, index in enumerate(start.members)}
    pairs = [m for m in data.correspondences if m.i in position_of and m.j in position_of]
    pairs = [m for m in pairs if position_of[m.i] in weak or position_of[m.j] in weak]
    needed = sorted({position_of[k] for m in pairs for k in (m.i, m.j)})
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        read = pool.map(lambda k: _read(images[start.members[k]], data, start, k, options, subsample), needed)
        photos = dict(zip(needed, read, strict=True))

        def follow(task: tuple[int, int, torch.Tensor, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
            a, b, xy, other = task
            first, second = photos[a], photos[b]
            if first is None or second is None:
                return np.zeros(0, dtype=np.int64), np.zeros((0, 2))
            return _follow(images, start, a, b, first, second, xy.double().numpy(), other.double().numpy(), subsample)

        tasks = []
        for m in pairs:
            i, j = position_of[m.i], position_of[m.j]
            tasks += [(i, j, m.xy_i, m.xy_j), (j, i, m.xy_j, m.xy_i)]
        followed = list(pool.map(follow, tasks))

    places: list[list[np.ndarray]] = [[] for _ in start.members]
    counts = [len(one) for one in features]
    number_of_corner: list[dict[int, int]] = [{} for _ in start.members]
    matched: dict[tuple[int, int], list[np.ndarray]] = {}
    for number, ((a, b, _, _), (block, found)) in enumerate(zip(tasks, followed, strict=True)):
        first = photos[a]
        if first is None or not len(block):
            continue
        own = []
        for cell in block.tolist():
            if cell not in number_of_corner[a]:
                number_of_corner[a][cell] = counts[a]
                counts[a] += 1
                places[a].append(first.corners.reshape(-1, 2)[[cell]])
            own.append(number_of_corner[a][cell])
        theirs = np.arange(counts[b], counts[b] + len(found))
        counts[b] += len(found)
        places[b].append(found)
        index = np.stack([np.array(own, dtype=np.int64), theirs], axis=1)
        forth = number % 2 == 0  # every second task is the way back
        matched.setdefault((a, b) if forth else (b, a), []).append(index if forth else index[:, ::-1])
    extended = []
    for k, one in enumerate(features):
        added = np.concatenate([np.zeros((0, 2)), *places[k]])
        extended.append(one.with_places(added, _colours(photos.get(k), added)))
    return extended, {pair: np.concatenate(parts) for pair, parts in matched.items()}


def _read(
    image: View, data: PairwiseData, start: Start, k: int, options: RefinementOptions, subsample: int
) -> _Photo | None:
    try:
        photo, mask = read_photo(image)
    except InputError:
        return None  # the search for features has told so
    if photo.size != image.transform.original_size:
        return None
    scale = min(1.0, options.max_feature_size / max(photo.size))
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    small = photo if size == photo.size else photo.resize(size, Image.Resampling.LANCZOS)
    factor = np.array(size) / np.array(photo.size)
    grey = np.asarray(small.convert("L"))
    canonical = data.usable(start.members[k])
    depth = dense_depth(canonical, start.anchors[k], float(start.K[k, 0, 0]), subsample).cpu().numpy()
    grid = (int(canonical.core_depth.shape[0]), int(canonical.core_depth.shape[1]))
    # corners of blocks lie half a pixel before the centre of their first pixel
    first = (image.transform.to_original(np.array([-0.5, -0.5])) + 0.5) * factor
    cell = subsample * (image.transform.to_original(np.array([1.0, 1.0])) - image.transform.to_original(np.zeros(2)))
    cell *= factor
    found = corners(grey, (cell[0], cell[1]), (first[0], first[1]), grid)
    photo_of_all = _Photo(grey, np.asarray(small), factor, (found + 0.5) / factor - 0.5, depth, mask)
    used = photo_of_all.shows(photo_of_all.corners)
    return replace(photo_of_all, corners=np.where(used[..., None], photo_of_all.corners, np.nan))


def _follow(
    images: Sequence[View],
    start: Start,
    a: int,
    b: int,
    first: _Photo,
    second: _Photo,
    xy: np.ndarray,
    other: np.ndarray,
    subsample: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks (M,) of view a whose corners were found in view b, and where: (M, 2) pixels of the original photo.

    xy, other  (N, 2) matches of the network's images, of a and of b
    """
    to_a, to_b = images[start.members[a]].transform, images[start.members[b]].transform
    columns = first.corners.shape[1]
    pixel = np.rint(xy).astype(int)
    block = (pixel[:, 1] // subsample) * columns + pixel[:, 0] // subsample
    corner = to_a.to_network(first.corners.reshape(-1, 2)[block])
    distance = np.linalg.norm(corner - xy, axis=1)
    known = np.isfinite(distance)
    order = np.lexsort((distance, block))
    order = order[known[order]]
    order = order[np.unique(block[order], return_index=True)[1]]  # the match nearest to the corner of its block
    block, corner, xy, other, pixel = block[order], corner[order], xy[order], other[order], pixel[order]
    affine = _affine(start, a, b, first.depth, pixel)
    area = affine[:, 0, 0] * affine[:, 1, 1] - affine[:, 0, 1] * affine[:, 1, 0]  # negative: seen from behind
    usable = np.isfinite(area) & (area > 1 / _MAX_STRETCH) & (area < _MAX_STRETCH)
    block, corner, xy, other, affine = block[usable], corner[usable], xy[usable], other[usable], affine[usable]
    expected = other + np.einsum("mab,mb->ma", affine, corner - xy)
    # pixels of the small photos per pixel of the network's images
    zoom_a = first.scale * np.diag(to_a.original_from_network)[:2]
    zoom_b = second.scale * np.diag(to_b.original_from_network)[:2]
    in_small = affine * zoom_b[:, None] / zoom_a
    found, good = find_again(
        first.grey,
        second.grey,
        first.to_small(to_a.to_original(corner)),
        second.to_small(to_b.to_original(expected)),
        in_small,
        _MAX_SHIFT * float(zoom_b.mean()),
    )
    place = second.to_original(found)
    good &= second.shows(place)
    return block[good], place[good]


def _affine(start: Start, a: int, b: int, depth: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """(M, 2, 2) network pixels of view b per network pixel of view a around pixels (M, 2), by depth and cameras."""
    H, W = depth.shape
    world_from_a = np.linalg.inv(start.cam_from_world[a])
    b_from_world = start.cam_from_world[b]

    def seen(xy: np.ndarray) -> np.ndarray:
        column, row = np.clip(xy, 0, [W - 1, H - 1]).T
        points = rays(np.stack([column, row], -1).astype(float), start.K[a]) * depth[row, column, None]
        in_b = to_world(points, world_from_a) @ b_from_world[:3, :3].T + b_from_world[:3, 3]
        return project(in_b, start.K[b])

    columns = []
    for axis in ([1, 0], [0, 1]):
        step = _AFFINE_STEP * np.array(axis)
        ahead, behind = np.clip(pixel + step, 0, [W - 1, H - 1]), np.clip(pixel - step, 0, [W - 1, H - 1])
        width = (ahead - behind).max(1)[:, None]
        columns.append((seen(ahead) - seen(behind)) / width)
    return np.stack(columns, axis=2)


def _colours(photo: _Photo | None, xy: np.ndarray) -> np.ndarray:
    if photo is None:
        return np.zeros((len(xy), 3), dtype=np.uint8)
    h, w = photo.grey.shape
    column, row = np.clip(np.rint(photo.to_small(xy)).astype(int), 0, [w - 1, h - 1]).T
    return photo.colour[row, column]

"""Local features as a second source of connection: what photos share by the looks of their details alone.

The network sees a photo at a few hundred pixels. Where it denies a pair, or where its idea of a scene is wrong, details
of the whole photo that agree with one epipolar geometry still say that two photos show the same.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from mast3r_sfm.errors import InputError
from mast3r_sfm.images.loading import read_photo
from mast3r_sfm.options import CameraModel, RefinementOptions
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.progress import Advance
from mast3r_sfm.tracks import CameraGroup, LocalFeatures, colmap_camera, confirm_pair, extract_features
from mast3r_sfm.tracks.orientation import upright_share
from mast3r_sfm.tracks.unguided import match_everywhere
from mast3r_sfm.types import Correspondences, PairSummary, View

if TYPE_CHECKING:
    import pycolmap

logger = logging.getLogger(__name__)

MIN_CONNECTING = 30
"""So many confirmed matches of two photos are believed: they connect them although the network denies the pair, and
cameras are judged by them."""

_MIN_UPRIGHT = 0.7  # of triangles between matches, that say for certain that two photos show the same
_FEATURES_TO_CONNECT = 4096  # of each photo of a pair that the network denies
_FEATURES_TO_CHECK = 2048  # of each photo of a pair that it believes
_FEATURES_OF_ALL = 100_000
_LEAST_FEATURES = 512  # of a photo
_BYTES_PER_FEATURE = 600  # mostly its descriptor
_SEARCH_BYTES = 230  # per pixel of the photo that is searched: the pyramid of its doubled copy
_MAX_ERROR_PX = 4.0  # of a match from its epipolar line, at 1,600 pixels
_REFERENCE_PX = 1600.0
_USUAL_FOCAL = 1.2  # of a photo that tells none, over its long edge


@dataclass(frozen=True)
class FeatureEvidence:
    """Local features and what they say of the pairs.

    features   of every photo; none of a photo whose file has changed
    confirmed  by pair of image indices: the matches that one two-view geometry confirms
    """

    features: tuple[LocalFeatures, ...]
    confirmed: Mapping[tuple[int, int], pycolmap.TwoViewGeometry]

    @cached_property
    def connecting(self) -> list[tuple[int, int]]:
        """The pairs whose matches are certain enough to say that two photos show the same."""
        return [
            (i, j)
            for (i, j), geometry in self.confirmed.items()
            if upright_share(
                self.features[i].xy[geometry.inlier_matches[:, 0]], self.features[j].xy[geometry.inlier_matches[:, 1]]
            )
            >= _MIN_UPRIGHT
        ]

    def of(self, members: Sequence[int]) -> FeatureEvidence:
        """The evidence of some images alone, which are numbered by their place in `members`."""
        number = {index: k for k, index in enumerate(members)}
        return FeatureEvidence(
            tuple(self.features[index] for index in members),
            {
                (number[i], number[j]): geometry
                for (i, j), geometry in self.confirmed.items()
                if i in number and j in number
            },
        )

    def among(self, members: Sequence[int], least: int = 1) -> dict[tuple[int, int], np.ndarray]:
        """The confirmed matches (M, 2) int64 of some images, by pair of positions in `members`.

        least  of a pair with fewer there are none: 15 to 20 matches may agree by accident
        """
        position_of = {index: k for k, index in enumerate(members)}
        return {
            (position_of[i], position_of[j]): geometry.inlier_matches.astype(np.int64)
            for (i, j), geometry in self.confirmed.items()
            if i in position_of and j in position_of and len(geometry.inlier_matches) >= least
        }

    def num_confirmed(self, members: Sequence[int], least: int = 1) -> np.ndarray:
        """(n,) int64 matches of each of some images, over all pairs of `among`."""
        counts = np.zeros(len(members), dtype=np.int64)
        for pair, index in self.among(members, least).items():
            counts[list(pair)] += len(index)
        return counts


def find_features(
    images: Sequence[View], options: RefinementOptions, advance: Advance | None = None
) -> tuple[LocalFeatures, ...]:
    """Local features of every photo; of large sets fewer of each, because many photos tell cameras together."""
    options = dataclasses.replace(options, max_features=_features_each(len(images), options))
    found = []
    with ThreadPoolExecutor(_threads()) as pool:
        try:
            for one in pool.map(lambda image: _features_of(image, options), images):
                found.append(one)
                if advance is not None:
                    advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
    return tuple(found)


def memory_of_features(images: Sequence[View], options: RefinementOptions) -> float:
    """Rough bytes of RAM that finding the features takes: those of all photos, and the search in some at once."""
    largest = 0.0
    for image in images:
        width, height = image.transform.original_size
        largest = max(largest, width * height * min(1.0, options.max_feature_size / max(width, height)) ** 2)
    kept = len(images) * _features_each(len(images), options) * _BYTES_PER_FEATURE
    return kept + min(_threads(), len(images)) * largest * _SEARCH_BYTES


def _features_each(num_images: int, options: RefinementOptions) -> int:
    return min(options.max_features, max(_LEAST_FEATURES, _FEATURES_OF_ALL // max(1, num_images)))


def _threads() -> int:
    return min(4, os.cpu_count() or 1)


def match_features(
    images: Sequence[View],
    features: Sequence[LocalFeatures],
    pairs: Sequence[PairSummary],
    advance: Advance | None = None,
) -> FeatureEvidence:
    """Matches of the features of all pairs that were looked at, without regard to the network's opinion of them."""
    cameras = [colmap_camera(usual_camera(image), 1, image.focal_exif_px is not None) for image in images]

    def confirm(i: int, j: int, matches: np.ndarray) -> pycolmap.TwoViewGeometry | None:
        size = max(*images[i].transform.original_size, *images[j].transform.original_size)
        max_error_px = _MAX_ERROR_PX * max(1.0, size / _REFERENCE_PX)
        return confirm_pair(cameras[i], features[i].xy, cameras[j], features[j].xy, matches, max_error_px)

    found = []
    for pair in pairs:  # the search itself uses all processors, and waits for them if others use them too
        limit = _FEATURES_TO_CHECK if pair.kept else _FEATURES_TO_CONNECT
        found.append(match_everywhere(features[pair.i], features[pair.j], limit))
        if advance is not None:
            advance(1)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        geometries = pool.map(lambda pair, matches: confirm(pair.i, pair.j, matches), pairs, found)
        confirmed = {(p.i, p.j): one for p, one in zip(pairs, geometries, strict=True) if one is not None}
    return FeatureEvidence(tuple(features), confirmed)


def usual_camera(image: View, model: CameraModel = CameraModel.SIMPLE_RADIAL) -> CameraGroup:
    """The camera of a photo as far as its file tells: EXIF's focal length or a usual one, no distortion."""
    width, height = image.transform.original_size
    focal = image.focal_exif_px or _USUAL_FOCAL * max(width, height)
    return CameraGroup((width, height), focal, ((width - 1) / 2, (height - 1) / 2), model=model)


def connect_by_features(data: PairwiseData, images: Sequence[View], evidence: FeatureEvidence) -> PairwiseData:
    """The pairs that the network denies but the features confirm take part again, with the features as matches."""
    by_pair = {(m.i, m.j): m for m in data.correspondences}
    usual_conf = torch.cat([m.conf for m in data.correspondences]).median() if by_pair else torch.tensor(1.0)
    summaries = []
    for pair in data.summaries:
        geometry = evidence.confirmed.get((pair.i, pair.j))
        count = 0 if geometry is None else len(geometry.inlier_matches)
        summary = dataclasses.replace(pair, num_features=count)
        if not pair.kept and geometry is not None and count >= MIN_CONNECTING:
            matches = _in_network_pixels(pair, images, evidence.features, geometry.inlier_matches, float(usual_conf))
            if len(matches) >= MIN_CONNECTING:
                by_pair[pair.i, pair.j] = matches
                summary = dataclasses.replace(summary, kept=True)
        summaries.append(summary)
    in_order = tuple(by_pair[pair] for pair in data.pairs if pair in by_pair)
    return dataclasses.replace(data, correspondences=in_order, summaries=tuple(summaries))


def _in_network_pixels(
    pair: PairSummary, images: Sequence[View], features: Sequence[LocalFeatures], index: np.ndarray, conf: float
) -> Correspondences:
    """Matched features (M, 2) as matches of the network's images; those that its crop cuts off are left out."""
    sides, inside = [], np.ones(len(index), dtype=bool)
    for view, column in ((pair.i, 0), (pair.j, 1)):
        transform = images[view].transform
        xy = transform.to_network(features[view].xy[index[:, column]])
        inside &= ((xy > -0.5) & (xy < np.array(transform.network_size) - 0.5)).all(1)
        sides.append(xy)
    xy_i, xy_j = (torch.from_numpy(side[inside]).float() for side in sides)
    order = np.lexsort((xy_j[:, 0], xy_j[:, 1], xy_i[:, 0], xy_i[:, 1]))
    matches = Correspondences(pair.i, pair.j, xy_i[order], xy_j[order], torch.full((len(order),), conf))
    masks = (images[view].mask for view in (pair.i, pair.j))
    return matches.within(*(None if mask is None else torch.from_numpy(mask) for mask in masks))


def _features_of(image: View, options: RefinementOptions) -> LocalFeatures:
    """Features of the photo; none, with a warning, if its file is gone or has changed its size since it was loaded."""
    try:
        photo, mask = read_photo(image)
    except InputError as error:
        logger.warning("%s; its camera stays as aligned", error)
        return LocalFeatures.none()
    if photo.size != image.transform.original_size:
        logger.warning("%s: has changed since it was loaded; its camera stays as aligned", image.path)
        return LocalFeatures.none()
    return extract_features(photo, options.max_feature_size, options.max_features, mask)

"""What local features say of the cameras of a scene: what these explain, and which views features do not connect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.alignment.anchors import FixedCamera, errors_of, match_sides
from mast3r_sfm.graphs import connected_components
from mast3r_sfm.local_features import MIN_CONNECTING, FeatureEvidence
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.tracks import CameraGroup
from mast3r_sfm.tracks.explained import count_explained
from mast3r_sfm.types import FeatureSupport, View


def parts_by_features(members: Sequence[int], pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """(n,) part of every member: pairs of images that features confirm connect those of one part; 0 is the largest."""
    position_of = {index: k for k, index in enumerate(members)}
    inside = [(position_of[i], position_of[j]) for i, j in pairs if i in position_of and j in position_of]
    part = np.zeros(len(members), dtype=np.int64)
    for number, own in enumerate(connected_components(len(members), inside)):
        part[own] = number
    return part


def with_support(
    aligned: AlignedGroup, images: Sequence[View], data: PairwiseData, evidence: FeatureEvidence, subsample: int
) -> AlignedGroup:
    """The group with `support`."""
    group = aligned.group
    K, world_from_cam = (v.cpu().double().numpy() for v in (aligned.cameras.K, aligned.cameras.world_from_cam))
    cameras = [FixedCamera(K[k], float(aligned.distortion[k]), world_from_cam[k]) for k in range(len(group))]
    explained = count_explained(
        np.linalg.inv(world_from_cam),
        [_of_photo(images[index], camera) for index, camera in zip(group, cameras, strict=True)],
        [evidence.features[index].xy for index in group],
        evidence.among(group, MIN_CONNECTING),
    )
    confirmed = evidence.num_confirmed(group, MIN_CONNECTING)
    apart = _apart_errors_px(aligned, data, cameras, parts_by_features(group, evidence.connecting), subsample)
    return dataclasses.replace(aligned, support=FeatureSupport(apart, confirmed, explained))


def _apart_errors_px(
    aligned: AlignedGroup, data: PairwiseData, cameras: Sequence[FixedCamera], part: np.ndarray, subsample: int
) -> np.ndarray:
    """(n,) of `FeatureSupport`, for views of the given parts."""
    group = aligned.group
    position_of = {index: k for k, index in enumerate(group)}
    matches = tuple(m for m in aligned.matches if part[position_of[m.i]] != part[position_of[m.j]])
    needed = {index for m in matches for index in (m.i, m.j)}  # mostly none
    views = {index: data.usable(index).in_main_memory() for index in needed}
    sides = match_sides(views, {index: cameras[position_of[index]] for index in needed}, matches, subsample)
    joined = (part == 0) & (np.sum(part == 0) > 1)  # a part of one photo connects nothing
    found = np.full(len(group), np.nan)
    for k in np.flatnonzero(~joined).tolist():
        errors = errors_of(aligned.cameras.core_depths[k].cpu().numpy(), sides.get(group[k]))
        if len(errors):
            found[k] = np.median(errors)
    return found


def _of_photo(image: View, camera: FixedCamera) -> CameraGroup:
    """A camera of the network's image as that of the whole photo."""
    K = image.transform.K_to_original(camera.K)
    return CameraGroup(
        image.transform.original_size, float(K[0, 0]), (float(K[0, 2]), float(K[1, 2])), camera.distortion
    )

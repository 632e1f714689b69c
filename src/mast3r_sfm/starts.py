"""Where a refinement may start from: the aligned cameras, or those that COLMAP's mapper finds from features alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.local_features import FeatureEvidence, usual_camera
from mast3r_sfm.options import CameraModel
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.placing import Start, depth_at
from mast3r_sfm.tracks import map_features
from mast3r_sfm.types import View

MAX_DEPTH_SPREAD = 0.3
"""Largest median deviation of the predicted depth from the mapper's, as a logarithm after one scale per photo."""


def aligned_start(images: Sequence[View], aligned: AlignedGroup, group_of: Sequence[int], model: CameraModel) -> Start:
    """The cameras of the alignment; photos of one group share the median of their focal lengths.

    group_of  of every image: its camera
    """
    K = aligned.cameras.K.cpu().numpy()
    own = [group_of[index] for index in aligned.group]
    numbers = sorted(set(own))
    groups = []
    for number in numbers:
        members = [k for k, group in enumerate(own) if group == number]
        focals = [images[aligned.group[k]].transform.K_to_original(K[k])[0, 0] for k in members]
        usual = usual_camera(images[aligned.group[members[0]]], model)
        groups.append(dataclasses.replace(usual, focal_px=float(np.median(focals))))
    return Start(
        members=aligned.group,
        cam_from_world=np.linalg.inv(aligned.cameras.world_from_cam.cpu().numpy()),
        K=K,
        groups=tuple(groups),
        group_of=tuple(numbers.index(group) for group in own),
        anchors=aligned.cameras.core_depths,
    )


def mapped_start(
    images: Sequence[View],
    data: PairwiseData,
    evidence: FeatureEvidence,
    group_of: Sequence[int],
    model: CameraModel,
    subsample: int,
) -> Start | None:
    """Cameras by the mapper, in metres by the network's depth; None if the mapper finds no scene, or one whose depth
    has nothing to do with the predicted one."""
    numbers = sorted(set(group_of))
    first_of = [list(group_of).index(number) for number in numbers]
    groups = [usual_camera(images[k], model) for k in first_of]
    mapped = map_features(
        groups,
        [images[k].focal_exif_px is not None for k in first_of],
        [numbers.index(group) for group in group_of],
        [one.xy for one in evidence.features],
        evidence.confirmed,
    )
    if mapped is None:
        return None
    members, ratios, spreads = [], [], []
    for k in np.flatnonzero(mapped.registered).tolist():
        canonical = data.canonical[k]
        if canonical is None:
            continue
        xy = evidence.features[k].xy
        predicted = depth_at(images[k], canonical, canonical.core_depth, canonical.focal_px, xy, subsample)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.log(mapped.depths[k] / predicted)
        ratio = ratio[np.isfinite(ratio)]
        if not len(ratio):
            continue
        members.append(k)
        ratios.append(float(np.median(ratio)))
        spreads.append(float(np.median(np.abs(ratio - ratios[-1]))))
    if len(members) < 3 or np.median(spreads) > MAX_DEPTH_SPREAD:
        return None
    metres = float(np.exp(-np.median(ratios)))  # that a unit of the mapper's is long
    poses = mapped.cam_from_world[members]
    poses[:, :3, 3] *= metres
    anchors = [
        one.core_depth * float(np.exp(ratio) * metres)
        for k, ratio in zip(members, ratios, strict=True)
        if (one := data.canonical[k]) is not None
    ]
    used = sorted({group_of[k] for k in members})
    own_groups = [mapped.groups[numbers.index(group_of[k])] for k in members]
    return Start(
        members=tuple(members),
        cam_from_world=poses,
        K=np.stack([images[k].transform.K_to_network(group.K) for k, group in zip(members, own_groups, strict=True)]),
        groups=tuple(mapped.groups[numbers.index(number)] for number in used),
        group_of=tuple(used.index(group_of[k]) for k in members),
        anchors=tuple(anchors),
        mapped=True,
    )

"""Refined cameras as a stage: where to start from, what the tracks say, and the depth that follows.

Two starts are possible: the aligned cameras of the network, and those that COLMAP's mapper finds from local features
alone. One number decides: how many of the matches that the features confirm, pair by pair, the refined cameras explain.
The network's start is taken if it explains nearly all of them (`ENOUGH_EXPLAINED`); else the mapper runs too, and takes
over if its refined cameras explain clearly more (`CLEARLY_MORE`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from mast3r_sfm.alignment import AlignedGroup
from mast3r_sfm.gaps import fill_gaps
from mast3r_sfm.graphs import number_by_first
from mast3r_sfm.local_features import FeatureEvidence
from mast3r_sfm.options import IntrinsicsGroups, ReconstructionOptions
from mast3r_sfm.pairwise import PairwiseData
from mast3r_sfm.placing import Candidate, Start, depth_at, place_views
from mast3r_sfm.progress import Advance
from mast3r_sfm.quality import MAX_ERROR
from mast3r_sfm.resection import resect
from mast3r_sfm.starts import aligned_start, mapped_start
from mast3r_sfm.support import parts_by_features, with_support
from mast3r_sfm.tracks import LocalFeatures, RefinedCameras, TrackView, refine_cameras
from mast3r_sfm.tracks.explained import count_explained
from mast3r_sfm.tracks.refinement import NUM_STEPS as NUM_STEPS
from mast3r_sfm.types import View
from mast3r_sfm.unrefined import warn_of_unrefined

logger = logging.getLogger(__name__)

ENOUGH_EXPLAINED = 0.85
"""Share of the features' matches above which the network's start is not questioned."""

CLEARLY_MORE = 1.1
"""How many times more matches the mapper's start must explain to take over."""

CLEARLY_FEWER = 0.9
"""How many times fewer matches the refined cameras may explain than those that they began from."""

CLEARLY_LESS = 0.7
"""How many times smaller the errors of a photo must be at another place, or with a focal length of its own, to say that
it was misplaced, or has one."""

MAX_WORSE = 1.5
"""How many times larger the errors of a photo that is not refined may become by the refinement of the others."""

MIN_COVERED = 0.25
"""Share of the cells of a photo, divided into ten by ten, in which tracks must lie; else its features are too few."""

_CELLS = 10
_MANY = 60  # photos; of more, only those are looked at again that no tracks reached
_WORSE_PX = 0.2  # network pixels, on top of `MAX_WORSE`
_MIN_EVIDENCE = 100  # confirmed matches in all; fewer say nothing about cameras


def refine_group(
    images: Sequence[View],
    data: PairwiseData,
    aligned: AlignedGroup,
    evidence: FeatureEvidence,
    camera_of: Sequence[int],
    options: ReconstructionOptions,
    advance: Advance | None = None,
) -> AlignedGroup:
    """The group with cameras adjusted to tracks of local features and anchors solved again; views without enough
    tracks keep their cameras. It may have gained or lost images, if the features alone explain the photos better.

    camera_of  group of every image (`camera_groups`): its photos of one size share a camera
    """
    assert options.refinement is not None
    subsample, model = options.alignment.subsample, options.refinement.camera_model
    group_of = number_by_first(
        [(camera, image.transform.original_size) for camera, image in zip(camera_of, images, strict=True)]
    )
    total = sum(len(geometry.inlier_matches) for geometry in evidence.confirmed.values())
    aligned = with_support(aligned, images, data, evidence, subsample)
    best = _refined(images, data, evidence, aligned_start(images, aligned, group_of, model), options, advance)
    if total >= _MIN_EVIDENCE and best.num_explained < ENOUGH_EXPLAINED * total:
        logger.info("the aligned cameras explain %d of %d matches of features", best.num_explained, total)
        mapped = mapped_start(images, data, evidence, group_of, model, subsample)
        if mapped is not None:
            other = _refined(images, data, evidence, mapped, options, None)
            logger.info("those of the mapper explain %d", other.num_explained)
            if other.num_explained > CLEARLY_MORE * best.num_explained:
                best = other
    best = with_resections(images, data, evidence, best, options)
    if best.refined is None and not best.start.mapped:
        warn_of_unrefined(images, evidence, best)
        return aligned
    placed = with_support(place_views(images, data, best, subsample), images, data, evidence, subsample)
    fault = None if best.start.mapped else _what_got_worse(images, aligned, placed, evidence)
    if fault is not None:
        logger.warning("the cameras stay as aligned: %s", fault)
        return aligned
    warn_of_unrefined(images, evidence, best)
    return placed


def _refined(
    images: Sequence[View],
    data: PairwiseData,
    evidence: FeatureEvidence,
    start: Start,
    options: ReconstructionOptions,
    advance: Advance | None,
) -> Candidate:
    """What the refinement makes of a start; where features leave gaps, again with the network's matches."""
    assert options.refinement is not None
    matched = evidence.among(start.members)
    features = tuple(evidence.features[index] for index in start.members)
    refined = _adjusted(images, data, start, features, matched, options, advance)
    if refined is None:
        weak = set(range(len(features)))
    elif start.mapped or len(features) > _MANY:
        # the network's matches are less to be relied on where its cameras were not right, and cost much of many photos
        weak = set(np.flatnonzero(~refined.refined).tolist())
    else:
        weak = set(np.flatnonzero(~_covered(features, refined)).tolist())
    if weak:
        logger.info("%d of %d photos have too few features; the network's matches fill in", len(weak), len(features))
        subsample = options.alignment.subsample
        filled, more = fill_gaps(images, data, start, features, weak, options.refinement, subsample)
        for pair, index in more.items():
            matched[pair] = np.concatenate([matched.get(pair, np.zeros((0, 2), dtype=np.int64)), index])
        again = _adjusted(images, data, start, filled, matched, options, None)
        if again is not None:
            features, refined = tuple(filled), again
    return Candidate(start, features, refined, _num_explained(evidence, start, refined))


def _adjusted(
    images: Sequence[View],
    data: PairwiseData,
    start: Start,
    features: Sequence[LocalFeatures],
    matched: Mapping[tuple[int, int], np.ndarray],
    options: ReconstructionOptions,
    advance: Advance | None,
) -> RefinedCameras | None:
    if len(features) < 2:
        return None
    views = []
    for k, (index, own) in enumerate(zip(start.members, features, strict=True)):
        focal_px = images[index].transform.K_to_network(start.groups[start.group_of[k]].K)[0, 0]
        canonical = data.usable(index)
        depths = depth_at(images[index], canonical, start.anchors[k], focal_px, own.xy, options.alignment.subsample)
        views.append(TrackView(own, depths, start.cam_from_world[k], start.group_of[k]))
    position_of = {index: k for k, index in enumerate(start.members)}
    pairs = [(position_of[i], position_of[j]) for i, j in data.pairs if i in position_of and j in position_of]
    may_split = options.intrinsics_groups is IntrinsicsGroups.AUTO
    return refine_cameras(views, start.groups, pairs, matched, may_split, advance)


def _covered(features: Sequence[LocalFeatures], refined: RefinedCameras) -> np.ndarray:
    """(n,) bool: views whose tracks are many and spread over the photo, so that they tell its camera."""
    covered = refined.refined.copy()
    for k, one in enumerate(features):
        seen = one.xy[refined.feature_of[refined.view_of == k]]
        size = np.array(refined.groups[refined.group_of[k]].size)
        cell = np.clip((seen + 0.5) // (size / _CELLS), 0, _CELLS - 1)
        covered[k] &= len(np.unique(cell, axis=0)) >= MIN_COVERED * _CELLS**2
    return covered


def with_resections(
    images: Sequence[View],
    data: PairwiseData,
    evidence: FeatureEvidence,
    best: Candidate,
    options: ReconstructionOptions,
) -> Candidate:
    """The candidate with its members that were not refined placed among the refined by their matches, if these fit
    better so; where they fit much better, the refinement is tried again from there.
    """
    may_split = options.intrinsics_groups is IntrinsicsGroups.AUTO
    refined, start, subsample = best.refined, best.start, options.alignment.subsample
    if refined is None or refined.refined.all() or refined.refined.sum() < 2:
        return best
    placed = place_views(images, data, best, subsample)
    poses, K, anchors = refined.cam_from_world.copy(), start.K.copy(), list(start.anchors)
    groups, group_of, misplaced = list(refined.groups), list(refined.group_of), 0
    known = refined.refined.tolist()
    for k in np.flatnonzero(~refined.refined).tolist():
        index = start.members[k]
        long_edge = max(images[index].transform.original_size)
        camera = dataclasses.replace(groups[group_of[k]], distortion=0.0)
        found = resect(images, data, placed, index, known, camera, False, subsample)
        own_focal = False
        if may_split and (found is None or found[0].error_px > MAX_ERROR / 3 * long_edge):
            freed = resect(images, data, placed, index, known, camera, True, subsample)
            if freed is not None and (found is None or freed[0].error_px < CLEARLY_LESS * found[0].error_px):
                found, own_focal = freed, True
        if found is None or found[0].error_px >= found[1]:
            continue
        # the first camera of what is placed is its origin, that of the refinement lies anywhere
        poses[k] = found[0].cam_from_world @ refined.cam_from_world[0]
        K[k] = images[index].transform.K_to_network(found[0].camera.K)
        anchors[k] = placed.cameras.core_depths[k] * found[0].depth_factor
        misplaced += own_focal or found[0].error_px < CLEARLY_LESS * found[1]
        if own_focal:
            groups.append(found[0].camera)
            group_of[k] = len(groups) - 1
    if misplaced:
        used = sorted(set(group_of))
        again = dataclasses.replace(
            start,
            cam_from_world=poses,
            K=K,
            groups=tuple(groups[number] for number in used),
            group_of=tuple(used.index(number) for number in group_of),
            anchors=tuple(placed.cameras.core_depths[k] if known[k] else anchors[k] for k in range(len(known))),
        )
        other = _refined(images, data, evidence, again, options, None)
        if other.refined is not None and other.refined.refined.sum() > refined.refined.sum():
            return other
    moved = dataclasses.replace(
        best,
        start=dataclasses.replace(start, K=K, anchors=tuple(anchors)),
        refined=dataclasses.replace(refined, cam_from_world=poses),
    )
    worse = np.flatnonzero(~(place_views(images, data, moved, subsample).errors_px <= placed.errors_px).numpy())
    for k in set(worse.tolist()) & set(np.flatnonzero(~refined.refined).tolist()):
        poses[k], K[k], anchors[k] = refined.cam_from_world[k], start.K[k], start.anchors[k]
    return dataclasses.replace(moved, start=dataclasses.replace(start, K=K, anchors=tuple(anchors)))


def _num_explained(evidence: FeatureEvidence, start: Start, refined: RefinedCameras | None) -> int:
    groups = start.groups if refined is None else refined.groups
    group_of = start.group_of if refined is None else refined.group_of
    counts = count_explained(
        start.cam_from_world if refined is None else refined.cam_from_world,
        [groups[group] for group in group_of],
        [evidence.features[index].xy for index in start.members],
        evidence.among(start.members),
    )
    return int(counts.sum()) // 2  # every match counts for both of its photos


def _what_got_worse(
    images: Sequence[View], aligned: AlignedGroup, placed: AlignedGroup, evidence: FeatureEvidence
) -> str | None:
    """Why the refined cameras of a group must not replace the aligned ones; None if nothing speaks against them."""
    if placed.refinement is None or aligned.support is None or placed.support is None:
        return None
    before, after = (int(support.num_explained.sum()) for support in (aligned.support, placed.support))
    total = int(placed.support.num_confirmed.sum())
    # where places look alike, many matches are wrong, and how many are explained says little
    if total >= 2 * _MIN_EVIDENCE and before >= ENOUGH_EXPLAINED * total and after < CLEARLY_FEWER * before:
        return f"they explain {before // 2} of {total // 2} matches of features, refined ones only {after // 2}"
    if _tears_apart(images, aligned, placed, parts_by_features(aligned.group, evidence.connecting)):
        count = int(placed.refinement.refined.sum())
        return (
            f"only {count} of {len(placed.group)} have enough features, and with these refined the others do not fit "
            "any more"
        )
    return None


def _tears_apart(images: Sequence[View], aligned: AlignedGroup, placed: AlignedGroup, part: np.ndarray) -> bool:
    """Whether a member that was neither refined nor doubtful agrees much worse with its matches than before.

    part  (n,) of `parts_by_features`: if features connect most members, those that they do not connect with these
          have no say
    """
    if placed.refinement is None:
        return False
    before, after = aligned.errors_px.cpu().numpy(), placed.errors_px.cpu().numpy()
    counts = ~placed.refinement.refined
    counts &= before <= MAX_ERROR * np.array([max(images[index].shape) for index in aligned.group])
    if 2 * np.sum(part == 0) > len(part):
        counts &= part == 0
    return bool((counts & (after > MAX_WORSE * before + _WORSE_PX)).any())

"""Why photos keep the cameras of the alignment, in words and with the number that decided."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from mast3r_sfm.local_features import FeatureEvidence
from mast3r_sfm.placing import Candidate
from mast3r_sfm.tracks import MAX_ERROR_PX, MIN_ANGLE_DEG, MIN_OBSERVATIONS, is_flat
from mast3r_sfm.tracks.explained import parallax_deg
from mast3r_sfm.types import View

logger = logging.getLogger(__name__)

_SHOWN = 10  # names in one warning


def warn_of_unrefined(images: Sequence[View], evidence: FeatureEvidence, best: Candidate) -> None:
    """One warning for each reason why cameras stay as aligned."""
    start, refined = best.start, best.refined
    n = len(start.members)
    kept = np.ones(n, dtype=bool) if refined is None else ~refined.refined
    matches = evidence.among(start.members)
    places = [evidence.features[index].xy for index in start.members]
    reasons = why_unrefined(
        np.zeros(n, dtype=np.int64) if refined is None else refined.num_observations,
        np.full(n, np.nan) if refined is None else refined.median_error_px,
        evidence.num_confirmed(start.members),
        parallax_deg(start.cam_from_world, [start.groups[group] for group in start.group_of], places, matches),
        n == 2 and any(is_flat(one) for pair, one in evidence.confirmed.items() if set(pair) == set(start.members)),
    )
    by_reason: dict[str, list[str]] = {}
    for k in np.flatnonzero(kept).tolist():
        reason, number = reasons[k]
        by_reason.setdefault(reason, []).append(f"{images[start.members[k]].path.name} ({number})")
    for reason, names in by_reason.items():
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        logger.warning("%d of %d cameras stay as aligned, %s: %s", len(names), n, reason, shown)


def why_unrefined(
    num_observations: np.ndarray, errors_px: np.ndarray, num_matched: np.ndarray, parallax: np.ndarray, flat: bool
) -> list[tuple[str, str]]:
    """Of every view why it was not refined, if it was not, and the number that says so.

    num_observations, errors_px   (n,) features in tracks, and their median reprojection error, pixels of the photo
    num_matched, parallax         (n,) features that other photos confirm, and the median angle of their rays, degrees
    flat  there are only two views, and one homography explains what they share
    """
    few = f"for lack of features (it takes {MIN_OBSERVATIONS} in tracks)"
    parallel = f"because they look from one place (it takes {MIN_ANGLE_DEG:g} degrees between the rays of a feature)"
    one_plane = "because one homography explains all that two photos share (a flat scene, or one place)"
    misfit = f"because their features do not fit (it takes a median of {MAX_ERROR_PX:g} px at 1,600 px)"
    found = []
    for k in range(len(num_observations)):
        if num_observations[k] >= MIN_OBSERVATIONS:
            found.append((misfit, f"{errors_px[k]:.1f} px"))
        elif flat and num_matched[k] >= MIN_OBSERVATIONS:
            found.append((one_plane, f"{num_matched[k]} matches"))
        elif num_matched[k] >= MIN_OBSERVATIONS and parallax[k] < MIN_ANGLE_DEG:
            found.append((parallel, f"{parallax[k]:.2f}"))
        else:
            found.append((few, str(num_observations[k])))
    return found

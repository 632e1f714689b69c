"""Which views of a result are not to be relied on, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mast3r_sfm.types import ReconstructedView

MAX_ERROR = 0.015
"""Largest median reprojection error of a view's matches, as a share of the long edge of its network image."""

MAX_TIMES_USUAL = 4.0
"""How many times the median of all views a view's error may be, if it also exceeds a third of `MAX_ERROR`."""

MAX_ERROR_APART = MAX_ERROR / 3
"""Largest median reprojection error of matches with views that no local feature connects a view with, as a share. The
network matches a photo with its mirror image, or with another place that looks alike; features do not."""


def doubts(views: Sequence[ReconstructedView]) -> dict[int, str]:
    """By `ReconstructedView.index`: why the camera of a registered view is doubtful.

    A view whose camera was refined has passed the limits of the refinement, and its features say more than the
    network's matches; it is not judged by those, unless the features leave open where it is.
    """
    judged = [view for view in views if view.registered and not view.refined]
    shares = {view.index: view.median_reprojection_error_px / max(view.depth.shape) for view in judged}
    known = [share for share in shares.values() if np.isfinite(share)]
    usual = float(np.median(known)) if len(known) > 2 else np.inf
    found = {}
    for view in judged:
        share, long_edge = shares[view.index], max(view.depth.shape)
        error = f"its matches reproject {view.median_reprojection_error_px:.3g} px off in the median"
        if share > MAX_ERROR:
            found[view.index] = f"{error}, more than {100 * MAX_ERROR:g} % of {long_edge} px"
        elif share > MAX_TIMES_USUAL * usual and share > MAX_ERROR / 3:
            found[view.index] = f"{error}, {share / usual:.1f} times as much as usual here"
    for view in views:
        long_edge = max(view.depth.shape)
        if view.registered and view.index not in found and view.apart_error_px > MAX_ERROR_APART * long_edge:
            found[view.index] = (
                "no local feature connects it with most of the other photos, and its matches with these reproject "
                f"{view.apart_error_px:.3g} px off in the median, more than {100 * MAX_ERROR_APART:g} % of "
                f"{long_edge} px"
            )
    return found

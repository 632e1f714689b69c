"""Which views of a result are not to be relied on, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mast3r_sfm.types import ReconstructedView

MAX_ERROR = 0.015
"""Largest median reprojection error of a view's matches, as a share of the long edge of its network image."""

MAX_TIMES_USUAL = 4.0
"""How many times the median of all views a view's error may be, if it also exceeds a third of `MAX_ERROR`."""

_LEAST_ERROR = MAX_ERROR / 3  # below it a view is not doubted


def doubts(views: Sequence[ReconstructedView]) -> dict[int, str]:
    """By `ReconstructedView.index`: why the camera of a registered view is doubtful.

    A view whose camera was refined has passed the limits of the refinement, and its features say more than the
    network's matches; it is not judged by those. A view of which no feature is confirmed in any other, although they
    were looked for, must not exceed a third of `MAX_ERROR`: the network matches a photo with its mirror image.
    """
    judged = [view for view in views if view.registered and not view.refined]
    shares = {view.index: view.median_reprojection_error_px / max(view.depth.shape) for view in judged}
    known = [share for share in shares.values() if np.isfinite(share)]
    usual = float(np.median(known)) if len(known) > 2 else np.inf
    found = {}
    for view in judged:
        share, long_edge = shares[view.index], max(view.depth.shape)
        error = f"its matches reproject {view.median_reprojection_error_px:.3g} px off in the median"
        limit = f"more than {100 * MAX_ERROR:g} % of {long_edge} px"
        if share > MAX_ERROR:
            found[view.index] = f"{error}, {limit}"
        elif share > _LEAST_ERROR and share > MAX_TIMES_USUAL * usual:
            found[view.index] = f"{error}, {share / usual:.1f} times as much as usual here"
        elif share > _LEAST_ERROR and view.num_confirmed == 0:
            limit = f"more than {100 * _LEAST_ERROR:g} % of {long_edge} px"
            found[view.index] = f"{error}, {limit}, and no feature of it is confirmed in another photo"
    return found

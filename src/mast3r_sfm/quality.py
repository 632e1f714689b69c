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

_SMALL_PX = 256.0
"""The limit in pixels does not fall below this over the long edge. In images smaller than 224 pixels the matches of
right cameras are further off: of 605 such views of 160 pixels one in a hundred by more than 1.6 pixels."""


MIN_EXPLAINED = 0.5
"""Smallest share of the matches of its features, if these are at least `_FEW`, that a camera must explain."""

_FEW = 40


def doubts(views: Sequence[ReconstructedView]) -> dict[int, str]:
    """By `ReconstructedView.index`: why the camera of a registered view is doubtful.

    A view whose camera was refined has passed the limits of the refinement, and its features say more than the
    network's matches; it is not judged by those, unless the features leave open where it is.
    """
    registered = [view for view in views if view.registered]
    shares = [_share(view, view.median_reprojection_error_px) for view in registered if not view.refined]
    known = [share for share in shares if np.isfinite(share)]
    usual = float(np.median(known)) if len(known) > 2 else np.inf
    found = {view.index: _by_matches(view, usual) or _by_features(view) for view in registered}
    return {index: doubt for index, doubt in found.items() if doubt is not None}


def _by_matches(view: ReconstructedView, usual: float) -> str | None:
    """What the network's matches have against a view that is not refined; `usual` is the median share of such views."""
    if view.refined:
        return None
    share = _share(view, view.median_reprojection_error_px)
    error = f"its matches reproject {view.median_reprojection_error_px:.3g} px off in the median"
    if share > MAX_ERROR:
        return f"{error}, more than {100 * MAX_ERROR:g} % of {max(view.depth.shape)} px"
    if share > MAX_TIMES_USUAL * usual and share > MAX_ERROR / 3:
        return f"{error}, {share / usual:.1f} times as much as usual here"
    return None


def _by_features(view: ReconstructedView) -> str | None:
    """What local features have against a view (`FeatureSupport`)."""
    long_px = max(view.depth.shape)
    if view.apart_error_px > (limit_px := max(MAX_ERROR_APART * long_px, _SMALL_PX / long_px)):
        return (
            "no local feature connects it with most of the other photos, and its matches with these reproject "
            f"{view.apart_error_px:.3g} px off in the median, more than {limit_px:.3g} px"
        )
    if view.num_confirmed >= _FEW and view.num_explained < MIN_EXPLAINED * view.num_confirmed:
        return (
            f"it explains only {view.num_explained} of {view.num_confirmed} matches of features, each of which agrees "
            "with one geometry of its two photos: places may look alike"
        )
    return None


def _share(view: ReconstructedView, error_px: float) -> float:
    """An error as a share of the long edge of the network's image."""
    return error_px / max(view.depth.shape)

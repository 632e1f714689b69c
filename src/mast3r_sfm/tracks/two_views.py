"""What two photos share, by their matches: one epipolar geometry or one homography, estimated by COLMAP's library."""

from __future__ import annotations

import numpy as np
import pycolmap

from mast3r_sfm.tracks.orientation import upright_share

_MIN_INLIERS = 15  # matches of a pair that its geometry confirms
_MIN_UPRIGHT = 0.5  # share of the triangles of those matches that keep their orientation
_MAX_TRIALS = 2000  # of seven matches each: one in 0.4^7 = 600 is right if 40 % of the matches are
_SEED = 0


def confirm_pair(
    camera_i: pycolmap.Camera,
    xy_i: np.ndarray,
    camera_j: pycolmap.Camera,
    xy_j: np.ndarray,
    matches: np.ndarray,
    max_error_px: float,
) -> pycolmap.TwoViewGeometry | None:
    """The matches (M, 2) of features (N, 2) of two photos that one epipolar geometry or one homography confirms.

    None if they are too few to believe, or turn more triangles over than they keep, as those with a mirror image do.
    """
    if len(matches) < _MIN_INLIERS:
        return None
    options = pycolmap.TwoViewGeometryOptions()
    options.detect_watermark = False
    options.ransac.random_seed = _SEED
    options.ransac.max_error = max_error_px
    options.ransac.max_num_trials = _MAX_TRIALS
    geometry = pycolmap.estimate_two_view_geometry(
        camera_i, xy_i + 0.5, camera_j, xy_j + 0.5, matches.astype(np.uint32), options
    )
    own, other = geometry.inlier_matches.astype(np.int64).T
    if len(own) < _MIN_INLIERS or upright_share(xy_i[own], xy_j[other]) < _MIN_UPRIGHT:
        return None
    return geometry


def is_flat(geometry: pycolmap.TwoViewGeometry) -> bool:
    """Whether one homography explains the matches: a flat scene, or a camera that turned on the spot."""
    kind = pycolmap.TwoViewGeometryConfiguration
    return geometry.config in (kind.PLANAR, kind.PANORAMIC, kind.PLANAR_OR_PANORAMIC)

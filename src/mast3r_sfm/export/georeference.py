"""Where the scene lies on the earth: the similarity that puts its cameras where the photos' GPS fixes say.

Fixes are some metres off, and a few far more (under trees, between houses, before the receiver has settled). Triples of
them propose similarities, the one that most fixes agree with wins, and least squares over those that agree makes it
exact. Fixes along a line leave the turn about it open; gravity, as the scene file has it, closes it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from mast3r_sfm.errors import InputError
from mast3r_sfm.export.extras import require
from mast3r_sfm.export.orientation import frame_of_scene
from mast3r_sfm.geometry import similarity_transform
from mast3r_sfm.options import SceneOptions
from mast3r_sfm.types import Georeference, GpsFix, ReconstructedScene, ReconstructedView

if TYPE_CHECKING:  # the library loads where it is asked for only
    import pyproj

logger = logging.getLogger(__name__)

_USUAL_ERROR_M = 5.0
"""Of a fix that states none, horizontal."""

_VERTICAL = 2.0
"""The error of altitudes over the horizontal one."""

_OF_EXTENT = 0.01
"""Cameras are off as well: no fix is taken for more exact than this share of the extent of all fixes."""

_AGREES = 2.5
"""A fix agrees with a similarity if it is off by less than so many of its errors."""

_MOST_TRIPLES = 2000
_ROUNDS = 10
_OPEN_ROLL_DEG = 10.0
"""Uncertainty of the turn about the line of the cameras from which gravity decides on it."""

_GRAVITY_DEG = 3.0
_STEEP_DEG, _AGREEING_DEG = 15.0, 20.0
"""Gravity says nothing about the turn if the line is less than the first from upright, and is not believed if the
slopes of the line by gravity and by the fixes differ by more than the second."""

_MIN_FIXES = 3


@dataclass(frozen=True)
class _Fixes:
    """The fixes of n cameras.

    position  (n,) of their views in the scene
    centres   (n, 3) of the cameras, world
    enu       (n, 3) metres east, north and up of the origin; up is 0 where the altitude is unknown
    sigma     (n, 3) errors, metres; infinite for an unknown altitude
    """

    position: np.ndarray
    centres: np.ndarray
    enu: np.ndarray
    sigma: np.ndarray

    def __len__(self) -> int:
        return len(self.position)

    def off(self, enu_from_world: np.ndarray) -> np.ndarray:
        """(n, 3) camera minus fix, metres."""
        return self.centres @ enu_from_world[:3, :3].T + enu_from_world[:3, 3] - self.enu

    def errors_off(self, enu_from_world: np.ndarray) -> np.ndarray:
        """(n,) the same as a distance, in units of the errors."""
        return np.linalg.norm(self.off(enu_from_world) / self.sigma, axis=1)


def check_georeference() -> None:
    """Raises InputError that says how to install the library, if it is not there."""
    require("georeference=True", "pyproj", "pyproj", "geo")


def check_fixes(fixes: Sequence[GpsFix | None], files: Sequence[str]) -> None:
    """Raises InputError if the fixes cannot place a scene: fewer than three, or all in one place. Names a photo."""
    known = [(fix, file) for fix, file in zip(fixes, files, strict=True) if fix is not None]
    if len(known) < _MIN_FIXES:
        which = f"only {' and '.join(file for _, file in known)}" if known else f"none of {len(files)} photos"
        state = "state" if len(known) == 2 else "states"
        raise InputError(
            f"`georeference=True`: {which} {state} a GPS position in EXIF, at least {_MIN_FIXES} registered photos "
            "have to: leave it out, or keep the EXIF data of the photos"
        )
    places = {(fix.latitude_deg, fix.longitude_deg) for fix, _ in known}
    if len(places) == 1:
        fix, file = known[0]
        raise InputError(
            f"`georeference=True`: all {len(known)} GPS positions are the same, {fix.latitude_deg:.6f} "
            f"{fix.longitude_deg:.6f} ({file} and the others), which gives neither scale nor north: leave it out"
        )


def georeference_of(scene: ReconstructedScene, options: SceneOptions, seed: int = 0) -> Georeference:
    """The similarity of the registered views' cameras to their GPS fixes.

    options  of the scene file, whose `up` decides where fixes along a line leave the turn about it open
    seed     of the choice of triples, where there are very many

    Raises InputError if there are fewer than three fixes, if all are in one place, if they do not agree with the
    cameras, if the turn about their line stays open, and if pyproj is missing.
    """
    check_georeference()
    registered = scene.registered
    check_fixes([view.gps for view in registered], [view.file for view in registered])
    latitude, longitude, altitude = _origin([view.gps for view in registered if view.gps is not None])
    fixes = _fixes(scene.views, latitude, longitude, altitude)
    start = _most_agreed(fixes, seed)
    inliers, similarity = _exact(fixes, start, None)
    if _roll_error_deg(fixes, inliers, similarity) > _OPEN_ROLL_DEG:
        inliers, similarity = _exact(fixes, start, _upright(scene, options, fixes, inliers))
    residuals = np.full((len(scene.views), 3), np.nan)
    residuals[fixes.position] = np.where(np.isfinite(fixes.sigma), fixes.off(similarity), np.nan)
    agreeing = np.zeros(len(scene.views), dtype=bool)
    agreeing[fixes.position] = inliers
    place = Georeference(latitude, longitude, altitude, similarity, residuals, agreeing)
    _tell(scene, place, fixes, inliers)
    return place


def in_metres(scene: ReconstructedScene) -> ReconstructedScene:
    """The scene in metres east, north and up of its origin, z up; as it is without a georeference.

    Views that are not registered have no place and stay as they are.
    """
    place = scene.georeference
    if place is None or np.array_equal(place.enu_from_world, np.eye(4)):
        return scene
    scale, similarity = place.scale, place.enu_from_world
    rotation = similarity[:3, :3] / scale

    def moved(view: ReconstructedView) -> ReconstructedView:
        if not view.registered:
            return view
        pose = view.world_from_cam.copy()
        pose[:3, :3] = rotation @ pose[:3, :3]
        pose[:3, 3] = similarity[:3, :3] @ pose[:3, 3] + similarity[:3, 3]
        depth = (view.depth * np.float32(scale)).astype(np.float32)
        return dataclasses.replace(view, world_from_cam=pose, depth=depth, position_std=view.position_std * scale)

    tracks = scene.tracks
    if tracks is not None:
        points = tracks.points @ similarity[:3, :3].T + similarity[:3, 3]
        tracks = dataclasses.replace(tracks, points=points)
    return dataclasses.replace(
        scene,
        views=tuple(moved(view) for view in scene.views),
        tracks=tracks,
        georeference=dataclasses.replace(place, enu_from_world=np.eye(4)),
    )


def utm_crs(place: Georeference) -> pyproj.CRS:
    """The UTM zone of the origin, WGS 84."""
    import pyproj

    zone = min(60, int((place.longitude_deg + 180) // 6) + 1)
    return pyproj.CRS.from_epsg((32600 if place.latitude_deg >= 0 else 32700) + zone)


def utm_from_enu(place: Georeference, enu: np.ndarray) -> np.ndarray:
    """(N, 3) easting, northing and altitude of points (N, 3), metres east, north and up of the origin."""
    import pyproj

    to_geodetic = _enu_from_geodetic(place.latitude_deg, place.longitude_deg, place.altitude_m)
    east, north, up = enu.T
    longitude, latitude, height = to_geodetic.transform(east, north, up, direction="INVERSE")
    to_utm = pyproj.Transformer.from_crs(pyproj.CRS.from_epsg(4326), utm_crs(place), always_xy=True)
    easting, northing = to_utm.transform(longitude, latitude)
    return np.stack([easting, northing, height], axis=1)


def _enu_from_geodetic(latitude_deg: float, longitude_deg: float, altitude_m: float) -> pyproj.Transformer:
    """From degrees of longitude and latitude and metres of height (WGS 84)."""
    import pyproj

    return pyproj.Transformer.from_pipeline(
        "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad +step +proj=cart +ellps=WGS84 "
        f"+step +proj=topocentric +ellps=WGS84 +lon_0={longitude_deg:.17g} +lat_0={latitude_deg:.17g} "
        f"+h_0={altitude_m:.17g}"
    )


def _origin(fixes: Sequence[GpsFix]) -> tuple[float, float, float]:
    """Median latitude, longitude and altitude; 0 for the altitude if none is known."""
    first = fixes[0].longitude_deg
    east = np.median([(fix.longitude_deg - first + 180) % 360 - 180 for fix in fixes])  # also across the date line
    longitude = float((first + east + 180) % 360 - 180)
    altitudes = [fix.altitude_m for fix in fixes if fix.altitude_m is not None]
    altitude = float(np.median(altitudes)) if altitudes else 0.0
    return float(np.median([fix.latitude_deg for fix in fixes])), longitude, altitude


def _fixes(views: Sequence[ReconstructedView], latitude: float, longitude: float, altitude: float) -> _Fixes:
    known = [(k, view, view.gps) for k, view in enumerate(views) if view.registered and view.gps is not None]
    heights = [altitude if fix.altitude_m is None else fix.altitude_m for _, _, fix in known]
    enu = np.stack(
        _enu_from_geodetic(latitude, longitude, altitude).transform(
            [fix.longitude_deg for _, _, fix in known], [fix.latitude_deg for _, _, fix in known], heights
        ),
        axis=1,
    )
    # where no fix has an altitude the cameras are taken to be at one height
    flat = all(fix.altitude_m is None for _, _, fix in known)
    extent = float(np.linalg.norm(np.quantile(enu[:, :2], 0.9, axis=0) - np.quantile(enu[:, :2], 0.1, axis=0)))
    horizontal = np.array([max(fix.horizontal_error_m or _USUAL_ERROR_M, _OF_EXTENT * extent) for _, _, fix in known])
    unknown = np.array([fix.altitude_m is None and not flat for _, _, fix in known])
    vertical = np.where(unknown, np.inf, _VERTICAL * horizontal)
    return _Fixes(
        position=np.array([k for k, _, _ in known]),
        centres=np.stack([view.world_from_cam[:3, 3] for _, view, _ in known]),
        enu=enu,
        sigma=np.stack([horizontal, horizontal, vertical], axis=1),
    )


def _most_agreed(fixes: _Fixes, seed: int) -> np.ndarray:
    """(4, 4) of the triple of fixes that the others agree with best: smallest sum of squares, each at most that of a
    fix that just agrees."""
    count = len(fixes)
    if math.comb(count, _MIN_FIXES) <= _MOST_TRIPLES:
        triples = np.array(list(itertools.combinations(range(count), _MIN_FIXES)))
    else:
        rng = np.random.default_rng(seed)
        triples = np.stack([rng.choice(count, _MIN_FIXES, replace=False) for _ in range(_MOST_TRIPLES)])
    best, found = math.inf, np.eye(4)
    for triple in triples:
        proposed = _matrix(*similarity_transform(fixes.centres[triple], fixes.enu[triple]))
        loss = float((np.minimum(fixes.errors_off(proposed), _AGREES) ** 2).sum())
        if loss < best:
            best, found = loss, proposed
    return found


def _exact(fixes: _Fixes, start: np.ndarray, upright: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool fixes that agree and (4, 4) their best similarity, from a near one.

    upright  (3,) unit vector of the world that points up; None where the fixes say it
    """
    if upright is not None:
        start = _turned_upright(fixes, start, upright)
    similarity = start
    inliers = fixes.errors_off(similarity) < _AGREES
    for _ in range(_ROUNDS):
        if inliers.sum() < max(_MIN_FIXES, len(fixes) / 2):
            raise InputError(
                f"`georeference=True`: the GPS positions do not agree with the cameras; only {int(inliers.sum())} of "
                f"{len(fixes)} fit one similarity: leave it out, or remove photos with wrong positions"
            )
        similarity = _fitted(fixes, inliers, similarity, upright)
        before, inliers = inliers, fixes.errors_off(similarity) < _AGREES
        if np.array_equal(before, inliers):
            break
    return inliers, similarity


def _fitted(fixes: _Fixes, inliers: np.ndarray, start: np.ndarray, upright: np.ndarray | None) -> np.ndarray:
    """(4, 4) of least squares over the fixes, each by its error; unknown are a turn, the logarithm of a factor, a
    shift."""
    scale = float(np.cbrt(np.linalg.det(start[:3, :3])))
    rotation = start[:3, :3] / scale
    middle = fixes.centres[inliers].mean(0)
    size = max(float(np.abs(fixes.enu[inliers] - fixes.enu[inliers].mean(0)).max()), 1.0)
    at_middle = start[:3, :3] @ middle + start[:3, 3]

    def similarity(change: np.ndarray) -> np.ndarray:
        turned = Rotation.from_rotvec(change[:3]).as_matrix() @ rotation
        linear = scale * math.exp(change[3]) * turned
        return _matrix(1.0, linear, at_middle + size * change[4:] - linear @ middle)

    def residuals(change: np.ndarray) -> np.ndarray:
        matrix = similarity(change)
        off = (fixes.off(matrix) / fixes.sigma)[inliers].ravel()
        if upright is None:
            return off
        up = matrix[:3, :3] @ upright
        lean = up[:2] / np.linalg.norm(up)
        return np.concatenate([off, lean / np.radians(_GRAVITY_DEG)])

    found = least_squares(residuals, np.zeros(7), method="trf", x_scale="jac")
    return similarity(found.x)


def _roll_error_deg(fixes: _Fixes, inliers: np.ndarray, similarity: np.ndarray) -> float:
    """How uncertain the turn about the line along which most of the cameras lie is by the fixes alone."""
    placed = (fixes.centres[inliers] @ similarity[:3, :3].T) / np.median(fixes.sigma[inliers], axis=0)[0]
    across = np.linalg.svd(placed - placed.mean(0), compute_uv=False)[1]
    return float(np.degrees(1 / across)) if across > 0 else math.inf


def _upright(scene: ReconstructedScene, options: SceneOptions, fixes: _Fixes, inliers: np.ndarray) -> np.ndarray:
    """(3,) up in the world by gravity, which closes the turn about the line of the fixes. Raises InputError if not."""
    frame = frame_of_scene(scene, options)
    assert frame is not None
    upward = frame.gltf_from_world[1, :3]
    slopes = []
    for places, up in ((fixes.centres[inliers], upward), (fixes.enu[inliers], np.array([0.0, 0.0, 1.0]))):
        line = np.linalg.svd(places - places.mean(0), full_matrices=False)[2][0]
        line = line if line @ (places[-1] - places[0]) > 0 else -line
        slopes.append(float(np.degrees(np.arcsin(np.clip(line @ up, -1, 1)))))
    if max(abs(slope) for slope in slopes) > 90 - _STEEP_DEG or abs(slopes[0] - slopes[1]) > _AGREEING_DEG:
        raise InputError(
            "`georeference=True`: the GPS positions lie on a line, which leaves the turn about it open, and gravity as "
            f"the scene has it (up_from {frame.up_from} in cameras.json) does not settle it: leave it out, or take "
            "photos beside the line as well"
        )
    logger.warning(
        "The GPS positions lie on a line: the turn of the scene about it is by gravity (%s), not by GPS", frame.up_from
    )
    return upward


def _turned_upright(fixes: _Fixes, similarity: np.ndarray, upright: np.ndarray) -> np.ndarray:
    """The similarity turned about the line of the fixes, through their middle, so that `upright` points up."""
    middle = fixes.centres.mean(0)
    line = similarity[:3, :3] @ np.linalg.svd(fixes.centres - middle, full_matrices=False)[2][0]
    line /= np.linalg.norm(line)
    up, plumb = similarity[:3, :3] @ upright, np.array([0.0, 0.0, 1.0])
    up, plumb = up - (up @ line) * line, plumb - (plumb @ line) * line
    turn = Rotation.from_rotvec(line * math.atan2(float(line @ np.cross(up, plumb)), float(up @ plumb))).as_matrix()
    linear = turn @ similarity[:3, :3]
    return _matrix(1.0, linear, similarity[:3, :3] @ middle + similarity[:3, 3] - linear @ middle)


def _tell(scene: ReconstructedScene, place: Georeference, fixes: _Fixes, inliers: np.ndarray) -> None:
    """Warns of fixes that do not agree, and of a scene so small that the scale is mostly noise."""
    wrong = [scene.views[k].file for k in fixes.position[~inliers]]
    if wrong:
        shown = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        logger.warning("%d of %d GPS positions do not agree with the cameras: %s", len(wrong), len(fixes), shown)
    placed = fixes.centres[inliers] @ place.enu_from_world[:3, :3].T
    spread = float(np.linalg.norm(placed - placed.mean(0)))
    share = float(np.median(fixes.sigma[inliers, 0])) / max(spread, 1e-9)
    if share > 0.1:
        logger.warning(
            "The photos were taken within few of the GPS positions' errors: the scale is uncertain by some %.0f %%",
            100 * share,
        )


def _matrix(scale: float, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(4, 4) of X -> scale rotation X + translation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * rotation, translation
    return matrix

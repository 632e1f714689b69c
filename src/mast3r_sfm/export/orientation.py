"""The frame of a scene file: y is up by gravity, and who looks along -z looks as the first cameras do.

Gravity is taken, in this order, from what the photos' EXIF says, or from the cameras: people turn a camera sideways and
tilt it up or down, but seldom roll it. Planes that the photos show then make it exact: floors and tables lie level,
walls stand upright. Only planes that the views agree on do: the shift must be larger than its uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from mast3r_sfm.export.surface import PlacedView, normals, placed_views
from mast3r_sfm.images.gravity import gravity_of_photo
from mast3r_sfm.options import SceneOptions, Up
from mast3r_sfm.types import ReconstructedScene, ReconstructedView

_GLTF_FROM_OPENCV = np.diag([-1.0, -1.0, 1.0])  # half a turn about z: x left, y up, still looking along +z
_Z_UP_FROM_GLTF = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
_FIRST_CAMERAS = 3
_ROLL_DEG, _PITCH_DEG = 3.0, 20.0
"""How far people turn a camera about its line of sight and tilt it: standard deviations, at a guess."""

_WINDOWS_DEG = (20.0, 10.0, 5.0)
"""A normal counts as that of a level or an upright plane within these angles, one after the other."""

_LEVEL_SHARE, _UPRIGHT_SHARE = 0.05, 0.25
"""Shares of the surface, within the last angle, that make planes dominant; 0.004 and 0.09 if normals were random."""

_LARGE_LEVEL_SHARE = 0.3
"""Share of the surface that must be level for cameras to be taken for tilted, all of them."""

_CERTAIN = 2.0
"""Standard errors by which the up of planes must differ from that of the cameras."""

_FEWEST_PARTS, _MOST_PARTS = 4, 16
"""Parts of the normals that this error is measured on: one a view, but of few views several each, of many views some
together."""

_PARALLEL = 0.95
"""Length of the mean of the cameras' x axes from which they look the same way."""

_STRIDE = 8
"""Pixels between normals that are looked at."""


@dataclass(frozen=True)
class SceneFrame:
    """The axes of a scene file.

    gltf_from_world  (4, 4) float64, a rotation and a translation: lengths stay as they are
    up_from          what told where up is: "exif", "cameras", "planes" (found from there, made exact by planes), or
                     "first-camera"
    """

    gltf_from_world: np.ndarray
    up_from: str

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the world in the axes of the file, float64."""
        return points @ self.gltf_from_world[:3, :3].T + self.gltf_from_world[:3, 3]


@dataclass(frozen=True)
class ShownScene:
    """What the files of a scene show: its registered views, at least one, and the frame of the scene file."""

    placed: tuple[PlacedView, ...]
    frame: SceneFrame


def shown_scene(scene: ReconstructedScene, options: SceneOptions) -> ShownScene | None:
    """What the file that `options` ask for shows; None if no view is registered."""
    if not scene.registered:
        return None
    placed = tuple(placed_views(scene.registered, options))
    return ShownScene(placed, scene_frame(placed, options.up))


def frame_of_scene(scene: ReconstructedScene, options: SceneOptions) -> SceneFrame | None:
    """The frame of the file that `options` ask for; None if no view is registered."""
    shown = shown_scene(scene, options)
    return None if shown is None else shown.frame


def z_up_from_world(scene: ReconstructedScene, options: SceneOptions) -> np.ndarray:
    """(4, 4) from the world to a frame with z up: that of the scene file turned, x to the right of who looks along y.

    A georeferenced scene in metres has z up already, and stays as it is. At least one view is registered.
    """
    if scene.georeference is not None:
        return np.eye(4)
    frame = frame_of_scene(scene, options)
    assert frame is not None
    return _Z_UP_FROM_GLTF @ frame.gltf_from_world


def scene_frame(placed: Sequence[PlacedView], up: Up) -> SceneFrame:
    """The frame of the file that shows `placed`, at least one view."""
    poses = np.stack([one.view.world_from_cam for one in placed])
    rotations, centres = poses[:, :3, :3], poses[:, :3, 3]
    if up is Up.FIRST_CAMERA:
        return SceneFrame(_transform(_GLTF_FROM_OPENCV @ rotations[0].T, centres[0]), "first-camera")
    upward, source = up_of_exif([one.view for one in placed]), "exif"
    if upward is None:
        upward, source = up_of_cameras(rotations), "cameras"
        sampled = [_sampled_normals(one) for one in placed]
        levelled = up_of_planes(np.concatenate(sampled), possible_ups(upward, rotations))
        if levelled is not None and planes_know_better(sampled, levelled, upward):
            upward, source = levelled, "planes"
    rotation = rotation_from_up(upward, rotations[:_FIRST_CAMERAS])
    shown = np.concatenate([centres, *(one.points[::2, ::2][one.kept[::2, ::2]] for one in placed)]) @ rotation.T
    middle = np.percentile(shown, [2, 98], axis=0).mean(axis=0)
    return SceneFrame(_transform(rotation, rotation.T @ middle), source)


def up_of_exif(views: Sequence[ReconstructedView]) -> np.ndarray | None:
    """(3,) unit vector of the world that points up, the mean over the photos that know; None if none does."""
    found = [-view.world_from_cam[:3, :3] @ down for view in views if (down := gravity_of_photo(view.path)) is not None]
    if not found:
        return None
    # the median is that of most photos, should a few have been taken while the phone moved
    upward = np.median(np.stack(found), axis=0)
    return upward / np.linalg.norm(upward) if np.linalg.norm(upward) > 0.5 else None


def up_of_cameras(rotations: np.ndarray) -> np.ndarray:
    """(3,) unit vector that points up, by cameras of rotations world from camera (n, 3, 3).

    The direction that is most likely under independent small rolls and tilts: the smallest eigenvector of a quadratic
    form. A few photos that lie on their side are outvoted (each photo's weight falls with its deviation).
    """
    right, down, forward = np.moveaxis(rotations, 2, 0)
    upward = -np.median(down, axis=0)
    for _ in range(10):
        upward = upward / max(float(np.linalg.norm(upward)), 1e-12)
        roll, pitch = np.arcsin(np.clip([right @ upward, forward @ upward], -1, 1))
        deviation = (np.degrees(roll) / _ROLL_DEG) ** 2 + (np.degrees(pitch) / _PITCH_DEG) ** 2
        weight = 1 / (1 + deviation / 4 + 10 * (down @ upward > 0))
        form = np.einsum("n,ni,nj->ij", weight / _ROLL_DEG**2, right, right)
        form += np.einsum("n,ni,nj->ij", weight / _PITCH_DEG**2, forward, forward)
        upward = _towards(np.linalg.eigh(form)[1][:, 0], upward)
    return upward


def up_of_planes(plane_normals: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray | None:
    """(3,) unit vector up that planes agree with, by normals (n, 3): of level ones along it, of upright ones across.

    It lies near one of the unit vectors `starts`, the first if in doubt. None if too few normals are level or upright.
    """
    best, found = 0.0, None
    for number, start in enumerate(starts):
        upward, level, upright = _levelled(plane_normals, start)
        enough = level >= _LEVEL_SHARE or upright >= _UPRIGHT_SHARE
        if number:  # a start that the cameras speak against needs a floor or a table, and a large one
            enough = level >= _LARGE_LEVEL_SHARE
        if enough and level > best + (0.1 if found is not None else -1.0):
            best, found = level, upward
    return found


def planes_know_better(sampled: Sequence[np.ndarray], levelled: np.ndarray, upward: np.ndarray) -> bool:
    """Whether the views agree on the up of planes so well that its distance from that of the cameras means something.

    Steps, relief and clutter have level and upright patches by chance, and so each view has an up of its own. The
    standard error is that of the jackknife: up is found anew without one view after the other.

    sampled   (n, 3) normals of every view
    levelled  (3,) the up of planes of all of them; `upward` (3,) that of the cameras
    """
    together = [np.concatenate(sampled[k::_MOST_PARTS]) for k in range(min(_MOST_PARTS, len(sampled)))]
    bands = -(-_FEWEST_PARTS // len(together))  # of rows, where there are few views
    parts = [part for one in together for part in np.array_split(one, bands)]
    without_one = (np.concatenate(parts[:k] + parts[k + 1 :]) for k in range(len(parts)))
    moved_sq = sum(float(np.sum((_levelled(others, levelled)[0] - levelled) ** 2)) for others in without_one)
    error = np.sqrt(moved_sq * (len(parts) - 1) / len(parts))
    return bool(np.linalg.norm(levelled - upward) > _CERTAIN * error)


def possible_ups(upward: np.ndarray, rotations: np.ndarray) -> list[np.ndarray]:
    """`upward`, and if all cameras (n, 3, 3) look the same way, also what it is if all of them are tilted.

    Then nothing tells tilted cameras from level ones but what they see: photos of a table top from above, for example.
    """
    right = rotations[:, :, 0].mean(axis=0)
    if np.linalg.norm(right) < _PARALLEL:
        return [upward]
    right /= np.linalg.norm(right)
    return [Rotation.from_rotvec(np.radians(tilt) * right).apply(upward) for tilt in (0, -25, 25, -50, 50)]


def _levelled(plane_normals: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float, float]:
    """`start` (3,) made exact by normals (n, 3), and the shares of them that are level and upright then."""
    found = start
    count = max(1, len(plane_normals))
    for window in _WINDOWS_DEG:
        sine = np.sin(np.radians(window))
        along = np.abs(plane_normals @ found)
        level, upright = plane_normals[along > np.sqrt(1 - sine**2)], plane_normals[along < sine]
        # a single wall leaves the turn about its normal open: the start closes it
        form = level.T @ level - upright.T @ upright + 0.02 * count * np.outer(start, start)
        found = _towards(np.linalg.eigh(form)[1][:, -1], found)
    return found, len(level) / count, len(upright) / count


def rotation_from_up(upward: np.ndarray, rotations: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of the file's axes from the world's: y along `upward`, -z as cameras (n, 3, 3) look."""

    def level(direction: np.ndarray) -> np.ndarray:
        return direction - (direction @ upward) * upward

    look = level(rotations[:, :, 2].mean(axis=0))
    if np.linalg.norm(look) < 0.2:  # straight down or up, or to all sides: the top or bottom of the photos is in front
        first = rotations[0]
        look = level(first[:, 2])
        if np.linalg.norm(look) < 0.2:
            look = level(np.sign(first[:, 2] @ upward) * first[:, 1])
    look /= np.linalg.norm(look)
    return np.stack([np.cross(look, upward), upward, -look])


def _sampled_normals(placed: PlacedView) -> np.ndarray:
    """(n, 3) unit normals in the world, spread over the kept pixels; of wide patches, which noise bends less."""
    directions = normals(placed.points, placed.kept, reach=4)[::_STRIDE, ::_STRIDE].reshape(-1, 3)
    return directions[np.isfinite(directions).all(axis=1)].astype(np.float64)


def _towards(direction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return direction if direction @ reference > 0 else -direction


def _transform(rotation: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """(4, 4) of X_file = rotation (X - origin)."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, -rotation @ origin
    return matrix

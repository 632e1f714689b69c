"""How right a result is, against cameras (and depth) that are known: the figures of `mast3r-sfm evaluate`.

Neither frame nor scale of the two has to agree. An image that is not registered counts as 180 degrees off in all of
its pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm.errors import InputError
from mast3r_sfm.geometry import rotation_angles_deg, similarity_transform
from mast3r_sfm.types import ReconstructedView

ACCURACY_DEG = (1, 3, 5, 10, 15)
"""Angles at which the share of pairs within is given."""

AUC_DEG = (1, 3, 5, 10, 30)
"""Angles up to which the area under the accuracy curve is given."""

_AUC_STEPS = 300


@dataclass(frozen=True)
class TrueCamera:
    """A camera that is known.

    world_from_cam  (4, 4) float64 camera-to-world, OpenCV axes, in a frame and unit of its own
    K               (3, 3) intrinsics of the original image, pixel centres at integers; None if unknown
    """

    world_from_cam: np.ndarray
    K: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """The errors of a result. Angles in degrees, shares in [0, 1]; nan where there is nothing to measure.

    rotation_deg, direction_deg  medians over all pairs of images of the errors of the relative rotation and of the
                     direction of motion
    accuracy         share of pairs whose larger error is below each of `ACCURACY_DEG`
    auc              area under that curve up to each of `AUC_DEG`, averaged over 300 steps
    ate              root mean square of the errors of the camera centres after the best similarity, over the root
                     mean square distance of the true centres from their mean
    scale            of that similarity: true units for one of the result's
    focal            median of |f / f true - 1|, where f true is the mean of fx and fy
    depth            median over all pixels of |depth scale / true depth - 1|; nan without true depth
    depth_within_3_percent, depth_beyond_10_percent   shares of those pixels
    """

    num_images: int
    num_registered: int
    rotation_deg: float
    direction_deg: float
    accuracy: Mapping[int, float]
    auc: Mapping[int, float]
    ate: float
    scale: float
    focal: float
    depth: float = float("nan")
    depth_within_3_percent: float = float("nan")
    depth_beyond_10_percent: float = float("nan")


def evaluate_views(
    views: Sequence[ReconstructedView],
    truth: Mapping[str, TrueCamera],
    true_depth: Mapping[str, np.ndarray] | None = None,
) -> Evaluation:
    """Compares every view whose file name is in `truth` with its true camera.

    truth       by file name without folders
    true_depth  likewise: z-depth (H, W) of the network's image in the unit of `truth`, not positive where unknown

    Raises InputError if fewer than two views have a true camera.
    """
    known = [view for view in views if Path(view.file).name in truth]
    if len(known) < 2:
        raise InputError(
            f"`truth` has cameras for {len(known)} of {len(views)} images; at least two must agree in their file names"
        )
    cameras = [truth[Path(view.file).name] for view in known]
    true_poses = np.stack([camera.world_from_cam for camera in cameras])
    poses = np.stack([view.world_from_cam for view in known])
    registered = np.array([view.registered for view in known])
    rotation, direction = pair_errors_deg(poses, true_poses, registered)
    worst = np.maximum(rotation, direction)

    scale, ate = float("nan"), float("nan")
    if registered.sum() >= 2:
        centres, true_centres = poses[registered, :3, 3], true_poses[registered, :3, 3]
        scale, turn, shift = similarity_transform(centres, true_centres)
        residual = true_centres - (scale * centres @ turn.T + shift)
        spread = true_centres - true_centres.mean(0)
        ate = float(np.sqrt((residual**2).sum() / max((spread**2).sum(), 1e-300)))
    focal = [
        abs(view.K_original[0, 0] / np.mean(np.diag(camera.K)[:2]) - 1)
        for view, camera in zip(known, cameras, strict=True)
        if view.registered and camera.K is not None
    ]
    depth = _depth_errors(known, true_depth or {}, scale)
    return Evaluation(
        num_images=len(known),
        num_registered=int(registered.sum()),
        rotation_deg=float(np.median(rotation)),
        direction_deg=float(np.median(direction)),
        accuracy={limit: float((worst < limit).mean()) for limit in ACCURACY_DEG},
        auc={limit: area_under_curve(worst, limit) for limit in AUC_DEG},
        ate=ate,
        scale=scale,
        focal=float(np.median(focal)) if focal else float("nan"),
        depth=float(np.median(depth)) if len(depth) else float("nan"),
        depth_within_3_percent=float((depth < 0.03).mean()) if len(depth) else float("nan"),
        depth_beyond_10_percent=float((depth > 0.1).mean()) if len(depth) else float("nan"),
    )


def pair_errors_deg(poses: np.ndarray, true_poses: np.ndarray, registered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Errors of the relative rotation and of the direction of motion of every pair i < j, degrees; 180 if either of
    the two is not `registered` (n,). Poses (n, 4, 4) are camera-to-world."""
    i, j = np.triu_indices(len(poses), 1)
    relative = [np.linalg.inv(pose[i]) @ pose[j] for pose in (poses, true_poses)]
    rotation = rotation_angles_deg(relative[0][:, :3, :3], relative[1][:, :3, :3])
    a, b = (pose[:, :3, 3] / (np.linalg.norm(pose[:, :3, 3], axis=1, keepdims=True) + 1e-300) for pose in relative)
    # from the chord: an arc cosine cannot resolve small angles
    direction = np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=1) / 2, 0, 1)))
    missing = ~(registered[i] & registered[j])
    rotation[missing] = direction[missing] = 180.0
    return rotation, direction


def area_under_curve(errors_deg: np.ndarray, limit_deg: float) -> float:
    """The share of errors below x, averaged over 300 values of x from limit / 300 to the limit; in [0, 1]."""
    steps = np.linspace(0, limit_deg, _AUC_STEPS + 1)[1:]
    return float(np.mean(np.searchsorted(np.sort(errors_deg), steps, side="left") / len(errors_deg)))


def _depth_errors(views: Sequence[ReconstructedView], true_depth: Mapping[str, np.ndarray], scale: float) -> np.ndarray:
    """Relative errors of all pixels whose true depth is known, infinite where ours is not finite."""
    errors = [np.zeros(0)]
    for view in views:
        truth = true_depth.get(Path(view.file).name)
        if truth is None or not view.registered:
            continue
        if truth.shape != view.depth.shape:
            raise InputError(
                f"`truth`: the depth of {view.file} is {truth.shape[1]}x{truth.shape[0]}, the result's "
                f"{view.depth.shape[1]}x{view.depth.shape[0]}"
            )
        solid = truth > 0
        error = np.abs(view.depth[solid] * scale / truth[solid] - 1)
        errors.append(np.where(np.isfinite(error), error, np.inf))
    return np.concatenate(errors)


# ------------------------------------------------------------------ reading what is known
def read_truth(path: Path) -> dict[str, TrueCamera]:
    """Cameras by file name: of a COLMAP model (a folder), a truth.json or cameras.json, or a TUM trajectory (.txt).

    truth.json   {"views": [{"file", "K", "world_from_cam"}, ...]}, K of the original image
    TUM          lines `name tx ty tz qx qy qz qw`, camera-to-world, without intrinsics

    Raises InputError that names the file if it is none of these.
    """
    try:
        if path.is_dir():
            return _read_colmap(path)
        if path.suffix.lower() == ".json":
            return _read_json(json.loads(path.read_text(encoding="utf-8")))
        return _read_tum(path.read_text(encoding="utf-8"))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise InputError(
            f"`truth={path}`: cannot be read as a COLMAP model, truth.json, cameras.json or TUM trajectory ({reason})"
        ) from error


def _read_json(document: Any) -> dict[str, TrueCamera]:
    if not isinstance(document, dict):
        raise TypeError("not a JSON object")
    if "images" in document:  # a cameras.json of ours
        return {
            Path(entry["file"]).name: TrueCamera(_pose(entry["world_from_cam"]), _matrix(entry["K_original"]))
            for entry in document["images"]
            if entry["world_from_cam"] is not None
        }
    shared = document.get("K")
    return {
        Path(entry["file"]).name: TrueCamera(_pose(entry["world_from_cam"]), _matrix(entry.get("K", shared)))
        for entry in document["views"]
    }


def _pose(value: Any) -> np.ndarray:
    pose = np.array(value, dtype=np.float64)
    if pose.shape != (4, 4) or not np.isfinite(pose).all():
        raise ValueError(f"a pose of shape {pose.shape} is not a finite 4x4 matrix")
    return pose


def _matrix(value: Any) -> np.ndarray | None:
    return None if value is None else np.array(value, dtype=np.float64).reshape(3, 3)


def _read_tum(text: str) -> dict[str, TrueCamera]:
    from scipy.spatial.transform import Rotation

    cameras = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if len(fields) != 8:
            raise ValueError(f"a line of {len(fields)} fields, 8 are needed: {line[:60]!r}")
        pose = np.eye(4)
        pose[:3, 3] = [float(field) for field in fields[1:4]]
        pose[:3, :3] = Rotation.from_quat([float(field) for field in fields[4:]]).as_matrix()
        cameras[fields[0]] = TrueCamera(pose)
    return cameras


def _read_colmap(folder: Path) -> dict[str, TrueCamera]:
    import pycolmap

    model = pycolmap.Reconstruction(str(folder))
    cameras = {}
    for image in model.images.values():
        if not image.has_pose:
            continue
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        K = image.camera.calibration_matrix()
        K[:2, 2] -= 0.5  # the corner of the image is COLMAP's origin, the centre of the corner pixel ours
        cameras[Path(image.name).name] = TrueCamera(pose, K)
    return cameras


def read_true_depth(path: Path) -> dict[str, np.ndarray]:
    """True depth by the photo's file name: `depth_STEM.npy` beside a truth.json, z-depth in its unit; may be empty."""
    if path.is_dir() or path.suffix.lower() != ".json":
        return {}
    names = [Path(entry["file"]) for entry in json.loads(path.read_text(encoding="utf-8")).get("views", [])]
    maps = {name.name: path.with_name(f"depth_{name.stem}.npy") for name in names}
    return {name: np.load(file, allow_pickle=False) for name, file in maps.items() if file.is_file()}

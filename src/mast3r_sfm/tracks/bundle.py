"""Triangulation and bundle adjustment of feature tracks, by COLMAP's library.

Everything stays in memory. All random seeds are set and the adjustment runs on one thread: with several, the order of
its sums and so its result would change from run to run. COLMAP's pixels have their origin at the corner of the image,
ours at the centre of the first pixel: 0.5 is added on the way in and taken off on the way out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from mast3r_sfm.tracks.adjusted import AdjustedTracks

_MIN_ANGLE_DEG = 1.5  # between the rays of a point
_MIN_INLIERS = 15  # matches of a pair that its epipolar geometry confirms
_MAX_TRIALS = 2000  # of seven matches each: one in 0.4^7 = 600 is right if 40 % of the matches are
_SEED = 0


@dataclass(frozen=True)
class CameraGroup:
    """One camera with one zoom: the intrinsics of all photos that share it, of the original photos.

    size        (width, height) pixels
    focal_px, principal_point   pixels, centres at integers
    distortion  k1 of x (1 + k1 |x|^2), x in units of the focal length
    """

    size: tuple[int, int]
    focal_px: float
    principal_point: tuple[float, float]
    distortion: float = 0.0

    @property
    def K(self) -> np.ndarray:
        """(3, 3) intrinsics of the original photos, pixel centres at integers."""
        x, y = self.principal_point
        return np.array([[self.focal_px, 0, x], [0, self.focal_px, y], [0, 0, 1]], dtype=np.float64)


class Bundle:
    """Cameras, tracks and points of one scene.

    groups    the cameras
    group_of  (n,) the camera of every photo
    cam_from_world   (n, 4, 4)
    features  (n) pixels (N, 2) of every photo's features
    """

    def __init__(
        self,
        groups: Sequence[CameraGroup],
        group_of: Sequence[int],
        cam_from_world: np.ndarray,
        features: Sequence[np.ndarray],
    ) -> None:
        pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value  # it reports every adjustment otherwise
        self.num_views = len(features)
        self.group_of = tuple(group_of)
        self._features = features
        self._model = pycolmap.Reconstruction()
        for k, group in enumerate(groups, 1):
            self._model.add_camera_with_trivial_rig(colmap_camera(group, k))
        for k, (own, xy) in enumerate(zip(group_of, features, strict=True), 1):
            image = pycolmap.Image(image_id=k, camera_id=own + 1, name=str(k), keypoints=xy + 0.5)
            self._model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(cam_from_world[k - 1][:3]))
        self._observations: pycolmap.ObservationManager | None = None
        self._triangulator: pycolmap.IncrementalTriangulator | None = None
        self._graph: pycolmap.CorrespondenceGraph | None = None

    # -------------------------------------------------------------- geometry
    def cam_from_world(self) -> np.ndarray:
        """(n, 4, 4) float64."""
        poses = np.tile(np.eye(4), (self.num_views, 1, 1))
        for k in range(self.num_views):
            poses[k, :3] = self._model.images[k + 1].cam_from_world().matrix()
        return poses

    def group(self, k: int) -> CameraGroup:
        """The camera k as it is now."""
        return camera_group(self._model.cameras[k + 1])

    def _camera_of(self, view: int) -> pycolmap.Camera:
        return self._model.cameras[self._model.images[view + 1].camera_id]

    def predict(self, i: int, j: int, depths: np.ndarray) -> np.ndarray:
        """(N, 2) pixels of photo j that show the features of photo i, at z-depths (N,) in camera i, else nan."""
        images = self._model.images
        rays = np.asarray(self._camera_of(i).cam_from_img(self._features[i] + 0.5))
        points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) * depths[:, None]
        j_from_i = (images[j + 1].cam_from_world() * images[i + 1].cam_from_world().inverse()).matrix()
        in_j = points @ j_from_i[:, :3].T + j_from_i[:, 3]
        pixels = np.full((len(rays), 2), np.nan)
        seen = np.isfinite(in_j).all(1) & (in_j[:, 2] > 1e-9)
        pixels[seen] = _project(self._camera_of(j), in_j[seen])
        return pixels

    # -------------------------------------------------------------- tracks
    def confirm(self, i: int, j: int, matches: np.ndarray, max_error_px: float) -> pycolmap.TwoViewGeometry | None:
        """`confirm_pair` with the cameras as they are now."""
        return confirm_pair(
            self._camera_of(i), self._features[i], self._camera_of(j), self._features[j], matches, max_error_px
        )

    def triangulate(self, pairs: Mapping[tuple[int, int], pycolmap.TwoViewGeometry], max_error_px: float) -> None:
        """Joins the matches of all pairs into tracks and triangulates them anew with the cameras as they are."""
        for point in list(self._model.point3D_ids()):
            self._model.delete_point3D(point)
        self._graph = pycolmap.CorrespondenceGraph()
        for k in range(self.num_views):
            self._graph.add_image(k + 1, len(self._features[k]))
        for (i, j), geometry in sorted(pairs.items(), key=lambda item: item[0]):
            self._graph.add_two_view_geometry(i + 1, j + 1, geometry)
        self._graph.finalize()
        self._observations = pycolmap.ObservationManager(self._model, self._graph)
        self._triangulator = pycolmap.IncrementalTriangulator(self._graph, self._model, self._observations)
        options = self._triangulation_options(max_error_px)
        for k in range(self.num_views):
            self._triangulator.triangulate_image(options, k + 1)
        self.extend(max_error_px)

    def extend(self, max_error_px: float) -> None:
        """Adds what the cameras as they are now confirm: observations to tracks, tracks to each other."""
        assert self._triangulator is not None
        options = self._triangulation_options(max_error_px)
        self._triangulator.complete_all_tracks(options)
        self._triangulator.merge_all_tracks(options)

    def filter(self, max_error_px: float) -> None:
        """Drops observations that reproject worse, and points whose rays are almost parallel."""
        assert self._observations is not None
        self._observations.filter_all_points3D(max_error_px, _MIN_ANGLE_DEG)

    def _triangulation_options(self, max_error_px: float) -> pycolmap.IncrementalTriangulatorOptions:
        options = pycolmap.IncrementalTriangulatorOptions()
        options.random_seed = _SEED
        options.merge_max_reproj_error = options.complete_max_reproj_error = max_error_px
        focal = min(camera.mean_focal_length() for camera in self._model.cameras.values())
        options.create_max_angle_error = options.continue_max_angle_error = float(np.degrees(max_error_px / focal))
        return options

    def adjust(
        self,
        loss_px: float,
        principal_point: bool = False,
        held: Collection[int] = (),
        iterations: int = 50,
        tolerance: float = 1e-7,
    ) -> None:
        """Moves cameras and points so that the tracks reproject best, under a Cauchy loss of the given scale.

        principal_point  of every camera is free as well
        held             cameras whose intrinsics stay as they are
        tolerance        it ends with a step that lowers the loss by less than this share
        """
        config = pycolmap.BundleAdjustmentConfig()
        for image in sorted(self._model.reg_image_ids()):
            config.add_image(image)
        for k in held:
            config.set_constant_cam_intrinsics(k + 1)
        config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        options = pycolmap.BundleAdjustmentOptions()
        options.refine_principal_point = principal_point
        options.print_summary = False
        options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = loss_px
        options.ceres.solver_options.num_threads = 1
        options.ceres.solver_options.max_num_iterations = iterations
        options.ceres.solver_options.function_tolerance = tolerance
        pycolmap.create_default_ceres_bundle_adjuster(options, config, self._model).solve()

    def set_intrinsics(self, k: int, group: CameraGroup) -> None:
        """Gives the camera k other intrinsics."""
        self._model.cameras[k + 1].params = _params(group)

    # -------------------------------------------------------------- figures
    def tracks(self) -> AdjustedTracks:
        """The points in the order of their numbers, and their observations by photo and feature."""
        points, lengths, observed = [], [], []
        for _, point in sorted(self._model.points3D.items(), key=lambda item: item[0]):
            elements = point.track.elements
            points.append(point.xyz)
            lengths.append(len(elements))
            observed += sorted((element.image_id - 1, element.point2D_idx) for element in elements)
        view_of, feature_of = np.array(observed, dtype=np.int64).reshape(-1, 2).T
        seen_at = np.zeros((len(view_of), 2))
        for k, xy in enumerate(self._features):
            seen_at[view_of == k] = xy[feature_of[view_of == k]]
        intrinsics = np.array([self._model.cameras[k + 1].params for k in range(len(self._model.cameras))])
        intrinsics[:, 1:3] -= 0.5
        return AdjustedTracks(
            cam_from_world=self.cam_from_world(),
            group_of=np.array(self.group_of),
            intrinsics=intrinsics,
            points=np.array(points).reshape(-1, 3),
            point_of=np.repeat(np.arange(len(points)), lengths),
            view_of=view_of,
            feature_of=feature_of,
            seen_at=seen_at,
        )

    @property
    def num_points(self) -> int:
        return self._model.num_points3D()

    @property
    def mean_track_length(self) -> float:
        return float(self._model.compute_mean_track_length())


def confirm_pair(
    camera_i: pycolmap.Camera,
    xy_i: np.ndarray,
    camera_j: pycolmap.Camera,
    xy_j: np.ndarray,
    matches: np.ndarray,
    max_error_px: float,
) -> pycolmap.TwoViewGeometry | None:
    """The matches (M, 2) of features (N, 2) of two photos that one epipolar geometry or one homography confirms.

    None if they are too few to believe.
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
    return geometry if len(geometry.inlier_matches) >= _MIN_INLIERS else None


def colmap_camera(group: CameraGroup, camera_id: int, focal_known: bool = False) -> pycolmap.Camera:
    """The camera in COLMAP's terms.

    focal_known  it is close to the truth, so that geometry may build on it
    """
    camera = pycolmap.Camera(
        camera_id=camera_id,
        model="SIMPLE_RADIAL",
        width=group.size[0],
        height=group.size[1],
        params=_params(group),
    )
    camera.has_prior_focal_length = focal_known
    return camera


def camera_group(camera: pycolmap.Camera) -> CameraGroup:
    """The inverse of `colmap_camera`."""
    focal, x, y, distortion = camera.params
    return CameraGroup((camera.width, camera.height), focal, (x - 0.5, y - 0.5), distortion)


def _params(group: CameraGroup) -> list[float]:
    """f, cx, cy, k1 of SIMPLE_RADIAL."""
    centre_x, centre_y = group.principal_point
    return [group.focal_px, centre_x + 0.5, centre_y + 0.5, group.distortion]


def _project(camera: pycolmap.Camera, points: np.ndarray) -> np.ndarray:
    """(N, 2) pixels, centres at integers, of points (N, 3) in front of the camera."""
    pixels = camera.img_from_cam(points)
    assert pixels is not None  # it is None for a single point behind the camera only
    return np.asarray(pixels) - 0.5

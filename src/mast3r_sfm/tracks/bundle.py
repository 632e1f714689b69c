"""Triangulation and bundle adjustment of feature tracks, by COLMAP's library.

Everything stays in memory. All random seeds are set and the adjustment runs on one thread: with several, the order of
its sums and so its result would change from run to run. COLMAP's pixels have their origin at the corner of the image,
ours at the centre of the first pixel: 0.5 is added on the way in and taken off on the way out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pycolmap

from mast3r_sfm.tracks.adjusted import AdjustedTracks
from mast3r_sfm.tracks.cameras import CameraGroup, camera_group, colmap_camera, params_of, project_with
from mast3r_sfm.tracks.two_views import confirm_pair

MIN_ANGLE_DEG = 1.5
"""Smallest angle between two rays of a point."""

_MIN_BASELINE = 0.05  # of the two photos that set the unit of length, as a share of the largest from the first photo
_SEED = 0


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
        self._ids = _image_ids(cam_from_world)
        for k in np.argsort(self._ids).tolist():
            number = self._ids[k]
            image = pycolmap.Image(
                image_id=number, camera_id=group_of[k] + 1, name=str(number), keypoints=features[k] + 0.5
            )
            self._model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(cam_from_world[k][:3]))
        self._observations: pycolmap.ObservationManager | None = None
        self._triangulator: pycolmap.IncrementalTriangulator | None = None
        self._graph: pycolmap.CorrespondenceGraph | None = None

    def without_points(self, groups: Sequence[CameraGroup], group_of: Sequence[int]) -> Bundle:
        """The same photos and poses with other cameras."""
        return Bundle(groups, group_of, self.cam_from_world(), self._features)

    def with_cameras(self, groups: Sequence[CameraGroup], group_of: Sequence[int]) -> Bundle:
        """The same photos, poses, points and tracks with other cameras."""
        other = self.without_points(groups, group_of)
        number_there = dict(zip(self._ids, other._ids, strict=True))  # others, if the photos have moved meanwhile
        for _, point in sorted(self._model.points3D.items(), key=lambda item: item[0]):
            track = pycolmap.Track()
            for element in point.track.elements:
                track.add_element(number_there[element.image_id], element.point2D_idx)
            other._model.add_point3D(point.xyz, track)
        return other

    # -------------------------------------------------------------- geometry
    def cam_from_world(self) -> np.ndarray:
        """(n, 4, 4) float64."""
        poses = np.tile(np.eye(4), (self.num_views, 1, 1))
        for k in range(self.num_views):
            poses[k, :3] = self._image(k).cam_from_world().matrix()
        return poses

    def group(self, k: int) -> CameraGroup:
        """The camera k as it is now."""
        return camera_group(self._model.cameras[k + 1])

    def _camera_of(self, view: int) -> pycolmap.Camera:
        return self._model.cameras[self._image(view).camera_id]

    def _image(self, view: int) -> pycolmap.Image:
        return self._model.images[self._ids[view]]

    def predict(self, i: int, j: int, depths: np.ndarray) -> np.ndarray:
        """(N, 2) pixels of photo j that show the features of photo i, at z-depths (N,) in camera i, else nan."""
        rays = np.asarray(self._camera_of(i).cam_from_img(self._features[i] + 0.5))
        points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) * depths[:, None]
        j_from_i = (self._image(j).cam_from_world() * self._image(i).cam_from_world().inverse()).matrix()
        in_j = points @ j_from_i[:, :3].T + j_from_i[:, 3]
        pixels = np.full((len(rays), 2), np.nan)
        seen = np.isfinite(in_j).all(1) & (in_j[:, 2] > 1e-9)
        pixels[seen] = project_with(self._camera_of(j), in_j[seen])
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
            self._graph.add_image(self._ids[k], len(self._features[k]))
        for (i, j), geometry in sorted(pairs.items(), key=lambda item: item[0]):
            self._graph.add_two_view_geometry(self._ids[i], self._ids[j], geometry)
        self._graph.finalize()
        self._observations = pycolmap.ObservationManager(self._model, self._graph)
        self._triangulator = pycolmap.IncrementalTriangulator(self._graph, self._model, self._observations)
        options = self._triangulation_options(max_error_px)
        for k in range(self.num_views):
            self._triangulator.triangulate_image(options, self._ids[k])
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
        self._observations.filter_all_points3D(max_error_px, MIN_ANGLE_DEG)

    def _triangulation_options(self, max_error_px: float) -> pycolmap.IncrementalTriangulatorOptions:
        options = pycolmap.IncrementalTriangulatorOptions()
        options.random_seed = _SEED
        options.ignore_two_view_tracks = self.num_views > 2  # they are rarely right, but two photos have no others
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
        self._model.cameras[k + 1].params = params_of(group)

    # -------------------------------------------------------------- figures
    def tracks(self) -> AdjustedTracks:
        """The points in the order of their numbers, and their observations by photo and feature."""
        points, lengths, observed = [], [], []
        view_of_id = {number: view for view, number in enumerate(self._ids)}
        for _, point in sorted(self._model.points3D.items(), key=lambda item: item[0]):
            elements = point.track.elements
            points.append(point.xyz)
            lengths.append(len(elements))
            observed += sorted((view_of_id[element.image_id], element.point2D_idx) for element in elements)
        view_of, feature_of = np.array(observed, dtype=np.int64).reshape(-1, 2).T
        seen_at = np.zeros((len(view_of), 2))
        for k, xy in enumerate(self._features):
            seen_at[view_of == k] = xy[feature_of[view_of == k]]
        groups = [self.group(k) for k in range(len(self._model.cameras))]
        intrinsics = np.array([(one.focal_px, *one.principal_point, one.distortion) for one in groups])
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


def _image_ids(cam_from_world: np.ndarray) -> list[int]:
    """COLMAP's numbers of photos (n, 4, 4), from 1, by their place.

    An adjustment holds the first photo, and one coordinate of the second as the unit of length. So the second is one
    that lies apart from the first: of a photo and its copy the distance is an accident.
    """
    centres = np.linalg.inv(cam_from_world)[:, :3, 3]
    distance = np.linalg.norm(centres - centres[0], axis=1)
    second = int(np.argmax(distance > _MIN_BASELINE * distance.max()))
    ids = list(range(1, len(centres) + 1))
    if second > 1:
        ids[1], ids[second] = ids[second], ids[1]
    return ids

"""What the stages hand each other.

Frames and conventions, everywhere: cameras follow OpenCV axes (x right, y down, z forward), pixel
centres lie at integers, `a_from_b` maps coordinates of frame b to frame a, pixels are (x, y), images
and maps are indexed [y, x]. Lengths are in scene units (metres, approximately, for metric models).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch

from mast3r_sfm.geometry import points_of_depth, to_world


@dataclass(frozen=True)
class ImageTransform:
    """How an original image became the network's image: a resize, then a crop.

    Sizes are (width, height) in pixels. `original_size` is the size after the EXIF rotation;
    `crop_left_top` is the crop's corner in the resized image.
    """

    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    crop_left_top: tuple[int, int]
    network_size: tuple[int, int]

    @property
    def network_from_original(self) -> np.ndarray:
        """(3, 3) float64: homogeneous pixels of the original image to pixels of the network's image."""
        scale = np.array(self.resized_size, dtype=np.float64) / np.array(self.original_size, dtype=np.float64)
        matrix = np.diag([scale[0], scale[1], 1.0])
        # pixel centres are integers: x_resized + 0.5 = (x_original + 0.5) * scale
        matrix[:2, 2] = 0.5 * scale - 0.5 - np.array(self.crop_left_top, dtype=np.float64)
        return matrix

    @property
    def network_per_original(self) -> float:
        """How long a pixel of the original image is in the network's image; the mean of both axes."""
        return float(np.mean(np.diag(self.network_from_original)[:2]))

    @property
    def original_from_network(self) -> np.ndarray:
        """(3, 3) float64, the inverse of `network_from_original`."""
        return np.linalg.inv(self.network_from_original)

    def to_original(self, xy_network: np.ndarray) -> np.ndarray:
        """Maps pixels (..., 2) of the network's image to (..., 2) float64 pixels of the original."""
        matrix = self.original_from_network
        return np.asarray(xy_network, dtype=np.float64) * np.diag(matrix)[:2] + matrix[:2, 2]

    def to_network(self, xy_original: np.ndarray) -> np.ndarray:
        """Maps pixels (..., 2) of the original image to (..., 2) float64 pixels of the network's."""
        matrix = self.network_from_original
        return np.asarray(xy_original, dtype=np.float64) * np.diag(matrix)[:2] + matrix[:2, 2]

    def K_to_original(self, K_network: np.ndarray) -> np.ndarray:
        """Intrinsics (3, 3) of the network's image -> float64 intrinsics of the original image."""
        return self.original_from_network @ np.asarray(K_network, dtype=np.float64)

    def K_to_network(self, K_original: np.ndarray) -> np.ndarray:
        """Intrinsics (3, 3) of the original image -> float64 intrinsics of the network's image."""
        return self.network_from_original @ np.asarray(K_original, dtype=np.float64)


@dataclass(frozen=True)
class CameraIdentity:
    """What EXIF says of the camera and lens that took a photo; photos that agree in it were taken with one zoom.

    make, model, lens  names as written, "" if missing
    focal_mm           focal length of the lens
    focal_35mm         that of 35 mm film with the same angle of view, which a digital zoom changes as well
    """

    make: str = ""
    model: str = ""
    lens: str = ""
    focal_mm: float | None = None
    focal_35mm: float | None = None

    @property
    def knows_zoom(self) -> bool:
        """Whether a focal length is named, not the camera alone."""
        return self.focal_mm is not None or self.focal_35mm is not None


FRAMES = "frames"
"""Folder of a result that keeps the frames of clips."""


@dataclass(frozen=True)
class Frame:
    """Where a photo comes from that is a frame of a clip.

    clip    name of the clip's file; of two clips of one name the second has -2 behind its stem, and so on
    time_s  since the clip's first frame, seconds
    """

    clip: str
    time_s: float


@dataclass(frozen=True)
class GpsFix:
    """Where a photo was taken, as its EXIF says (WGS 84).

    latitude_deg, longitude_deg  degrees, north and east are positive
    altitude_m           above sea level, metres, None if unknown
    horizontal_error_m   metres, None if unknown
    """

    latitude_deg: float
    longitude_deg: float
    altitude_m: float | None = None
    horizontal_error_m: float | None = None


@dataclass(frozen=True)
class Georeference:
    """Where the scene lies on the earth, by the GPS fixes of its photos.

    latitude_deg, longitude_deg, altitude_m   the origin (WGS 84), metres above what the fixes count from; 0 without any
                     altitude
    enu_from_world   (4, 4) float64, a similarity: metres east, north and up of the origin from scene units
    residuals_m      (n, 3) float64 east, north, up of every view's camera minus its fix; nan without a fix, up also
                     without an altitude
    inliers          (n,) bool, the fixes that agree with the similarity
    """

    latitude_deg: float
    longitude_deg: float
    altitude_m: float
    enu_from_world: np.ndarray
    residuals_m: np.ndarray
    inliers: np.ndarray

    @property
    def scale(self) -> float:
        """Metres per unit of the scene."""
        return float(np.cbrt(np.linalg.det(self.enu_from_world[:3, :3])))


def network_input(rgb: torch.Tensor) -> torch.Tensor:
    """(..., H, W, 3) uint8 pixels -> (..., 3, H, W) float32 in [-1, 1]."""
    return rgb.movedim(-1, -3).contiguous().to(torch.float32).div_(255).sub_(0.5).div_(0.5)


@dataclass(frozen=True)
class View:
    """One photo, ready for the network. H and W are multiples of the model's patch size.

    index    position in the list of images; the identity of the view (paths may repeat)
    path     source file
    rgb      (H, W, 3) uint8
    alpha    (H, W) uint8 opacity of an image with transparency (composited on white), or 0 where its mask file says
             that it is not to be used; None: all of it is used
    sha256   hex digest of the file's bytes
    focal_exif_px  focal length of the original image in pixels from EXIF, or None if it names none
    camera   what EXIF says of the camera, None if it names neither a camera nor a focal length
    gps      where EXIF says that it was taken, None if it does not
    frame    the clip that it is a frame of, None for a photo
    sample_bits    bits that the samples of a 16-bit file fill (`images.values`); 16 for all other files
    mask_file      picture that says what of the photo is used (`images.masks`), None without
    """

    index: int
    path: Path
    rgb: np.ndarray
    transform: ImageTransform
    alpha: np.ndarray | None = None
    sha256: str = ""
    focal_exif_px: float | None = None
    camera: CameraIdentity | None = None
    gps: GpsFix | None = None
    frame: Frame | None = None
    sample_bits: int = 16
    mask_file: Path | None = None

    @property
    def mask(self) -> np.ndarray | None:
        """(H, W) bool, True where the photo is used; None: everywhere."""
        return None if self.alpha is None else self.alpha >= 128

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the network's image."""
        return int(self.rgb.shape[0]), int(self.rgb.shape[1])

    @property
    def tensor(self) -> torch.Tensor:
        """(3, H, W) float32 in [-1, 1]: what the network sees."""
        return network_input(torch.from_numpy(self.rgb))


@dataclass(frozen=True)
class ViewPrediction:
    """The network's prediction for the pixels of one view, in the camera frame of the reference view.

    points     (H, W, 3) float32, scene units
    conf       (H, W) float32, >= 1 for the published models
    desc       (H, W, D) float32 unit descriptors, None for a DUSt3R model
    desc_conf  (H, W) float32, None for a DUSt3R model
    """

    points: torch.Tensor
    conf: torch.Tensor
    desc: torch.Tensor | None = None
    desc_conf: torch.Tensor | None = None


@dataclass(frozen=True)
class PairPrediction:
    """Symmetric prediction of the pair (i, j): `a_in_b` are the pixels of view a in the camera of view b."""

    i: int
    j: int
    i_in_i: ViewPrediction
    j_in_i: ViewPrediction
    j_in_j: ViewPrediction
    i_in_j: ViewPrediction


@dataclass(frozen=True)
class Correspondences:
    """Matched pixels of the pair (i, j), sorted by pixel of i, then of j (row-major).

    xy_i, xy_j  (M, 2) pixels (x, y) of the network's images: int32, or float32 if they are matches of local features
    conf        (M,) float32, > 0
    """

    i: int
    j: int
    xy_i: torch.Tensor
    xy_j: torch.Tensor
    conf: torch.Tensor

    def __len__(self) -> int:
        return int(self.conf.shape[0])

    def select(self, keep: torch.Tensor) -> Correspondences:
        """The matches where `keep` (M,) bool is true."""
        return Correspondences(self.i, self.j, self.xy_i[keep], self.xy_j[keep], self.conf[keep])

    def within(self, mask_i: torch.Tensor | None, mask_j: torch.Tensor | None) -> Correspondences:
        """The matches whose pixels lie in the masks (H, W) bool of both images; None: all of an image."""
        matches = self
        for mask, side in ((mask_i, "xy_i"), (mask_j, "xy_j")):
            if mask is not None:
                xy = getattr(matches, side)
                x, y = (xy.round() if xy.is_floating_point() else xy).long().unbind(-1)
                matches = matches.select(mask.to(x.device)[y, x])
        return matches

    def cpu(self) -> Correspondences:
        """The same in main memory."""
        return Correspondences(self.i, self.j, self.xy_i.cpu(), self.xy_j.cpu(), self.conf.float().cpu())


@dataclass(frozen=True)
class FallbackPrediction:
    """One view's points in another view's camera, at the top-left pixel of every block.

    points  (A, 3) float32 scene units, row-major over the blocks
    conf    (A,) float32
    """

    points: torch.Tensor
    conf: torch.Tensor


@dataclass(frozen=True)
class CanonicalView:
    """All predictions of one view in its own camera, merged (docs/method.md, Canonical view).

    The mean pointmap itself is not kept: focal and core depth are all that later stages read of it.

    relative_depth  (H, W) float32 depth divided by the depth of the centre of its S x S block
    conf            (H, W) float32 merged confidence
    core_depth      (rows, columns) of blocks, ceil(H / S) x ceil(W / S), float32: depth at their centres
    focal_px        base focal, network pixels
    """

    index: int
    relative_depth: torch.Tensor
    conf: torch.Tensor
    core_depth: torch.Tensor
    focal_px: float

    def in_main_memory(self) -> CanonicalView:
        """The same there: thousands of small questions to a GPU take longer than the answers."""
        maps = (self.relative_depth.cpu(), self.conf.cpu(), self.core_depth.cpu())
        return CanonicalView(self.index, *maps, self.focal_px)


@dataclass(frozen=True)
class ReconstructedView:
    """One view of the result; everything an exporter may ask of it. Arrays live in numpy.

    file            source file as given; of a frame of a clip, the file that it was written to
    rgb             (H, W, 3) uint8, the network's image
    registered      False: the image did not connect; pose, depth and intrinsics are then its own
                    prediction in its own camera and no exporter places it in the scene
    K               (3, 3) float64 intrinsics of the network's image, pixels
    world_from_cam  (4, 4) float64 camera-to-world
    depth           (H, W) float32 z-depth in scene units, positive, nan where unknown
    conf            (H, W) float32 confidence: the network's, by default changed by what other views confirm; 0 where
                    the depth is unknown
    conf_clean      (H, W) float32 the same after cleaning (points that float in front of a more
                    confident surface have 0); the scene is written from it unless asked otherwise
    median_reprojection_error_px  over the view's matches, network pixels; nan without matches
    num_matches     matches of the view that entered the alignment
    apart_error_px, num_confirmed, num_explained   see `FeatureSupport`; nan, 0 and 0 if features were not looked for
    mask            (H, W) bool, True where the photo is opaque and its mask file lets it be used, None: everywhere
    distortion      k1 of the lens: a point at x = (X / Z, Y / Z) of the camera is seen at x (1 + k1 |x|^2)
    refined         the camera was adjusted to tracks of local features
    num_track_observations, track_error_px
                    features of the photo in those tracks, and their median reprojection error in pixels of the
                    original photo; nan without
    focal_std_px, position_std
                    standard deviations by the covariance of that adjustment: of the focal length in pixels of the
                    original photo, of the camera's centre in scene units; nan where unknown (see `Refinement`)
    gps             where EXIF says that the photo was taken, None if it does not
    frame           the clip that the photo is a frame of, None for a photo
    sample_bits     bits that the samples of a 16-bit file fill; 16 for all other files
    mask_file       picture that says what of the photo is used, as given, None without
    folder          what `file` and `mask_file` are relative to, "": the current folder
    """

    index: int
    file: str
    transform: ImageTransform
    rgb: np.ndarray
    registered: bool
    K: np.ndarray
    world_from_cam: np.ndarray
    depth: np.ndarray
    conf: np.ndarray
    conf_clean: np.ndarray
    median_reprojection_error_px: float
    num_matches: int
    mask: np.ndarray | None = None
    distortion: float = 0.0
    refined: bool = False
    num_track_observations: int = 0
    track_error_px: float = float("nan")
    focal_std_px: float = float("nan")
    position_std: float = float("nan")
    apart_error_px: float = float("nan")
    gps: GpsFix | None = None
    num_confirmed: int = 0
    num_explained: int = 0
    frame: Frame | None = None
    sample_bits: int = 16
    mask_file: str | None = None
    folder: str = ""

    @property
    def path(self) -> Path:
        """Where the photo lies, as seen from the current folder."""
        return Path(self.folder, self.file)

    @property
    def mask_path(self) -> Path | None:
        """Where the mask file lies, as seen from the current folder; None without one."""
        return None if self.mask_file is None else Path(self.folder, self.mask_file)

    @property
    def file_in_result(self) -> str:
        """The file as a result names it: a frame of a clip is kept in the result, and named relative to it."""
        return f"{FRAMES}/{Path(self.file).name}" if self.frame else self.file

    @property
    def K_original(self) -> np.ndarray:
        """(3, 3) float64 intrinsics of the original image, pixels."""
        return self.transform.K_to_original(self.K)

    @property
    def mean_confidence(self) -> float:
        """Of the pixels that are used; 0 if none is."""
        conf = self.conf if self.mask is None else self.conf[self.mask]
        return float(conf.mean()) if conf.size else 0.0

    def points_world(self) -> np.ndarray:
        """(H, W, 3) float32: every pixel at its depth, in the world frame."""
        return to_world(points_of_depth(self.depth, self.K, self.distortion), self.world_from_cam).astype(np.float32)


@dataclass(frozen=True)
class PairSummary:
    """One pair: matches found, matches that the geometry confirmed, and whether the pair takes part.

    num_features  matches of local features that one epipolar geometry confirms; None if they were not looked for
    """

    i: int
    j: int
    num_matches: int
    num_verified: int
    kept: bool
    num_features: int | None = None


@dataclass(frozen=True)
class Tracks:
    """Points of the scene and the features of the photos that show them: what refined cameras were adjusted to.

    points     (P, 3) float64 world
    colours    (P, 3) uint8 RGB
    errors_px  (P,) float32 mean reprojection error, pixels of the original photos
    point_of, view_of   (T,) int64 point and `ReconstructedView.index` of every observation, ascending by point
    xy         (T, 2) float64 pixels of the original photo, pixel centres at integers
    """

    points: np.ndarray
    colours: np.ndarray
    errors_px: np.ndarray
    point_of: np.ndarray
    view_of: np.ndarray
    xy: np.ndarray


@dataclass(frozen=True)
class Refinement:
    """What the adjustment to tracks says of n views besides their cameras; entries of views not refined mean nothing.

    refined           (n,) bool: the view takes the adjusted camera
    distortion        (n,) k1 of the lens, 0 without
    num_observations  (n,) features of the photo in tracks
    errors_px         (n,) their median reprojection error, pixels of the original photo
    focal_std_px      (n,) standard deviation of the focal length, pixels of the original photo; nan if it was held
    position_std      (n,) of the camera's centre (root of the trace of its covariance), scene units, in the frame in
                      which all centres together fit best; nan where unknown
    """

    refined: np.ndarray
    distortion: np.ndarray
    num_observations: np.ndarray
    errors_px: np.ndarray
    focal_std_px: np.ndarray
    position_std: np.ndarray
    tracks: Tracks


@dataclass(frozen=True)
class FeatureSupport:
    """What local features say of the cameras of n views, refined or not.

    apart_errors_px  (n,) of a view that no feature connects with most others: median reprojection error of its network
                     matches with views that none connects it with, network pixels; nan for all others
    num_confirmed    (n,) matches of the view's features that a two-view geometry confirms, over all pairs with at least
                     `local_features.MIN_CONNECTING` of them
    num_explained    (n,) those of them that lie on each other's epipolar lines, by the cameras
    """

    apart_errors_px: np.ndarray
    num_confirmed: np.ndarray
    num_explained: np.ndarray


class Level(StrEnum):
    """How far something is to be relied on."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    POOR = "poor"


@dataclass(frozen=True)
class Verdict:
    """How far a photo's camera and depth, or a whole result, are to be relied on.

    reasons  why not, and what helps
    """

    level: Level
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class SceneVerdict:
    """overall: of the result;  views: of every view, at its place"""

    overall: Verdict
    views: tuple[Verdict, ...]


LEAST_OF_ANOTHER_SCENE = 3
"""Images of a further group of a result that make a scene of their own."""


@dataclass(frozen=True)
class ReconstructedScene:
    """What exporters read of a result, on the CPU.

    matches  that entered the alignment
    tracks   of local features; None if the cameras were not refined
    groups   indices of the images that connect, the largest group first, which is the registered one; may be empty
    verdict  None if it was not judged
    georeference   None unless it was asked for
    """

    views: tuple[ReconstructedView, ...]
    matches: tuple[Correspondences, ...]
    tracks: Tracks | None = None
    groups: tuple[tuple[int, ...], ...] = ()
    verdict: SceneVerdict | None = None
    georeference: Georeference | None = field(default=None, kw_only=True)

    @property
    def group_of(self) -> dict[int, int]:
        """The number of the group of every view, 0 for the registered one, by index; empty if groups are not known."""
        return {index: number for number, group in enumerate(self.groups) for index in group}

    @property
    def verdicts(self) -> tuple[Verdict | None, ...]:
        """Of every view, at its place; None if the result was not judged."""
        return (None,) * len(self.views) if self.verdict is None else self.verdict.views

    @property
    def registered(self) -> tuple[ReconstructedView, ...]:
        """The views that have a place in the scene."""
        return tuple(view for view in self.views if view.registered)


@dataclass(frozen=True)
class ModelDescription:
    """What a result says of the model that made it.

    requested     what was asked for, which differs from `name` if the bundled model stood in
    revision      the hub's commit, None for local files
    gpu           name of the GPU, None without
    min_conf_thr  confidence threshold that suits this model's scenes, None if it names none
    engine        "native", or "upstream" for the published code
    """

    name: str
    requested: str
    device: str
    revision: str | None = None
    licence: str | None = None
    precision: str | None = None
    gpu: str | None = None
    min_conf_thr: float | None = None
    engine: str = "native"

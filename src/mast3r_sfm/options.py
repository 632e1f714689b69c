"""Every choice a caller has: its default, what it may be, and what it means. Needs no torch, so `--help` is instant.

The command line reads its defaults, limits and help texts from the fields of these classes; nothing else states them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, TypeVar

from mast3r_sfm.errors import InputError

DEFAULT_MODEL = "naver/MASt3R_ViTLarge_BaseDecoder_512_catmlpdpt_metric"
"""Hugging Face name of the published model, which is used unless another one is named."""

SMALL_MODEL = "small"
"""Name of the model bundled with the package."""

DEFAULT_MIN_CONF_THR = 3.0
"""Confidence threshold of the scene for a model that names none of its own."""

LINKAGES = ("ward", "single", "complete", "average", "weighted", "centroid", "median")
"""SciPy's names of the ways to cluster, for `AlignmentConfig.tree`."""


def choice(default: Any, text: str, *, minimum: int | None = None) -> Any:
    """A field that the command line offers: its default, its help text, and the smallest value it may have."""
    return field(default=default, metadata={"help": text, "minimum": minimum})


# ------------------------------------------------------------------ values that are parsed once
Named = TypeVar("Named", bound=StrEnum)


def _named(kind: type[Named], option: str, value: str, name: str | None = None) -> Named:
    """The member of `kind` of this name, the value itself by default. Raises InputError that lists what is allowed."""
    try:
        return kind(value if name is None else name)
    except ValueError as error:
        raise InputError(f"`{option}` {value}: unknown; allowed: {', '.join(kind)}") from error


class Precision(StrEnum):
    """Of the network's matrix products; norms and outputs are float32 in all of them."""

    AUTO = "auto"
    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"

    @classmethod
    def parse(cls, value: str) -> Precision:
        """Raises InputError that lists what is allowed."""
        return _named(cls, "precision", value)


class IntrinsicsGroups(StrEnum):
    """Which photos share a focal length and a principal point.

    auto       those of one camera with one zoom, as far as EXIF, the sizes and the predictions tell (`camera_groups`)
    shared     all of them
    per-image  none
    """

    AUTO = "auto"
    SHARED = "shared"
    PER_IMAGE = "per-image"

    @classmethod
    def parse(cls, value: str) -> IntrinsicsGroups:
        """Raises InputError that lists what is allowed."""
        return _named(cls, "intrinsics_groups", value)


class CameraModel(StrEnum):
    """How refined cameras show a point, by COLMAP's names. Photos of one group share all of its numbers.

    SIMPLE_PINHOLE  one focal length and the principal point; the lens does not bend
    SIMPLE_RADIAL   and k1 of x (1 + k1 |x|^2), x in units of the focal length
    """

    SIMPLE_PINHOLE = "SIMPLE_PINHOLE"
    SIMPLE_RADIAL = "SIMPLE_RADIAL"

    @classmethod
    def parse(cls, value: str) -> CameraModel:
        """Raises InputError that lists what is allowed."""
        return _named(cls, "camera_model", value, value.upper())


class Engine(StrEnum):
    """Who computes: this package, or the published code where it is installed."""

    NATIVE = "native"
    UPSTREAM = "upstream"


@dataclass(frozen=True)
class Device:
    """A device by name; `index` counts the GPUs from 0, None is the current one. See `device.resolve_device`."""

    kind: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    index: int | None = None

    @classmethod
    def parse(cls, value: str | Device) -> Device:
        """`auto`, `cuda`, `cuda:N`, `cpu` or `mps`. Raises InputError that lists what is allowed."""
        if isinstance(value, Device):
            return value
        match = re.fullmatch(r"(auto|cuda|cpu|mps)|cuda:(\d{1,4})", str(value), flags=re.ASCII)
        if match is None:
            raise InputError(f"`device` {value}: unknown; allowed: auto, cuda, cuda:N, cpu, mps")
        if match[2] is not None:
            return cls("cuda", int(match[2]))
        return cls(match[1])  # type: ignore[arg-type]  # the expression allows just these names

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


@dataclass(frozen=True)
class SceneGraph:
    """Which pairs of images the network looks at; `scene_graph.make_pairs` makes the pairs of it.

    kind        usual      `complete`; `video` if there are frames of clips among the images
                complete   every pair
                swin       every image with the `window` that follow, around the end if `cyclic`
                logwin     every image with those 1, 2, 4, ..., 2^(window - 1) away, likewise
                oneref     image `reference` with every other
                retrieval  `num_keys` key images pairwise, every other image with its nearest key, and every image
                           with the nearest `num_nearest`, where the image itself counts
                video      every frame of a clip with the `window` that follow, every image with `num_nearest` similar
                           ones elsewhere (other clips, earlier and later in its own), photos among each other as by
                           `auto`. Without a clip the photos are taken for the frames of one, in their order.
                pairs      the pairs that the text file `pairs_file` lists
                auto       `complete` up to `COMPLETE_UP_TO` images, above that `retrieval`
    num_keys, num_nearest   None: 20 (or all images, if there are fewer) and 10; of `video` 3
    """

    kind: Literal["usual", "complete", "swin", "logwin", "oneref", "retrieval", "video", "pairs", "auto"] = "complete"
    window: int = 3
    cyclic: bool = True
    reference: int = 0
    num_keys: int | None = None
    num_nearest: int | None = None
    pairs_file: str | None = None

    FORMS = (
        "complete, swin[-k][-noncyclic], logwin[-k][-noncyclic], oneref[-i], retrieval[-Na-k], pairs:FILE, auto, "
        "video[-k], usual"
    )
    COMPLETE_UP_TO = 25
    VIDEO_WINDOW = 5
    VIDEO_LINKS = 3

    @classmethod
    def parse(cls, value: str | SceneGraph) -> SceneGraph:
        """One of `FORMS`; letters stand for integers, k is at least 1. Raises InputError that lists them."""
        if isinstance(value, SceneGraph):
            return value
        if value in ("usual", "complete", "auto", "retrieval"):
            return cls(value)  # type: ignore[arg-type]
        if match := re.fullmatch(r"video(?:-0*([1-9]\d{0,17}))?", value, flags=re.ASCII):
            return cls("video", window=int(match[1] or cls.VIDEO_WINDOW), cyclic=False, num_nearest=cls.VIDEO_LINKS)
        if value.startswith("pairs:") and len(value) > len("pairs:"):
            return cls("pairs", pairs_file=value.removeprefix("pairs:"))
        if match := re.fullmatch(r"(swin|logwin)(?:-0*([1-9]\d{0,17}))?(-noncyclic)?", value, flags=re.ASCII):
            return cls(match[1], window=int(match[2] or cls.window), cyclic=match[3] is None)  # type: ignore[arg-type]
        if match := re.fullmatch(r"oneref(?:-(\d{1,18}))?", value, flags=re.ASCII):
            return cls("oneref", reference=int(match[1] or 0))
        if match := re.fullmatch(r"retrieval-(\d{1,18})-(\d{1,18})", value, flags=re.ASCII):
            return cls("retrieval", num_keys=int(match[1]), num_nearest=int(match[2]))
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        raise InputError(f"`scene_graph` {shown!r}: unknown; use one of {cls.FORMS} (k at least 1)")

    def resolved(self, num_images: int, has_clips: bool = False) -> SceneGraph:
        """This graph for a number of images: `usual` and `auto` have become others, and nothing is left to a default.

        has_clips  some of the images are frames of clips
        """
        if self.kind == "usual":
            return self.parse("video" if has_clips else "complete")
        if self.kind == "auto":
            return SceneGraph("complete" if num_images <= self.COMPLETE_UP_TO else "retrieval").resolved(num_images)
        if self.kind == "retrieval" and (self.num_keys is None or self.num_nearest is None):
            num_keys = min(20, num_images) if self.num_keys is None else self.num_keys
            return replace(self, num_keys=num_keys, num_nearest=10 if self.num_nearest is None else self.num_nearest)
        return self

    def needs_similarity(self, num_images: int, has_clips: bool = False) -> bool:
        """Whether the pairs depend on what the images show, and so on the network's features of them."""
        return self.resolved(num_images, has_clips).kind in ("retrieval", "video")

    def __str__(self) -> str:
        match self.kind:
            case "swin" | "logwin":
                return f"{self.kind}-{self.window}{'' if self.cyclic else '-noncyclic'}"
            case "oneref":
                return f"oneref-{self.reference}"
            case "retrieval" if self.num_keys is not None:
                return f"retrieval-{self.num_keys}-{self.num_nearest}"
            case "video":
                return f"video-{self.window}"
            case "pairs":
                return f"pairs:{self.pairs_file}"
        return self.kind


# ------------------------------------------------------------------ what a run may be asked
@dataclass(frozen=True)
class FootageOptions:
    """What is taken of the input.

    recursive   photos in subfolders of a folder as well
    fps         frames a second that are taken of clips: of each interval the sharpest
    max_frames  most frames of all clips together; the intervals become longer then
    masks       folder of pictures that say what of the photos and frames is used (`images.masks`), None: all of them
    """

    recursive: bool = choice(False, "Also the photos in subfolders.")
    fps: float = choice(2.0, "Frames per second of clips: the sharpest of each interval, none while nothing moves.")
    max_frames: int = choice(300, "Most frames of all clips together; longer intervals then.", minimum=2)
    masks: str | None = choice(
        None, "Folder of masks, named as the photos (photo.png or photo.jpg.png): white is used, black is not."
    )

    def __post_init__(self) -> None:
        if not 0 < self.fps <= 1000:
            raise InputError(f"`fps` is {self.fps}, must be above 0 and at most 1000")
        if self.max_frames < 2:
            raise InputError(f"`max_frames` is {self.max_frames}, must be at least 2")


@dataclass(frozen=True)
class VerificationLimits:
    """When a match, and when a whole pair, is believed (not in the published method, which believes all).

    max_distance  largest distance of the two predicted places of a match, relative to the point's distance
    min_share     smallest share of a pair's matches that must survive
    min_matches   smallest number that must survive
    min_conf      confidence that one in ten of these must reach; None: that of the model (`ModelConfig.min_match_conf`)
    """

    max_distance: float = 0.10
    min_share: float = 0.20
    min_matches: int = 16
    min_conf: float | None = None


@dataclass(frozen=True)
class AlignmentConfig:
    """How a scene is aligned. Two stages: `coarse` moves poses and sizes, `fine` also cameras and depths.

    The defaults are the published ones but for a few; `AlignmentConfig.published()` has them all
    (docs/method.md, Where we differ).

    subsample            side S of the blocks that share an anchor, pixels
    tree                 "mst" or "hclust-LINKAGE" with a SciPy linkage name: how the chain of poses is chosen
    lr_*, niter_*        learning rate at the first iteration (cosine to zero) and number of iterations;
                         niter_fine = 0 leaves out the fine stage
    place_along_tree     start the coarse stage with the views placed by the matched points of their best pairs;
                         False: with all of them in one place
    relative_distances   the coarse stage divides distances between matched points by their depth. Without it a few
                         wrong matches with the sky or a far background outweigh all others.
    exponent_*           exponents of the robust distances; 1 is the plain distance
    fallback_weight      weight of the loss that stands in for pairs without a good match
    matching_conf_thr    a pair is good if its best match is more confident than this
    optimize_depth, optimize_principal_point
                         whether the fine stage moves them
    principal_point_prior
                         weight, in pixels of the loss, of the mean squared distance of the principal points from
                         the image centres in units of (W, H). Without it they absorb the errors of the predicted
                         depth: they wander by several per cent of the image and take the poses along.
    original_pixels      the intrinsics that views share are those of the original photos, around the centre of their
                         pixels (`alignment.layout`). False: those of the network's images, around (W/2, H/2), and
                         either all views share them or none
    focal_prior          weight, in pixels of the loss, of the mean squared difference between the logarithms of the
                         focal lengths and of those that EXIF states. With original_pixels only.
    shared_intrinsics    all views share the intrinsics; what `ReconstructionOptions.intrinsics_groups` calls "shared"
    train_root           also move the root of the tree. That is a freedom of the frame only, and in float32 it
                         turns the world at random; the published method does it.
    """

    subsample: int = choice(8, "Grid step of match seeds and depth anchors, pixels.", minimum=2)
    tree: str = "hclust-ward"
    lr_coarse: float = 0.07
    lr_fine: float = 0.005
    niter_coarse: int = choice(300, "Iterations of each of the two stages.", minimum=0)
    niter_fine: int = 300
    place_along_tree: bool = True
    relative_distances: bool = True
    exponent_coarse: float = 1.5
    exponent_fine: float = 0.5
    exponent_fallback: float = 1.1
    fallback_weight: float = 0.01
    matching_conf_thr: float = choice(
        0.0, "Pairs whose best match is not above this use their pointmaps instead of their matches."
    )
    optimize_depth: bool = True
    optimize_principal_point: bool = True
    principal_point_prior: float = 100.0
    original_pixels: bool = True
    focal_prior: float = 1.0
    shared_intrinsics: bool = choice(False, "The same as --intrinsics-groups shared.")
    train_root: bool = False

    @classmethod
    def published(cls, **changes: Any) -> AlignmentConfig:
        """The published method, with `changes`."""
        published: dict[str, Any] = {
            "focal_prior": 0.0,
            "lr_fine": 0.01,
            "original_pixels": False,
            "place_along_tree": False,
            "principal_point_prior": 0.0,
            "relative_distances": False,
            "train_root": True,
        }
        return cls(**(published | changes))

    def __post_init__(self) -> None:
        if self.subsample < 1:
            raise InputError(f"`subsample` is {self.subsample}, must be 1 or more")
        if min(self.niter_coarse, self.niter_fine) < 0:
            raise InputError(
                f"`niter_coarse` or `niter_fine` is {min(self.niter_coarse, self.niter_fine)}, must be 0 or more"
            )
        if math.isnan(self.matching_conf_thr):
            raise InputError(f"`matching_conf_thr` is {self.matching_conf_thr}, must be a number")
        if min(self.exponent_coarse, self.exponent_fine, self.exponent_fallback) <= 0:
            raise InputError("the exponents of the robust distances must be positive")
        method, _, linkage = self.tree.partition("-")
        if self.tree != "mst" and (method != "hclust" or linkage not in LINKAGES):
            raise InputError(f"`tree` is {self.tree!r}, must be 'mst' or 'hclust-' and one of {', '.join(LINKAGES)}")


@dataclass(frozen=True)
class RefinementOptions:
    """How cameras are refined by tracks of local features (docs/method.md, Refined cameras)."""

    max_feature_size: int = choice(1600, "Long edge of the photos that features are looked for in, pixels.", minimum=64)
    max_features: int = 8192
    camera_model: CameraModel = choice(
        CameraModel.SIMPLE_RADIAL,
        "Of refined cameras, as COLMAP names it. SIMPLE_PINHOLE: for photos whose lens distortion is taken off.",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "camera_model", CameraModel.parse(self.camera_model))


@dataclass(frozen=True)
class DenseOptions:
    """How the depth of all pixels follows from the aligned scene (docs/method.md, Dense depth).

    num_neighbours  views that each view is compared with, those with the most matches
    num_rounds      times that every view hears what its neighbours say of its depth
    """

    num_neighbours: int = 8
    num_rounds: int = 2

    def __post_init__(self) -> None:
        if min(self.num_neighbours, self.num_rounds) < 0:
            raise InputError(
                f"`num_neighbours` or `num_rounds` is {min(self.num_neighbours, self.num_rounds)}, must be 0 or more"
            )


@dataclass(frozen=True)
class ReconstructionOptions:
    """What a reconstruction may be asked, besides its images and its model.

    scene_graph   which pairs are predicted; a string is parsed (`SceneGraph.parse`)
    batch_size    pairs decoded at once, None: by the free memory
    verification  limits of the test of matches by geometry, None: all matches are kept, as published
    intrinsics_groups   which photos share a focal length and a principal point; a string is parsed. "shared" also if
                  `alignment.shared_intrinsics`
    refinement    of the aligned cameras by features at the photos' resolution, None: they stay as aligned
    dense         how depth and confidence of all pixels are made, None: as published
    sky           the sky has no confidence (`dense.sky`)
    seed          of all random choices: the same input, seed and device give the same result
    """

    scene_graph: SceneGraph = choice(SceneGraph("usual"), f"{SceneGraph.FORMS}: complete, or video if there are clips.")
    batch_size: int | None = choice(None, "Pairs per batch [default: by the free memory].", minimum=1)
    verification: VerificationLimits | None = field(default_factory=VerificationLimits)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    intrinsics_groups: IntrinsicsGroups = choice(
        IntrinsicsGroups.AUTO,
        "Which photos share a focal length. auto: those of one camera with one zoom by EXIF, size and prediction; "
        "shared: all, whatever their size (crops, not resized copies).",
    )
    refinement: RefinementOptions | None = field(default_factory=RefinementOptions)
    dense: DenseOptions | None = field(default_factory=DenseOptions)
    sky: bool = choice(False, "Leave out the sky: far, never confirmed, smooth, at the upper border of a photo.")
    seed: int = choice(0, "Of all random choices.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "scene_graph", SceneGraph.parse(self.scene_graph))
        groups = IntrinsicsGroups.parse(self.intrinsics_groups)
        if self.alignment.shared_intrinsics:
            if groups is IntrinsicsGroups.PER_IMAGE:
                raise InputError(f"`shared_intrinsics` contradicts `intrinsics_groups={groups}`; give one of them")
            groups = IntrinsicsGroups.SHARED
        object.__setattr__(self, "intrinsics_groups", groups)
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"`batch_size` is {self.batch_size}, must be at least 1")


class Up(StrEnum):
    """What is up in the scene file.

    auto          gravity: as the photos' EXIF tells; else by the cameras and the dominant planes (`export.orientation`)
    first-camera  the top of the first photo; that camera is the origin and looks along +z
    """

    AUTO = "auto"
    FIRST_CAMERA = "first-camera"


class Compression(StrEnum):
    """Of the geometry of a GLB file; viewers need the glTF extension of the same library (`export.compression`)."""

    NONE = "none"
    MESHOPT = "meshopt"
    DRACO = "draco"


class SceneKind(StrEnum):
    """What the surface of the scene is made of.

    per-view  a mesh of every photo, of the places that no other photo shows better
    fused     one mesh through the depth maps of all photos (`export.fusion`)
    """

    PER_VIEW = "per-view"
    FUSED = "fused"


@dataclass(frozen=True)
class SceneOptions:
    """What goes into the scene file.

    min_conf_thr   a pixel takes part if its confidence is above this; None: the model's own threshold, or 3
    as_pointcloud  points instead of meshes
    max_points     budget: most points of a point cloud, most triangles of the meshes
    cameras        draw the cameras
    camera_size    height of the base of a drawn camera in scene units; None: fits the scene
    clean_depth    leave out points that float in front of a more confident surface
    depth_jump     neighbouring pixels whose depths differ by more than this share are not joined by triangles
    scene          meshes of every view, or one fused from all
    up             what is up in the file; a string is parsed
    texture_size   largest edge of the photos that cover the meshes, pixels
    compress       how the geometry is compressed; a string is parsed
    """

    min_conf_thr: float | None = choice(
        None, f"Pixels above this confidence go into the scene [default: {DEFAULT_MIN_CONF_THR:g}, or the model's own]."
    )
    as_pointcloud: bool = choice(False, "Points instead of meshes in scene.glb.")
    max_points: int = choice(2_000_000, "Budget of points or triangles in scene.glb.", minimum=1)
    cameras: bool = True
    camera_size: float | None = None
    clean_depth: bool = choice(True, "Leave out points that float in front of a more confident surface.")
    depth_jump: float = 0.03
    scene: SceneKind = choice(
        SceneKind.PER_VIEW, "A mesh of every photo, best photo for each place, or one mesh fused from all."
    )
    up: Up = choice(
        Up.AUTO, "Up in scene.glb: gravity, by EXIF or by the cameras and dominant planes; or as the first photo."
    )
    texture_size: int = choice(2048, "Largest edge of the photos on the meshes, pixels.", minimum=16)
    compress: Compression = choice(
        Compression.NONE, "Compress the geometry of scene.glb; needs the extra package of that name."
    )

    def __post_init__(self) -> None:
        for name, kind in (("scene", SceneKind), ("up", Up), ("compress", Compression)):
            object.__setattr__(self, name, _named(kind, name, getattr(self, name)))
        if self.as_pointcloud and self.compress is Compression.DRACO:
            raise InputError("`compress=draco` packs meshes only: use `compress=meshopt` with `as_pointcloud`")
        if self.texture_size < 16:
            raise InputError(f"`texture_size` is {self.texture_size}, must be at least 16")
        if self.min_conf_thr is not None and not math.isfinite(self.min_conf_thr):
            raise InputError(f"`min_conf_thr` is {self.min_conf_thr}, must be a finite number")
        if self.max_points < 1:
            raise InputError(f"`max_points` is {self.max_points}, must be at least 1")
        if self.camera_size is not None and not 0 < self.camera_size < math.inf:
            raise InputError(f"`camera_size` is {self.camera_size}, must be positive")
        if not self.depth_jump > 0:
            raise InputError(f"`depth_jump` is {self.depth_jump}, must be positive")

    @property
    def threshold(self) -> float:
        """`min_conf_thr`, or the default of all models that have none of their own."""
        return DEFAULT_MIN_CONF_THR if self.min_conf_thr is None else self.min_conf_thr

    def with_threshold(self, of_model: float | None) -> SceneOptions:
        """The same with a threshold in any case: the one asked for, else the model's own, else the default."""
        if self.min_conf_thr is not None:
            return self
        return replace(self, min_conf_thr=DEFAULT_MIN_CONF_THR if of_model is None else of_model)


class ExportFormat(StrEnum):
    """What a result can hold besides its usual files; the report is one of those, unless it was not wanted."""

    COLMAP = "colmap"
    NERFSTUDIO = "nerfstudio"
    REALITYSCAN = "realityscan"
    PLY = "ply"
    LAS = "las"
    E57 = "e57"
    USDZ = "usdz"
    PNG16 = "png16"
    EXR = "exr"
    REPORT = "report"

    @property
    def is_folder(self) -> bool:
        """Whether the export is a folder of several files."""
        return self in _FOLDERS

    @property
    def entry(self) -> str:
        """Name of the file or folder in the result."""
        if self is ExportFormat.REPORT:
            return "report.html"
        return _FOLDERS.get(self, f"scene.{self}")

    @classmethod
    def parse(cls, value: str) -> ExportFormat:
        """Raises InputError that lists what is allowed."""
        return _named(cls, "export", value)


_FOLDERS = {
    ExportFormat.COLMAP: "colmap",
    ExportFormat.NERFSTUDIO: "nerfstudio",
    ExportFormat.REALITYSCAN: "realityscan",
    ExportFormat.PNG16: "depth_png16",
    ExportFormat.EXR: "depth_exr",
}


@dataclass(frozen=True)
class PhotoOptions:
    """How photos are written beside exported cameras. By default they are copied, so far as other programs read them.

    undistort       straighten what the lens bends; the cameras then have no distortion
    max_image_size  long edge of the copies, None: that of the photos
    """

    undistort: bool = choice(False, "Exported photos are straightened copies, with cameras without lens distortion.")
    max_image_size: int | None = choice(
        None, "Long edge of the exported photos, pixels [default: that of the photos].", minimum=1
    )

    def __post_init__(self) -> None:
        if self.max_image_size is not None and self.max_image_size < 1:
            raise InputError(f"`max_image_size` is {self.max_image_size}, must be at least 1")


@dataclass(frozen=True)
class ServeLimits:
    """What a server takes upon itself; what is more is refused, and named."""

    max_upload_mb: int = choice(2000, "Largest upload of one reconstruction, megabytes.", minimum=1)
    max_photos: int = choice(300, "Most photos, or frames of clips, of one reconstruction.", minimum=1)
    max_minutes: int = choice(60, "Longest work on one reconstruction, minutes.", minimum=1)
    max_waiting: int = choice(20, "Most reconstructions that wait for their turn or are being uploaded.", minimum=1)

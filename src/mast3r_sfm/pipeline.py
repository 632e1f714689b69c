"""From photos to a written result: the whole story on one page.

images = load_images("photos", model)      files -> upright, resized views       images/
    read_clips                             clips -> files of chosen frames       images/frames
result = reconstruct(images, model)
    predict_pairwise                       views -> matches, canonical views     inference, matching/, canonical
    find_features, match_features          photos -> what their details share    local_features, tracks/
    group_cameras                          -> photos of one camera, one zoom     camera_groups
    align_group                            -> cameras and depths of the anchors  alignment/
    refine_group                           -> cameras exact to part of a pixel   refine, placing, tracks/
    densify_views                          -> depth and confidence of all pixels densify, dense/
    verdict_on                             -> good, doubtful or poor, and why    verdict/
result.save("result")                      -> GLB, report, depth, cameras, ...   export/
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from mast3r_sfm.alignment import AlignedGroup, CameraLayout, align_group, num_iterations
from mast3r_sfm.camera_groups import group_cameras, stated_focals
from mast3r_sfm.densify import densify_views
from mast3r_sfm.device import lack_of_memory_explained
from mast3r_sfm.errors import InputError, NotFiniteError, ReconstructionError
from mast3r_sfm.images.finding import find_footage, is_clip
from mast3r_sfm.images.frames import clips_of, extract_frames, plan_footage, temporary_folder
from mast3r_sfm.images.loading import ImageSizing, is_usable, load_views
from mast3r_sfm.images.masks import find_masks, warn_of_missing, without_masks
from mast3r_sfm.inference import encode_views, predict_pairs
from mast3r_sfm.matching import match_pair, verify_matches
from mast3r_sfm.model.checkpoint import Model, in_bfloat16
from mast3r_sfm.options import (
    FootageOptions,
    IntrinsicsGroups,
    Precision,
    ReconstructionOptions,
    RefinementOptions,
    SceneGraph,
)
from mast3r_sfm.pair_store import PairStore
from mast3r_sfm.pairwise import PairwiseData, predict_pairwise
from mast3r_sfm.progress import Progress, StageTimer
from mast3r_sfm.quality import doubts
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.scene_graph import check_pairs, make_pairs
from mast3r_sfm.text import listed
from mast3r_sfm.types import (
    LEAST_OF_ANOTHER_SCENE,
    CanonicalView,
    Correspondences,
    ModelDescription,
    PairPrediction,
    PairSummary,
    ReconstructedView,
    View,
)
from mast3r_sfm.verdict import verdict_on

if TYPE_CHECKING:
    from mast3r_sfm.local_features import FeatureEvidence

logger = logging.getLogger(__name__)

_DOUBTS_SHOWN = 5

Result = TypeVar("Result")


def load_images(
    inputs: str | Path | Sequence[str | Path],
    model: Model,
    image_size: int | None = None,
    progress: Progress | None = None,
    footage: FootageOptions | None = None,
    frames: str | Path | None = None,
) -> list[View]:
    """The photos and frames of clips that `inputs` name (folders, files, globs), upright and resized for `model`.

    image_size  long edge of the network's images in pixels, None: the model's own; `small` has two, see
                `ModelConfig.usual_image_size`
    footage     what is taken of folders and clips, and the masks of photos and frames
    frames      folder for the frames of clips, which stay there as files: the original photos of what follows. None: a
                temporary one, which goes when the program ends. `Reconstruction.save` keeps them in the result.

    Raises InputError that names the first file that cannot be used.
    """
    footage = footage or FootageOptions()
    paths = find_footage([inputs] if isinstance(inputs, str | Path) else inputs, footage.recursive)
    if footage.masks is not None:
        paths = without_masks(Path(footage.masks), paths)
    if any(map(is_clip, paths)):
        paths = read_clips(paths, footage, temporary_folder() if frames is None else Path(frames), progress)
    masks = None
    if footage.masks is not None:
        masks = find_masks(Path(footage.masks), paths, clips_of(paths))
        warn_of_missing(Path(footage.masks), paths, masks)
    config = model.config
    if image_size is None:
        image_size = config.usual_image_size(len(paths), model.device.type != "cpu")
    sizing = ImageSizing.for_model(image_size, config.patch_size, config.accept_squares)
    with StageTimer(progress, model.device).stage("Read images", len(paths)) as advance:
        return load_views(paths, sizing, masks=masks, progress=advance)


def read_clips(
    paths: Sequence[Path], footage: FootageOptions, folder: Path, progress: Progress | None = None
) -> list[Path]:
    """The photos among `paths`, and in the place of each clip the files of its frames, written to `folder`.

    Raises InputError as `images.frames.extract_frames`.
    """
    plan = plan_footage(paths, footage)
    with StageTimer(progress, torch.device("cpu")).stage("Read clips", plan.num_steps) as advance:
        return extract_frames(plan, folder, advance)


def plan_pairs(graph: str | SceneGraph, names: Sequence[str | Path], seed: int = 0) -> list[tuple[int, int]] | None:
    """The pairs of the scene graph for images of these file names; None if they depend on what the images show.

    Raises InputError as `scene_graph.make_pairs`.
    """
    graph, clips = SceneGraph.parse(graph), clips_of([Path(name) for name in names])
    if graph.needs_similarity(len(names), any(clips)):
        return None
    return make_pairs(graph, len(names), seed=seed, names=names, clips=clips)


@lack_of_memory_explained()
def reconstruct(
    images: Sequence[View],
    model: Model,
    options: ReconstructionOptions | None = None,
    progress: Progress | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
    state: str | Path | PairStore | None = None,
) -> Reconstruction:
    """Cameras, depth and confidence of every image that connects; the others are marked unregistered.

    images  in any order and from any calls of `load_images`; the views of the result are numbered by their place here
    pairs   of indices into `images`; None: those of `options.scene_graph`
    state   folder that keeps what the pairs leave, as it comes; a run that is interrupted goes on from there, and one
            with other options, or more images, predicts what is not there (docs/state.md). It stays until it is deleted

    Raises InputError (impossible options or pairs), ReconstructionError (nothing connects, the result is not finite, or
    the GPU's memory does not suffice).
    """
    options = options or ReconstructionOptions()
    if not images:
        raise InputError("no images given")
    if not model.config.has_descriptors:
        raise InputError(f"`model_name={model.name}`: predicts no descriptors to match; use a MASt3R model")
    views = [replace(image, index=k) for k, image in enumerate(images)]
    _check_clips(views)
    if pairs is not None:
        check_pairs(pairs, len(views))
    store = PairStore(state) if isinstance(state, str | Path) else state
    return without_overflow(model, lambda usable: _reconstruct(views, usable, options, progress, pairs, store))


def _reconstruct(
    images: Sequence[View],
    model: Model,
    options: ReconstructionOptions,
    progress: Progress | None,
    pairs: Sequence[tuple[int, int]] | None,
    store: PairStore | None,
) -> Reconstruction:
    """The stages in their order: of the largest group of images that connect, then of the other groups."""
    timer = StageTimer(progress, model.device)
    seen = look_at_pairs(images, model, options, timer, pairs, store)
    result = _reconstruct_group(images, seen, model, options, timer)
    _warn_of_left_out(images, result.groups, seen.data.summaries)
    groups, others = [result.groups[0]], []
    for group in result.groups[1:]:
        if len(group) >= LEAST_OF_ANOTHER_SCENE:
            members = [replace(images[index], index=k) for k, index in enumerate(group)]
            try:
                others.append(_reconstruct_group(members, seen.of(group), model, options, timer))
            except ReconstructionError as error:  # which is no reason to lose the first
                logger.warning("%d further images make no scene of their own: %s", len(group), error)
                continue
        groups.append(group)
    groups += [(index,) for group in result.groups if group not in groups for index in group]  # number k is scene_k
    return replace(result, groups=tuple(groups), others=tuple(others))  # whose seconds have gone on


def _reconstruct_group(
    images: Sequence[View], seen: SeenPairs, model: Model, options: ReconstructionOptions, timer: StageTimer
) -> Reconstruction:
    """The result of the largest group of images that connect; the others are marked unregistered."""
    data = seen.data
    located = locate_cameras(images, seen, options, timer)
    with timer.stage("Dense depth", 1):
        views = densify_views(images, data, located.aligned, options)
    warn_of_doubts(views)
    return Reconstruction(
        views,
        located.aligned.matches,
        None if located.aligned.refinement is None else located.aligned.refinement.tracks,
        located.groups,
        verdict_on(views, located.aligned.matches, data.summaries, located.groups),
        model=model.description(),
        options=options,
        image_hashes=tuple(image.sha256 for image in images),
        pairs=data.summaries,
        seconds=timer.seconds,
    )


@dataclass(frozen=True)
class SeenPairs:
    """What looking at the pairs leaves: by the network, and by local features if cameras are to be refined."""

    data: PairwiseData
    evidence: FeatureEvidence | None

    def of(self, members: Sequence[int]) -> SeenPairs:
        """What is known of some images alone, which are numbered by their place in `members`."""
        return SeenPairs(self.data.of(members), None if self.evidence is None else self.evidence.of(members))


def look_at_pairs(
    images: Sequence[View],
    model: Model,
    options: ReconstructionOptions,
    timer: StageTimer,
    pairs: Sequence[tuple[int, int]] | None = None,
    store: PairStore | None = None,
) -> SeenPairs:
    """Matches and predictions of the pairs, and what local features say of them; arguments as of `reconstruct`."""
    data = predict_pairwise(model, images, options, timer, pairs, store)
    if options.refinement is None or len(images) == 1:
        return SeenPairs(data, None)
    from mast3r_sfm.local_features import connect_by_features

    evidence = _find_evidence(images, data, options.refinement, timer)
    return SeenPairs(connect_by_features(data, images, evidence), evidence)


@dataclass(frozen=True)
class Located:
    """What the stages before the dense depth leave.

    groups  indices of the images that connect; `aligned` is of the first
    """

    aligned: AlignedGroup
    groups: tuple[tuple[int, ...], ...]


def locate_cameras(
    images: Sequence[View], seen: SeenPairs, options: ReconstructionOptions, timer: StageTimer
) -> Located:
    """The cameras of the largest group of images that connect; errors as those of `reconstruct`, which calls it."""
    config, data = options.alignment, seen.data
    groups = data.groups()
    _require_connection(images, groups, data.canonical[groups[0][0]] is not None)

    base_focals = _focals_of_originals(images, data.canonical)
    camera_of = group_cameras(images, options.intrinsics_groups, base_focals)
    layout = _camera_layout(images, groups[0], camera_of, base_focals, options)
    with timer.stage("Align cameras", num_iterations(config, all_good=not data.fallback)) as advance:
        aligned = align_group(groups[0], data.canonical, data.correspondences, data.fallback, config, advance, layout)

    if seen.evidence is not None:
        from mast3r_sfm.refine import NUM_STEPS, refine_group  # its libraries need not load for a run without it

        with timer.stage("Refine cameras", NUM_STEPS) as advance:
            aligned = refine_group(images, data, aligned, seen.evidence, camera_of, options, advance)
    return Located(aligned, tuple(map(tuple, _with_first(aligned.group, groups))))


def _focals_of_originals(images: Sequence[View], canonical: Sequence[CanonicalView | None]) -> list[float | None]:
    """Predicted focal lengths in pixels of the original images."""
    return [
        None if view is None else view.focal_px / image.transform.network_per_original
        for image, view in zip(images, canonical, strict=True)
    ]


def _camera_layout(
    images: Sequence[View],
    aligned: Sequence[int],
    camera_of: Sequence[int],
    base_focals: Sequence[float | None],
    options: ReconstructionOptions,
) -> CameraLayout:
    """The intrinsics that the aligned images share."""
    members = [images[k] for k in aligned]
    if not options.alignment.original_pixels:
        shared = options.intrinsics_groups is IntrinsicsGroups.SHARED
        return CameraLayout.published([view.shape for view in members], shared)
    stated = stated_focals(images, camera_of, base_focals)
    return CameraLayout.of_photos(
        [view.transform for view in members],
        [camera_of[k] for k in aligned],
        [stated[camera_of[k]] for k in aligned],
    )


@dataclass(frozen=True)
class PairMatches:
    """What `match_images` found.

    prediction  depth and confidence of both views, each in its own camera and in the other's
    matches     those that the geometry confirms (all, if that was not asked for); None without descriptors
    num_found   matches before that check
    """

    prediction: PairPrediction
    matches: Correspondences | None
    num_found: int
    model: ModelDescription


def match_images(first: View, second: View, model: Model, options: ReconstructionOptions | None = None) -> PairMatches:
    """Matches and depth of two images; of the options only the step of the seeds and the check of matches count."""
    options = options or ReconstructionOptions()

    def work(usable: Model) -> PairMatches:
        prediction = next(predict_pairs(usable, encode_views(usable, [first, second]), [(0, 1)]))
        if not usable.config.has_descriptors:
            return PairMatches(prediction, None, 0, usable.description())
        masks = (None if view.mask is None else torch.from_numpy(view.mask) for view in (first, second))
        found = match_pair(prediction, options.alignment.subsample).within(*masks)
        kept = found if options.verification is None else verify_matches(prediction, found, options.verification)[0]
        return PairMatches(prediction, kept, len(found), usable.description())

    return without_overflow(model, work)


def without_overflow(model: Model, work: Callable[[Model], Result]) -> Result:
    """The result of `work`; if half precision that nobody asked for overflows, again in bfloat16, with a warning."""
    try:
        return work(model)
    except NotFiniteError:
        if not (model.may_change_precision and model.precision is Precision.FP16):
            raise
    logger.warning("the network overflows in fp16; it runs again in bf16, which is less accurate (see `precision`)")
    return work(in_bfloat16(model))


def _find_evidence(
    images: Sequence[View], data: PairwiseData, options: RefinementOptions, timer: StageTimer
) -> FeatureEvidence:
    from mast3r_sfm.local_features import find_features, match_features

    with timer.stage("Find features", len(images)) as advance:
        features = find_features(images, options, advance)
    with timer.stage("Match features", len(data.summaries)) as advance:
        return match_features(images, features, data.summaries, advance)


def _check_clips(images: Sequence[View]) -> None:
    """Raises InputError for two clips of one name: their frames would be taken for those of one."""
    folder_of: dict[str, Path] = {}
    for image in images:
        if image.frame and folder_of.setdefault(image.frame.clip, image.path.parent) != image.path.parent:
            raise InputError(f"two clips are called {image.frame.clip}: load them by one call of `load_images`")


def _require_connection(images: Sequence[View], groups: Sequence[Sequence[int]], usable: bool) -> None:
    """Raises ReconstructionError if there is no group to speak of."""
    if not usable or (len(images) > 1 and len(groups[0]) == 1):
        raise ReconstructionError(
            f"no two of the {len(images)} images connect: no pair has enough matches that agree with the geometry; "
            "use images that overlap more, `scene_graph='complete'`, or `verification=None`"
        )


def _with_first(group: Sequence[int], groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """The groups with `group` as the first; its members leave the others."""
    others = [[k for k in other if k not in set(group)] for other in groups]
    return [list(group), *sorted((other for other in others if other), key=lambda other: (-len(other), other[0]))]


def warn_of_doubts(views: Sequence[ReconstructedView]) -> None:
    """Names the first photos whose cameras are doubtful, and counts the others: a clip may have hundreds."""
    found = doubts(views)
    for index in list(found)[:_DOUBTS_SHOWN]:
        logger.warning("%s: its camera is doubtful: %s", views[index].file_in_result, found[index])
    if len(found) > _DOUBTS_SHOWN:
        others = (Path(views[index].file).name for index in list(found)[_DOUBTS_SHOWN:])
        logger.warning(
            "the cameras of %d more photos are doubtful, for which cameras.json has the reasons: %s",
            len(found) - _DOUBTS_SHOWN,
            listed(others, 10),
        )


def _warn_of_left_out(images: Sequence[View], groups: Sequence[Sequence[int]], pairs: Sequence[PairSummary]) -> None:
    """Names the images outside the first group, with the largest number of matches that the geometry confirms.

    Those of which nothing can be used were named when they were read.
    """
    outside = (k for group in groups[1:] for k in group if is_usable(images[k]))
    inside, best = set(groups[0]), dict.fromkeys(outside, 0)
    for pair in pairs:
        for own, other in ((pair.i, pair.j), (pair.j, pair.i)):
            if own in best and other in inside:
                best[own] = max(best[own], pair.num_verified)
    if best:
        names = [f"{images[k].path.name} ({count})" for k, count in best.items()]
        logger.warning(
            "%d of %d images do not connect to the largest group and are not registered; with the matches that the "
            "geometry confirms in their best pair with it: %s",
            len(best),
            len(images),
            listed(names, 10),
        )

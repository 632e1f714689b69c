"""From photos to a reconstruction: the whole story, in the order in which it happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mast3r_sfm.alignment import (
    AlignmentConfig,
    AlignmentResult,
    align,
    build_problem,
    reprojection_errors,
)
from mast3r_sfm.densify import clean_confidences, dense_depth
from mast3r_sfm.device import lack_of_memory_explained
from mast3r_sfm.errors import InputError, ReconstructionError
from mast3r_sfm.inference import EncodedViews, encode_views, predict_batches, predict_pairs
from mast3r_sfm.matching import VerificationLimits
from mast3r_sfm.model.checkpoint import Model
from mast3r_sfm.pairwise import PairSummary, PairwiseCollector, PairwiseData
from mast3r_sfm.progress import Reporter, SilentReporter, StageTimer
from mast3r_sfm.scene_graph import connected_components, make_pairs, needs_similarity, similarity_from_tokens
from mast3r_sfm.types import (
    CanonicalView,
    Correspondences,
    ReconstructedView,
    Reconstruction,
    View,
)

logger = logging.getLogger(__name__)

_ALL_PAIRS_CLEANED = 40  # views up to which every view is cleaned against all others


@dataclass(frozen=True)
class ReconstructionOptions:
    """What a caller may choose.

    scene_graph   which pairs are predicted, see `scene_graph.make_pairs`
    ordered       the images are in the order of a walk or a film (for `auto`)
    batch_size    pairs decoded at once, None: by the free memory
    verification  limits of the test of matches by geometry, None: all matches are kept, as published
    clean_depth   points that float in front of a more confident surface lose their confidence
    """

    scene_graph: str = "complete"
    ordered: bool = False
    batch_size: int | None = None
    verification: VerificationLimits | None = field(default_factory=VerificationLimits)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    clean_depth: bool = True
    seed: int = 0


@dataclass(frozen=True)
class RunReport:
    """What happened: pairs, groups of connected images (largest first), seconds per stage."""

    pairs: tuple[PairSummary, ...]
    groups: tuple[tuple[int, ...], ...]
    seconds: dict[str, float]


def plan_pairs(
    views: Sequence[View], options: ReconstructionOptions, encoded: EncodedViews | None
) -> list[tuple[int, int]] | None:
    """The pairs of the scene graph; None if they depend on the similarity of images that are not `encoded` yet."""
    similarity = None
    if needs_similarity(options.scene_graph, len(views), options.ordered):
        if encoded is None:
            return None
        similarity = similarity_from_tokens(encoded.tokens)
    return make_pairs(
        options.scene_graph,
        len(views),
        similarity,
        options.seed,
        ordered=options.ordered,
        names=[view.path for view in views],
    )


@lack_of_memory_explained()
def reconstruct(
    views: Sequence[View],
    model: Model,
    options: ReconstructionOptions | None = None,
    reporter: Reporter | None = None,
) -> tuple[Reconstruction, RunReport]:
    """Cameras, depth and confidence of every view that connects; the others are marked unregistered.

    Raises InputError (impossible options), ReconstructionError (nothing connects, the result is not finite, or the
    GPU's memory does not suffice).
    """
    options = options or ReconstructionOptions()
    if not views:
        raise InputError("no images given")
    if not model.config.has_descriptors:
        raise InputError(f"--model-name {model.name}: predicts no descriptors to match; use a MASt3R model")
    timer = StageTimer(reporter or SilentReporter(), model.device)
    report = reporter or SilentReporter()

    with timer.stage("Encode images", len(views)):
        encoded = encode_views(model, views, options.batch_size, report.advance)
    pairs = plan_pairs(views, options, encoded) or []
    with timer.stage("Predict and match pairs", max(1, len(pairs))):
        data = _predict_and_match(model, views, encoded, pairs, options, report)
    del encoded
    groups = _groups(views, data)
    chosen = groups[0]
    _report_groups(views, groups)

    canonical = [view for k in chosen if (view := data.canonical[k]) is not None]
    inside = set(chosen)
    with timer.stage("Align cameras", options.alignment.niter_coarse + options.alignment.niter_fine):
        matches = [m.cpu() for m in data.correspondences if m.i in inside and m.j in inside]
        own_views, summaries, fallback = data.canonical, data.summaries, data.fallback
        del data  # its matches, which may fill a GPU's memory; the alignment packs its own
        problem = build_problem(canonical, matches, fallback, options.alignment)
        del fallback
        aligned = align(problem, options.alignment, _steps(report))
        errors = reprojection_errors(problem, aligned)
        del problem
    with timer.stage("Dense depth", 1):
        reconstruction = _assemble(views, own_views, chosen, aligned, errors, matches, pairs, options)
    return reconstruction, RunReport(summaries, tuple(map(tuple, groups)), timer.seconds)


def _steps(report: Reporter) -> Callable[[str, int, int], None]:
    """Turns the alignment's (stage, iterations done, of all) into steps done since the last call."""
    done_before: dict[str, int] = {}

    def progress(stage: str, done: int, total: int) -> None:
        report.advance(done - done_before.get(stage, 0))
        done_before[stage] = done

    return progress


def _predict_and_match(
    model: Model,
    views: Sequence[View],
    encoded: EncodedViews,
    pairs: Sequence[tuple[int, int]],
    options: ReconstructionOptions,
    report: Reporter,
) -> PairwiseData:
    """Canonical views and verified matches; dense predictions live for one batch."""
    collector = PairwiseCollector(
        [view.shape for view in views],
        [view.path.name for view in views],
        pairs or [(k, k) for k in range(len(views))],
        options.alignment.subsample,
        options.verification,
        options.alignment.matching_conf_thr,
        [None if view.alpha is None else torch.from_numpy(view.alpha >= 128) for view in views],
    )
    if not pairs:  # a single image: its pointmap comes from a pair with itself
        for prediction in predict_pairs(model, encoded, [(k, k) for k in range(len(views))], options.batch_size):
            collector.add_single(prediction)
        return collector.finish()
    with torch.inference_mode():
        for batch in predict_batches(model, encoded, pairs, options.batch_size, report.advance):
            collector.add(batch)
    return collector.finish()


def _groups(views: Sequence[View], data: PairwiseData) -> list[list[int]]:
    """Images that connect through usable pairs, largest group first."""
    usable = [view is not None for view in data.canonical]
    edges = [(m.i, m.j) for m in data.correspondences if usable[m.i] and usable[m.j]]
    groups = sorted(connected_components(len(views), edges), key=lambda group: (-len(group), group[0]))
    if not usable[groups[0][0]] or (len(views) > 1 and len(groups[0]) == 1):
        raise ReconstructionError(
            f"no two of the {len(views)} images connect: no pair has enough matches that agree with the geometry; "
            "use images that overlap more, --scene-graph complete, or --no-verify-matches"
        )
    return groups


def _report_groups(views: Sequence[View], groups: Sequence[Sequence[int]]) -> None:
    if len(groups) == 1:
        return
    left_out = [views[k].path.name for group in groups[1:] for k in group]
    shown = ", ".join(left_out[:10]) + (f" and {len(left_out) - 10} more" if len(left_out) > 10 else "")
    logger.warning(
        "%d of %d images do not connect to the largest group and are not registered: %s",
        len(left_out),
        len(views),
        shown,
    )


def _assemble(
    views: Sequence[View],
    all_canonical: Sequence[CanonicalView | None],
    chosen: Sequence[int],
    aligned: AlignmentResult,
    errors: torch.Tensor,
    matches: Sequence[Correspondences],
    pairs: Sequence[tuple[int, int]],
    options: ReconstructionOptions,
) -> Reconstruction:
    """Dense depth at the aligned anchors, cleaned confidences, everything on the CPU."""
    subsample = options.alignment.subsample
    number = {index: k for k, index in enumerate(chosen)}
    canonical = [one for k in chosen if (one := all_canonical[k]) is not None]
    # the first registered camera is the origin: the alignment's own frame has no meaning
    world_from_root = aligned.world_from_cam.cpu().numpy()
    world_from_cam = np.linalg.inv(world_from_root[0]) @ world_from_root
    K = aligned.K.cpu().numpy()
    depths = [dense_depth(one, aligned.core_depths[k], float(K[k, 0, 0]), subsample) for k, one in enumerate(canonical)]
    confs = [one.conf for one in canonical]
    clean = confs
    if options.clean_depth and len(chosen) > 1:
        device = depths[0].device
        neighbours = None if len(chosen) <= _ALL_PAIRS_CLEANED else _neighbours(pairs, number)
        clean = clean_confidences(
            depths,
            confs,
            torch.from_numpy(K).float().to(device),
            torch.from_numpy(world_from_cam).float().to(device),
            neighbours,
        )
    counts = np.zeros(len(views), dtype=np.int64)
    for m in matches:
        counts[[m.i, m.j]] += len(m)

    result = []
    for view in views:
        mask = None if view.alpha is None else view.alpha >= 128
        common = (view.index, str(view.path), view.transform, view.rgb)
        if view.index in number:
            k = number[view.index]
            maps = (depths[k].cpu().numpy(), confs[k].cpu().numpy(), clean[k].cpu().numpy())
            placed = (True, K[k], world_from_cam[k])
            error = float(errors[k])
        else:
            maps, own_K = _alone(view, all_canonical[view.index], subsample)
            placed = (False, own_K, np.eye(4))
            error = float("nan")
        result.append(ReconstructedView(*common, *placed, *maps, error, int(counts[view.index]), mask))
    return Reconstruction(tuple(result), tuple(matches))


def _neighbours(pairs: Sequence[tuple[int, int]], number: dict[int, int]) -> list[list[int]]:
    found: list[set[int]] = [set() for _ in number]
    for i, j in pairs:
        if i in number and j in number:
            found[number[i]].add(number[j])
            found[number[j]].add(number[i])
    return [sorted(group) for group in found]


def _alone(
    view: View, canonical: CanonicalView | None, subsample: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Depth, confidences and K of a view that is not registered: its own prediction, nan if it has none."""
    H, W = view.shape
    K = np.array([[max(H, W), 0, W / 2], [0, max(H, W), H / 2], [0, 0, 1]], dtype=np.float64)
    if canonical is None:
        nothing = np.zeros((H, W), dtype=np.float32)
        return (np.full((H, W), np.nan, dtype=np.float32), nothing, nothing), K
    K[0, 0] = K[1, 1] = canonical.focal_px
    depth = dense_depth(canonical, canonical.core_depth, canonical.focal_px, subsample).cpu().numpy()
    conf = canonical.conf.cpu().numpy()
    return (depth, conf, conf), K

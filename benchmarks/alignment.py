"""Accuracy and speed of the alignment on rendered scenes.

    python -m benchmarks.alignment --views 7 --size 512 384 --seed 0
    python -m benchmarks.alignment --sweep --seed 0 1 2 --dense-matches
    python -m benchmarks.alignment --sweep --model-name small --size 224 168 --degrees 210 --seed 900000 900001 900002

Renders orbits, makes pair predictions with smooth depth noise and true matches (whole pixels) for the complete graph,
or lets a network make both, aligns with several settings, and prints errors against the truth. Without `--sweep` they
are the default, the same with first-order steps, and the published settings, of each scene; with it, iterations and
budgets of matches, as medians / worst over all scenes. With `--dense-matches` the seeds of the ideal matches lie
closer, for the match counts of a real network (about 5,000 a pair at 512 x 384).

Times are those of the packing and the alignment. All photos of a scene share their intrinsics.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from benchmarks.accuracy import views_of
from mast3r_sfm.alignment import (
    AlignmentConfig,
    AlignmentResult,
    CameraLayout,
    align,
    build_problem,
    reprojection_errors,
)
from mast3r_sfm.canonical import CanonicalAccumulator
from mast3r_sfm.densify import dense_depth
from mast3r_sfm.evaluation import area_under_curve, pair_errors_deg
from mast3r_sfm.geometry import similarity_transform
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.options import ReconstructionOptions
from mast3r_sfm.pairwise import predict_pairwise
from mast3r_sfm.progress import StageTimer
from mast3r_sfm.types import CanonicalView, Correspondences, ImageTransform
from synthetic import RenderedScene, ideal_correspondences, ideal_pair_prediction, render_orbit

FIRST_ORDER = AlignmentConfig(second_order=False, niter_fine=300, matches_per_pair=None)
BUDGETS = (None, 5000, 3000, 2000, 1000, 500, 250)


@dataclass(frozen=True)
class Pairs:
    """What the pairs of a scene left: of every image, and of the pairs that take part."""

    scene: RenderedScene
    canonical: list[CanonicalView]
    matches: list[Correspondences]


@dataclass(frozen=True)
class Errors:
    """Of one alignment.

    rotation, direction  medians over pairs of views, degrees;  auc  at 1 degree, per cent
    ate, depth, focal    per cent: trajectory over its extent, median relative errors
    pixels               median reprojection error
    matches              of a pair that entered, on average
    """

    rotation: float
    direction: float
    auc: float
    ate: float
    focal: float
    depth: float
    pixels: float
    matches: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alignment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("W", "H"))
    parser.add_argument("--degrees", type=float, default=90.0, help="arc of the orbit")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--noise", type=float, default=0.02, help="relative depth noise of a prediction")
    parser.add_argument("--dense-matches", action="store_true")
    parser.add_argument("--model-name", help="a network instead of ideal predictions")
    parser.add_argument("--sweep", action="store_true", help="iterations and budgets")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model_name, args.device) if args.model_name else None

    print(f"{'':<31}" + "".join(f"{head:>15}" for head in _HEADS.values()), flush=True)
    scenes = []
    for seed in args.seed:
        scenes.append(pairs_of(seed, args, model))
        if not args.sweep:
            for name, config in usual_settings():
                print(f"{seed:<7}{name:<24}{shown([measured(scenes[-1], config)])}", flush=True)
    if args.sweep:
        for name, config in swept_settings(scenes):
            print(f"{name:<31}{shown([measured(scene, config) for scene in scenes])}", flush=True)
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


# ------------------------------------------------------------------ settings
def usual_settings() -> list[tuple[str, AlignmentConfig]]:
    return [
        ("default", AlignmentConfig()),
        ("first-order, 300 + 300", FIRST_ORDER),
        ("published", AlignmentConfig.published()),
    ]


def swept_settings(scenes: Sequence[Pairs]) -> Iterator[tuple[str, AlignmentConfig]]:
    for coarse, fine in ((300, 300), (150, 150), (100, 100), (50, 100), (30, 60), (300, 1000)):
        yield f"first-order, {coarse} + {fine}", replace(FIRST_ORDER, niter_coarse=coarse, niter_fine=fine)
    for niter in (5, 8, 10, 12, 15, 20, 30, 60):
        yield f"second-order, {niter}", AlignmentConfig(niter_fine=niter, matches_per_pair=None)
    most = max(len(matches) for scene in scenes for matches in scene.matches)
    for budget in BUDGETS:
        if budget is None or budget < most:
            yield f"second-order, 15, budget {budget or 'none'}", AlignmentConfig(matches_per_pair=budget)


# ------------------------------------------------------------------ scenes
def pairs_of(seed: int, args: argparse.Namespace, model: Model | None) -> Pairs:
    """A scene and what its pairs leave; a network sees photos as a camera makes them."""
    given = (seed, args.views, tuple(args.size), args.degrees, args.device)
    if model is not None:
        return predict_by(model, render_orbit(*given))
    scene = render_orbit(*given, effects=0)
    return Pairs(scene, *predict(scene, args.noise, 6 if args.dense_matches else 8))


def predict(scene: RenderedScene, noise: float, match_step: int) -> tuple[list[CanonicalView], list[Correspondences]]:
    """Canonical views and matches of the complete graph."""
    H, W = scene.shape
    device = scene.depth.device
    accumulators = [CanonicalAccumulator(H, W, device=device) for _ in range(scene.num_views)]
    matches = []
    for i in range(scene.num_views):
        for j in range(i):
            pair = ideal_pair_prediction(scene, i, j, noise, seed=i * 1000 + j)
            accumulators[i].add(pair.i_in_i.points, pair.i_in_i.conf, (i, j))
            accumulators[j].add(pair.j_in_j.points, pair.j_in_j.conf, (i, j))
            matches.append(ideal_correspondences(scene, i, j, match_step))
    return [accumulator.finish(k) for k, accumulator in enumerate(accumulators)], matches


def predict_by(model: Model, scene: RenderedScene) -> Pairs:
    """What a network makes of the complete graph."""
    data = predict_pairwise(model, views_of(scene), ReconstructionOptions(), StageTimer(None, model.device))
    if len(data.groups()) > 1:
        raise SystemExit("the images of a scene do not all connect; choose another seed")
    return Pairs(scene, [data.usable(k) for k in range(scene.num_views)], list(data.correspondences))


# ------------------------------------------------------------------ errors
def measured(pairs: Pairs, config: AlignmentConfig) -> Errors:
    """One alignment and its errors; on a GPU, the second of two."""
    scene, (H, W) = pairs.scene, pairs.scene.shape
    one_camera = [ImageTransform((W, H), (W, H), (0, 0), (W, H))] * scene.num_views
    layout = CameraLayout.of_photos(one_camera, [0] * scene.num_views) if config.original_pixels else None
    for _ in range(1 if scene.depth.device.type == "cpu" else 2):
        start = time.perf_counter()
        problem = build_problem(pairs.canonical, pairs.matches, {}, config, layout)
        result = align(problem, config)
        poses = result.world_from_cam.cpu().numpy()
        seconds = time.perf_counter() - start
    truth = scene.world_from_cam.double().cpu().numpy()
    rotation, direction = pair_errors_deg(poses, truth, np.ones(len(truth), dtype=bool))
    scale, turn, shift = similarity_transform(poses[:, :3, 3], truth[:, :3, 3])
    residual = truth[:, :3, 3] - (scale * poses[:, :3, 3] @ turn.T + shift)
    spread = truth[:, :3, 3] - truth[:, :3, 3].mean(0)
    return Errors(
        rotation=float(np.median(rotation)),
        direction=float(np.median(direction)),
        auc=100 * area_under_curve(np.maximum(rotation, direction), 1),
        ate=100 * float(np.sqrt((residual**2).sum() / (spread**2).sum())),
        focal=100 * float((result.K[:, 0, 0].cpu() / scene.K[:, 0, 0].cpu() - 1).abs().median()),
        depth=100 * depth_error(scene, pairs.canonical, result),
        pixels=float(reprojection_errors(problem, result).nanmedian()),
        matches=float((problem.matches.weight > 0).sum()) / problem.matches.num_pairs,
        seconds=seconds,
    )


def pose_errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Median over all pairs of views of the errors of relative rotation and of translation direction, degrees."""
    poses, truth = (value.double().cpu().numpy() for value in (actual, expected))
    rotation, direction = pair_errors_deg(poses, truth, np.ones(len(actual), dtype=bool))
    return float(np.median(rotation)), float(np.median(direction))


def depth_error(scene: RenderedScene, canonical: list[CanonicalView], result: AlignmentResult) -> float:
    """Median relative error of the dense depth, after one scale for the scene."""
    ratios = []
    for k, view in enumerate(canonical):
        depth = dense_depth(view, result.core_depths[k], float(result.K[k, 0, 0]))
        ratios.append((depth / scene.depth[k])[scene.depth[k] > 0])
    ratio = torch.cat(ratios)
    return float((ratio / ratio.median() - 1).abs().median())


_HEADS = {
    "rotation": "rotation deg",
    "direction": "direction deg",
    "auc": "AUC@1 %",
    "ate": "ATE %",
    "focal": "focal %",
    "depth": "depth %",
    "pixels": "pixels",
    "matches": "matches",
    "seconds": "seconds",
}


def shown(errors: Sequence[Errors]) -> str:
    """One scene's figures, or median / worst over several; the mean of what has no worst."""
    cells = []
    for field in fields(Errors):
        values = np.array([getattr(one, field.name) for one in errors])
        if field.name == "matches":
            cells.append(f"{values.mean():.0f}")
        elif len(values) == 1 or field.name in ("seconds", "pixels"):
            cells.append(f"{np.mean(values):.{2 if field.name == 'seconds' else 3}f}")
        else:
            worst = values.min() if field.name == "auc" else values.max()
            digits = 1 if field.name == "auc" else 3
            cells.append(f"{np.median(values):.{digits}f} / {worst:.{digits}f}")
    return "".join(f"{cell:>15}" for cell in cells)


if __name__ == "__main__":
    main()

"""Accuracy and speed of the alignment on a rendered scene with ideal, noisy pair predictions.

    python -m benchmarks.alignment --views 7 --size 512 384 --seed 0

Renders an orbit, makes pair predictions with smooth depth noise and true matches (whole pixels) for the complete
graph, aligns with the default and with the published settings, and prints errors against the truth. With
`--dense-matches` the seeds of the matches lie closer, for the match counts of a real network (about 5,000 a pair
at 512 x 384).
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from mast3r_sfm.alignment import AlignmentConfig, AlignmentResult, align, build_problem, reprojection_errors
from mast3r_sfm.canonical import CanonicalAccumulator
from mast3r_sfm.densify import dense_depth
from mast3r_sfm.types import CanonicalView, Correspondences
from synthetic import RenderedScene, ideal_correspondences, ideal_pair_prediction, render_orbit


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
    parser.add_argument("--niter", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print("scene  settings   matches  seconds  rotation  translation  depth   focal   median error")
    for seed in args.seed:
        scene = render_orbit(seed, args.views, tuple(args.size), args.degrees, args.device, effects=0)
        canonical, matches = predict(scene, args.noise, 6 if args.dense_matches else 8)
        for name, make in (("default", AlignmentConfig), ("published", AlignmentConfig.published)):
            config = make(niter_coarse=args.niter, niter_fine=args.niter)
            if args.device != "cpu":
                align(build_problem(canonical, matches, {}, config), config)  # warm up
            start = time.perf_counter()
            problem = build_problem(canonical, matches, {}, config)
            result = align(problem, config)
            centres = result.world_from_cam.cpu()
            seconds = time.perf_counter() - start
            rotation, direction = pose_errors(centres, scene.world_from_cam.cpu())
            pixels = reprojection_errors(problem, result).median()
            count = sum(len(pair) for pair in matches)
            focal = (result.K[:, 0, 0] / scene.K[:, 0, 0]).mean()
            print(
                f"{seed:5d}  {name:9s}  {count:7d}  {seconds:7.2f}  {rotation:7.3f}°  {direction:10.3f}°"
                f"  {depth_error(scene, canonical, result):5.2%}  {focal:6.4f}  {pixels:5.3f} px"
            )
    print(f"peak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


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


def pose_errors(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Median over all pairs of views of the errors of relative rotation and of translation direction, degrees."""
    rotations, directions = [], []
    for i in range(len(actual)):
        a, b = torch.linalg.inv(actual[i]) @ actual, torch.linalg.inv(expected[i]) @ expected
        others = torch.arange(len(actual)) != i
        trace = (a[others, :3, :3] * b[others, :3, :3]).sum((1, 2))
        rotations.append(torch.rad2deg(torch.arccos(((trace - 1) / 2).clamp(-1, 1))))
        cosine = torch.cosine_similarity(a[others, :3, 3], b[others, :3, 3], dim=1)
        directions.append(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))
    return float(torch.cat(rotations).median()), float(torch.cat(directions).median())


def depth_error(scene: RenderedScene, canonical: list[CanonicalView], result: AlignmentResult) -> float:
    """Median relative error of the dense depth, after one scale for the scene."""
    ratios = []
    for k, view in enumerate(canonical):
        depth = dense_depth(view, result.core_depths[k], float(result.K[k, 0, 0]))
        ratios.append((depth / scene.depth[k])[scene.depth[k] > 0])
    ratio = torch.cat(ratios)
    return float((ratio / ratio.median() - 1).abs().median())


if __name__ == "__main__":
    main()

"""Dense depth of rendered orbits against its truth: what a person sees of the scene, and how right it is.

    python -m benchmarks.dense --output FOLDER                       three kinds of orbits, two seeds of each
    python -m benchmarks.dense --output FOLDER --no-refine           cameras as aligned
    python -m benchmarks.dense --output FOLDER --network-images      rendered at the network's size, without photo files
    python -m benchmarks.dense --output FOLDER --published           the published dense depth and cleaning

Photos (1024x768), and all that comes before the dense depth, are kept in FOLDER, so that a second run takes seconds;
use a fresh FOLDER after a change of what comes before. Prints for each scene, in per cent of the pixels whose true
depth is known:

    covered, right, floating   the kept pixels of all views drawn as points into each camera with a depth buffer: pixels
                               that show something, that show the true depth within 3 %, that show something more than
                               10 % in front of it
    own 3 %, own 10 %          depth of each view within 3 % of the truth, and beyond 10 %
    seams                      mean step of the log error across the lines of the anchor grid over that elsewhere
    kept, precise              pixels above the threshold of the scene after cleaning, and those of them within 3 %
    right kept                 of the pixels within 3 %, those that are kept
    seconds                    of the dense stage

One scale a scene relates the result to the truth: that of the similarity between the camera centres.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy import views_of
from benchmarks.photo_sets import EFFECTS, SETS, write_sets
from mast3r_sfm.densify import densify_views
from mast3r_sfm.export.surface import kept_pixels
from mast3r_sfm.geometry import project, similarity_transform
from mast3r_sfm.model.checkpoint import Model, load_model
from mast3r_sfm.options import DenseOptions, ReconstructionOptions, RefinementOptions, SceneOptions
from mast3r_sfm.pipeline import Located, SeenPairs, load_images, locate_cameras, look_at_pairs
from mast3r_sfm.progress import StageTimer
from mast3r_sfm.types import ReconstructedView, View
from synthetic import RenderedScene

FIRST_SEED = 930_000
KINDS = ("orbit", "low-texture", "wide")
RIGHT, WRONG = 0.03, 0.10
_NETWORK_SIZE = (224, 168)


@dataclass(frozen=True)
class Figures:
    """Of one scene, see the module; shares in per cent."""

    covered: float
    right: float
    floating: float
    own_right: float
    own_wrong: float
    seams: float
    kept: float
    precise: float
    right_kept: float
    seconds: float


@dataclass(frozen=True)
class Scene:
    """Images of a rendered orbit, what was found up to the dense depth, and the truth at the network's size.

    depth, world_from_cam  of every image
    """

    images: tuple[View, ...]
    seen: SeenPairs
    located: Located
    depth: np.ndarray
    world_from_cam: np.ndarray


# ------------------------------------------------------------------ scenes
def prepare(kind: str, seed: int, folder: Path, model: Model, options: ReconstructionOptions, photos: bool) -> Scene:
    """Renders a scene and finds its cameras, or reads what an earlier run found."""
    refined = "aligned" if options.refinement is None else "refined"
    cached = folder / "located" / f"{kind}-{seed}-{'photos' if photos else 'network'}-{refined}.pt"
    if cached.exists():
        return torch.load(cached, map_location=model.device, weights_only=False)  # a file of our own
    truth = _render(kind, seed)
    if photos:
        write_sets([(kind, seed, folder / "photos" / kind / str(seed))], str(model.device), processes=2)
        images = load_images(folder / "photos" / kind / str(seed) / "*.jpg", model, max(_NETWORK_SIZE))
    else:
        images = views_of(truth)
    timer = StageTimer(None, model.device)
    seen = look_at_pairs(images, model, options, timer)
    scene = Scene(
        tuple(images),
        seen,
        locate_cameras(images, seen, options, timer),
        truth.depth.cpu().numpy(),
        truth.world_from_cam.cpu().numpy(),
    )
    cached.parent.mkdir(parents=True, exist_ok=True)
    torch.save(scene, cached)
    return scene


def _render(kind: str, seed: int) -> RenderedScene:
    """The orbit as the network sees it; the photos show the same rays at a higher resolution."""
    photos = SETS[kind](seed)
    shot = photos.shots[0]
    fov_deg = float(np.degrees(2 * np.arctan(0.5 * shot.size[0] / shot.focal_px)))
    return photos.render(size=_NETWORK_SIZE, fov_deg=fov_deg, effects=EFFECTS)


# ------------------------------------------------------------------ figures
def measure(views: Sequence[ReconstructedView], scene: Scene, threshold: float, seconds: float) -> Figures:
    """The figures of a result; views that are not registered show nothing and are wrong everywhere."""
    registered = [view for view in views if view.registered]
    centres = np.stack([view.world_from_cam[:3, 3] for view in registered])
    scale = similarity_transform(centres, scene.world_from_cam[[view.index for view in registered], :3, 3])[0]
    kept = {view.index: kept_pixels(view, threshold, clean_depth=True) for view in registered}
    points = np.concatenate([view.points_world()[kept[view.index]] for view in registered]).astype(np.float64)
    drawn, own, steps_across, steps_inside, is_kept = [], [], [], [], []
    for view in views:
        truth = scene.depth[view.index]
        solid = truth > 0
        true = truth[solid]
        if not view.registered:
            drawn.append(np.full(len(true), np.inf))
            own.append(np.full(len(true), np.inf))
            is_kept.append(np.zeros(len(true), dtype=bool))
            continue
        drawn.append(draw(points, view)[solid] * scale / true)
        own.append(view.depth[solid] * scale / true)
        is_kept.append(kept[view.index][solid])
        with np.errstate(all="ignore"):
            error = np.log(np.where(solid, view.depth * scale / truth, np.nan))
        across, inside = grid_steps(error)
        steps_across.append(across)
        steps_inside.append(inside)
    ratio, shown = np.concatenate(own), np.concatenate(drawn)
    keep = np.concatenate(is_kept)
    off = np.abs(np.where(np.isfinite(ratio), ratio, np.inf) - 1)
    right = off < RIGHT

    with np.errstate(all="ignore"):  # without any error there is no ratio of steps
        seams = float(np.concatenate(steps_across).mean() / np.concatenate(steps_inside).mean())

    def share(values: np.ndarray) -> float:
        return 100 * float(values.mean()) if len(values) else float("nan")

    return Figures(
        covered=share(np.isfinite(shown)),
        right=share(np.abs(shown - 1) < RIGHT),
        floating=share(shown < 1 - WRONG),
        own_right=share(right),
        own_wrong=share(off > WRONG),
        seams=seams,
        kept=share(keep),
        precise=share(right[keep]),
        right_kept=share(keep[right]),
        seconds=seconds,
    )


def draw(points: np.ndarray, view: ReconstructedView) -> np.ndarray:
    """(H, W) depth of the nearest of the points (n, 3) of the world at every pixel of a view; inf where none lies."""
    H, W = view.depth.shape
    camera = (points - view.world_from_cam[:3, 3]) @ view.world_from_cam[:3, :3]
    with np.errstate(invalid="ignore"):
        x, y = np.rint(project(camera, view.K, view.distortion)).T
        seen = (x >= 0) & (x < W) & (y >= 0) & (y < H)
    nearest = np.full(H * W, np.inf)
    np.minimum.at(nearest, (y[seen] * W + x[seen]).astype(int), camera[seen, 2])
    return nearest.reshape(H, W)


def grid_steps(error: np.ndarray, block: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Steps of a log error (H, W) between horizontal neighbours, at most 0.2: across lines of the grid, and others."""
    step = np.minimum(np.abs(np.diff(error, axis=1)), 0.2)
    border = (np.arange(step.shape[1]) + 1) % block == 0
    across, inside = step[:, border], step[:, ~border]
    return across[np.isfinite(across)], inside[np.isfinite(inside)]


# ------------------------------------------------------------------ the command
_HEADS = {
    "covered": "covered",
    "right": "right",
    "floating": "floating",
    "own_right": "own 3 %",
    "own_wrong": "own 10 %",
    "seams": "seams",
    "kept": "kept",
    "precise": "precise",
    "right_kept": "right kept",
    "seconds": "seconds",
}


def shown(values: Mapping[str, float]) -> str:
    return "  ".join(
        f"{values[name]:{len(head)}.{1 + (name in ('seams', 'floating'))}f}" for name, head in _HEADS.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dense", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--kinds", nargs="+", choices=SETS, default=KINDS)
    parser.add_argument("--seeds", type=int, default=2, help="scenes of each kind")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--no-refine", action="store_true", help="cameras as aligned")
    parser.add_argument("--network-images", action="store_true", help="no photo files")
    parser.add_argument("--published", action="store_true", help="dense depth and cleaning as published")
    parser.add_argument("--model-name", default="small")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    options = ReconstructionOptions(
        refinement=None if given.no_refine else RefinementOptions(), dense=None if given.published else DenseOptions()
    )
    model = load_model(given.model_name, given.device)
    threshold = SceneOptions().with_threshold(model.config.min_conf_thr).threshold
    print(f"{'':<20}  " + "  ".join(_HEADS.values()), flush=True)
    rows = []
    for kind in given.kinds:
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            scene = prepare(kind, seed, given.output, model, options, photos=not given.network_images)
            start = time.perf_counter()
            views = densify_views(scene.images, scene.seen.data, scene.located.aligned, options)
            rows.append(measure(views, scene, threshold, time.perf_counter() - start))
            print(f"{kind:<12} {seed:<7}  {shown(asdict(rows[-1]))}", flush=True)
    means = {field.name: statistics.fmean(getattr(row, field.name) for row in rows) for field in fields(Figures)}
    print(f"{'mean':<20}  {shown(means)}")


if __name__ == "__main__":
    main()

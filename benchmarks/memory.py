"""Peak RAM of a large complete graph on the CPU: everything but the network and the search for matches.

    python -m benchmarks.memory --views 60        1,770 pairs at 512x384

Predictions and matches come from a rendered scene instead of the network: exact pointmaps, and true matches. The
iterations of the alignment are few, because they change the time but not the memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.accuracy import views_of
from mast3r_sfm.alignment import align_group
from mast3r_sfm.app.memory import peak_memory
from mast3r_sfm.densify import densify_views
from mast3r_sfm.options import AlignmentConfig, ReconstructionOptions
from mast3r_sfm.pairwise import PairwiseCollector, PairwiseSetting, TileMerger
from mast3r_sfm.reconstruction import Reconstruction
from mast3r_sfm.scene_graph import make_pairs
from mast3r_sfm.text import byte_count
from mast3r_sfm.tiles import pairs_per_tile, plan_tiles
from mast3r_sfm.types import Correspondences, PairPrediction, ViewPrediction
from synthetic import ideal_correspondences, render_orbit
from synthetic.ideal import camera_points


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--views", type=int, default=60)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 384), metavar=("W", "H"))
    parser.add_argument("--niter", type=int, default=3)
    arguments = parser.parse_args()
    cpu = torch.device("cpu")
    scene = render_orbit(900_003, arguments.views, tuple(arguments.size), 300, effects=0, octaves=1)
    print(f"scene rendered, peak RAM {byte_count(peak_memory(cpu)['ram'])}", flush=True)
    views = views_of(scene)
    pairs = make_pairs("complete", len(views))
    options = ReconstructionOptions(
        verification=None, alignment=AlignmentConfig(niter_coarse=arguments.niter, niter_fine=arguments.niter)
    )
    poses = scene.world_from_cam.float()
    conf = torch.full(scene.shape, 10.0)

    def predict(view: int, frame: int) -> ViewPrediction:
        points = camera_points(scene, view).float()
        if view != frame:
            frame_from_view = torch.linalg.inv(poses[frame]) @ poses[view]
            points = points @ frame_from_view[:3, :3].T + frame_from_view[:3, 3]
        return ViewPrediction(points, conf)

    def match(batch: Sequence[PairPrediction], subsample: int) -> list[Correspondences]:
        return [ideal_correspondences(scene, p.i, p.j, subsample) for p in batch]

    names = tuple(view.path.name for view in views)
    setting = PairwiseSetting(tuple(view.shape for view in views), names, (None,) * len(views))
    tiles = plan_tiles(pairs, pairs_per_tile("cpu", 0))
    merger = TileMerger(setting, pairs, tiles)
    start = time.perf_counter()
    for tile in tiles:
        collector = PairwiseCollector(setting, tile, match)
        for i, j in tile:
            collector.add([PairPrediction(i, j, predict(i, i), predict(j, i), predict(j, j), predict(i, j))])
        merger.add(collector.finish())
    data = merger.finish()
    print(f"{len(pairs)} pairs collected in {time.perf_counter() - start:.0f} s, "
          f"peak RAM {byte_count(peak_memory(cpu)['ram'])}", flush=True)  # fmt: skip
    aligned = align_group(range(len(views)), data.canonical, data.correspondences, data.fallback, options.alignment)
    print(f"{sum(len(m) for m in data.correspondences)} matches aligned, "
          f"peak RAM {byte_count(peak_memory(cpu)['ram'])}", flush=True)  # fmt: skip
    reconstruction = Reconstruction(densify_views(views, data, aligned, options), aligned.matches)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result"
        reconstruction.save(output)
        size = sum(path.stat().st_size for path in output.iterdir())
        others = [path for path in Path(folder).iterdir() if path != output]
        print(f"result {byte_count(size)}, other files {len(others)}, peak RAM {byte_count(peak_memory(cpu)['ram'])}")


if __name__ == "__main__":
    main()

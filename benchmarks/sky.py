"""How much of the sky `--sky` leaves out, and how much of what is solid, on rendered outdoor scenes.

    python -m benchmarks.sky [--scenes 4] [--views 5]

Images of 224x168 pixels, whose sky is known. Per scene, in per cent: of the pixels of the sky those left out; of all
solid pixels those left out; and of the solid pixels whose true depth is less than `NEAR` times the median of the scene.
The ground of these scenes goes on to a horizon in haze, which is solid as well.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.accuracy import views_of
from mast3r_sfm.model.checkpoint import load_model
from mast3r_sfm.options import AlignmentConfig, ReconstructionOptions
from mast3r_sfm.pipeline import reconstruct
from synthetic import render_orbit

FIRST_SEED = 941_000  # the limits in `dense.sky` were chosen on scenes from 940,000 on
SIZE, DEGREES, ITERATIONS = (224, 168), 120, 60
NEAR = 10.0
_LEAST_SKY = 0.05
"""Share of the pixels; scenes with less are passed over."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sky", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-name", default="small")
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--views", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    model = load_model(arguments.model_name, arguments.device)
    options = ReconstructionOptions(
        sky=True, refinement=None, alignment=AlignmentConfig(niter_coarse=ITERATIONS, niter_fine=ITERATIONS)
    )
    print("seed      sky %  left out  solid left out  near solid left out", flush=True)
    sums, seed, done = np.zeros((3, 2)), arguments.first_seed - 1, 0
    while done < arguments.scenes:
        seed += 1
        scene = render_orbit(seed, arguments.views, SIZE, DEGREES, outdoor=True, effects=0.1)
        depth = scene.depth.cpu().numpy()
        if (depth <= 0).mean() < _LEAST_SKY:
            continue
        result = reconstruct(views_of(scene), model, options)
        usual = np.median(depth[depth > 0])
        counts = np.zeros((3, 2))
        for view in result.registered:
            truth, left_out = depth[view.index], view.conf == 0
            for k, kind in enumerate((truth <= 0, truth > 0, (truth > 0) & (truth < NEAR * usual))):
                counts[k] += (left_out & kind).sum(), kind.sum()
        sums += counts
        done += 1
        _show(str(seed), counts)
    _show("all", sums)


def _show(name: str, counts: np.ndarray) -> None:
    shares = 100 * counts[:, 0] / np.maximum(counts[:, 1], 1)
    sky = 100 * counts[0, 1] / (counts[0, 1] + counts[1, 1])
    print(f"{name:<9}{sky:6.1f}{shares[0]:10.1f}{shares[1]:16.2f}{shares[2]:21.2f}", flush=True)


if __name__ == "__main__":
    main()

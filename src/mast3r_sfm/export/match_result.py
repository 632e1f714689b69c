"""The output folder of a single pair: matches, a picture of them, depth and confidence of both views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mast3r_sfm.export.depth import confidence_picture, confidence_scale, depth_picture, depth_scale
from mast3r_sfm.export.files import write_npy, write_npz, write_png
from mast3r_sfm.export.match_picture import draw_matches
from mast3r_sfm.export.result import replaced_folder, write_run
from mast3r_sfm.types import Correspondences, PairPrediction, View


def write_match_result(
    views: tuple[View, View],
    prediction: PairPrediction,
    matches: Correspondences | None,
    output: Path,
    run: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Writes matches, their picture, depth and confidence (NPY, PNG) of both views and `run.json`, all or nothing.

    matches.npz holds `xy_i`, `xy_j` (M, 2) int32 pixels of the network's images, `original_xy_i`,
    `original_xy_j` (M, 2) float64 pixels of the photos, `conf` (M,) float32 and `files` (2,). Depths are each
    view's own prediction in its own camera, in scene units. `matches` is None for a model without descriptors.

    Raises InputError as `export.result.check_output`.
    """
    own = prediction.i_in_i, prediction.j_in_j
    depths = [view.points[..., 2].float().cpu().numpy() for view in own]
    confs = [view.conf.float().cpu().numpy() for view in own]
    depth_colours, conf_colours = depth_scale(depths), confidence_scale(confs)
    with replaced_folder(output, overwrite) as folder:
        for k, (depth, conf) in enumerate(zip(depths, confs, strict=True)):
            write_npy(folder / f"depth_{k:03d}.npy", depth)
            write_npy(folder / f"confidence_{k:03d}.npy", conf)
            write_png(folder / f"depth_{k:03d}.png", depth_picture(depth, depth_colours))
            write_png(folder / f"confidence_{k:03d}.png", confidence_picture(conf, conf_colours))
        if matches is not None:
            xy_i, xy_j, conf = (t.cpu().numpy() for t in (matches.xy_i, matches.xy_j, matches.conf))
            arrays = {
                "xy_i": xy_i,
                "xy_j": xy_j,
                "original_xy_i": views[0].transform.to_original(xy_i),
                "original_xy_j": views[1].transform.to_original(xy_j),
                "conf": conf.astype(np.float32),
                "files": np.array([str(view.path) for view in views], dtype=np.str_),
            }
            write_npz(folder / "matches.npz", arrays)
            draw_matches(views[0].rgb, views[1].rgb, xy_i, xy_j, conf, folder / "matches.png")
        write_run(folder, run)

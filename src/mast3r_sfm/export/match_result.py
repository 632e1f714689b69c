"""The output folder of a single pair: matches, a picture of them, depth and confidence of both views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mast3r_sfm.export.depth import confidence_picture, confidence_scale, depth_picture, depth_scale
from mast3r_sfm.export.files import write_npy, write_png
from mast3r_sfm.export.match_picture import draw_matches
from mast3r_sfm.export.matches import write_match_arrays
from mast3r_sfm.export.result import replaced_result, write_run
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

    matches.npz is laid out as that of a reconstruction (`export.matches`). Depths are each view's own prediction in
    its own camera, in scene units. `matches` is None for a model without descriptors.

    Raises InputError as `export.result.check_output`.
    """
    own = prediction.i_in_i, prediction.j_in_j
    depths = [view.points[..., 2].float().cpu().numpy() for view in own]
    confs = [view.conf.float().cpu().numpy() for view in own]
    depth_colours, conf_colours = depth_scale(depths), confidence_scale(confs)
    with replaced_result(output, overwrite) as folder:
        for k, (depth, conf) in enumerate(zip(depths, confs, strict=True)):
            write_npy(folder / f"depth_{k:03d}.npy", depth)
            write_npy(folder / f"confidence_{k:03d}.npy", conf)
            write_png(folder / f"depth_{k:03d}.png", depth_picture(depth, depth_colours))
            write_png(folder / f"confidence_{k:03d}.png", confidence_picture(conf, conf_colours))
        if matches is not None:
            found = matches.cpu()
            write_match_arrays(
                [found], [str(view.path) for view in views], [view.transform for view in views], folder / "matches.npz"
            )
            draw_matches(views[0].rgb, views[1].rgb, found.xy_i, found.xy_j, found.conf, folder / "matches.png")
        write_run(folder, run)

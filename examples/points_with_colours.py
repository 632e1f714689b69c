"""Options, and the result as arrays: a PLY-ready point cloud of the confident pixels.

`python examples/points_with_colours.py PHOTOS POINTS.npy` writes (N, 6) float32: x, y, z in metres (approximate) of the
first camera's frame, and red, green, blue in 0..255.
"""

from __future__ import annotations

import sys

import numpy as np

from mast3r_sfm import (
    IntrinsicsGroups,
    ReconstructionOptions,
    SceneGraph,
    load_images,
    load_model,
    reconstruct,
)


def main(photos: str, output: str) -> None:
    model = load_model("small", device="cpu")
    options = ReconstructionOptions(
        scene_graph=SceneGraph.parse("swin-2"),  # the photos follow each other
        intrinsics_groups=IntrinsicsGroups.SHARED,  # one camera took them all
    )
    result = reconstruct(load_images(photos, model, image_size=160), model, options)
    clouds = []
    for view in result.registered:
        kept = view.conf_clean > (model.config.min_conf_thr or 3)
        clouds.append(np.concatenate([view.points_world()[kept], view.rgb[kept]], axis=1).astype(np.float32))
    np.save(output, np.concatenate(clouds))
    print(f"{sum(map(len, clouds))} points of {len(clouds)} photos in {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])

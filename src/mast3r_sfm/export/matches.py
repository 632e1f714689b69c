"""`matches.npz`: the matched pixels of every pair, packed into flat arrays.

    with np.load("matches.npz") as m:
        for k, (i, j) in enumerate(m["pairs"]):
            of_pair = slice(*m["offsets"][k : k + 2])
            m["files"][i], m["files"][j], m["xy_i"][of_pair], m["xy_j"][of_pair], m["conf"][of_pair]
            scale_and_shift = m["original_from_network"][i]  # photo_xy = xy_i @ [:2, :2].T + [:2, 2]

pairs    (P, 2) int32 indices of the images i, j
offsets  (P + 1,) int64: the matches of pair k are the rows offsets[k] to offsets[k + 1]
xy_i     (M, 2) matched pixels (x, y) of the network's image of i: int32, or float32 if matches of local features, which
         lie between pixels, are among them
xy_j     (M, 2) likewise, of j
conf     (M,) float32, > 0
files    (n,) text: the file of every image
original_from_network  (n, 3, 3) float64: maps homogeneous pixels of the network's images to pixels of the photos

The file loads without pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mast3r_sfm.export.files import write_npz
from mast3r_sfm.types import Correspondences, ImageTransform, ReconstructedScene


def pack_matches(matches: Sequence[Correspondences]) -> dict[str, np.ndarray]:
    """The arrays of this module's docstring that belong to the pairs."""
    between_pixels = any(m.xy_i.is_floating_point() for m in matches)
    no_pixels = np.zeros((0, 2), dtype=np.float32 if between_pixels else np.int32)
    no_values = np.zeros(0, dtype=np.float32)
    return {
        "pairs": np.array([[m.i, m.j] for m in matches], dtype=np.int32).reshape(-1, 2),
        "offsets": np.cumsum([0] + [len(m) for m in matches], dtype=np.int64),
        "xy_i": np.concatenate([no_pixels] + [m.xy_i.numpy() for m in matches]).astype(no_pixels.dtype),
        "xy_j": np.concatenate([no_pixels] + [m.xy_j.numpy() for m in matches]).astype(no_pixels.dtype),
        "conf": np.concatenate([no_values] + [m.conf.numpy() for m in matches]).astype(np.float32),
    }


def unpack_matches(packed: Mapping[str, np.ndarray]) -> tuple[Correspondences, ...]:
    """The inverse of `pack_matches`."""
    xy_i, xy_j, conf = (torch.from_numpy(packed[key]) for key in ("xy_i", "xy_j", "conf"))
    bounds = packed["offsets"].tolist()
    return tuple(
        Correspondences(i, j, xy_i[start:end], xy_j[start:end], conf[start:end])
        for (i, j), start, end in zip(packed["pairs"].tolist(), bounds[:-1], bounds[1:], strict=True)
    )


def write_matches(scene: ReconstructedScene, path: Path) -> None:
    """Writes the matches that entered the alignment."""
    views = scene.views
    write_match_arrays(scene.matches, [view.file_in_result for view in views], [view.transform for view in views], path)


def write_match_arrays(
    matches: Sequence[Correspondences], files: Sequence[str], transforms: Sequence[ImageTransform], path: Path
) -> None:
    """Writes the file of this module's docstring for images of these files and transforms."""
    original_from_network = np.array([one.original_from_network for one in transforms]).reshape(-1, 3, 3)
    images = {"files": np.array(files, dtype=np.str_), "original_from_network": original_from_network}
    write_npz(path, {**pack_matches(matches), **images})

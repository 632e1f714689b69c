"""Stand-in for the alignment. As in the published one, the frame of its result is arbitrary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

# a turn about an oblique axis, and a shift
_WORLD = np.array([[0, 0, 1, 0.3], [1, 0, 0, -2.0], [0, 1, 0, 5.0], [0, 0, 0, 1]], dtype=np.float64)


class Scene:
    """What `sparse_global_alignment` returns: tensors, some flat and some not, as the published result has them."""

    def __init__(self, poses: Any, K: Any, depths: list[Any], confs: list[Any], cleaned: list[Any], imgs: Any) -> None:
        self._poses, self._K = torch.tensor(_WORLD @ poses, dtype=torch.float32), torch.tensor(K, dtype=torch.float32)
        self._depths, self._confs, self._cleaned = depths, confs, cleaned
        self.imgs = [np.float32(image) / 255 for image in imgs]

    def get_im_poses(self) -> torch.Tensor:
        return self._poses.requires_grad_()

    def get_focals(self) -> torch.Tensor:
        return self._K[:, 0, 0]

    def get_principal_points(self) -> torch.Tensor:
        return self._K[:, :2, 2]

    def get_dense_pts3d(self, clean_depth: bool = True) -> tuple[list[Any], list[Any], list[Any]]:
        points = [torch.zeros(depth.size, 3) for depth in self._depths]
        depths = [torch.tensor(depth).reshape(-1) for depth in self._depths]
        return points, depths, [torch.tensor(conf) for conf in (self._cleaned if clean_depth else self._confs)]


def sparse_global_alignment(
    imgs: list[str],
    pairs_in: list[tuple[Any, Any]],
    cache_path: str,
    model: Any,
    *,
    lr1: float,
    niter1: int,
    lr2: float,
    niter2: int,
    device: Any,
    opt_depth: bool,
    shared_intrinsics: bool,
    matching_conf_thr: float,
) -> Scene:
    oriented = [(a["idx"], b["idx"]) for a, b in pairs_in]
    half = len(oriented) // 2
    assert oriented[half:] == [(j, i) for i, j in oriented[:half]], "both orientations are needed"
    truth = Path(imgs[0]).with_name("scene.npz")
    if truth.exists():
        file = np.load(truth)
        return Scene(file["poses"], file["K"], *(list(file[key]) for key in ("depth", "conf", "cleaned", "rgb")))
    pairs = Path(cache_path) / "pairs.txt"
    pairs.write_text("".join(f"{i} {j}\n" for i, j in oriented[:half]))
    options = {
        "lr_coarse": lr1,
        "niter_coarse": niter1,
        "lr_fine": lr2,
        "niter_fine": niter2,
        "optimize_depth": opt_depth,
        "shared_intrinsics": shared_intrinsics,
        "matching_conf_thr": matching_conf_thr,
    }
    height, width = pairs_in[0][0]["true_shape"][0]
    return _own_engine(imgs, model.inner, f"pairs:{pairs}", 224 if height == width else max(height, width), options)


def _own_engine(files: list[str], model: Any, graph: str, size: int, options: dict[str, Any]) -> Scene:
    from mast3r_sfm.images.loading import ImageSizing, load_views
    from mast3r_sfm.options import AlignmentConfig, ReconstructionOptions, SceneGraph
    from mast3r_sfm.pipeline import reconstruct

    views = load_views(files, ImageSizing.for_model(size, 16, False))
    alignment = AlignmentConfig.published(**options)
    chosen = ReconstructionOptions(
        SceneGraph.parse(graph), verification=None, alignment=alignment, refinement=None, dense=None
    )
    result = reconstruct(views, model, chosen)
    return Scene(
        np.stack([view.world_from_cam for view in result.views]),
        np.stack([view.K for view in result.views]),
        [view.depth for view in result.views],
        [view.conf for view in result.views],
        [view.conf_clean for view in result.views],
        [view.rgb for view in result.views],
    )

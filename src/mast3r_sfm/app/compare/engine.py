"""The published MASt3R packages behind our own interface: the same photos and weights, the same type of result."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mast3r_sfm.app.compare.published import UpstreamFunctions
from mast3r_sfm.errors import InputError, ModelError, ReconstructionError
from mast3r_sfm.options import SMALL_MODEL
from mast3r_sfm.types import ReconstructedScene, ReconstructedView, View


@dataclass(frozen=True)
class UpstreamOptions:
    """What the published code is asked to do.

    image_size           of its loader: 512, or 224 for the square crop
    niter_coarse/_fine   iterations of the two stages
    optimize_depth       whether the fine stage moves depths
    clean_depth          whether points floating in front of a more confident surface lose their confidence
    """

    image_size: int = 512
    niter_coarse: int = 300
    niter_fine: int = 300
    optimize_depth: bool = True
    shared_intrinsics: bool = False
    matching_conf_thr: float = 0.0
    clean_depth: bool = True


def load_model(upstream: UpstreamFunctions, name: str, device: torch.device) -> torch.nn.Module:
    """The published network with the weights of a published name or a folder in hub layout. Raises ModelError."""
    if name == SMALL_MODEL:
        raise ModelError("`model_name=small`: the published code cannot load it (patch size 8, weights in shards)")
    try:
        model: torch.nn.Module = upstream.load_model(name).to(device).eval()
    except Exception as error:  # see `reconstruct`
        raise ModelError(f"the published code cannot load {name}: {type(error).__name__}: {error}") from error
    return model


def reconstruct(
    upstream: UpstreamFunctions,
    model: torch.nn.Module,
    views: Sequence[View],
    pairs: Sequence[tuple[int, int]],
    device: torch.device,
    options: UpstreamOptions | None = None,
) -> ReconstructedScene:
    """Runs the published method on the photos of `views` and puts its answer into our terms.

    views  as our own loader made them; the published loader reads the same files again, and must arrive at the
           same sizes
    pairs  indices (i, j), each unordered pair once, decoded in this orientation and its reverse

    The result has no matches: the published functions do not hand them out. Its first camera is the world's origin.

    Raises InputError (fewer than two images, or a file its loader does not take) and ReconstructionError (it failed).
    """
    options = options or UpstreamOptions()
    files = [str(view.path) for view in views]
    if len(views) < 2:
        raise InputError("`engine=upstream` needs at least two images")
    if len(set(files)) < len(files):
        raise InputError("`engine=upstream`: a file is named twice, and the published code knows images by their path")
    images = upstream.load_images(files, size=options.image_size)
    _check_images(images, views)
    all_pairs = upstream.make_pairs(images, scene_graph="complete", prefilter=None, symmetrize=True)
    by_indices = {(a["idx"], b["idx"]): (a, b) for a, b in all_pairs}
    both_ways = [*pairs, *((j, i) for i, j in pairs)]
    with tempfile.TemporaryDirectory(prefix="mast3r-sfm-") as cache:
        try:
            scene = upstream.align(
                files,
                [by_indices[pair] for pair in both_ways],
                cache,
                model,
                lr1=0.07,
                niter1=options.niter_coarse,
                lr2=0.01,
                niter2=options.niter_fine,
                device=device,
                opt_depth=options.optimize_depth,
                shared_intrinsics=options.shared_intrinsics,
                matching_conf_thr=options.matching_conf_thr,
            )
            return to_reconstruction(scene, views, options.clean_depth)
        except Exception as error:  # whatever it raises is its failure, not an unexpected error of ours
            raise ReconstructionError(f"the published code failed: {type(error).__name__}: {error}") from error


def to_reconstruction(scene: Any, views: Sequence[View], clean_depth: bool) -> ReconstructedScene:
    """The published result `scene` in our terms: poses (n, 4, 4), focals (n,), principal points (n, 2), and per image
    depth (H*W,) and confidence (H, W). Cameras are given relative to the first."""
    world_from_cam = _array(scene.get_im_poses()).astype(np.float64)
    world_from_cam = np.linalg.inv(world_from_cam[0]) @ world_from_cam
    focals = _array(scene.get_focals()).astype(np.float64).reshape(len(views))
    centres = _array(scene.get_principal_points()).astype(np.float64)
    _, depths, confs = scene.get_dense_pts3d(clean_depth=False)
    cleaned = scene.get_dense_pts3d(clean_depth=True)[2] if clean_depth else confs
    result = []
    for k, view in enumerate(views):
        K = np.array([[focals[k], 0, centres[k, 0]], [0, focals[k], centres[k, 1]], [0, 0, 1]])
        depth, conf, conf_clean = (
            _array(maps[k]).reshape(view.shape).astype(np.float32) for maps in (depths, confs, cleaned)
        )
        result.append(
            ReconstructedView(
                index=view.index,
                file=str(view.path),
                transform=view.transform,
                rgb=np.clip(np.rint(_array(scene.imgs[k]) * 255), 0, 255).astype(np.uint8),
                registered=True,
                K=K,
                world_from_cam=world_from_cam[k],
                depth=depth,
                conf=conf,
                conf_clean=conf_clean,
                median_reprojection_error_px=float("nan"),
                num_matches=0,
                mask=view.mask,
                gps=view.gps,
                frame=view.frame,
                sample_bits=view.sample_bits,
            )
        )
    return ReconstructedScene(tuple(result), ())


def _check_images(images: Sequence[Any], views: Sequence[View]) -> None:
    """The published loader skips files whose suffix it does not know, which would shift all that follow."""
    if len(images) != len(views):
        raise InputError(
            f"the published loader took {len(images)} of {len(views)} images: "
            "it reads .jpg and .png; convert the others"
        )
    for image, view in zip(images, views, strict=True):
        height, width = (int(side) for side in np.asarray(image["true_shape"]).reshape(-1)[-2:])
        if (height, width) != view.shape:
            raise InputError(
                f"{view.path}: the published loader makes it {width}x{height}, ours {view.shape[1]}x{view.shape[0]}; "
                "both engines can be compared at `image_size` 512 or 224 with a published model only"
            )


def _array(value: Any) -> np.ndarray:
    """A tensor on any device, or an array, as NumPy."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)

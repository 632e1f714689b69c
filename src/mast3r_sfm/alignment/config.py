"""Settings of the sparse global alignment (spec: alignment, section 18)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mast3r_sfm.errors import InputError

LINKAGES = ("ward", "single", "complete", "average", "weighted", "centroid", "median")


@dataclass(frozen=True)
class AlignmentConfig:
    """How a scene is aligned. Two stages: `coarse` moves poses and sizes, `fine` also cameras and depths.

    The defaults are the published ones but for a few; `AlignmentConfig.published()` has them all.

    subsample            side S of the blocks that share an anchor, pixels
    tree                 "mst" or "hclust-LINKAGE" with a SciPy linkage name: how the chain of poses is chosen
    lr_*, niter_*        learning rate at the first iteration (cosine to zero) and number of iterations;
                         niter_fine = 0 leaves out the fine stage
    place_along_tree     start the coarse stage with the views placed by the matched points of their best pairs;
                         False: with all of them in one place
    relative_distances   the coarse stage divides distances between matched points by their depth. Without it a few
                         wrong matches with the sky or a far background outweigh all others.
    exponent_*           exponents of the robust distances; 1 is the plain distance
    fallback_weight      weight of the loss that stands in for pairs without a good match
    matching_conf_thr    a pair is good if its best match is more confident than this
    optimize_depth, optimize_principal_point
                         whether the fine stage moves them
    principal_point_prior
                         weight, in pixels of the loss, of the mean squared distance of the principal points from
                         the image centres in units of (W, H). Without it they absorb the errors of the relief:
                         they wander by several per cent of the image and take the poses along.
    shared_intrinsics    one focal length and one (relative) principal point for all views
    train_root           also move the root of the tree. That is a freedom of the frame only, and in float32 it
                         turns the world at random; the published method does it.
    """

    subsample: int = 8
    tree: str = "hclust-ward"
    lr_coarse: float = 0.07
    lr_fine: float = 0.005
    niter_coarse: int = 300
    niter_fine: int = 300
    place_along_tree: bool = True
    relative_distances: bool = True
    exponent_coarse: float = 1.5
    exponent_fine: float = 0.5
    exponent_fallback: float = 1.1
    fallback_weight: float = 0.01
    matching_conf_thr: float = 0.0
    optimize_depth: bool = True
    optimize_principal_point: bool = True
    principal_point_prior: float = 100.0
    shared_intrinsics: bool = False
    train_root: bool = False

    @classmethod
    def published(cls, **changes: Any) -> AlignmentConfig:
        """The published method, with `changes`."""
        published: dict[str, Any] = {
            "lr_fine": 0.01,
            "place_along_tree": False,
            "principal_point_prior": 0.0,
            "relative_distances": False,
            "train_root": True,
        }
        return cls(**(published | changes))

    def __post_init__(self) -> None:
        if self.subsample < 1:
            raise InputError(f"subsample is {self.subsample}, must be 1 or more")
        if min(self.niter_coarse, self.niter_fine) < 0:
            raise InputError(f"niter is {min(self.niter_coarse, self.niter_fine)}, must be 0 or more")
        if min(self.exponent_coarse, self.exponent_fine, self.exponent_fallback) <= 0:
            raise InputError("the exponents of the robust distances must be positive")
        method, _, linkage = self.tree.partition("-")
        if self.tree != "mst" and (method != "hclust" or linkage not in LINKAGES):
            raise InputError(f"tree is {self.tree!r}, must be 'mst' or 'hclust-' and one of {', '.join(LINKAGES)}")

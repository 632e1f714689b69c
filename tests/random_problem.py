"""An alignment problem of random views, matches and fallback, and random cameras for it, observation by observation."""

import dataclasses
from typing import Any

import torch

from mast3r_sfm.alignment import AlignmentConfig, build_problem, losses
from mast3r_sfm.alignment.execution.cameras import CameraMatrices
from mast3r_sfm.alignment.execution.packing import Observations
from mast3r_sfm.alignment.losses import Cameras
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.types import CanonicalView, Correspondences, FallbackPrediction

FOCAL, SHAPES = 50.0, ((40, 56), (56, 40), (48, 48), (40, 56))


def random_problem() -> AlignmentProblem:
    """Four views with random depths and matches; the pair of views 3 and 0 has no good match. float64."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    views = [
        CanonicalView(k, 0.8 + 0.4 * rand(H, W), 1 + rand(H, W), 3 + rand(H // 8, W // 8), FOCAL)
        for k, (H, W) in enumerate(SHAPES)
    ]
    matches = []
    for i, j, count in ((1, 0, 300), (2, 1, 40), (3, 2, 256), (3, 0, 20)):  # a chunk holds 256
        xy_i, xy_j = ((rand(count, 2) * torch.tensor([W, H])).int() for H, W in (SHAPES[i], SHAPES[j]))
        matches.append(Correspondences(i, j, xy_i, xy_j, rand(count) + (0.1 if (i, j) == (3, 0) else 2)))
    num_anchors = [view.core_depth.numel() for view in views]
    fallback = {
        (r, o): FallbackPrediction(4 * rand(num_anchors[o], 3), 1 + rand(num_anchors[o])) for r, o in ((3, 0), (0, 3))
    }
    problem = build_problem(views, matches, fallback, AlignmentConfig(matching_conf_thr=1.5))
    assert problem.fallback is not None and problem.matches.num_pairs == 3
    return with_dtype(problem, torch.float64)


def with_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Copies a dataclass of tensors with floats of `dtype`; weights, which are rounded, sum to one again."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: with_dtype(getattr(value, field.name), dtype) for field in dataclasses.fields(value)}
        if "weight" in changed:
            changed["weight"] /= changed["weight"].sum()
        return dataclasses.replace(value, **changed)
    return value


@dataclasses.dataclass(frozen=True)
class Seen:
    """M observations one by one: view (M,), pixel (M, 2), anchor (M,) among those of all views, offset (M,)."""

    view: torch.Tensor
    pixel: torch.Tensor
    anchor: torch.Tensor
    offset: torch.Tensor

    @classmethod
    def unpack(cls, observed: Observations, view: torch.Tensor, real: torch.Tensor) -> "Seen":
        """Of chunks (C, L) of views (C,), those that are `real` (C, L)."""
        view = view[:, None].expand_as(real)[real]
        return cls(view, observed.pixel.movedim(1, 2)[real], observed.anchor[real].long(), observed.offset[real])


def matched(problem: AlignmentProblem) -> tuple[Seen, Seen, torch.Tensor]:
    """Both sides of all matches, and their weights (M,)."""
    matches, real = problem.matches, problem.matches.weight > 0
    views = matches.pairs[matches.chunk_pair]
    first, second = (
        Seen.unpack(Observations(*(value[:, k] for value in vars(matches.observed).values())), views[:, k], real)
        for k in (0, 1)
    )
    return first, second, matches.weight[real]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the losses depend on, independent of each other, as leaves of autograd: see `CameraMatrices.of`."""

    K: torch.Tensor
    rotations: torch.Tensor
    centres: torch.Tensor
    inverse_zooms: torch.Tensor
    depths: torch.Tensor

    @classmethod
    def random(cls, problem: AlignmentProblem, turned: bool) -> "Scene":
        """Cameras that look in one direction roughly; if `turned`, view 2 in the opposite one."""
        generator = torch.Generator().manual_seed(1)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        n = problem.num_views
        skew = torch.triu(0.2 * randn(n, 3, 3), 1)
        rotations = torch.linalg.matrix_exp(skew - skew.transpose(1, 2))
        if turned:
            rotations[2] = rotations[2] @ torch.tensor([-1.0, 1, -1], dtype=torch.float64).diag()
        K = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
        K[:, 0, 0] = K[:, 1, 1] = FOCAL + 5 * randn(n)
        K[:, :2, 2] = problem.sizes / 2 + 2 * randn(n, 2)
        depths = problem.normalized_core_depths * problem.median_depths[:, None]
        return cls(K, rotations, 0.5 * randn(n, 3), FOCAL / K[:, 0, 0], depths).leaves(torch.float64)

    def leaves(self, dtype: torch.dtype) -> "Scene":
        return Scene(*(value.detach().to(dtype).requires_grad_() for value in vars(self).values()))

    @property
    def cameras(self) -> Cameras:
        return Cameras(self.K, self.rotations, self.centres)

    @property
    def matrices(self) -> CameraMatrices:
        return CameraMatrices.of(K_inverse=torch.linalg.inv(self.K), **vars(self))

    def depths_of(self, seen: Seen) -> torch.Tensor:
        return losses.observed_depths(self.depths.view(-1)[seen.anchor], seen.offset, self.inverse_zooms[seen.view])

    def points_of(self, seen: Seen) -> torch.Tensor:
        return losses.world_points(seen.pixel, self.depths_of(seen), self.cameras.of(seen.view))

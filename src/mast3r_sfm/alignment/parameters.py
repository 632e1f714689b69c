"""The unknowns of the scene in one flat vector, and the cameras and depths that follow from them.

With the size s of a view, the global scaling G = 1 / min s, the base focal fb, the focal f, the normalised core depth k
and the image centre o = (W/2, H/2, 1), or that of `CameraLayout` (docs/method.md, Parameters of the scene),

    depth   d = G s med (k - 1 + f / fb)
    centre  c = G t - G s R l,    l = med (f / fb) K^-1 o

so changing the focal moves the camera along its axis while the differences of depth stay, and the ray of the image
centre is the lever between the pose of the chain and the camera.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mast3r_sfm.alignment.kinematic_tree import KinematicTree
from mast3r_sfm.alignment.problem import AlignmentProblem


@dataclass(frozen=True)
class Parameters:
    """Views of one flat float vector, in this order. F and C, at most n, are those of `CameraLayout`.

    quaternions             (n, 4) xyzw, relative to the parent in the tree
    translations            (n, 3)
    log_sizes               (n,)
    log_focals              (F,)
    principal_points        (C, 2) in units of (W, H)
    normalized_core_depths  (n, A) k; starts as that of the problem
    """

    quaternions: torch.Tensor
    translations: torch.Tensor
    log_sizes: torch.Tensor
    log_focals: torch.Tensor
    principal_points: torch.Tensor
    normalized_core_depths: torch.Tensor


@dataclass(frozen=True)
class Intrinsics:
    """zooms f / fb (n,), K and K_inverse (n, 3, 3) pixels, levers l (n, 3)."""

    zooms: torch.Tensor
    K: torch.Tensor
    K_inverse: torch.Tensor
    levers: torch.Tensor


@dataclass(frozen=True)
class Extrinsics:
    """rotations (n, 3, 3) world from camera, centres (n, 3) world, scales (n,) G s."""

    rotations: torch.Tensor
    centres: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class Scene:
    """Cameras and depths in the world.

    log_focals, principal_points  as of `Parameters`
    rotations  (n, 3, 3) world from camera
    centres    (n, 3)
    depths     (n, A) of the anchors
    """

    log_focals: torch.Tensor
    principal_points: torch.Tensor
    rotations: torch.Tensor
    centres: torch.Tensor
    depths: torch.Tensor


class SceneModel:
    """The forward model of one problem: constants, layout of the flat vector, equations.

    focal_shares   (F,) the share of the views that have each focal length
    centre_shares  (C,) likewise of the principal points; None if it is the same for all of them
    stated_focals  (F,) as of `CameraLayout`
    of_focals, of_centres  between these numbers and the views that share them
    """

    def __init__(self, problem: AlignmentProblem) -> None:
        device = problem.device
        n, num_anchors = problem.normalized_core_depths.shape
        self.problem = problem
        self.num_views = n
        layout = problem.layout
        self.shapes = {
            "quaternions": (n, 4),
            "translations": (n, 3),
            "log_sizes": (n,),
            "log_focals": (layout.num_focals,),
            "principal_points": (layout.num_centres, 2),
            "normalized_core_depths": (n, num_anchors),
        }
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        ends = np.cumsum(sizes).tolist()
        self.slices = {name: slice(end - size, end) for name, size, end in zip(self.shapes, sizes, ends, strict=True)}
        self.size = ends[-1]

        diagonal = torch.linalg.vector_norm(problem.sizes, dim=1)
        self._focal_range = (0.25 * diagonal, 10 * diagonal)
        self._inverse_base_focals = problem.base_focals.reciprocal()
        self._focal_factors = layout.focal_factors.to(device)
        self.of_focals = Shared(layout.focal_of, self._focal_factors)
        self.of_centres = Shared(layout.centre_of, self._focal_factors)
        self.focal_shares = self.of_focals.total(self._focal_factors.new_full((n,), 1 / n))
        centre_shares = self.of_centres.total(self._focal_factors.new_full((n,), 1 / n))
        self.centre_shares = centre_shares if 1 < layout.num_centres < n else None
        self.stated_focals = layout.stated_focals.to(device)
        centres = layout.centres.to(device)
        self._centre_units = layout.centre_units.to(device)
        self._centre_offsets = centres - 0.5 * self._centre_units  # zero in the published layout
        self._image_centre = torch.cat([centres, torch.ones(n, 1, device=device)], 1)[:, :, None]
        self._zeros = torch.zeros(n, device=device)
        self._ones = torch.ones(n, device=device)
        self._rotation_basis = _rotation_basis().to(device)
        self._identity = torch.eye(3, device=device).view(1, 9)
        self._jumps = _ancestor_jumps(problem.tree, device)

    def initial(self) -> torch.Tensor:
        """(size,) float32: everything at the root with unit sizes, base focals, centred principal points.

        A shared focal length starts at the mean of the base focals, weighted by the mean confidences of the views; one
        that is stated starts there.
        """
        problem = self.problem
        theta = torch.zeros(self.size, device=problem.device)
        start = self.unpack(theta)
        start.quaternions[:, 3] = 1
        weight = problem.mean_confs / self.of_focals.per_view(self.of_focals.total(problem.mean_confs))
        mean = self.of_focals.total(weight * (problem.base_focals / self._focal_factors))
        start.log_focals[:] = torch.where(self.stated_focals.isfinite(), self.stated_focals, mean).log()
        start.principal_points[:] = 0.5
        start.normalized_core_depths[:] = problem.normalized_core_depths
        return theta

    def unpack(self, theta: torch.Tensor) -> Parameters:
        return Parameters(**{name: theta[self.slices[name]].view(shape) for name, shape in self.shapes.items()})

    def scene(self, theta: torch.Tensor) -> Scene:
        """What the parameters stand for."""
        parameters = self.unpack(theta)
        intrinsics = self.intrinsics(parameters.log_focals, parameters.principal_points)
        extrinsics = self.extrinsics(
            parameters.quaternions, parameters.translations, parameters.log_sizes, intrinsics.levers
        )
        return Scene(
            log_focals=parameters.log_focals,
            principal_points=parameters.principal_points,
            rotations=extrinsics.rotations,
            centres=extrinsics.centres,
            depths=self.depths(extrinsics.scales, intrinsics.zooms, parameters.normalized_core_depths),
        )

    def intrinsics(self, log_focals: torch.Tensor, principal_points: torch.Tensor) -> Intrinsics:
        focals = (self.of_focals.per_view(log_focals.exp()) * self._focal_factors).clamp(*self._focal_range)
        centres = self.of_centres.per_view(principal_points) * self._centre_units + self._centre_offsets
        centre_x, centre_y = centres.unbind(1)
        inverse = focals.reciprocal()
        zero, one = self._zeros, self._ones
        K = torch.stack([focals, zero, centre_x, zero, focals, centre_y, zero, zero, one], 1).view(-1, 3, 3)
        K_inverse = torch.stack(
            [inverse, zero, -centre_x * inverse, zero, inverse, -centre_y * inverse, zero, zero, one], 1
        ).view(-1, 3, 3)
        zooms = focals * self._inverse_base_focals
        return Intrinsics(
            zooms=zooms,
            K=K,
            K_inverse=K_inverse,
            levers=(zooms * self.problem.median_depths)[:, None] * (K_inverse @ self._image_centre)[..., 0],
        )

    def extrinsics(
        self, quaternions: torch.Tensor, translations: torch.Tensor, log_sizes: torch.Tensor, levers: torch.Tensor
    ) -> Extrinsics:
        poses = self._chain(torch.cat([self.rotations(quaternions), translations[:, :, None]], 2))
        sizes = log_sizes.exp()
        scaling = sizes.amin().reciprocal()  # the gradient is spread evenly over ties
        scales = sizes * scaling
        rotations = poses[:, :, :3]
        levers_world = (rotations @ levers[:, :, None])[..., 0]
        return Extrinsics(
            rotations=rotations,
            centres=poses[:, :, 3] * scaling - scales[:, None] * levers_world,
            scales=scales,
        )

    def depths(self, scales: torch.Tensor, zooms: torch.Tensor, normalized_core_depths: torch.Tensor) -> torch.Tensor:
        """(n, A) depths of the anchors, scene units."""
        unit = scales * self.problem.median_depths
        return torch.addcmul((unit * (zooms - 1))[:, None], unit[:, None], normalized_core_depths)

    def rotations(self, quaternions: torch.Tensor) -> torch.Tensor:
        """(n, 4) xyzw of any length -> (n, 3, 3)

        In the form 1 - 2(yy + zz): its gradient along an identity quaternion is exactly zero, whereas Adam would
        blow up the rounding error of any other form to a full step.
        """
        unit = quaternions / torch.linalg.vector_norm(quaternions, dim=1, keepdim=True)
        products = (unit[:, :, None] * unit[:, None, :]).view(-1, 16)
        return torch.addmm(self._identity, products, self._rotation_basis).view(-1, 3, 3)

    def _chain(self, poses: torch.Tensor) -> torch.Tensor:
        """Poses (n, 3, 4) relative to the parents -> relative to the world, in log2(depth) rounds.

        After round r every pose is relative to its ancestor 2^r levels up (pointer jumping).
        """
        for select, root, translation in self._jumps:
            ancestors = torch.addmm(root, select, poses.view(-1, 12)).view(-1, 3, 4)
            poses = torch.baddbmm(ancestors * translation, ancestors[:, :, :3], poses)
        return poses


class Shared:
    """Values that n views share: from one per number to one per view, and sums the other way.

    One value, or as many as views, are broadcast as they are. Otherwise a matrix selects: the gradient of an indexed
    read is a sum by atomics on a GPU.

    number_of  (n,) int64 the number of each view, by first appearance
    like       of the device and type of the values
    """

    def __init__(self, number_of: torch.Tensor, like: torch.Tensor) -> None:
        n, count = len(number_of), int(number_of.max()) + 1
        self._broadcast = count in (1, n)
        self._summed = count == 1 < n
        self._select = torch.nn.functional.one_hot(number_of).to(like)

    def per_view(self, values: torch.Tensor) -> torch.Tensor:
        """(count, ...) -> (n, ...), or (1, ...) if all share one."""
        return values if self._broadcast else self._select @ values

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """(n, ...) -> (count, ...): the sums over the views that share a number."""
        if self._broadcast:
            return values.sum(0, keepdim=True) if self._summed else values
        return self._select.T @ values


# rotation matrix minus the identity, row by row, as sums of products of the unit quaternion (x, y, z, w)
_ROTATION_TERMS: tuple[dict[str, int], ...] = (
    {"yy": -2, "zz": -2},
    {"xy": 2, "zw": -2},
    {"xz": 2, "yw": 2},
    {"xy": 2, "zw": 2},
    {"xx": -2, "zz": -2},
    {"yz": 2, "xw": -2},
    {"xz": 2, "yw": -2},
    {"yz": 2, "xw": 2},
    {"xx": -2, "yy": -2},
)


def _rotation_basis() -> torch.Tensor:
    """(16, 9): products q_a q_b, row 4 a + b, to entries of the rotation matrix."""
    basis = torch.zeros(16, 9)
    for column, terms in enumerate(_ROTATION_TERMS):
        for product, factor in terms.items():
            a, b = ("xyzw".index(component) for component in product)
            basis[4 * a + b, column] = factor
    return basis


def _ancestor_jumps(tree: KinematicTree, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For every round of the chain: (n, n) selection of the ancestors, (n, 12) identity poses for the views that
    have none left, and the mask (4,) of a pose's translation column.

    Selection by a matrix, because the gradient of an indexed read is a sum by atomics on a GPU.
    """
    ancestor = tree.parents()
    translation = torch.tensor([0.0, 0, 0, 1], device=device)
    jumps = []
    while (ancestor >= 0).any():
        has_one = ancestor >= 0
        select = torch.zeros(len(ancestor), len(ancestor))
        select[np.flatnonzero(has_one), ancestor[has_one]] = 1
        identity = torch.eye(3, 4).view(1, 12) * torch.from_numpy(~has_one)[:, None]
        jumps.append((select.to(device), identity.to(device), translation))
        ancestor = np.where(has_one, ancestor[ancestor], -1)
    return jumps

"""The alignment against a plain transcription of its equations, and against known scenes."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from golden_scene import GoldenScene, load_scene
from torch.utils._python_dispatch import TorchDispatchMode

from mast3r_sfm.alignment import (
    AlignmentConfig,
    CameraLayout,
    align,
    build_problem,
    losses,
    reprojection_errors,
)
from mast3r_sfm.alignment.execution import segments as segment_sums
from mast3r_sfm.alignment.execution import slabs
from mast3r_sfm.alignment.execution.adam import BETAS, EPS, CosineAdam
from mast3r_sfm.alignment.execution.segments import SegmentSum
from mast3r_sfm.alignment.initial import place_along_tree
from mast3r_sfm.alignment.objectives import CoarseObjective, FineObjective
from mast3r_sfm.alignment.parameters import SceneModel
from mast3r_sfm.alignment.problem import AlignmentProblem
from mast3r_sfm.alignment.solver import Stage
from mast3r_sfm.canonical import anchor_index, depth_offsets
from mast3r_sfm.errors import InputError, ReconstructionError
from mast3r_sfm.pairwise import sample_fallback
from mast3r_sfm.types import CanonicalView, Correspondences, FallbackPrediction, ImageTransform

PUBLISHED = AlignmentConfig.published()


def problem_of(scene: GoldenScene, config: AlignmentConfig) -> AlignmentProblem:
    fallback: dict[tuple[int, int], FallbackPrediction] = {}
    for pair in scene.pair_predictions():
        fallback |= sample_fallback(pair, config.subsample)
    return build_problem(scene.canonical_views, scene.correspondences, fallback, config)


# --- pieces ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_at_once", [1 << 22, 7])
@pytest.mark.parametrize("lengths", [[3, 0, 1], [1], [0, 0], [40, 1, 2, 0, 1, 1, 300], list(range(30))])
def test_segment_sums_equal_a_loop(lengths: list[int], rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_sums, "_ROWS_AT_ONCE", rows_at_once)
    generator = torch.Generator().manual_seed(0)
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    segments = torch.cat([segments, torch.tensor([-1, -1])])  # left out
    segments = torch.cat([segments[torch.randperm(len(segments), generator=generator)], torch.tensor([-1])])
    values = torch.randn(len(segments), 2, generator=generator, dtype=torch.float64)
    values[-1] = 0
    total = SegmentSum(segments, len(lengths), zero_row=len(segments) - 1)(values)
    for k in range(len(lengths)):
        torch.testing.assert_close(total[k], values[segments == k].sum(0))


def test_adam_equals_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(50, generator=generator)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    adam, reference = CosineAdam(ours, 0.05, 20), torch.optim.Adam([theirs], lr=0.05, betas=BETAS, eps=EPS)
    for iteration in range(20):
        gradient = torch.randn(50, generator=generator) * 10 ** torch.linspace(-9, 2, 50)
        reference.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * iteration / 20)) / 2
        theirs.grad = gradient
        adam.step(gradient)
        reference.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=2e-6, atol=1e-6)


def test_a_chain_of_poses_is_the_product_along_the_tree() -> None:
    scene = load_scene("swin6")
    problem = problem_of(scene, dataclasses.replace(PUBLISHED, tree="mst"))
    model = SceneModel(problem)
    generator = torch.Generator().manual_seed(2)
    poses = torch.randn(6, 3, 4, generator=generator)
    expected = {problem.tree.root: poses[problem.tree.root]}
    for parent, child in problem.tree.edges:
        product = expected[parent][:, :3] @ poses[child]
        product[:, 3] += expected[parent][:, 3]
        expected[child] = product
    chained = model._chain(poses)
    for view in range(6):
        torch.testing.assert_close(chained[view], expected[view], rtol=1e-5, atol=1e-4)


# --- losses and gradients against their definitions ---------------------------------------------------------------


class Transcription:
    """Losses of parameters by their definitions, and a plain forward model: per image and pair, for autograd."""

    def __init__(self, scene: GoldenScene, problem: AlignmentProblem, config: AlignmentConfig) -> None:
        self.scene, self.problem, self.config = scene, problem, config
        self.views = scene.canonical_views
        self.sides = {}
        for m in scene.correspondences:
            for a, b, xy in ((m.i, m.j, m.xy_i), (m.j, m.i, m.xy_j)):
                view = self.views[a]
                H, W = view.conf.shape
                self.sides[a, b] = (
                    xy.double(),
                    anchor_index(xy, (H, W), 8),
                    depth_offsets(view.relative_depth, xy, 8).double() - 1,
                    m.conf.double(),
                )

    def unit_depths(self, a: int, b: int, p: dict[str, torch.Tensor]) -> torch.Tensor:
        """Depths of a's pixels that are matched with b, with the start's intrinsics and core depths, at size 1."""
        view, (_, anchor, offset, _) = self.views[a], self.sides[a, b]
        zoom = p["log_focals"][a % len(p["log_focals"])].detach().exp() / view.focal_px
        median = view.core_depth.median().double()
        core = median * (zoom - 1) + view.core_depth.double().view(-1)
        return losses.observed_depths(core[anchor], offset, 1 / zoom)

    def __call__(self, p: dict[str, torch.Tensor], fine: bool) -> torch.Tensor:
        cameras, depths, inverse_zooms = self.forward(p)

        def every(view: int, pixels: torch.Tensor) -> losses.Cameras:
            return cameras.of(torch.full((len(pixels),), view))

        def world(a: int, b: int) -> torch.Tensor:
            xy, anchor, offset, _ = self.sides[a, b]
            z = losses.observed_depths(depths[a][anchor], offset, inverse_zooms[a])
            return losses.world_points(xy, z, every(a, xy))

        good = [key for key, side in self.sides.items() if side[3].max() > self.config.matching_conf_thr]
        # a loss is a weighted mean over the matches of all pairs, so those of a pair count with their sum of weights
        terms = []
        for a, b in good:
            xy, _, _, conf = self.sides[a, b]
            if fine:
                loss = losses.fine_loss(xy, world(b, a), every(a, xy), conf, 0.5)
            else:
                units = losses.relative_units(self.unit_depths(a, b, p), self.unit_depths(b, a, p))
                relative = self.config.relative_distances
                loss = losses.coarse_loss(world(a, b), world(b, a), conf, 1.5, units if relative else None)
            terms.append((loss, conf.sum()))
        loss = weighted_mean(terms)
        terms = []
        for a, b in (key for key in self.sides if key not in good):
            prediction = self.scene.prediction(b, a, a)
            points = prediction.points[::8, ::8].reshape(-1, 3).double()
            confs = prediction.conf[::8, ::8].reshape(-1).double()
            for other in (key[1] for key in self.sides if key[0] == a):
                anchor = self.sides[a, other][1]
                predicted, conf = points[anchor], confs[anchor]
                fallback = losses.fallback_loss(world(a, other), predicted, every(b, predicted), conf, 1.1)
                terms.append((fallback, conf.sum()))
        return loss + 0.01 * weighted_mean(terms) if terms else loss

    def forward(self, p: dict[str, torch.Tensor]) -> tuple[losses.Cameras, list[torch.Tensor], list[torch.Tensor]]:
        """Cameras, and per view the depths of the anchors and base focal / focal."""
        n, views = len(self.views), self.views
        m = len(p["log_focals"])
        s = p["log_sizes"].exp()
        G = 1 / s.min()
        T = []
        for x, y, z, w in (p["quaternions"] / p["quaternions"].norm(dim=1, keepdim=True)).unbind():
            rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]
            rows += [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]
            rows += [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
            T.append(torch.stack(rows).view(3, 3))
        root, edges = self.problem.tree.root, self.problem.tree.edges
        P = {root: (T[root], p["translations"][root])}
        for a, b in edges:
            P[b] = (P[a][0] @ T[b], P[a][0] @ p["translations"][b] + P[a][1])
        K, R, c, depths, inverse_zooms = [], [], [], [], []
        for i in range(n):
            H, W = views[i].conf.shape
            base_focal, median = views[i].focal_px, views[i].core_depth.median().double()
            diag = math.hypot(H, W)
            f = p["log_focals"][i % m].exp().clamp(0.25 * diag, 10 * diag)
            cx, cy = p["principal_points"][i % m] * torch.tensor([W, H])
            zero, one = torch.zeros(()), torch.ones(())
            K.append(torch.stack([f, zero, cx, zero, f, cy, zero, zero, one]).view(3, 3))
            zc = s[i] * median * f / base_focal
            v = zc * torch.stack([W / f * (0.5 - cx / W), H / f * (0.5 - cy / H), one])
            R.append(P[i][0])
            c.append(G * (P[i][1] - P[i][0] @ v))
            k = p["normalized_core_depths"][i][: views[i].core_depth.numel()]
            depths.append(G * (zc + (k - 1) * median * s[i]))
            inverse_zooms.append(base_focal / f)
        return losses.Cameras(torch.stack(K), torch.stack(R), torch.stack(c)), depths, inverse_zooms


def weighted_mean(terms: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Of (value, weight)."""
    mean = sum(value * weight for value, weight in terms) / sum(weight for _, weight in terms)
    assert isinstance(mean, torch.Tensor)
    return mean


def in_float64(value: Any) -> Any:
    """Copies a dataclass of tensors with float64 for float32."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: in_float64(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


@contextmanager
def float64_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("fine", [False, True], ids=["coarse", "fine"])
@pytest.mark.parametrize("turned", [False, True], ids=["near", "one view turned round"])
@pytest.mark.parametrize(
    ("name", "shared", "relative"), [("fallback4", False, False), ("mixed4", False, True), ("shared4", True, True)]
)
def test_objectives_equal_the_transcription(name: str, shared: bool, relative: bool, fine: bool, turned: bool) -> None:
    scene = load_scene(name)
    config = dataclasses.replace(
        PUBLISHED,
        matching_conf_thr=scene.options["matching_conf_thr"],
        shared_intrinsics=shared,
        relative_distances=relative,
    )
    problem = in_float64(problem_of(scene, config))
    with float64_default():
        model = SceneModel(problem)
        generator = torch.Generator().manual_seed(3)
        theta = model.initial()
        for name_, spread in {"quaternions": 0.1, "translations": 0.2, "log_sizes": 0.2}.items():
            part = theta[model.slices[name_]]
            part += spread * torch.randn(part.shape, generator=generator)
        coarse = CoarseObjective(problem, config, theta)
        if fine:
            for name_, spread in {"log_focals": 0.1, "principal_points": 0.02, "normalized_core_depths": 0.05}.items():
                theta[model.slices[name_]] += spread * torch.randn(
                    theta[model.slices[name_]].shape, generator=generator
                )
        if turned:  # its points lie behind the others' cameras: the limits of the projection act
            model.unpack(theta).quaternions[0] = torch.tensor([0.1, 1.0, 0.0, 0.2])
        objective = FineObjective(problem, config) if fine else coarse

        loss, gradients = objective(theta)

        parameters = {name: value.clone().requires_grad_() for name, value in vars(model.unpack(theta)).items()}
        expected = Transcription(scene, problem, config)(parameters, fine)
        wanted = torch.autograd.grad(expected, [parameters[name] for name in objective.trained])
        assert float(loss) == pytest.approx(
            float(expected.detach()), rel=1e-6
        )  # the constants of the problem are float32
        for name_, gradient in zip(objective.trained, wanted, strict=True):
            assert (gradients[name_] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name_


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = load_scene("fallback4")
    config = dataclasses.replace(PUBLISHED, matching_conf_thr=5.0)
    problem = problem_of(scene, config)
    theta = SceneModel(problem).initial()
    whole = [
        objective(theta) for objective in (CoarseObjective(problem, config, theta), FineObjective(problem, config))
    ]
    monkeypatch.setattr(slabs, "_SLAB", {"cpu": 3 * 256})
    parts = [
        objective(theta) for objective in (CoarseObjective(problem, config, theta), FineObjective(problem, config))
    ]
    for (loss, gradients), (loss_part, gradients_part) in zip(whole, parts, strict=True):
        torch.testing.assert_close(loss, loss_part)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradients_part[name], gradient, rtol=1e-5, atol=1e-6)


def test_the_prior_pulls_principal_points_to_the_centre() -> None:
    problem = problem_of(load_scene("mixed4"), PUBLISHED)
    theta = SceneModel(problem).initial()
    SceneModel(problem).unpack(theta).principal_points[1] += torch.tensor([0.1, -0.2])
    free, free_gradient = FineObjective(problem, PUBLISHED)(theta)
    config = dataclasses.replace(PUBLISHED, principal_point_prior=40.0)
    held, held_gradient = FineObjective(problem, config)(theta)
    assert float(held - free) == pytest.approx(40 * (0.1**2 + 0.2**2) / 4, rel=1e-4)
    difference = held_gradient["principal_points"] - free_gradient["principal_points"]
    torch.testing.assert_close(difference[1], torch.tensor([2.0, -4.0]), rtol=1e-3, atol=1e-4)
    assert (difference[[0, 2, 3]].abs() < 1e-5).all()


# --- whole alignments ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pinhole:
    """Size, focal length and principal point of an image, pixels."""

    width: int = 128
    height: int = 96
    focal: float = 110.0
    centre: tuple[float, float] = (64.0, 48.0)


def hilly_scene(
    num_views: int, indices: list[int] | None = None, cameras: Sequence[Pinhole] | None = None
) -> tuple[list[CanonicalView], list[Correspondences]]:
    """Views of a hilly wall, side by side and turned a little, with exact canonical views and matches."""
    indices = list(range(num_views)) if indices is None else indices
    cameras = [Pinhole()] * num_views if cameras is None else cameras
    views, poses, worlds, pixels = [], [], [], []
    for k, camera in enumerate(cameras):
        H, W, focal = camera.height, camera.width, camera.focal
        x, y = torch.meshgrid(torch.arange(W, dtype=torch.float64), torch.arange(H, dtype=torch.float64), indexing="xy")
        rays = torch.stack([(x - camera.centre[0]) / focal, (y - camera.centre[1]) / focal, torch.ones_like(x)], -1)
        pixels.append((x, y))
        angle = -0.1 * k
        R = torch.tensor([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
        R = R.double()
        centre = torch.tensor([0.5 * k, 0.1 * k * k, 0.0], dtype=torch.float64)
        directions = rays @ R.T
        depth = torch.full((H, W), 5.0, dtype=torch.float64)
        for _ in range(60):  # a contraction: the hills are less steep than the rays
            point = centre + directions * depth[..., None]
            wall = 5 + 0.2 * point[..., 0] + 0.6 * torch.sin(1.3 * point[..., 0]) * torch.cos(1.1 * point[..., 1])
            depth = (wall - centre[2]) / directions[..., 2]
        core = depth[4::8, 4::8]
        relative = depth / core.repeat_interleave(8, 0).repeat_interleave(8, 1)
        views.append(CanonicalView(indices[k], relative.float(), torch.full((H, W), 2.0), core.float(), focal))
        poses.append((R, centre))
        worlds.append(centre + directions * depth[..., None])
    matches = []
    for a in range(num_views):
        for b in range(a):
            source = worlds[a][::2, ::2].reshape(-1, 3)
            cam = (source - poses[b][1]) @ poses[b][0]
            uv = cam[:, :2] / cam[:, 2:] * cameras[b].focal + torch.tensor(cameras[b].centre)
            near = uv.round()
            inside = (near >= 0).all(1) & (near[:, 0] < cameras[b].width) & (near[:, 1] < cameras[b].height)
            kept = ((uv - near).norm(dim=1) < 0.2) & inside
            x, y = pixels[a]
            xy_a = torch.stack([x[::2, ::2].reshape(-1), y[::2, ::2].reshape(-1)], 1)[kept].int()
            matches.append(
                Correspondences(indices[a], indices[b], xy_a, near[kept].int(), torch.full((int(kept.sum()),), 3.0))
            )
    return views, matches


def test_exact_views_are_put_where_they_were() -> None:
    views, matches = hilly_scene(4, indices=[9, 2, 5, 7])  # identities are not positions
    config = AlignmentConfig(niter_coarse=200, niter_fine=0)
    problem = build_problem(views, matches, {}, config)
    placed = align(problem, config)
    for a in range(4):
        for b in range(a):
            b_from_a = torch.linalg.inv(placed.world_from_cam[b]) @ placed.world_from_cam[a]
            angle = math.acos(min(1.0, (float(b_from_a[:3, :3].trace()) - 1) / 2))
            assert angle == pytest.approx(0.1 * (a - b), abs=1e-3)
    centres = placed.world_from_cam[:, :3, 3]
    # distances between neighbours: |(0.5, 0.1 (2k + 1))|
    steps = (centres[1:] - centres[:-1]).norm(dim=1)
    wanted = torch.tensor([math.hypot(0.5, 0.1 * (2 * k + 1)) for k in range(3)]).double()
    torch.testing.assert_close(steps, wanted, rtol=5e-3, atol=0)
    for view, core in zip(views, placed.core_depths, strict=True):
        torch.testing.assert_close(core, view.core_depth, rtol=5e-3, atol=0)
    # the fine stage fits the rounding of the matches to whole pixels, at most 0.2 pixels, better still
    fine = dataclasses.replace(config, niter_fine=100)
    before, after = reprojection_errors(problem, placed), reprojection_errors(problem, align(problem, fine))
    assert (before < 0.2).all() and (after < before).all()


def photos_of_one_camera() -> tuple[list[ImageTransform], list[Pinhole]]:
    """4:3 photos of 256x192, their centred 1:1 crops of 192x192, and upright ones, with a focal length of 220."""
    landscape = ImageTransform((256, 192), (128, 96), (0, 0), (128, 96))
    square = ImageTransform((192, 192), (128, 128), (0, 0), (128, 128))
    upright = ImageTransform((192, 256), (96, 128), (0, 0), (96, 128))
    transforms = [landscape, square, landscape, square, upright]
    cameras = []
    for transform in transforms:
        width, height = transform.original_size
        K = transform.K_to_network(np.array([[220, 0, (width - 1) / 2], [0, 220, (height - 1) / 2], [0, 0, 1]]))
        cameras.append(Pinhole(*transform.network_size, float(K[0, 0]), (float(K[0, 2]), float(K[1, 2]))))
    return transforms, cameras


def test_photos_of_one_camera_share_a_focal_length_whatever_their_shape() -> None:
    transforms, cameras = photos_of_one_camera()
    views, matches = hilly_scene(5, cameras=cameras)
    # as a network errs: for every photo another focal length
    guesses = [1.1, 0.95, 1.0, 0.9, 1.1]
    views = [dataclasses.replace(v, focal_px=v.focal_px * g) for v, g in zip(views, guesses, strict=True)]
    config = AlignmentConfig(niter_coarse=80, niter_fine=200)
    result = align(build_problem(views, matches, {}, config, CameraLayout.of_photos(transforms, [7] * 5)), config)
    K = np.stack([t.K_to_original(own) for t, own in zip(transforms, result.K.numpy(), strict=True)])
    np.testing.assert_allclose(K[:, 0, 0], K[0, 0, 0], rtol=1e-6)
    assert K[0, 0, 0] == pytest.approx(220, rel=0.01)
    # landscape and square photos share their offset from the centre of the pixels; that of an upright one is its own
    offsets = K[:, :2, 2] - [((w - 1) / 2, (h - 1) / 2) for w, h in (t.original_size for t in transforms)]
    np.testing.assert_allclose(offsets[:4], offsets[:1].repeat(4, 0), atol=1e-4)
    assert not np.allclose(offsets[4], offsets[0], atol=1e-4)
    assert np.abs(offsets).max() < 3

    # one focal length in network pixels fits neither: the photos' shares of a pixel are 1/2 and 2/3
    config = dataclasses.replace(config, shared_intrinsics=True)
    wrong = align(build_problem(views, matches, {}, config), config).K[:, 0, 0]
    off = [float(f) / t.network_per_original / 220 for f, t in zip(wrong, transforms, strict=True)]
    assert max(off) / min(off) == pytest.approx(4 / 3) and max(abs(np.log(off))) > 0.1


def test_the_layout_of_photos_by_hand() -> None:
    transforms, _ = photos_of_one_camera()
    layout = CameraLayout.of_photos(transforms, [3, 3, 1, 3, 3], [200.0, 200.0, None, 200.0, 200.0])
    assert layout.focal_of.tolist() == [0, 0, 1, 0, 0]
    assert layout.centre_of.tolist() == [0, 0, 1, 0, 2]
    torch.testing.assert_close(layout.focal_factors, torch.tensor([1 / 2, 2 / 3, 1 / 2, 2 / 3, 1 / 2]))
    torch.testing.assert_close(layout.stated_focals, torch.tensor([200, torch.nan]), equal_nan=True)
    # 4:3: ((256 - 1) / 2 + 1/2) / 2 - 1/2 = 63.5. Square: (95.5 + 1/2) 2/3 - 1/2 = 63.5.
    assert layout.centres[:2].tolist() == [[63.5, 47.5], [63.5, 63.5]]
    # the group's largest sides are 256 and 192, times the factors
    torch.testing.assert_close(layout.centre_units[:2], torch.tensor([[128, 96], [256 * 2 / 3, 128]]))
    # a crop off the middle: the resized photo is 134 wide, 2 of its pixels are cut off on the left and 4 on the right
    cut = ImageTransform((268, 192), (134, 96), (2, 0), (128, 96))
    assert CameraLayout.of_photos([cut], [0]).centres.tolist() == [[64.5, 47.5]]


def test_a_group_starts_at_its_mean_or_where_exif_says() -> None:
    transforms, cameras = photos_of_one_camera()
    views, matches = hilly_scene(5, cameras=cameras)
    guesses = [1.1, 0.9, 1.0, 0.8, 1.2]
    views = [dataclasses.replace(v, focal_px=v.focal_px * g) for v, g in zip(views, guesses, strict=True)]
    views[1] = dataclasses.replace(views[1], conf=views[1].conf * 3)
    layout = CameraLayout.of_photos(transforms, [0, 0, 1, 1, 2], [None, None, 250.0, 250.0, None])
    model = SceneModel(build_problem(views, matches, {}, AlignmentConfig(), layout))
    start = model.unpack(model.initial())
    # (1.1 + 3 * 0.9) / 4 = 0.95 of 220
    torch.testing.assert_close(start.log_focals.exp(), torch.tensor([209.0, 250.0, 264.0]))
    focals = model.intrinsics(start.log_focals, start.principal_points).K[:, 0, 0]
    torch.testing.assert_close(focals, torch.tensor([209 / 2, 209 * 2 / 3, 250 / 2, 250 * 2 / 3, 264 / 2]))


def test_objectives_of_groups_equal_finite_differences() -> None:
    transforms, cameras = photos_of_one_camera()
    views, matches = hilly_scene(5, cameras=cameras)
    config = AlignmentConfig(focal_prior=3.0)
    layout = CameraLayout.of_photos(transforms, [0, 0, 1, 1, 0], [200.0, 200.0, None, None, 200.0])
    problem = in_float64(build_problem(views, matches, {}, config, layout))
    with float64_default():
        objective = FineObjective(problem, config)
        theta = objective.model.initial()
        place_along_tree(objective.model, CoarseObjective(problem, config, theta).points, theta)
        theta[objective.model.slices["principal_points"]] += torch.linspace(-0.02, 0.03, 6)
        gradients = objective(theta)[1]
        for name in ("log_focals", "principal_points"):
            part, step = objective.model.slices[name], 1e-6
            for k in range(part.start, part.stop):
                by_step = torch.zeros_like(theta)
                by_step[k] = step
                slope = float(objective(theta + by_step)[0] - objective(theta - by_step)[0]) / (2 * step)
                assert float(gradients[name].reshape(-1)[k - part.start]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def relative_to(poses: torch.Tensor, first: int) -> torch.Tensor:
    return torch.linalg.inv(poses[first]) @ poses


@pytest.mark.parametrize("tree", ["hclust-ward", "mst"])
def test_placement_along_the_tree_solves_exact_views_at_once(tree: str) -> None:
    # without an iteration; a third of the matches are wrong, and two views are scaled
    views, matches = hilly_scene(5)
    scales = [1.0, 1.3, 1.0, 0.8, 1.0]
    views = [dataclasses.replace(v, core_depth=v.core_depth * s) for v, s in zip(views, scales, strict=True)]
    generator = torch.Generator().manual_seed(4)
    for m in matches:
        wrong = torch.rand(len(m), generator=generator) < 0.33
        m.xy_j[wrong] = m.xy_j[torch.randperm(len(m), generator=generator)][wrong]
    config = AlignmentConfig(niter_coarse=0, niter_fine=0, tree=tree)
    result = align(build_problem(views, matches, {}, config), config)
    rotations = relative_to(result.world_from_cam, 0)[:, :3, :3]
    for k in range(5):
        angle = math.acos(min(1.0, (float(rotations[k].trace()) - 1) / 2))
        assert angle == pytest.approx(0.1 * k, abs=0.02)
    depth = torch.stack([core.median() for core in result.core_depths])
    ratio = depth * torch.tensor(scales) / torch.stack([view.core_depth.median() for view in views])
    torch.testing.assert_close(ratio / ratio[0], torch.ones(5), rtol=0.02, atol=0)
    root = build_problem(views, matches, {}, config).tree.root
    assert torch.equal(result.world_from_cam[root, :3, :3], torch.eye(3).double())


def test_placement_bridges_a_bad_pair() -> None:
    # views 0 and 1 connect to 2 and 3 by a pair below the threshold only
    views, matches = hilly_scene(4)
    kept = [m for m in matches if (m.i, m.j) in ((1, 0), (2, 1), (3, 2))]
    weak = [dataclasses.replace(m, conf=m.conf / 10) if m.i == 2 else m for m in kept]
    fallback = {
        key: FallbackPrediction(torch.rand(192, 3) + torch.tensor([0.0, 0, 4]), torch.ones(192))
        for key in ((1, 2), (2, 1))
    }
    config = AlignmentConfig(niter_coarse=0, niter_fine=0, matching_conf_thr=1.0)
    result = align(build_problem(views, weak, fallback, config), config)
    for pair in ((0, 1), (2, 3)):
        relative = relative_to(result.world_from_cam[list(pair)], 0)[1]
        assert math.acos((float(relative[:3, :3].trace()) - 1) / 2) == pytest.approx(0.1, abs=0.01)


def test_a_far_background_does_not_outweigh_the_rest() -> None:
    # one pixel in 64 of the grid that is matched (and no block centre) is a thousand times too far away
    views, matches = hilly_scene(3)
    for view in views:
        view.relative_depth[2::16, 2::16] *= 1000
    angles = {}
    for relative in (True, False):
        config = AlignmentConfig(niter_coarse=100, niter_fine=0, relative_distances=relative)
        rotations = relative_to(align(build_problem(views, matches, {}, config), config).world_from_cam, 0)[:, :3, :3]
        angles[relative] = math.acos(min(1.0, (float(rotations[2].trace()) - 1) / 2))
    assert angles[True] == pytest.approx(0.2, abs=0.01)
    assert abs(angles[False] - 0.2) > 0.1


def test_reprojection_errors_by_hand() -> None:
    views, matches = hilly_scene(2)
    config = AlignmentConfig(niter_coarse=0, niter_fine=0)
    problem = build_problem(views, matches, {}, config)
    result = dataclasses.replace(align(problem, config), world_from_cam=torch.eye(4).double().repeat(2, 1, 1))
    # the cameras coincide: a pixel projects to itself, whatever its depth
    expected = (matches[0].xy_i - matches[0].xy_j).float().norm(dim=1).median()
    torch.testing.assert_close(reprojection_errors(problem, result).float(), expected.expand(2), rtol=1e-4, atol=1e-3)
    behind = dataclasses.replace(result, world_from_cam=result.world_from_cam.clone())
    behind.world_from_cam[1, 2, 3] += 100.0
    assert reprojection_errors(problem, behind)[1] == math.inf


def test_runs_repeat_to_the_bit_and_report_progress() -> None:
    scene = load_scene("mixed4")
    for second_order, expected in ((False, [10, 10, 5, 10, 2]), (True, [10, 2])):  # 25 coarse, 12 fine iterations
        config = AlignmentConfig(niter_coarse=25, niter_fine=12, second_order=second_order)
        problem = problem_of(scene, config)
        calls: list[int] = []
        first, second = align(problem, config, calls.append), align(problem, config)
        assert torch.equal(first.world_from_cam, second.world_from_cam)
        assert all(torch.equal(a, b) for a, b in zip(first.core_depths, second.core_depths, strict=True))
        assert calls == expected
    assert [depth.shape for depth in first.core_depths] == [view.core_depth.shape for view in scene.canonical_views]


def test_the_root_stays_where_it_was() -> None:
    problem = problem_of(load_scene("orbit5"), PUBLISHED)
    config = AlignmentConfig(niter_coarse=40, niter_fine=0)
    result = align(problem, config)
    root = problem.tree.root
    assert torch.equal(result.world_from_cam[root, :3, :3], torch.eye(3).double())
    moved = align(problem, dataclasses.replace(config, train_root=True))
    torch.testing.assert_close(result.losses_coarse[:5], moved.losses_coarse[:5], rtol=1e-4, atol=0)


def test_the_result_is_that_of_the_last_forward_pass() -> None:
    scene = load_scene("mixed4")
    results = [
        align(problem_of(scene, c), c) for c in (AlignmentConfig(niter_coarse=k, niter_fine=0) for k in (0, 1, 2))
    ]
    assert len(results[0].losses_coarse) == 0
    assert torch.equal(results[0].world_from_cam, results[1].world_from_cam)
    assert not torch.equal(results[1].world_from_cam, results[2].world_from_cam)


def test_frozen_parameters_do_not_move() -> None:
    scene = load_scene("mixed4")
    config = AlignmentConfig(niter_coarse=5, niter_fine=5, optimize_principal_point=False)
    result = align(problem_of(scene, config), config)
    assert (result.K[:, :2, 2] == torch.tensor(scene.golden["principal_points"])).all()
    config = AlignmentConfig(niter_coarse=5, niter_fine=5, shared_intrinsics=True)
    result = align(problem_of(scene, config), config)
    assert (result.K[:, 0, 0] == result.K[0, 0, 0]).all()


def test_one_view_comes_back_as_it_is() -> None:
    views, _ = hilly_scene(1)
    problem = build_problem(views, [], {}, AlignmentConfig())
    result = align(problem, AlignmentConfig())
    torch.testing.assert_close(result.core_depths[0], views[0].core_depth)
    assert float(result.K[0, 0, 0]) == pytest.approx(110, rel=1e-6)
    assert reprojection_errors(problem, result).isnan().all()


# --- what can be wrong with the input ---------------------------------------------------------------------------------


def test_pairs_without_a_match_are_left_out_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    views, matches = hilly_scene(3)
    empty = Correspondences(2, 0, torch.zeros(0, 2).int(), torch.zeros(0, 2).int(), torch.zeros(0))
    with caplog.at_level(logging.WARNING):
        problem = build_problem(views, [m for m in matches if (m.i, m.j) != (2, 0)] + [empty], {}, AlignmentConfig())
    assert [record.message for record in caplog.records] == ["1 of 3 pairs have no match and are left out: 2-0"]
    assert problem.matches.num_pairs == 2
    assert problem.scores[2, 0] == 0


def test_views_that_do_not_connect_are_named() -> None:
    views, matches = hilly_scene(4, indices=[3, 8, 11, 20])
    kept = [m for m in matches if (m.i, m.j) in ((8, 3), (11, 8))]
    with pytest.raises(ReconstructionError, match=r"2 groups .*\(3, 8, 11; 20\)"):
        build_problem(views, kept, {}, AlignmentConfig())


def test_other_faults() -> None:
    views, matches = hilly_scene(2)
    with pytest.raises(ValueError, match="occurs twice"):
        build_problem(views, [*matches, *matches], {}, AlignmentConfig())
    with pytest.raises(ValueError, match="fallback"):
        build_problem(views, matches, {}, AlignmentConfig(matching_conf_thr=5.0))
    with pytest.raises(ValueError, match="subsample=4"):
        build_problem(views, matches, {}, AlignmentConfig(subsample=4))
    flat = [views[0], dataclasses.replace(views[1], core_depth=-views[1].core_depth)]
    with pytest.raises(ReconstructionError, match="image 1: its median depth"):
        build_problem(flat, matches, {}, AlignmentConfig())
    broken = views[0].relative_depth.clone()
    broken[:] = torch.nan
    config = AlignmentConfig(niter_coarse=30)
    bad = [dataclasses.replace(views[0], relative_depth=broken), views[1]]
    with pytest.raises(ReconstructionError, match="images 1 and 0 are not finite"):
        align(build_problem(bad, matches, {}, config), config)
    config = AlignmentConfig.published()
    with pytest.raises(ReconstructionError, match=r"coarse stage .* iteration 0"):
        align(build_problem(bad, matches, {}, config), config)
    for wrong in ({"tree": "star"}, {"tree": "hclust-wards"}, {"niter_fine": -1}, {"subsample": 0}):
        with pytest.raises(InputError):
            AlignmentConfig(**wrong)


def test_matches_of_partial_blocks_and_a_subsample_that_does_not_divide() -> None:
    # 42 x 70 pixels, S = 8: the last row and column of blocks are partial
    relative = torch.from_numpy(np.random.default_rng(0).uniform(0.9, 1.1, (42, 70)).astype(np.float32))
    views = [CanonicalView(k, relative, torch.ones(42, 70), torch.full((6, 9), 2.0), 60.0) for k in range(2)]
    xy = torch.tensor([[69, 41], [0, 0], [64, 40], [30, 30]], dtype=torch.int32)
    problem = build_problem(views, [Correspondences(0, 1, xy, xy, torch.ones(4))], {}, AlignmentConfig())
    assert problem.matches.observed.anchor[0, :, :4].tolist() == [[53, 0, 53, 30], [107, 54, 107, 84]]
    result = align(problem, AlignmentConfig(niter_coarse=3, niter_fine=3))
    assert result.core_depths[0].shape == (6, 9)


class HostQuestions(TorchDispatchMode):
    """Collects operations that make the host wait for a device, or that bring host data to it."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero", "_assert")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if any(name in str(func) for name in self.FORBIDDEN):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "shared", "groups"), [("fallback4", False, None), ("shared4", True, None), ("mixed4", False, (0, 0, 1, 0))]
)
def test_an_iteration_asks_the_host_nothing(name: str, shared: bool, groups: tuple[int, ...] | None) -> None:
    """So it can be recorded as a CUDA graph."""
    scene = load_scene(name)
    config = AlignmentConfig(matching_conf_thr=scene.options["matching_conf_thr"], shared_intrinsics=shared)
    problem = problem_of(scene, config)
    if groups is not None:
        shapes = [view.conf.shape for view in scene.canonical_views]
        transforms = [ImageTransform((2 * W, 2 * H), (W, H), (0, 0), (W, H)) for H, W in shapes]
        problem = dataclasses.replace(
            problem, layout=CameraLayout.of_photos(transforms, groups, [400.0, 400.0, None, 400.0])
        )
    theta = SceneModel(problem).initial()
    for objective in (CoarseObjective(problem, config, theta), FineObjective(problem, config)):
        stage = Stage(objective, theta, 0.01, 10)
        before = [tensor.clone() for tensor in stage.state()]
        with HostQuestions() as questions:
            stage.step()
        assert questions.seen == []
        # what a step changes is what `state` names: put back, the same step gives the same loss
        moved, loss = theta.clone(), stage.losses[0].clone()
        for tensor, value in zip(stage.state(), before, strict=True):
            tensor.copy_(value)
        stage.step()
        assert torch.equal(theta, moved) and stage.losses[0] == loss

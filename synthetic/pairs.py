"""Two views of each of many scenes at once: what a model trains on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .aerial import aerial_pairs
from .cameras import clamp_to_hull, look_at, pixel_rays
from .compose import clear_view, compose, scene_scale
from .draws import Draws
from .facade import facade_pairs
from .layout import SKY, UNKNOWN, MaterialColumns, Scenes
from .look import Look, add_haze, develop_as, hide_behind_patch, scenes_of
from .materials import MIRROR
from .photo import PhotoEffects, develop, draw_effects, draw_strong_effects
from .photograph import (
    SEED_OFFSET,
    Cameras,
    cleared,
    draw_cameras,
    draw_look,
    draw_photo_effects,
    draw_surfaces,
    with_statues,
)
from .rendering import renderer_for
from .table import table_pairs

MAX_ANGLE_DEG = 150.0
OUTDOOR_SHARE = 0.3
OTHER_SCENE_SHARE = 0.07
"""Share of pairs whose second image shows another scene."""
AWAY_SHARE = 0.05
"""Share of pairs whose second camera looks away from what the first one sees."""
SAME_SURFACE_TOLERANCE = 0.02
FAR_M = 40.0
"""Beyond this many metres a point of a room or of open ground has no exact target."""

NEW_KINDS = {"aerial": aerial_pairs, "facade": facade_pairs, "table": table_pairs}
"""Kinds of scenes beyond the rooms and open grounds of `plan_pairs`, and who draws their scenes and cameras."""


class PairBatch(NamedTuple):
    """B pairs of views with exact geometry, all in the frame of camera 1. P pixels a view, row-major, in both views.

    images1, images2  (B, 3, H, W) float32 in [-1, 1]; the two may have (H, W) swapped
    points            (B, 2, P, 3) float32, metres; zero for the sky
    depth             (B, 2, P) float32 z-depth in the view's own camera, 0 for the sky
    surface           (B, 2, P) int64 ids of the surfaces seen; `UNKNOWN`: depth and points are not of what is seen
    focal             (B, 2) float32 pixels
    R, t              (B, 3, 3), (B, 3): camera 1 from camera 2
    related           (B,) bool, False where image 2 shows another scene: its points mean nothing then
    far               (B,) float32 metres beyond which points have no exact target
    """

    images1: torch.Tensor
    images2: torch.Tensor
    points: torch.Tensor
    depth: torch.Tensor
    surface: torch.Tensor
    focal: torch.Tensor
    R: torch.Tensor
    t: torch.Tensor
    related: torch.Tensor
    far: torch.Tensor


class PairPlan(NamedTuple):
    """Scenes, cameras and effects of a batch of pairs, drawn but not rendered; on the CPU until moved.

    eye (B, 2, 3), rotation (B, 2, 3, 3) world from camera, focal (B, 2) in longer sides of the image, unit (B,) metres
    that one unit of length of the scenes and of `eye` stands for. With a `look` the views differ like photos.
    """

    scenes: Scenes
    eye: torch.Tensor
    rotation: torch.Tensor
    focal: torch.Tensor
    unit: torch.Tensor
    related: torch.Tensor
    effects: PhotoEffects
    look: Look | None = None

    def to(self, device: torch.device | str) -> PairPlan:
        eye, rotation, focal, unit, related = (tensor.to(device, non_blocking=True) for tensor in self[1:6])
        look = self.look.to(device) if self.look is not None else None
        return PairPlan(self.scenes.to(device), eye, rotation, focal, unit, related, self.effects.to(device), look)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All of them, in a fixed order."""
        return [*self.scenes, *self[1:6], *self.effects, *(self.look or ())]


def plan_pairs(
    seed: int, batch: int, max_angle_deg: float = MAX_ANGLE_DEG, unrelated: bool = True, min_angle_deg: float = 0.0
) -> PairPlan:
    """Draws scenes and two cameras for each.

    The angle between the cameras, as seen from the objects, lies below 60 degrees for most pairs and reaches
    `max_angle_deg` for the rest. With `unrelated`, some pairs have nothing in common (see the shares above).
    """
    draws = Draws(seed, batch)
    outdoor = draws.chance(OUTDOOR_SHARE)
    scenes = compose(draws, outdoor)
    scale = scene_scale(outdoor)[:, None]
    usual = draws.uniform(min_angle_deg, max(min(60.0, max_angle_deg), min_angle_deg))
    wide = draws.uniform(min_angle_deg, max_angle_deg)
    angle = torch.where(draws.chance(0.6), usual, wide) * (math.pi / 180)
    first = draws.uniform(0, 2 * math.pi)
    azimuth = torch.stack([first, first + angle * torch.where(draws.chance(0.5), 1.0, -1.0)], 1)
    elevation = draws.uniform(-3, 40, 1) + draws.uniform(-10, 10, 2)
    elevation = elevation.clamp(-5, 50) * (math.pi / 180)
    radius = draws.log_uniform(1.4, 3.2, 1) * scale * torch.exp(draws.uniform(-0.3, 0.3, 2))
    height = draws.uniform(0.1, 1.0, 1) * scale
    spread = torch.where(draws.chance(0.8, 1), 0.12, 0.4)[..., None] * scale[..., None]
    target = torch.stack(
        [
            draws.uniform(-0.35, 0.35) * scale[:, 0],
            scenes.half[:, 1] - height[:, 0],
            draws.uniform(-0.35, 0.35) * scale[:, 0],
        ],
        -1,
    )
    target = target[:, None] + spread * draws.normal(2, 3) * torch.tensor([1.0, 0.5, 1.0])
    outward = torch.stack([elevation.cos() * azimuth.cos(), -elevation.sin(), elevation.cos() * azimuth.sin()], -1)
    eye = clamp_to_hull(scenes, target + radius[..., None] * outward)
    away = draws.chance(AWAY_SHARE) & unrelated
    behind = 2 * eye[:, 1] - target[:, 1]
    target = torch.stack([target[:, 0], torch.where(away[:, None], behind, target[:, 1])], 1)
    rotation = look_at(eye, target, (0.07 * draws.normal(2)).clamp(-0.2, 0.2))
    fov = draws.uniform(42, 85) * (math.pi / 180)
    zoom = torch.where(draws.chance(0.35), torch.exp(draws.uniform(-0.3, 0.3)), 1.0)
    focal = torch.stack([0.5 / torch.tan(fov / 2), 0.5 / torch.tan(fov / 2) * zoom], 1)
    related = ~(draws.chance(OTHER_SCENE_SHARE) & unrelated)
    effects = draw_effects(draws, 2)
    return PairPlan(clear_view(scenes, eye), eye, rotation, focal, torch.ones(batch), related, effects)


def plan_kind(seed: int, batch: int, kind: str, unrelated: bool = True) -> PairPlan:
    """Draws scenes of one of the `NEW_KINDS` and two cameras for each; `unrelated` as in `plan_pairs`."""
    draws = Draws(seed, batch)
    away = draws.chance(AWAY_SHARE) & unrelated
    scenes, eye, rotation, focal, unit = NEW_KINDS[kind](draws, away)
    related = ~(draws.chance(OTHER_SCENE_SHARE) & unrelated)
    return PairPlan(scenes, eye, rotation, focal, unit, related, draw_strong_effects(draws, 2))


def photograph(plan: PairPlan, seed: int, share: float = 1.0, num_usual: int | None = None) -> PairPlan:
    """A plan in which a `share` of the pairs are as photos of different days and cameras are (see `photograph.py`).

    num_usual  how many of its pairs, the first ones, are rooms and open grounds; None: all
    """
    batch = plan.related.shape[0]
    draws = Draws(seed + SEED_OFFSET, batch)
    chosen = draws.chance(share)
    usual = torch.arange(batch) < (batch if num_usual is None else num_usual)
    cameras = draw_cameras(draws, Cameras(plan.eye, plan.rotation, plan.focal), plan.scenes, chosen, usual)
    scenes = cleared(with_statues(draws, plan.scenes, chosen & usual), cameras.eye, chosen & usual)
    scenes = scenes._replace(materials=draw_surfaces(draws, scenes.materials, chosen, usual))
    effects = PhotoEffects(
        *(
            torch.where(chosen.view(-1, *(1,) * (old.dim() - 1)), new, old)
            for new, old in zip(draw_photo_effects(draws, 2), plan.effects, strict=True)
        )
    )
    look = draw_look(draws, scenes, chosen, usual, effects.jpeg)
    return plan._replace(scenes=scenes, **cameras._asdict(), effects=effects, look=look)


def plan_mixed(
    seed: int, batch: int, new_share: float, max_angle_deg: float = MAX_ANGLE_DEG, photo_share: float = 0.0
) -> PairPlan:
    """Pairs of which `new_share` are of one of the `NEW_KINDS`, which the seed decides; the rest is of `plan_pairs`.

    One kind at a time, because drawing takes a CPU about as long for one scene as for sixty. With a share of 0 these
    are the very pairs of `plan_pairs`. Of all of them, `photo_share` are made to differ like photos.
    """
    num_new = round(new_share * batch)
    kind = int(Draws(seed, 1).integers(0, len(NEW_KINDS)))
    plans = [plan_pairs(seed, batch - num_new, max_angle_deg)] if num_new < batch else []
    if num_new:
        plans.append(plan_kind(seed, num_new, list(NEW_KINDS)[kind]))
    eye, rotation, focal, unit, related = (torch.cat(tensors) for tensors in zip(*(p[1:6] for p in plans), strict=True))
    scenes = Scenes(*map(torch.cat, zip(*(plan.scenes for plan in plans), strict=True)))
    effects = PhotoEffects(*map(torch.cat, zip(*(plan.effects for plan in plans), strict=True)))
    mixed = PairPlan(scenes, eye, rotation, focal, unit, related, effects)
    return photograph(mixed, seed, photo_share, batch - num_new) if photo_share else mixed


def render_plan(plan: PairPlan, shapes: tuple[tuple[int, int], tuple[int, int]]) -> PairBatch:
    """Renders a plan on the device it lies on.

    shapes  (H, W) of the first and of the second view, multiples of 8, with the same number of pixels
    """
    P = shapes[0][0] * shapes[0][1]
    assert shapes[1][0] * shapes[1][1] == P
    focal = plan.focal * float(max(shapes[0]))
    rays = torch.stack([pixel_rays(focal[:, v], shapes[v]) for v in range(2)], 1)
    d = _rotate(plan.rotation, rays)
    o = plan.eye[:, :, None].expand_as(d)
    angle = (1 / focal)[:, :, None].expand(-1, -1, P)
    if plan.look is None:
        images, t, surface = _render_alike(plan, o, d, angle, shapes)
    else:
        images, t, surface = _render_photos(plan, plan.look, o, d, angle, shapes)
    other = torch.where(plan.related[:, None, None, None], images[1], images[1].roll(1, 0))

    R1_inverse = plan.rotation[:, 0].transpose(-1, -2)
    R = (R1_inverse[:, :, :, None] * plan.rotation[:, 1][:, None]).sum(2)  # no matrix product: keeps full float32
    offset = _rotate(R1_inverse, (plan.eye[:, 1] - plan.eye[:, 0])[:, None])[:, 0]
    t, offset = t * plan.unit[:, None, None], offset * plan.unit[:, None]  # metres from here on
    own = rays * t[..., None]
    second = _rotate(R, own[:, 1]) + offset[:, None] * (t[:, 1, :, None] > 0)
    points = torch.stack([own[:, 0], second], 1)
    far = FAR_M * plan.unit.clamp(min=1)
    return PairBatch(images[0], other, points, t, surface, focal, R, offset, plan.related, far)


Rendered = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]
"""Images (B, 3, H, W) in [-1, 1] of both views; ray parameters (B, 2, P), 0 for the sky; surfaces (B, 2, P)."""


def _render_alike(
    plan: PairPlan, o: torch.Tensor, d: torch.Tensor, angle: torch.Tensor, shapes: tuple[tuple[int, int], ...]
) -> Rendered:
    """Both views of the same scene, rays (B, 2, P, 3) of width `angle` (B, 2, P)."""
    colour, t, surface = renderer_for(d.device)(plan.scenes, o.flatten(1, 2), d.flatten(1, 2), angle.flatten(1, 2))
    colour, t, surface = (x.unflatten(1, o.shape[1:3]) for x in (colour, t, surface))
    images = []
    for v in range(2):
        one = PhotoEffects(*(tensor[:, v : v + 1] for tensor in plan.effects))
        images.append(develop(colour[:, v : v + 1], one, shapes[v])[:, 0] * 2 - 1)
    return images, t, surface


def _render_photos(
    plan: PairPlan,
    look: Look,
    o: torch.Tensor,
    d: torch.Tensor,
    angle: torch.Tensor,
    shapes: tuple[tuple[int, int], ...],
) -> Rendered:
    """Each view of the scene as it is in it; what a patch hides and mirrors show is of an unknown surface."""
    batch = torch.arange(o.shape[0], device=o.device)[:, None]
    mirrors = plan.scenes.materials[..., MaterialColumns.PATTERN] == MIRROR
    images, ts, surfaces = [], [], []
    for v in range(2):
        own = look.of_view(v)
        colour, t, surface = renderer_for(d.device)(scenes_of(plan.scenes, own), o[:, v], d[:, v], angle[:, v])
        colour, hidden = hide_behind_patch(add_haze(colour, t, own), own, shapes[v])
        reflects = mirrors[batch, surface.clamp(max=mirrors.shape[1] - 1)] & (surface != SKY)
        one = PhotoEffects(*(tensor[:, v : v + 1] for tensor in plan.effects))
        images.append(develop_as(colour[:, None], one, own, shapes[v])[:, 0] * 2 - 1)
        ts.append(t)
        surfaces.append(torch.where(hidden | reflects, UNKNOWN, surface))
    return images, torch.stack(ts, 1), torch.stack(surfaces, 1)


def render_pairs(
    seed: int,
    batch: int,
    size: tuple[int, int],
    device: torch.device | str = "cpu",
    *,
    max_angle_deg: float = MAX_ANGLE_DEG,
    unrelated: bool = True,
) -> PairBatch:
    """Renders `batch` pairs of views of random scenes, (W, H) = size pixels, multiples of 8."""
    plan = plan_pairs(seed, batch, max_angle_deg, unrelated).to(device)
    W, H = size
    with torch.no_grad():
        return render_plan(plan, ((H, W), (H, W)))


def correspond(
    pairs: PairBatch, source: int, pixels: torch.Tensor, shapes: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where pixels of one view appear in the other.

    source  0: `pixels` are of view 1 and looked up in view 2; 1: the other way round
    pixels  (B, M) int64 flat indices
    Returns flat indices (B, M) of the nearest pixels of the other view and whether the points are visible there.
    """
    other = 1 - source
    H, W = shapes[other]
    batch = torch.arange(pixels.shape[0], device=pixels.device)[:, None]
    X = pairs.points[batch, source, pixels]
    if other == 1:
        X = _rotate(pairs.R.transpose(-1, -2), X - pairs.t[:, None])
    z = X[..., 2]
    safe = z.clamp(min=1e-3)
    focal = pairs.focal[:, other, None]
    x = (X[..., 0] / safe * focal + (W - 1) / 2).clamp(-1e6, 1e6).round()
    y = (X[..., 1] / safe * focal + (H - 1) / 2).clamp(-1e6, 1e6).round()
    ok = (z > 0.05) & (x >= 0) & (x < W) & (y >= 0) & (y < H) & pairs.related[:, None]
    target = (y.clamp(0, H - 1) * W + x.clamp(0, W - 1)).long()
    ok = ok & ((pairs.depth[batch, other, target] - z).abs() < SAME_SURFACE_TOLERANCE * z)
    seen = pairs.surface[batch, source, pixels]
    return target, ok & (pairs.surface[batch, other, target] == seen) & (seen < SKY)


def _rotate(R: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """R (..., 3, 3) applied to points (..., M, 3) by sums, not by matrix products: TF32 must not round geometry."""
    return torch.stack([(points * R[..., k, :].unsqueeze(-2)).sum(-1) for k in range(3)], -1)

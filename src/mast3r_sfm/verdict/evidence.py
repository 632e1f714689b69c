"""What a finished scene says for and against itself, in numbers: measured from its views and their matches alone.

A wrong camera contradicts others: what its matches show lies elsewhere in them, its surfaces stand where others see
through, and photos of places that only look alike share fewer matches than photos of one place would. How far these
numbers tell right from wrong was measured on scenes with known cameras (`benchmarks.verdicts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mast3r_sfm.geometry import project, rays, to_world
from mast3r_sfm.graphs import strongest_neighbours
from mast3r_sfm.types import Correspondences, PairSummary, ReconstructedView

EXPLAINED_WITHIN = 0.02
"""A match is explained if it reprojects within this share of the long edge of the network's image, both ways."""

DEPTH_AGREES_WITHIN = 0.05
"""Relative difference of depth up to which two views show the same surface."""

SEEN_THROUGH_FROM = 0.15
"""A point this much nearer than the surface that another view shows in its place, as a share, is seen through."""

PARTNER_MATCHES = 20
"""Explained matches that make two views partners."""

MAX_NEIGHBOURS = 12
SAMPLES_ALONG = 48
"""Pixels along the long edge of a view that are looked at."""


@dataclass(frozen=True)
class PairEvidence:
    """What one pair of registered views says, which was looked at; i and j are `ReconstructedView.index`.

    num_matches   that entered the alignment; none if the pair was denied
    explained     share of them that cameras and depths explain (`EXPLAINED_WITHIN`); nan without
    angle_deg     median angle under which the two cameras see the matched points; nan without
    confirmed     share of the matches first found that the pair's own geometry confirms
    covisible     share of the two views' pixels that the other shows too, at the same depth
    num_features  matches of local features that one geometry of the two photos confirms; 0 if not looked for
    apart_deg     angle between the directions in which the two cameras look
    """

    i: int
    j: int
    num_matches: int
    explained: float
    angle_deg: float
    confirmed: float
    covisible: float
    num_features: int = 0
    apart_deg: float = 0.0

    @property
    def num_explained(self) -> int:
        return round(self.num_matches * self.explained) if self.num_matches else 0


@dataclass(frozen=True)
class ViewEvidence:
    """What is known of one registered view; shares in [0, 1], nan where there is nothing to measure.

    num_explained   of the matches of all its pairs
    explained       share of all its matches
    num_partners    views with which it shares `PARTNER_MATCHES` explained matches
    error           median reprojection error of its matches, as a share of the long edge of its network image
    contradiction   of the comparisons of its depth with other views, in which both show the same surface or one sees
                    through the other's: the share of the latter
    """

    index: int
    num_explained: int
    explained: float
    num_partners: int
    error: float
    contradiction: float


@dataclass(frozen=True)
class SceneEvidence:
    """What is known of the registered views of a scene.

    angle_deg   median over the pairs of the angle under which their cameras see the matched points
    spread      distance of the camera centres from their mean (root mean square), over the median depth
    straight    second largest over largest standard deviation of the centres: 0 if they lie on a line
    """

    views: tuple[ViewEvidence, ...]
    pairs: tuple[PairEvidence, ...]
    angle_deg: float
    spread: float
    straight: float


def collect_evidence(
    views: Sequence[ReconstructedView], matches: Sequence[Correspondences], summaries: Sequence[PairSummary]
) -> SceneEvidence:
    """The evidence of the registered views of a result.

    views      of a result, each at the place of its index
    matches    that entered the alignment
    summaries  of the pairs that were looked at
    """
    registered = [view for view in views if view.registered]
    position_of = {view.index: k for k, view in enumerate(registered)}
    samples = [_Samples.of(view) for view in registered]
    entered = {(m.i, m.j): m for m in matches}
    pairs = tuple(
        _pair_evidence(samples[position_of[s.i]], samples[position_of[s.j]], s, entered.get((s.i, s.j)))
        for s in summaries
        if s.i != s.j and s.i in position_of and s.j in position_of
    )
    edges = [(position_of[p.i], position_of[p.j], p.num_matches) for p in pairs if p.num_matches]
    partners = strongest_neighbours(len(registered), edges, MAX_NEIGHBOURS)
    centres = np.stack([view.world_from_cam[:3, 3] for view in registered])
    contradictions = [_contradiction(samples, k, [*partners[k], *_nearest(centres, k)]) for k in range(len(registered))]
    angles = [pair.angle_deg for pair in pairs if np.isfinite(pair.angle_deg)]
    depth = float(np.median([np.nanmedian(view.depth) for view in registered]))
    deviations = np.linalg.svd(centres - centres.mean(0), compute_uv=False) / np.sqrt(len(centres))
    return SceneEvidence(
        tuple(_view_evidence(view, pairs, contradictions[k]) for k, view in enumerate(registered)),
        pairs,
        float(np.median(angles)) if angles else float("nan"),
        float(np.sqrt((deviations**2).sum()) / depth),
        float(deviations[1] / deviations[0]) if len(deviations) > 1 and deviations[0] > 0 else 0.0,
    )


@dataclass(frozen=True)
class _Samples:
    """Pixels of a view on a grid whose depth is known, as world points (n, 3)."""

    view: ReconstructedView
    cam_from_world: np.ndarray
    points: np.ndarray

    @classmethod
    def of(cls, view: ReconstructedView) -> _Samples:
        H, W = view.depth.shape
        step = max(1, round(max(H, W) / SAMPLES_ALONG))
        xy = np.stack(np.meshgrid(np.arange(step // 2, W, step), np.arange(step // 2, H, step)), -1).reshape(-1, 2)
        points = _points_at(view, xy)
        return cls(view, np.linalg.inv(view.world_from_cam), points[np.isfinite(points).all(1)])

    def seen(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (n, 2) and z-depths (n,) of world points (n, 3) in this view."""
        local = to_world(points, self.cam_from_world)
        return project(local, self.view.K, self.view.distortion), local[:, 2]

    def depth_ratios(self, points: np.ndarray) -> np.ndarray:
        """z-depths of world points over the depth that this view shows there; of those within its known depth."""
        xy, z = self.seen(points)
        H, W = self.view.depth.shape
        with np.errstate(invalid="ignore"):
            inside = (z > 0) & (xy > -0.5).all(1) & (xy < np.array([W, H]) - 0.5).all(1)
        column, row = np.rint(xy[inside]).astype(int).T
        ratios = z[inside] / self.view.depth[row, column]
        return ratios[np.isfinite(ratios)]


def _points_at(view: ReconstructedView, xy: np.ndarray) -> np.ndarray:
    """(n, 3) world points of the pixels (n, 2) of a view, nan where its depth is unknown."""
    H, W = view.depth.shape
    column, row = np.clip(np.rint(xy), 0, np.array([W, H]) - 1).astype(int).T
    depth = np.where(view.conf[row, column] > 0, view.depth[row, column], np.nan).astype(np.float64)
    return to_world(rays(xy.astype(np.float64), view.K, view.distortion) * depth[:, None], view.world_from_cam)


def _pair_evidence(a: _Samples, b: _Samples, summary: PairSummary, matches: Correspondences | None) -> PairEvidence:
    count = 0 if matches is None else len(matches)
    explained, angle = (float("nan"),) * 2 if matches is None or not count else _judged_matches(a, b, matches)
    shown = [np.abs(to.depth_ratios(of.points) - 1) < DEPTH_AGREES_WITHIN for of, to in ((a, b), (b, a))]
    shares = [one.sum() / max(1, len(of.points)) for one, of in zip(shown, (a, b), strict=True)]
    confirmed = summary.num_verified / summary.num_matches if summary.num_matches else float("nan")
    covisible, features = float(np.mean(shares)), summary.num_features or 0
    ahead = [one.view.world_from_cam[:3, 2] for one in (a, b)]
    apart = float(np.degrees(np.arccos(np.clip(ahead[0] @ ahead[1], -1, 1))))
    return PairEvidence(summary.i, summary.j, count, explained, angle, confirmed, covisible, features, apart)


def _judged_matches(a: _Samples, b: _Samples, matches: Correspondences) -> tuple[float, float]:
    """Share of matches that are explained, and the median angle under which the two cameras see them in degrees."""
    xy_a, xy_b = matches.xy_i.numpy().astype(np.float64), matches.xy_j.numpy().astype(np.float64)
    in_a, in_b = _points_at(a.view, xy_a), _points_at(b.view, xy_b)
    explained = np.ones(len(xy_a), dtype=bool)
    for points, other, xy in ((in_a, b, xy_b), (in_b, a, xy_a)):
        error = np.linalg.norm(other.seen(points)[0] - xy, axis=1) / max(other.view.depth.shape)
        with np.errstate(invalid="ignore"):
            explained &= error <= EXPLAINED_WITHIN
    to_a, to_b = (in_a - one.view.world_from_cam[:3, 3] for one in (a, b))
    cosine = (to_a * to_b).sum(1) / (np.linalg.norm(to_a, axis=1) * np.linalg.norm(to_b, axis=1) + 1e-300)
    cosine = cosine[np.isfinite(cosine)]
    angle = float(np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1))))) if len(cosine) else float("nan")
    return float(explained.mean()), angle


def _nearest(centres: np.ndarray, k: int) -> list[int]:
    """The cameras nearest to camera k: one in a wrong place need not share matches with those around it."""
    order = np.argsort(np.linalg.norm(centres - centres[k], axis=1), kind="stable")
    return [int(j) for j in order if j != k][:MAX_NEIGHBOURS]


def _contradiction(samples: Sequence[_Samples], k: int, others: Sequence[int]) -> float:
    """`ViewEvidence.contradiction` of view k."""
    same = through = 0
    for j in dict.fromkeys(others):
        ratios = samples[j].depth_ratios(samples[k].points)
        same += int((np.abs(ratios - 1) < DEPTH_AGREES_WITHIN).sum())
        through += int((ratios < 1 - SEEN_THROUGH_FROM).sum())
    return through / (same + through) if same + through else float("nan")


def _view_evidence(view: ReconstructedView, pairs: Sequence[PairEvidence], contradiction: float) -> ViewEvidence:
    own = [pair for pair in pairs if view.index in (pair.i, pair.j)]
    found, explained = sum(pair.num_matches for pair in own), sum(pair.num_explained for pair in own)
    return ViewEvidence(
        view.index,
        explained,
        explained / found if found else float("nan"),
        sum(pair.num_explained >= PARTNER_MATCHES for pair in own),
        view.median_reprojection_error_px / max(view.depth.shape),
        contradiction,
    )

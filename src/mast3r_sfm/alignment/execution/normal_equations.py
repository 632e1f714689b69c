"""Normal equations of the fine stage: its losses as weighted squares, summed by direction and by anchor.

A *direction* is a source view whose points are looked at from a target view: two of every good pair, one of every entry
of the fallback. A point of the source lies at Y = M q in the target's camera, where

    q = (z ray, 1)   the point in the source's camera, homogeneous (4,)
    M = R | t        (3, 4) the motion from the source's camera to the target's

and what a residual depends on is M, the depth z, and the zoom of the source (which flattens the relief within a block):
12 + 1 numbers of the direction, and the logarithm of the depth of the anchor, which is an unknown of its own. A robust
distance rho(|r|) counts as the square w |r|^2 / 2 with w = rho'(|r|) / |r|, the square that touches it where it is.

Every residual has the form r = P(Y), so its derivative by M is P' q^T, and the matrix of the 12 numbers is a sum of
(P'^T w P') x (q q^T). `Term` keeps, for every observation, q and the 3 numbers P'^T w dr/d(log depth), from which the
products of the solver follow without a matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from mast3r_sfm.alignment.execution.packing import FallbackChunks, MatchChunks, Observations
from mast3r_sfm.alignment.execution.segments import SegmentSum
from mast3r_sfm.alignment.execution.slabs import norm, robust_value_and_slope, slabs
from mast3r_sfm.alignment.losses import MIN_DEPTH, PIXEL_RANGE

NUM_OF_DIRECTION = 13
"""Of the 3 x 4 motion, row by row, and the logarithm of the source's focal length as far as it changes depths."""

_SMALLER = 4  # slabs than those of the first-order losses: for 400 bytes of temporaries a match
_MIN_FACTOR = 1e-3  # of the depth of a pixel over that of its anchor, where it divides
_CLOSEST_PIXELS = 0.02  # residuals below count as this large in the weights: a robust distance has a kink at zero
_CLOSEST_UNITS = 1e-3

# which of the four planes (1, u, v, u^2 + v^2) of P'^T P' = [[1, 0, u], [0, 1, v], [u, v, u^2 + v^2]] is at each place
_PLANES = ((0, None, 1), (None, 0, 2), (1, 2, 3))


@dataclass(frozen=True)
class Numbers:
    """What the terms read of n views with A anchors each.

    intrinsics  (n, 4) focal length, principal point x and y, pixels; base focal / focal
    rotations   (n, 3, 3) world from camera
    centres     (n, 3) world
    depths      (n A,) of the anchors
    """

    intrinsics: torch.Tensor
    rotations: torch.Tensor
    centres: torch.Tensor
    depths: torch.Tensor


@dataclass(frozen=True)
class Sums:
    """What `Term.linearize` gives besides the loss (0-d), for D directions and n A anchors.

    hessian    (D, 13, 13), gradient (D, 13)   by the numbers of each direction
    curvature  (n A,), slope (n A,)            by the logarithm of the depth of each anchor
    """

    loss: torch.Tensor
    hessian: torch.Tensor
    gradient: torch.Tensor
    curvature: torch.Tensor
    slope: torch.Tensor


def motions(ends: torch.Tensor, rotations: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """(D, 3, 4) from the camera of the source to that of the target, for `ends` (D, 2)."""
    source, target = ends.unbind(1)
    from_world = rotations.index_select(0, target).transpose(1, 2)
    rotation = from_world @ rotations.index_select(0, source)
    baseline = centres.index_select(0, source) - centres.index_select(0, target)
    return torch.cat([rotation, from_world @ baseline[:, :, None]], 2)


class Term(ABC):
    """One of the losses as normal equations.

    ends      (D, 2) int64 source and target view of each direction
    projects  whether the target's intrinsics play a part
    """

    projects: bool

    def __init__(
        self,
        ends: torch.Tensor,
        owner: torch.Tensor,
        observed: Observations,
        weight: torch.Tensor,
        sum_chunks: SegmentSum,
        sum_by_anchor: SegmentSum,
    ) -> None:
        """Chunks of k directions each: `owner` (C,), `observed` (C, k, ...), `weight` (C, L); sums as in `packing`."""
        self.ends = ends
        self._owner, self._observed, self._weight = owner, observed, weight
        self._sum_chunks, self._sum_by_anchor = sum_chunks, sum_by_anchor
        num_chunks, self._k, length = observed.anchor.shape
        self._slabs = slabs(num_chunks, weight, divided_by=_SMALLER)
        new = weight.new_zeros  # before the first `linearize`, products are zero
        self._points = weight.new_ones(num_chunks, self._k, 4, length)  # q
        self._pulls = new(num_chunks, self._k, 3, length)  # P'^T w dr / d(log depth)
        self._zoom_pulls = new(num_chunks, self._k, length)
        self._curvature, self._slope = new(2, num_chunks, self._k, length)
        self._products = new(num_chunks, self._k, 22, 4)
        self._by_zoom = new(num_chunks, self._k, 2)
        self._to_direction = new(num_chunks, self._k, NUM_OF_DIRECTION)
        selection = [[float(plane == p) for p in range(4)] for row in _PLANES for plane in row]
        self._select_planes = weight.new_tensor(selection)

    @abstractmethod
    def _weigh(self, slab: slice, place: torch.Tensor, of_chunk: torch.Tensor) -> _Weighted:
        """Of observations whose points are at `place` (N, 3, L) in the target; `of_chunk` (N, 20) as in `linearize`."""

    def observed_anchors(self) -> torch.Tensor:
        """(n A,) number of observations of every anchor."""
        real = (self._weight > 0)[:, None].expand_as(self._zoom_pulls)
        return self._sum_by_anchor(real.to(self._weight.dtype).reshape(-1))

    def linearize(self, numbers: Numbers, motion: torch.Tensor) -> Sums:
        """Values and derivatives here; `motion` (D, 3, 4) is `motions` of `ends`."""
        of_end = numbers.intrinsics.index_select(0, self.ends.view(-1)).view(-1, 8)
        of_direction = torch.cat([motion.flatten(1), of_end], 1).view(-1, self._k * 20)
        losses = [self._linearize_slab(slab, of_direction, numbers.depths) for slab in self._slabs]

        products = self._sum_chunks(self._products).view(-1, 22, 4)
        planes = (self._select_planes @ products[:, :16].reshape(-1, 4, 16)).view(-1, 3, 3, 4, 4)
        by_zoom = self._sum_chunks(self._by_zoom).view(-1, 2)
        coupling = products[:, 16:19].reshape(-1, 12)
        hessian = coupling.new_empty(len(coupling), NUM_OF_DIRECTION, NUM_OF_DIRECTION)
        hessian[:, :12, :12] = planes.transpose(2, 3).reshape(-1, 12, 12)
        hessian[:, :12, 12] = coupling
        hessian[:, 12, :12] = coupling
        hessian[:, 12, 12] = by_zoom[:, 0]
        return Sums(
            loss=losses[0] if len(losses) == 1 else torch.stack(losses).sum(),
            hessian=hessian,
            gradient=torch.cat([products[:, 19:].reshape(-1, 12), by_zoom[:, 1:]], 1),
            curvature=self._sum_by_anchor(self._curvature.view(-1)),
            slope=self._sum_by_anchor(self._slope.view(-1)),
        )

    def _linearize_slab(self, slab: slice, of_direction: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:
        """The loss of some chunks; writes all that `linearize` sums, and what `to_anchors` and `from_anchors` need."""
        xy, anchor, offset = (getattr(self._observed, name)[slab].flatten(0, 1) for name in _OBSERVED)
        of_chunk = of_direction.index_select(0, self._owner[slab]).view(len(xy), 20)
        focal, centre, inverse_zoom = of_chunk[:, 12:13, None], of_chunk[:, 13:15, None], of_chunk[:, 15:16]
        relief = offset * inverse_zoom
        factor = relief + 1
        depth = depths.index_select(0, anchor.reshape(-1)).view_as(factor).mul_(factor)
        point = self._points[slab].flatten(0, 1)
        torch.sub(xy, centre, out=point[:, :2]).mul_(depth[:, None]).div_(focal)
        point[:, 2] = depth  # the fourth row is one
        place = torch.bmm(of_chunk[:, :12].view(-1, 3, 4), point)

        weighted = self._weigh(slab, place, of_chunk)
        # the longer the source's focal length, the flatter its relief
        by_zoom = relief.div_(factor.clamp_min_(_MIN_FACTOR)).neg_()
        self._pulls[slab].flatten(0, 1).copy_(weighted.pull)
        self._curvature[slab].flatten(0, 1).copy_(weighted.curvature)
        self._slope[slab].flatten(0, 1).copy_(weighted.slope)
        zoom_pull = torch.mul(weighted.curvature, by_zoom, out=self._zoom_pulls[slab].flatten(0, 1))
        rows = place.new_empty(len(xy), 22, xy.shape[2])
        torch.mul(weighted.planes[:, :, None], point[:, None], out=rows[:, :16].unflatten(1, (4, 4)))
        torch.mul(weighted.pull, by_zoom[:, None], out=rows[:, 16:19])
        rows[:, 19:] = weighted.gradient
        torch.bmm(rows, point.transpose(1, 2), out=self._products[slab].flatten(0, 1))
        by_direction = self._by_zoom[slab].flatten(0, 1)
        by_direction[:, 0] = (zoom_pull * by_zoom).sum(1)
        by_direction[:, 1] = (weighted.slope * by_zoom).sum(1)
        return weighted.loss

    def to_anchors(self, change: torch.Tensor) -> torch.Tensor:
        """(D, 13) -> (n A,): what a change of the directions adds to the slopes of the anchors."""
        of_direction = change.view(-1, self._k * NUM_OF_DIRECTION)
        out = self._slope  # which was summed by `linearize`, and serves as space here
        for slab in self._slabs:
            point, pull = self._points[slab].flatten(0, 1), self._pulls[slab].flatten(0, 1)
            of_chunk = of_direction.index_select(0, self._owner[slab]).view(len(point), NUM_OF_DIRECTION)
            moved = torch.bmm(of_chunk[:, :12].view(-1, 3, 4), point).mul_(pull)
            own = torch.mul(self._zoom_pulls[slab].flatten(0, 1), of_chunk[:, 12:], out=out[slab].flatten(0, 1))
            for axis in range(3):
                own += moved[:, axis]
        return self._sum_by_anchor(out.view(-1))

    def from_anchors(self, change: torch.Tensor) -> torch.Tensor:
        """(n A,) -> (D, 13): what a change of the anchors adds to the gradients of the directions."""
        for slab in self._slabs:
            point, pull = self._points[slab].flatten(0, 1), self._pulls[slab].flatten(0, 1)
            of_anchor = change.index_select(0, self._observed.anchor[slab].reshape(-1)).view(len(point), -1)
            out = self._to_direction[slab].flatten(0, 1)
            out[:, :12] = torch.bmm(pull * of_anchor[:, None], point.transpose(1, 2)).view(-1, 12)
            out[:, 12] = of_anchor.mul_(self._zoom_pulls[slab].flatten(0, 1)).sum(1)
        return self._sum_chunks(self._to_direction).view(-1, NUM_OF_DIRECTION)


_OBSERVED = ("pixel", "anchor", "offset")


@dataclass(frozen=True)
class _Weighted:
    """Of N chunks of observations with L each: the loss (0-d), and with w, P' and j = dr/d(log depth) of each

    planes     (N, 4, L) those of P'^T w P', see `_PLANES`
    gradient   (N, 3, L) P'^T w r
    pull       (N, 3, L) P'^T w j
    curvature  (N, L) w |j|^2
    slope      (N, L) w j r
    """

    loss: torch.Tensor
    planes: torch.Tensor
    gradient: torch.Tensor
    pull: torch.Tensor
    curvature: torch.Tensor
    slope: torch.Tensor


class MatchTerm(Term):
    """`losses.fine_loss`: pixels of the target against projections of the points of their partners."""

    projects = True

    def __init__(self, matches: MatchChunks, exponent: float) -> None:
        ends = torch.stack([matches.pairs, matches.pairs.flip(1)], 1).view(-1, 2)  # either view is the source once
        super().__init__(
            ends,
            matches.chunk_pair,
            matches.observed,
            matches.weight,
            matches.sum_by_pair,
            matches.sum_by_anchor,
        )
        self._exponent = exponent

    def _weigh(self, slab: slice, place: torch.Tensor, of_chunk: torch.Tensor) -> _Weighted:
        shift, focal, centre = of_chunk[:, 3:12:4], of_chunk[:, 16:17], of_chunk[:, 17:19, None]
        size, _, length = place.shape
        depth = place[:, 2].clamp_min(MIN_DEPTH)
        in_front = place[:, 2] >= MIN_DEPTH
        y = place[:, :2] / depth[:, None]
        projected = y * focal[:, :, None] + centre
        residual = projected.clamp(*PIXEL_RANGE)
        seen = (residual == projected).all(1) & in_front
        seen_at = self._observed.pixel[slab].flip(1).flatten(0, 1)
        residual -= seen_at
        distance, value, slope = place.new_empty(3, size, length)
        norm(residual, out=distance, scratch=value)
        robust_value_and_slope(distance, self._exponent, value=value, slope=slope)
        # each match counts in two directions: half of its weight in either
        weight = self._weight[slab, None].expand(-1, 2, -1).reshape(size, length) * 0.5
        loss = value.mul_(weight).sum()
        weight *= slope.clamp_max_(1 / _CLOSEST_PIXELS).mul_(seen)

        scale = focal / depth
        by_depth = (y * shift[:, 2:, None]).sub_(shift[:, :2, None]).mul_(scale[:, None])
        along = (by_depth[:, 0] * by_depth[:, 0]).addcmul_(by_depth[:, 1], by_depth[:, 1])
        across = (by_depth[:, 0] * residual[:, 0]).addcmul_(by_depth[:, 1], residual[:, 1])
        scaled = scale * weight
        planes = place.new_empty(size, 4, length)
        torch.mul(scaled, scale, out=planes[:, 0])
        torch.mul(y, planes[:, :1], out=planes[:, 1:3]).neg_()
        planes[:, 3] = -(planes[:, 1] * y[:, 0]).addcmul_(planes[:, 2], y[:, 1])
        return _Weighted(
            loss=loss,
            planes=planes,
            gradient=_through_projection(residual, y, scaled),
            pull=_through_projection(by_depth, y, scaled),
            curvature=along.mul_(weight),
            slope=across.mul_(weight),
        )


class FallbackTerm(Term):
    """`losses.fallback_loss` times `weight`: points of the source against their predictions in the target's camera."""

    projects = False

    def __init__(self, chunks: FallbackChunks, exponent: float, weight: float) -> None:
        one = Observations(*(getattr(chunks.observed, name)[:, None] for name in _OBSERVED))
        super().__init__(
            chunks.entries, chunks.chunk_entry, one, chunks.weight, chunks.sum_by_entry, chunks.sum_by_anchor
        )
        self._exponent, self._target, self._factor = exponent, chunks.target, weight

    def _weigh(self, slab: slice, place: torch.Tensor, of_chunk: torch.Tensor) -> _Weighted:
        residual = place - self._target[slab]
        distance, value, slope = place.new_empty(3, len(place), place.shape[2])
        norm(residual, out=distance, scratch=value)
        robust_value_and_slope(distance, self._exponent, value=value, slope=slope)
        weight = self._weight[slab] * self._factor
        loss = value.mul_(weight).sum()
        weight *= slope.clamp_max_(1 / _CLOSEST_UNITS)
        by_depth = place - of_chunk[:, 3:12:4, None]
        planes = place.new_zeros(len(place), 4, place.shape[2])
        planes[:, 0] = planes[:, 3] = weight
        return _Weighted(
            loss=loss,
            planes=planes,
            gradient=residual * weight[:, None],
            pull=by_depth * weight[:, None],
            curvature=by_depth.square().sum(1).mul_(weight),
            slope=(by_depth * residual).sum(1).mul_(weight),
        )


def _through_projection(vector: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(N, 2, L) -> (N, 3, L): the transposed derivative of the projection, [[1, 0, -y_x], [0, 1, -y_y]], times them."""
    out = vector.new_empty(len(vector), 3, vector.shape[2])
    torch.mul(vector, scale[:, None], out=out[:, :2])
    out[:, 2] = -(out[:, 0] * y[:, 0]).addcmul_(out[:, 1], y[:, 1])
    return out

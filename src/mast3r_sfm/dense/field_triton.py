"""The smooth factor of the predicted depth on CUDA devices: `field.solve_field` in two kernels an iteration.

The host takes longer to launch kernels than they to run, so some iterations are recorded as a CUDA graph and replayed.
Sums are made of partial ones in a fixed order: the result is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from mast3r_sfm.cuda_graphs import capture
from mast3r_sfm.dense.field import EDGE, SMOOTH_SIGMA
from mast3r_sfm.dense.packed import PackedViews

_BLOCK = 1024
_WARPS = 8
_RECORDED = 10  # iterations; an even number, because directions and sums alternate between two places


@triton.jit
def _around(pixel, valid, width, pixels):  # type: ignore[no-untyped-def]  # triton's own types
    """Which pixels have one to the left, to the right, above and below."""
    column = pixel % width
    left = valid & (column > 0)
    right = valid & (column + 1 < width)
    return left, right, valid & (pixel >= width), valid & (pixel + width < pixels)


@triton.jit
def _spring(a, b, there, EDGE: tl.constexpr, STIFFNESS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stiffness between pixels with predicted log depths a and b."""
    step = (a - b) / EDGE
    return tl.where(there, tl.exp(-(step * step)) * STIFFNESS, 0.0)


@triton.jit
def _start_kernel(  # type: ignore[no-untyped-def]
    field, relief, factor, factor_weight, heard, heard_weight, spread,
    sizes, members, weight, scale, residual, scaled, direction, size, size_before, blocks,
    HEARD: tl.constexpr, EDGE: tl.constexpr, STIFFNESS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights of all observations, and the first residual."""
    slot = tl.program_id(1)
    view = tl.load(members + slot)
    if view >= 0:
        start = tl.load(sizes + 3 * view)
        width = tl.load(sizes + 3 * view + 2).to(tl.int32)
        pixels = tl.load(sizes + 3 * view + 1).to(tl.int32) * width
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        valid = pixel < pixels
        left, right, up, down = _around(pixel, valid, width, pixels)
        at = start + pixel
        own = slot.to(tl.int64) * pixels + pixel
        h = tl.load(field + at, mask=valid, other=0.0)
        base = tl.load(relief + at, mask=valid, other=0.0)
        seen = tl.load(factor + at, mask=valid, other=0.0)
        off = (seen - h) / spread
        total = tl.load(factor_weight + at, mask=valid, other=0.0) / (1.0 + off * off)
        pull = total * seen
        if HEARD:
            more = tl.load(heard_weight + own, mask=valid, other=0.0)
            total += more
            pull += more * (tl.load(heard + own, mask=valid, other=0.0) - base)
        r = total * (pull / tl.maximum(total, 1e-6) - h)
        diagonal = total + 1.0
        s = _spring(base, tl.load(relief + at - 1, mask=left, other=0.0), left, EDGE, STIFFNESS)
        diagonal += s
        r += s * (tl.load(field + at - 1, mask=left, other=0.0) - h)
        s = _spring(base, tl.load(relief + at + 1, mask=right, other=0.0), right, EDGE, STIFFNESS)
        diagonal += s
        r += s * (tl.load(field + at + 1, mask=right, other=0.0) - h)
        s = _spring(base, tl.load(relief + at - width, mask=up, other=0.0), up, EDGE, STIFFNESS)
        diagonal += s
        r += s * (tl.load(field + at - width, mask=up, other=0.0) - h)
        s = _spring(base, tl.load(relief + at + width, mask=down, other=0.0), down, EDGE, STIFFNESS)
        diagonal += s
        r += s * (tl.load(field + at + width, mask=down, other=0.0) - h)
        z = r / diagonal
        tl.store(weight + own, total, mask=valid)
        tl.store(scale + own, 1.0 / diagonal, mask=valid)
        tl.store(residual + own, r, mask=valid)
        tl.store(scaled + own, z, mask=valid)
        tl.store(direction + own, tl.zeros([BLOCK], tl.float32), mask=valid)
        part = slot * blocks + tl.program_id(0)
        tl.store(size + part, tl.sum(tl.where(valid, r * z, 0.0)))
        tl.store(size_before + part, 1.0)  # of no direction before: any number


@triton.jit
def _total(sums, slot, blocks, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    part = tl.arange(0, PARTS)
    return tl.sum(tl.load(sums + slot * blocks + part, mask=part < blocks, other=0.0))


@triton.jit
def _direction_kernel(  # type: ignore[no-untyped-def]
    relief, sizes, members, weight, scaled, before, direction, changed, size, size_before, curvature, blocks,
    EDGE: tl.constexpr, STIFFNESS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The next direction, and what the equations' matrix makes of it."""
    slot = tl.program_id(1)
    view = tl.load(members + slot)
    if view >= 0:
        turn = _total(size, slot, blocks, PARTS) / tl.maximum(_total(size_before, slot, blocks, PARTS), 1e-20)
        start = tl.load(sizes + 3 * view)
        width = tl.load(sizes + 3 * view + 2).to(tl.int32)
        pixels = tl.load(sizes + 3 * view + 1).to(tl.int32) * width
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        valid = pixel < pixels
        left, right, up, down = _around(pixel, valid, width, pixels)
        at = relief + start + pixel
        own = slot.to(tl.int64) * pixels + pixel
        z = scaled + own
        d = before + own
        base = tl.load(at, mask=valid, other=0.0)
        new = tl.load(z, mask=valid, other=0.0) + turn * tl.load(d, mask=valid, other=0.0)
        total = (tl.load(weight + own, mask=valid, other=0.0) + 1.0) * new
        s = _spring(base, tl.load(at - 1, mask=left, other=0.0), left, EDGE, STIFFNESS)
        beside = tl.load(z - 1, mask=left, other=0.0) + turn * tl.load(d - 1, mask=left, other=0.0)
        total += s * (new - beside)
        s = _spring(base, tl.load(at + 1, mask=right, other=0.0), right, EDGE, STIFFNESS)
        beside = tl.load(z + 1, mask=right, other=0.0) + turn * tl.load(d + 1, mask=right, other=0.0)
        total += s * (new - beside)
        s = _spring(base, tl.load(at - width, mask=up, other=0.0), up, EDGE, STIFFNESS)
        beside = tl.load(z - width, mask=up, other=0.0) + turn * tl.load(d - width, mask=up, other=0.0)
        total += s * (new - beside)
        s = _spring(base, tl.load(at + width, mask=down, other=0.0), down, EDGE, STIFFNESS)
        beside = tl.load(z + width, mask=down, other=0.0) + turn * tl.load(d + width, mask=down, other=0.0)
        total += s * (new - beside)
        tl.store(direction + own, new, mask=valid)
        tl.store(changed + own, total, mask=valid)
        tl.store(curvature + slot * blocks + tl.program_id(0), tl.sum(tl.where(valid, new * total, 0.0)))


@triton.jit
def _step_kernel(  # type: ignore[no-untyped-def]
    field, sizes, members, scale, residual, scaled, direction, changed, size, curvature, new_size, blocks,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The step along the direction, and the residual that is left."""
    slot = tl.program_id(1)
    view = tl.load(members + slot)
    if view >= 0:
        step = _total(size, slot, blocks, PARTS) / tl.maximum(_total(curvature, slot, blocks, PARTS), 1e-20)
        start = tl.load(sizes + 3 * view)
        pixels = tl.load(sizes + 3 * view + 1).to(tl.int32) * tl.load(sizes + 3 * view + 2).to(tl.int32)
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        valid = pixel < pixels
        at = field + start + pixel
        own = slot.to(tl.int64) * pixels + pixel
        h = tl.load(at, mask=valid, other=0.0) + step * tl.load(direction + own, mask=valid, other=0.0)
        r = tl.load(residual + own, mask=valid, other=0.0) - step * tl.load(changed + own, mask=valid, other=0.0)
        z = tl.load(scale + own, mask=valid, other=0.0) * r
        tl.store(at, h, mask=valid)
        tl.store(residual + own, r, mask=valid)
        tl.store(scaled + own, z, mask=valid)
        tl.store(new_size + slot * blocks + tl.program_id(0), tl.sum(r * z))


class FieldSolver:
    """Solves the fields of up to `slots` views of one shape (H, W) at once, anew as often as asked.

    members                (slots,) int32 the views to solve for, -1 for none, as `choose` leaves them
    field                  (N,) packed, as it stands; solutions take its place
    factor, factor_weight  (N,) packed: the log factor that matches and tracks observe, and its weight
    heard, heard_weight    (slots, H, W) for the log depths that other views tell, and their weights
    """

    def __init__(
        self, views: PackedViews, field: torch.Tensor, factor: torch.Tensor, factor_weight: torch.Tensor,
        shape: tuple[int, int], slots: int,
    ) -> None:  # fmt: skip
        self._views = views
        self._field = field
        self._observed = (factor, factor_weight)
        self._blocks = triton.cdiv(shape[0] * shape[1], _BLOCK)
        device = field.device
        self.members = torch.empty(slots, dtype=torch.int32, device=device)
        self.heard, self.heard_weight = (torch.empty(slots, *shape, device=device) for _ in range(2))
        self._weight, self._scale, self._residual, self._scaled, self._changed = (
            torch.empty_like(self.heard) for _ in range(5)
        )
        self._directions = [torch.empty_like(self.heard) for _ in range(2)]
        self._sizes = [torch.empty(slots, self._blocks, device=device) for _ in range(2)]
        self._curvature = torch.empty(slots, self._blocks, device=device)
        self._replay: Callable[[], None] | None = None

    def choose(self, members: torch.Tensor) -> None:
        """Takes views (slots,) int32 for `members`, where the recording reads them."""
        self.members.copy_(members)

    def solve(self, spread: float, iterations: int, heard: bool) -> None:
        """`iterations` steps for the members.

        spread  observed factors further from the field count less
        heard   whether the log depths in `heard` count as well
        """
        views = self._views
        _start_kernel[(self._blocks, len(self.members))](
            self._field, views.relief, *self._observed, self.heard, self.heard_weight, spread,
            views.sizes, self.members, self._weight, self._scale, self._residual, self._scaled,
            self._directions[0], *self._sizes, self._blocks,
            HEARD=heard, EDGE=EDGE, STIFFNESS=SMOOTH_SIGMA**-2, BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        for done in range(0, iterations, _RECORDED):
            count = min(_RECORDED, iterations - done)
            if count < _RECORDED or not self._field.is_cuda:
                self._iterate(count)
            elif self._replay is None:
                self._iterate(count)  # compiles the kernels, so that the next can be recorded
                self._replay, _ = capture(lambda: self._iterate(_RECORDED), self._field.device)
            else:
                self._replay()

    def _iterate(self, count: int) -> None:
        views, members, blocks = self._views, self.members, self._blocks
        grid, parts = (blocks, len(members)), triton.next_power_of_2(blocks)
        for k in range(count):
            now, other = k % 2, 1 - k % 2
            _direction_kernel[grid](
                views.relief, views.sizes, members, self._weight, self._scaled, self._directions[now],
                self._directions[other], self._changed, self._sizes[now], self._sizes[other], self._curvature, blocks,
                EDGE=EDGE, STIFFNESS=SMOOTH_SIGMA**-2, PARTS=parts, BLOCK=_BLOCK, num_warps=_WARPS,
            )  # fmt: skip
            _step_kernel[grid](
                self._field, views.sizes, members, self._scale, self._residual, self._scaled,
                self._directions[other], self._changed, self._sizes[now], self._curvature, self._sizes[other], blocks,
                PARTS=parts, BLOCK=_BLOCK, num_warps=_WARPS,
            )  # fmt: skip

"""The fused renderer, run by Triton's interpreter on the CPU, against the plain one."""

from __future__ import annotations

import pytest
import torch
from triton_interpreter import interpreted, outside, run_interpreted

from synthetic.layout import MaterialColumns
from synthetic.materials import MIRROR, PICTURE
from synthetic.pairs import NEW_KINDS, PairPlan, photograph, plan_kind, plan_pairs
from synthetic.rendering import render_rays

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")


@outside
def test_in_the_interpreter() -> None:
    run_interpreted(__file__)


@interpreted
@pytest.mark.parametrize("seed", [1, 14])  # both batches hold rooms and open ground
def test_fused_kernel_renders_what_the_plain_functions_render(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_pairs(seed, 4)
    assert 0 < plan.scenes.outdoor.sum() < 4
    compare(plan, torch.randn(4, 1500, 3, generator=torch.Generator().manual_seed(seed)), monkeypatch)


@interpreted
@pytest.mark.parametrize("kind", NEW_KINDS)
def test_fused_kernel_renders_the_new_kinds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_kind(3, 3, kind)
    rays = torch.randn(3, 1500, 3, generator=torch.Generator().manual_seed(0)) * 0.5 + torch.tensor([0.0, 0.0, 1.0])
    compare(plan, (rays[:, :, None] * plan.rotation[:, :1]).sum(-1), monkeypatch)


@interpreted
def test_fused_kernel_renders_pictures_and_mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = photograph(plan_pairs(1, 4), 1)
    patterns = plan.scenes.materials[..., MaterialColumns.PATTERN]
    assert (patterns == PICTURE).float().mean() > 0.2
    patterns[:, ::5] = MIRROR
    compare(plan, torch.randn(4, 1500, 3, generator=torch.Generator().manual_seed(1)), monkeypatch)


def compare(plan: PairPlan, d: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renders rays along d (B, P, 3) from the first cameras of a plan both ways."""
    from synthetic import shading_triton

    monkeypatch.setattr(shading_triton, "BLOCK", 2048)
    o = plan.eye[:, :1].expand_as(d)
    angle = torch.full(d.shape[:2], 0.005)
    colour, t, surface = shading_triton.render_rays_fused(plan.scenes, o, d, angle)
    true_colour, true_t, true_surface = render_rays(plan.scenes, o, d, angle)
    same = surface == true_surface
    assert same.float().mean() > 0.999
    assert len(true_surface.unique()) > 20
    near = same & (true_t < 100)
    torch.testing.assert_close(t[near], true_t[near], rtol=1e-3, atol=1e-4)
    # where a texture jumps, rounding decides
    assert ((colour - true_colour).abs().amax(-1) > 1e-3).float().mean() < 0.005

"""The fused renderer, run by Triton's interpreter on the CPU, against the plain one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mast3r_sfm.synthetic.pairs import plan_pairs
from mast3r_sfm.synthetic.shading import render_rays

pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.skipif(INTERPRETED, reason="this is that run")
def test_in_the_interpreter() -> None:
    """Triton decides when it is imported, so the test below needs a process of its own."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    here = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here)]
    run = subprocess.run(command, env=environment, cwd=here.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]


@pytest.mark.skipif(not INTERPRETED, reason="run by test_in_the_interpreter")
@pytest.mark.parametrize("seed", [1, 14])  # both batches hold rooms and open ground
def test_fused_kernel_renders_what_the_plain_functions_render(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mast3r_sfm.synthetic import shading_triton

    monkeypatch.setattr(shading_triton, "BLOCK", 2048)
    plan = plan_pairs(seed, 4)
    assert 0 < plan.scenes.outdoor.sum() < 4
    generator = torch.Generator().manual_seed(seed)
    d = torch.randn(4, 1500, 3, generator=generator)
    o = plan.eye[:, :1].expand_as(d)
    angle = torch.full((4, 1500), 0.005)
    colour, t, surface = shading_triton.render_rays_fused(plan.scenes, o, d, angle)
    true_colour, true_t, true_surface = render_rays(plan.scenes, o, d, angle)
    same = surface == true_surface
    assert same.float().mean() > 0.999
    assert len(true_surface.unique()) > 20
    near = same & (true_t < 100)
    torch.testing.assert_close(t[near], true_t[near], rtol=1e-3, atol=1e-4)
    # where a texture jumps, rounding decides
    assert ((colour - true_colour).abs().amax(-1) > 1e-3).float().mean() < 0.005

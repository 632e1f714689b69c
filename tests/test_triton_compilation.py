"""Every Triton kernel, with the arguments of a real call, through the compiler for Hopper GPUs; no GPU is needed.

The interpreter accepts what the compiler does not, and nothing else compiles a kernel on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from triton_interpreter import outside

from mast3r_sfm.model.config import Activation

triton = pytest.importorskip("triton", reason="Triton comes with torch's CUDA builds")
pytestmark = outside

HALF = torch.float16
TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
    torch.uint8: "*u8",
}  # fmt: skip


DENSE = {
    "_triangulate_kernel", "_sum_kernel", "_segment_median_kernel", "_histogram_kernel", "_opinions_kernel",
    "_start_kernel", "_direction_kernel", "_step_kernel", "_edges_kernel", "_ranges_kernel", "_samples_kernel",
    "_confidence_kernel", "_cleaning_kernel",
}  # fmt: skip


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Launches compile for compute capability 9.0 instead of running: kernel name -> PTX."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found: dict[str, str] = {}

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
        values = dict(zip(kernel.arg_names, args, strict=False)) | named
        constants = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        signature, attributes = {}, {}
        for position, name in enumerate(kernel.arg_names):
            value = values[name]
            if name in constants:
                signature[name] = "constexpr"
            elif isinstance(value, torch.Tensor):
                signature[name] = TYPES[value.dtype]
                attributes[(position,)] = [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
        result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        found[kernel.fn.__name__] = result.asm["ptx"]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", compile_only)
    return found


def _image(channels: int) -> torch.Tensor:
    return torch.zeros(2, channels, 6, 8, dtype=HALF).to(memory_format=torch.channels_last)


def _rotary() -> None:
    from mast3r_sfm.model.network.rope import rope_table
    from mast3r_sfm.model.network.rope_triton import rotate_in_place

    rotate_in_place(torch.zeros(1, 6, 12, 64, dtype=HALF), rope_table((2, 3), 64, 100.0, torch.device("cpu")))


def _residual_stream() -> None:
    from mast3r_sfm.model.network import fused_triton

    x, norm = torch.zeros(1, 6, 768), nn.LayerNorm(768)
    fused_triton.normalise(x, norm, HALF)
    fused_triton.add_and_normalise(x, x.to(HALF), norm, HALF)


def _convolutions() -> None:
    from mast3r_sfm.model.network import fused_triton

    fused_triton.add_bias(_image(128), torch.zeros(128, dtype=HALF), [_image(128)], relu=True)
    fused_triton.upsample(_image(128), (12, 16))


def _heads() -> None:
    from mast3r_sfm.model.network import fused_triton

    last, exponential = nn.Conv2d(128, 4, 1).to(HALF), Activation("exp", 1.0, torch.inf)
    points, conf = torch.zeros(2, 6, 8, 3), torch.zeros(2, 6, 8)
    bias = torch.zeros(128, dtype=HALF)
    fused_triton.write_points(_image(128), bias, last, exponential, exponential, points, conf)
    fused_triton.descriptors(torch.zeros(1, 6, 25 * 16 * 16, dtype=HALF), (2, 3), 16, 24, exponential)


def _search() -> None:
    from mast3r_sfm.matching import nearest_triton as search

    maps = search.pack_maps([torch.zeros(16, 32, 24), torch.zeros(16, 32, 24)])
    number = torch.zeros(1, dtype=torch.int32)
    rows = torch.zeros(1, 8, dtype=torch.int32)
    listed = search.SeedList(rows.clone(), number.clone())
    search.nearest(maps, search.make_workspace(maps, 1, 8), number, number, rows, listed, rows.clone(), listed)


def _canonical() -> None:
    from mast3r_sfm import canonical_triton

    maps = [(torch.zeros(16, 24, 3), torch.ones(16, 24))]
    canonical_triton.add_pointmaps([torch.zeros(7, 16, 24)], [maps], 8, 0.999, 1e-8, 1e-7)
    canonical_triton.focals_of_planes(torch.zeros(2, 3, 16, 24), 10.0, 70.0, 10)


def _dense() -> None:
    from test_dense_triton import make_scene

    from mast3r_sfm.dense.stage_cuda import agree_fused

    agree_fused(make_scene(), 2)


def _renderer() -> None:
    from synthetic.pairs import plan_pairs
    from synthetic.shading_triton import render_rays_fused

    d = torch.ones(1, 64, 3)
    render_rays_fused(plan_pairs(1, 1).scenes, torch.zeros_like(d), d, torch.ones(1, 64))


@pytest.mark.parametrize(
    ("call", "kernels"),
    [
        (_rotary, {"_rotate_kernel"}),
        (_residual_stream, {"_add_norm_kernel"}),
        (_convolutions, {"_bias_kernel", "_upsample_kernel"}),
        (_heads, {"_points_kernel", "_descriptors_kernel"}),
        (_search, {"_pack_kernel", "_tile_maxima_kernel", "_rescore_kernel"}),
        (_canonical, {"_add_kernel", "_focal_kernel"}),
        (_dense, DENSE),
        (_renderer, {"_render_kernel"}),
    ],
)
def test_kernels_compile_for_hopper(call: Callable[[], None], kernels: set[str], compiled: dict[str, str]) -> None:
    call()
    assert set(compiled) == kernels
    if "_tile_maxima_kernel" in kernels:
        assert "wgmma" in compiled["_tile_maxima_kernel"]  # tensor cores, or the search is many times slower

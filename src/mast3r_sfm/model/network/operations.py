"""When inference takes fused kernels (`fused_triton`) in place of torch's own operations."""

from __future__ import annotations

import torch

from mast3r_sfm.device import has_triton


def enabled(x: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a layer of weights of `dtype` computes x with fused kernels: half precision on CUDA, no gradients.

    torch.compile fuses by itself, and float32 results stay those of torch's operations.
    """
    return (
        x.is_cuda
        and dtype in (torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and has_triton()
    )

"""Choice of device and precision, and what they leave for a batch."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from functools import lru_cache

import torch

from mast3r_sfm.errors import InputError, ReconstructionError
from mast3r_sfm.options import Device, Precision


def resolve_device(device: str | Device) -> torch.device:
    """`auto` (CUDA if there is one, else the CPU), `cuda`, `cuda:N`, `cpu` or `mps` -> device.

    Raises InputError when the device asked for is not there.
    """
    wanted = Device.parse(device)
    if wanted.kind == "cpu" or (wanted.kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if wanted.kind == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("`device='mps'`: torch sees no Apple GPU here; use `device='cpu'`")
        return torch.device("mps")
    if not torch.cuda.is_available():
        raise InputError(
            "`device='cuda'`: torch sees no CUDA GPU here; use `device='cpu'`, or run `mast3r-sfm doctor` to see why"
        )
    index = torch.cuda.current_device() if wanted.index is None else wanted.index
    if index >= torch.cuda.device_count():
        raise InputError(f"`device={wanted}`: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return torch.device("cuda", index)


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """`auto` -> fp16 on a CUDA GPU (ten times as accurate as bf16, as fast), fp32 elsewhere. Raises InputError."""
    wanted = Precision.parse(precision)
    if wanted is Precision.AUTO:
        return Precision.FP16 if device.type == "cuda" else Precision.FP32
    if wanted is Precision.TF32 and device.type != "cuda":
        raise InputError(f"`precision='tf32'`: only CUDA GPUs have it, the device is {device.type}; use fp32")
    return wanted


def compute_dtype(precision: str) -> torch.dtype:
    """Type of the weights and of the matrix products; the residual stream and the outputs are float32."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Allows TF32 products inside, if and only if `precision` is tf32, and restores the process's setting."""
    before = _set_tf32(precision == "tf32", precision == "tf32")
    try:
        yield
    finally:
        _set_tf32(*before)


def _set_tf32(matmul: bool, convolution: bool) -> tuple[bool, bool]:
    """Sets both switches and returns what they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch 2.9 announces other names, to the user of all people
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution
    return before


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current one inside: Triton launches its kernels there, and CUDA graphs are recorded there."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def lack_of_memory_explained() -> Iterator[None]:
    """In here, or in a function so decorated, exhausted GPU memory becomes a ReconstructionError with advice."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ReconstructionError(
            "the GPU's memory does not suffice for so many photos and pairs; use a `scene_graph` with fewer pairs "
            "(auto, swin, logwin, retrieval), a smaller `image_size`, a larger `subsample`, or `device='cpu'`"
        ) from error


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether fused kernels can be had; Triton comes with torch's CUDA builds on Linux."""
    return importlib.util.find_spec("triton") is not None

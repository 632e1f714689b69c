"""An iteration recorded once as a CUDA graph and then replayed, which spares the host's time for every operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch

WARM_UP = 3
"""Iterations before the recording, which are then undone."""


class Recordable(Protocol):
    """A step without arguments that only changes tensors in place, and never asks the host."""

    def step(self) -> None:
        """One iteration."""

    def state(self) -> list[torch.Tensor]:
        """The tensors that `step` changes."""


def record(stage: Recordable) -> Callable[[], None]:
    """The step of `stage` as a CUDA graph; the stage is left as it was.

    `torch.cuda.graph` would also empty the allocator's cache, which costs more than this recording.
    """
    before = [tensor.clone() for tensor in stage.state()]
    graph = torch.cuda.CUDAGraph()
    stream = _recording_stream(before[0].device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            stage.step()
        for tensor, value in zip(stage.state(), before, strict=True):
            tensor.copy_(value)
        torch.cuda.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            stage.step()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


@lru_cache(maxsize=8)
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: torch keeps workspaces of 64 MB for every stream that ever multiplied matrices."""
    return torch.cuda.Stream(device)

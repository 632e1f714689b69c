"""Work of a GPU recorded once as a CUDA graph and then replayed, which spares the host's time for every operation."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def capture(run: Callable[[], Result], device: torch.device) -> tuple[Callable[[], None], Result]:
    """Records the work that `run` gives the device, which is not done yet. Returns what does it, and `run`'s result.

    The result's tensors are filled by a replay and overwritten by the next. `run` must have been called before, outside
    of a recording: what is compiled or allocated once cannot be recorded. It must not ask the host, and it reads its
    inputs from where they lie now: the caller keeps these tensors as long as it replays.

    `torch.cuda.graph` would also empty the allocator's cache, which costs more than this recording.
    """
    graph = torch.cuda.CUDAGraph()
    stream = recording_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        torch.cuda.synchronize(device)
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            result = run()
        finally:
            graph.capture_end()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay, result


@lru_cache(maxsize=8)
def recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: torch keeps workspaces of 64 MB for every stream that ever multiplied matrices."""
    return torch.cuda.Stream(device)

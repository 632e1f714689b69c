"""An iteration recorded once as a CUDA graph and then replayed, which spares the host's time for every operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from mast3r_sfm.cuda_graphs import capture, recording_stream

WARM_UP = 3
"""Iterations before the recording, which are then undone."""


class Recordable(Protocol):
    """A step without arguments that only changes tensors in place, and never asks the host."""

    def step(self) -> None:
        """One iteration."""

    def state(self) -> list[torch.Tensor]:
        """The tensors that `step` changes."""


def record(stage: Recordable) -> Callable[[], None]:
    """The step of `stage` as a CUDA graph; the stage is left as it was."""
    before = [tensor.clone() for tensor in stage.state()]
    device = before[0].device
    stream = recording_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            stage.step()
        for tensor, value in zip(stage.state(), before, strict=True):
            tensor.copy_(value)
    torch.cuda.current_stream(device).wait_stream(stream)
    return capture(stage.step, device)[0]

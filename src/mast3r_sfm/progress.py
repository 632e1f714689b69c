"""How the library tells its caller where it is; what is shown is the caller's affair."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, its steps done so far and all its steps: with 0 when it begins, with all when it ends."""

Advance = Callable[[int], None]
"""Called within a stage with the number of steps done since the last call."""


class StageTimer:
    """Wall-clock seconds of every stage, the GPU's work included, in `seconds`; reports to `progress` if there is one.

    device  whose work a stage waits for before it ends
    """

    def __init__(self, progress: Progress | None, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._device = device

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Advance]:
        """Times what happens inside as a stage of `total` steps; the block calls what it is given as steps are done."""
        start = time.perf_counter()
        done = 0

        def report(steps: int) -> None:
            nonlocal done
            done += steps
            if self._progress is not None:
                self._progress(name, done, total)

        report(0)
        try:
            yield report
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if done < total:
                report(total - done)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

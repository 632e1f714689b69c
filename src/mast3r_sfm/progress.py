"""How the library tells its caller where it is; what is shown is the caller's affair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Reporter(Protocol):
    """Receives the stages of a run as they happen."""

    def start(self, stage: str, total: int) -> None:
        """A stage of `total` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """`steps` more steps of the current stage are done."""

    def finish(self) -> None:
        """The current stage is over."""


class SilentReporter:
    """Shows nothing."""

    def start(self, stage: str, total: int) -> None:
        pass

    def advance(self, steps: int = 1) -> None:
        pass

    def finish(self) -> None:
        pass


class StageTimer:
    """Wall-clock seconds of every stage, the GPU's work included, in `seconds`."""

    def __init__(self, reporter: Reporter, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._reporter = reporter
        self._device = device

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """Times what happens inside and reports it as a stage of `total` steps."""
        start = time.perf_counter()
        self._reporter.start(name, total)
        try:
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self._reporter.finish()

"""A training step as one CUDA graph for each image shape: replayed, it costs the CPU next to nothing.

The thousands of kernels of a step take a CPU longer to launch than a GPU to run, once a batch is small; and small
batches learn more from the same number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from synthetic.pairs import PairPlan

from .losses import Losses, Shapes

Step = Callable[[PairPlan, Shapes], Losses]
"""From a plan to the losses; gradients add up in the parameters. Shapes decide which kernels it launches."""


@dataclass(frozen=True)
class _Recording:
    """A graph, the tensors that it reads and those that it fills."""

    graph: torch.cuda.CUDAGraph
    plan: PairPlan
    losses: Losses


class GraphedStep:
    """Calls `step` the first time that shapes come (which compiles what is to be compiled), then replays a recording.

    All of it must run on one stream that is not the default one. Random numbers go on from replay to replay. The
    losses returned are overwritten by the next replay.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step, self._device = step, device
        self._recordings: dict[tuple[Shapes, int], _Recording | None] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one memory for all: only one of the graphs runs at a time

    def __call__(self, plan: PairPlan, shapes: Shapes) -> Losses:
        key = shapes, plan.related.shape[0]
        if key not in self._recordings:
            self._recordings[key] = None
            return self._step(plan, shapes)
        recording = self._recordings[key] or self._record(plan, shapes)
        self._recordings[key] = recording
        for static, new in zip(recording.plan.tensors, plan.tensors, strict=True):
            static.copy_(new, non_blocking=True)
        recording.graph.replay()
        return recording.losses

    def _record(self, plan: PairPlan, shapes: Shapes) -> _Recording:
        static = plan.to(self._device)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(self._device)
        # "thread_local": the thread that plans the next step may go on meanwhile, and NCCL's may look at its events
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            losses = self._step(static, shapes)
        return _Recording(graph, static, losses)

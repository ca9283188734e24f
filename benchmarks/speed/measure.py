"""Timing contenders in turn, and the memory that each takes."""

import gc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from distillzoo.benchmarks.speed.contenders import Step
from distillzoo.core import factored


@dataclass(frozen=True)
class Timing:
    """One contender's figures.

    Attributes:
        seconds: median of a step.
        ratio: median of its seconds to those of the first contender in the same round.
        low, high: quartiles of that ratio.
        memory: most bytes in a step beyond what was there before: weights, their gradients and the batch.
        operations: floating-point operations of the step's dense matrix products and attention.
    """

    seconds: float
    ratio: float
    low: float
    high: float
    memory: int
    operations: int


def timed(
    steps: Mapping[str, Step],
    student: nn.Module,
    device: torch.device,
    rounds: int,
    progress: Callable[[int], None],
) -> dict[str, Timing]:
    """Run all steps in turn, round by round, in another order each time."""
    names = list(steps)
    memory, operations = {}, {}
    for name in names:  # the first run of each allocates what stays
        # PyTorch counts its own operations and none of Triton's
        with FlopCounterMode(display=False) as counter, patch.object(factored, "_kernels", return_value=None):
            steps[name]()
        operations[name] = counter.get_total_flops()
        student.zero_grad(set_to_none=False)
        memory[name] = peak_memory(steps[name], device)
        student.zero_grad(set_to_none=False)
        progress(2)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _wait(device)
            start = time.perf_counter()
            steps[name]()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
            student.zero_grad(set_to_none=False)
            progress(1)
    base = seconds[names[0]]
    found = {}
    for name in names:
        ratios = [mine / theirs for mine, theirs in zip(seconds[name], base, strict=True)]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        found[name] = Timing(median(seconds[name]), median(ratios), low, high, memory[name], operations[name])
    return found


def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, the fastest of a few."""
    size, found = 8192 if device.type == "cuda" else 2048, 0.0
    left, right = torch.randn(2, size, size, device=device, dtype=dtype)
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        left @ right
        _wait(device)
        found = max(found, 2 * size**3 / (time.perf_counter() - start))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(step: Step, device: torch.device) -> int:
    """Most bytes that a step holds at a time, beyond what was there before it."""
    gc.collect()  # garbage of earlier steps is not to be freed, and taken off, in this one
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it reports each start and stop; read at the first profile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max(initial=0))

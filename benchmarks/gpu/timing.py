"""Times, peaks and counts of a step, on a GPU by its own events."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

WAITING = ('cudaStreamSynchronize', 'cudaEventSynchronize')  # the profiler's own wait is for the whole device
NO_KERNELS = ('ProfilerStep', 'Activity Buffer', 'Optimizer.', '## ')  # spans of the profiler's own

__all__ = ['launches', 'median_seconds', 'peak_bytes', 'synchronisations', 'times', 'tracing', 'waits']


def times(step: Callable[[], object], device: str, warmup: int = 3, rounds: int = 7) -> list[float]:
    """Seconds of each of ``rounds`` steps after ``warmup`` ones."""
    for _ in range(warmup):
        step()
    if device == 'cpu':
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            step()
            taken.append(time.perf_counter() - start)
        return taken
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) / 1000 for first, second in zip(events, events[1:])]


def median_seconds(step: Callable[[], object], device: str, warmup: int = 3, rounds: int = 7) -> float:
    """Median of :func:`times`."""
    return statistics.median(times(step, device, warmup, rounds))


def peak_bytes(step: Callable[[], object], device: str) -> dict[str, int]:
    """Largest allocation and reservation during one step, what was there before among them; nothing on a CPU."""
    if device == 'cpu':
        step()
        return {}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return {'allocated': torch.cuda.max_memory_allocated(), 'reserved': torch.cuda.max_memory_reserved()}


def synchronisations(step: Callable[[], object], device: str) -> dict[str, int]:
    """How often the host waits for the GPU in one step, by the line of Python that made it wait."""
    if device == 'cpu':
        step()
        return {}
    with waits() as places:
        step()
    return places


@contextlib.contextmanager
def waits() -> Iterator[dict[str, int]]:
    """Counts, until it is left, how often the host waits for the GPU, by line of Python."""
    places: dict[str, int] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode('default')
    for warning in caught:
        if 'synchroniz' in str(warning.message):
            place = f'{"/".join(warning.filename.split("/")[-3:])}:{warning.lineno}'
            places[place] = places.get(place, 0) + 1


def launches(step: Callable[[], object], device: str) -> dict[str, float]:
    """Kernels of one step, the share of its time without any, how long the host waited, and times of groups of kernels.

    The profiler slows the host, so a host that is behind is farther behind here than in a step that is only timed.
    """
    if device == 'cpu':
        step()
        return {}
    with tracing() as found:
        step()
    return found


@contextlib.contextmanager
def tracing() -> Iterator[dict[str, float]]:
    """As :func:`launches`, of what is run until it is left."""
    found: dict[str, float] = {}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        yield found
        torch.cuda.synchronize()
    found.update(_kernels_of(trace))


def _kernels_of(trace: profile) -> dict[str, float]:
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in trace.events()
        if event.device_type == DeviceType.CUDA and not event.name.startswith(NO_KERNELS)
    )
    waited = sum(event.time_range.end - event.time_range.start for event in trace.events() if event.name in WAITING)
    if not spans:
        return {'kernels': 0, 'waiting ms': waited / 1000}
    busy, end = 0.0, spans[0][0]
    for first, last, _ in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    groups: dict[str, float] = {}
    for first, last, name in spans:
        groups[_group(name)] = groups.get(_group(name), 0.0) + (last - first) / busy
    whole = end - spans[0][0]
    idle = 1 - busy / whole
    return {'kernels': len(spans), 'idle share': idle, 'waiting ms': waited / 1000, 'kernel shares': groups}


GROUPS = {
    'matrix products': ('gemm', 'nvjet', 'cutlass', 'sm90_xmma', 'splitk', 'wgmma'),
    'attention': ('flash', 'fmha', 'attention'),
    'rows and columns taken and put back': ('index', 'gather', 'scatter'),
    'copies and fills': ('memcpy', 'memset', 'copy', 'fill'),
    'sums': ('reduce', 'softmax'),
}


def _group(name: str) -> str:
    lower = name.lower()
    # Attention's kernels are built of CUTLASS parts, so they are looked for first.
    order = ('attention', *(group for group in GROUPS if group != 'attention'))
    return next((group for group in order if any(word in lower for word in GROUPS[group])), 'by element and others')

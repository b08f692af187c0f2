"""Peak memory increase during a function call."""

from collections.abc import Callable
from pathlib import Path

import torch


def extra_mib(work: Callable[[], object], on_gpu: bool) -> float:
    """MiB of the GPU, or of this process by Linux's /proc."""
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path('/proc/self/clear_refs').write_text('5', encoding='ascii')  # resets the peak
    before = _resident_mib('VmRSS')
    work()
    return _resident_mib('VmHWM') - before


def _resident_mib(field: str) -> float:
    lines = Path('/proc/self/status').read_text(encoding='ascii').splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

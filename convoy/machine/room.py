"""What this machine has for a process: cores and memory, and how much of that it used."""

import os
import re
import resource
import sys
from pathlib import Path

# How Python, TensorFlow, PyTorch, JAX, CUDA and the C library say that memory is at its end.
OUT_OF_MEMORY = re.compile(
    r"MemoryError|ResourceExhausted|RESOURCE_EXHAUSTED|CUDA_ERROR_OUT_OF_MEMORY|[Oo]ut ?[Oo]f ?[Mm]emory"
    r"|allocate memory"
)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak() -> int:
    """Returns the largest memory, in bytes, that this process and the largest of those that it started had.

    Until it runs its program, a process counts the memory of who started it as its own; so Linux' own figure for the
    program is asked for, and one that was started counts only if it had more than this process, and so its own.
    """
    own, started = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        own = int(found[1])
    kilobytes = own + (started if started > own else 0)
    return kilobytes * (1 if sys.platform == "darwin" else 1024)  # on macOS these are bytes

"""What this machine has for a process: cores and memory, and how much of that it used."""

import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

# How Python, TensorFlow, PyTorch, JAX, CUDA and the C library say that memory is at its end.
OUT_OF_MEMORY = re.compile(
    r"MemoryError|ResourceExhausted|RESOURCE_EXHAUSTED|CUDA_ERROR_OUT_OF_MEMORY|[Oo]ut ?[Oo]f ?[Mm]emory"
    r"|allocate memory"
)

BATCH = 1024  # kilobytes by which Linux' counts of one memory may differ: each thread adds its pages up in batches


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
    kilobytes = own + (started if started > own + BATCH else 0)
    return kilobytes * (1 if sys.platform == "darwin" else 1024)  # on macOS these are bytes


def available(root: Path = Path("/")) -> tuple[int, int]:
    """Returns the bytes of memory that this process may have, what it has included, and those that there are in all.

    The least of what the machine and the control groups of the process allow; files that the system keeps in memory
    count as free.

    Args:
        root: of the file system; another one in tests.
    """
    machine = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    limits = [(machine.available + own, machine.total)]
    for folder, names in _groups(root):
        try:
            limit, used = (folder / names[0]).read_text().strip(), int((folder / names[1]).read_text())
            cached = re.search(rf"^{names[2]} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
        except OSError:  # the root of a hierarchy has no limit
            continue
        if limit != "max":
            limits.append((int(limit) - used + int(cached[1] if cached else 0) + own, int(limit)))
    return max(0, min(free for free, _ in limits)), min(total for _, total in limits)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Yields folders of control groups, version 2 and 1, with the names of limit, use and files in memory there."""
    own = root / "proc/self/cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.lstrip("/")
        # In a container the path may be that of its host, and the limit stands at the top.
        for place in (folder, *folder.parents):
            yield place, names
            if place == top:
                break

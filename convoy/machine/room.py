"""Memory: how much a process had, and how much there is, of the machine and of its GPUs."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

MIB = 2**20


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


def gpus() -> list[tuple[int, int]]:
    """Returns (free, all) bytes of every NVIDIA GPU that this process may use."""
    program, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if program is None:
        return []
    command = [program, "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    command += [f"--id={visible}"] if visible else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.SubprocessError:  # an estimate ends no training
        return []
    rows = re.findall(r"^(\d+), *(\d+)$", done.stdout, re.MULTILINE)  # some say [N/A]
    return [(int(free) * MIB, int(total) * MIB) for free, total in rows]


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

"""How much memory a process had."""

import re
import resource
import sys
from pathlib import Path


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

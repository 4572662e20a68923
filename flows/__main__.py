"""``python -m flows ARGUMENTS`` is ``convoy ARGUMENTS``: the program in .venv/bin starts this, see the Makefile."""

if __name__ == "__main__":  # before the other imports
    from convoy.machine import interrupt

    interrupt.catch(128 + 2)  # the status that shells give a command which SIGINT ended

import gc
import signal
import sys

from convoy import PACKAGES, command
from convoy.errors import ConfigurationError

if __name__ == "__main__":
    command.prepare_environment()
    gc.set_threshold(50_000, 20, 50)  # for the reason in stages/__main__.py
    sys.excepthook = command.show_defect
    try:
        from flows import cli
    except ModuleNotFoundError as missing:
        if missing.name.partition(".")[0] in PACKAGES:
            raise
        print(f"error: {sys.executable} lacks {missing.name}. `make setup` installs it in .venv.", file=sys.stderr)
        sys.exit(ConfigurationError.status)

    status = cli.main(sys.argv[1:])
    gc.freeze()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # from now on Python would print where it ends
    interrupt.leave(status)

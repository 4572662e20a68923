"""What both command lines, ``convoy`` and ``python -m stages``, do around the work."""

import errno
import os
import sys
import traceback
import unicodedata
from typing import Any

from convoy.errors import ServiceError, StageError
from convoy.secrets import redacted

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # TensorFlow's start-up notes are no news to the user
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def prepare_environment() -> None:
    """Sets SETTINGS where the user set nothing; before any library is imported that reads them."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def report(error: Exception) -> int | None:
    """Prints one line about an error that was foreseen; returns its exit status, see ``errors.py``. Else None."""
    if not isinstance(error, StageError):
        if isinstance(error, OSError) and error.errno in FULL:
            print(f"error: {error.strerror}: {error.filename or 'the disk'}. Make room and run again.", file=sys.stderr)
            return ServiceError.status
        # Only where MLflow was used; it takes seconds to import.
        store = sys.modules.get("convoy.tracking.store")
        explained: StageError | None = store.explained(error) if store else None
        if explained is None:
            return None
        error = explained
    print("error:", "\n".join(one_line(redacted(str(line))) for line in error.args), file=sys.stderr)
    return error.status


def one_line(message: str) -> str:
    """Returns a message, which may quote raw data, without what would steer a terminal or end the line."""
    return "".join(sign if unicodedata.category(sign) != "Cc" else f"\\x{ord(sign):02x}" for sign in message)


def show_defect(*raised: Any) -> None:
    """Prints an exception that nothing foresaw, as Python does, without the secrets that it may quote."""
    sys.stderr.write(redacted("".join(traceback.format_exception(*raised))))

"""``python -m flows results``: the table of models, with what ran and who is champion."""

import argparse
import os
import sys

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "1")


def main() -> int:
    """Returns the exit status; see ``stages/errors.py``."""
    from flows import results
    from stages.errors import StageError

    parser = argparse.ArgumentParser(prog="python -m flows", description="convoy's flows")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("results", help="print every model with its score, and the champions")
    table.add_argument(
        "--since", type=int, default=None, metavar="SECONDS", help="Unix time; stages run later are 'ran'"
    )
    words = parser.parse_args()
    try:
        results.show(words.since)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())

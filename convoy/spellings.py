"""How commands were spelled before there was ``convoy``: they still work, and name the new spelling.

This file and its two users' lines go away together.
"""

import os
import shlex
import sys
from collections.abc import Sequence

COMMANDS = {"pipeline": "run", "results": "show"}
# What was typed as ``python -m stages COMMAND``.
OF_STAGES = (
    "check",
    "clean",
    "cost",
    "doctor",
    "measure",
    "pull",
    "push",
    "rebuild",
    "rollback",
    "ship",
    "trace",
    "verify",
)


def renew(words: Sequence[str]) -> list[str]:
    """Returns a command line as it is spelled now; ``words`` themselves if that is how they are spelled."""
    command, *rest = words or [""]
    if command in COMMANDS:
        return [COMMANDS[command], *rest]
    if command in ("predict", "serve"):  # the data set was an option
        dataset, others = _option(rest, "--dataset")
        return [command, dataset, *others] if dataset else list(words)
    if command == "rollback":  # the version was an option, and the reason all that followed
        before, given, after = _parted(rest, "--reason")
        version, others = _option(before, "--to")
        if version and others:
            return [command, f"{others[0]}@{version}", *others[1:], *given, *([" ".join(after)] if given else [])]
    if command == "clean":  # champion,last:3
        kept, others = _option(rest, "--keep")
        if kept and all(part == "champion" or part[:5] == "last:" for part in kept.split(",")):
            last = next((part[5:] for part in kept.split(",") if part[:5] == "last:"), "0")
            return [command, "--keep-last", last, *["--keep-champions"] * ("champion" in kept.split(",")), *others]
    return list(words)


def replace_process(words: Sequence[str]) -> None:
    """Goes on as ``convoy`` if the words behind ``python -m stages`` are a command that is spelled so now."""
    if words and words[0] in OF_STAGES and not (words[0] == "ship" and len(words) == 3):  # a process of ours: ID NAME
        renewed = renew(words)
        note(renewed)
        os.execv(sys.executable, [sys.executable, "-m", "flows", *renewed])


def note(words: Sequence[str]) -> None:
    """Says how the command is spelled now."""
    print(f'note: this is "{shlex.join(["convoy", *words])}" now', file=sys.stderr, flush=True)


def _option(words: Sequence[str], name: str) -> tuple[str, list[str]]:
    """Returns the value of ``--name VALUE`` or ``--name=VALUE``, or nothing, and the other words."""
    for place, word in enumerate(words):
        if word == name and len(words) > place + 1:
            return words[place + 1], [*words[:place], *words[place + 2 :]]
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}="), [*words[:place], *words[place + 1 :]]
    return "", list(words)


def _parted(words: Sequence[str], name: str) -> tuple[list[str], list[str], list[str]]:
    """Returns what stands before ``name``, [name] if it exists, and what follows it."""
    place = words.index(name) if name in words else len(words)
    return list(words[:place]), list(words[place : place + 1]), list(words[place + 1 :])

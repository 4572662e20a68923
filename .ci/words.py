#!/usr/bin/env python3
"""Keeps phrases that readers stumble over out of the project's text.

The old text holds hundreds of them. ``words.json`` counts them by phrase and file, and no phrase may gain in total, so
moving a file costs nothing. ``words.py`` checks, ``--record`` lowers the counts after a clean-up, ``--list`` prints
every place. Standard library only; it reads the tracked files and no history, so a shallow clone will do.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

BASELINE = Path(__file__).with_suffix(".json")
READ = re.compile(r"\.(py|md|ya?ml|jinja|toml|cff)$|(^|/)Makefile$")
GAP = r"[\s_#*]+"  # a line break, the sign of a comment, the underscores of a test's name
ADVICE = {  # phrase: what to write instead
    "of which": "two sentences",
    "as of": "since, like, or the exact condition",
    "anew": "again",
    "is said": "the subject first: convoy prints, the log names",
    "what of": "the noun",
    "bring": "upload, copy, update: the exact verb",
    "is there": "exists",
    "inverted conditional": "if ..., ...",
}
PATTERNS = {phrase: re.compile(rf"(?<![a-z]){phrase.replace(' ', GAP)}(?![a-z])", re.I) for phrase in ADVICE} | {
    "bring": re.compile(r"(?<![a-z])(bring(s|ing)?|brought)(?![a-z])", re.I),
    "inverted conditional": re.compile(
        r"(?<![\w'`-])(Is|Are|Was|Were|Has|Have|Had|Does|Do|Did|Can|Should|Must)\s[^.?!;:]{3,120}?,[\s#]+then\b"
    ),
}


def find() -> dict[str, dict[str, list[int]]]:
    """Returns the line numbers of every hit: phrase -> file -> lines."""
    root = Path(__file__).parent.parent
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, list[int]]] = {phrase: {} for phrase in PATTERNS}
    for file in listed.split("\0"):
        path = root / file
        if not READ.search(file) or path == Path(__file__) or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        for phrase, pattern in PATTERNS.items():
            if lines := [text.count("\n", 0, hit.start()) + 1 for hit in pattern.finditer(text)]:
                found[phrase][file] = lines
    return found


def main(words: list[str]) -> int:
    """Returns 0 where no phrase gained, 1 where one did, 2 for a wrong call."""
    if words not in ([], ["--record"], ["--list"]):
        print("usage: words.py [--record | --list]", file=sys.stderr)
        return 2
    found = find()
    if words == ["--list"]:
        for phrase, files in found.items():
            for file, lines in files.items():
                print(*(f"{file}:{line}: {phrase}" for line in lines), sep="\n")
        return 0
    counts = {phrase: {file: len(lines) for file, lines in sorted(files.items())} for phrase, files in found.items()}
    allowed = json.loads(BASELINE.read_text()) if BASELINE.exists() else counts
    failed = False
    for phrase, files in counts.items():
        before = allowed.get(phrase, {})
        gained = sum(files.values()) - sum(before.values())
        failed |= gained > 0
        for file, number in files.items():
            if gained > 0 and number > before.get(file, 0):
                lines = ", ".join(map(str, found[phrase][file]))
                print(
                    f"{file}: {phrase!r} stands in {number} places, allowed are {before.get(file, 0)} "
                    f"(lines {lines}). Write {ADVICE[phrase]}."
                )
        if gained < 0 and not words:
            print(f"{phrase!r}: {-gained} fewer than allowed; `python .ci/words.py --record` keeps it so")
    if words and not failed:
        BASELINE.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a training leaves: the model's file, and what it was trained with."""

import json
import platform
import re
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras

from convoy.model import backend


def save(model: keras.Model, path: Path) -> None:
    """Writes ``model`` as a .keras file whose bytes follow from the model alone, so that DVC sees equal as equal.

    Keras writes the time of day and memory addresses (as names of shared objects) into the archive; the first is
    taken out, the second are numbered.
    """
    numbers: dict[str, str] = {}
    partial = path.with_name("partial.keras")
    model.save(partial)
    with zipfile.ZipFile(partial) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == "metadata.json":
                content = json.dumps(json.loads(content) | {"date_saved": ""}).encode()
            if entry.filename == "config.json":
                content = re.sub(
                    r'(?<="shared_object_id": )\d+',
                    lambda found: numbers.setdefault(found[0], str(len(numbers))),
                    content.decode(),
                ).encode()
            target.writestr(zipfile.ZipInfo(entry.filename), content)
    partial.unlink()


def environment() -> dict[str, Any]:
    """Returns what a training ran on: backend, devices, Python and library versions."""
    return {
        "backend": keras.backend.backend(),
        "devices": backend.devices(),
        "hardware": backend.hardware(),
        "python": platform.python_version(),
        "libraries": libraries(),
    }


def libraries() -> dict[str, str]:
    """Returns the versions of what computes."""
    return {library: version(library) for library in ("keras", keras.backend.backend(), "numpy")}

"""The code that a result depends on, computed from the imports.

This is the only list. dvc.yaml is held against it by a test; the key of a checkpoint, the identity of a search, the key
of decoded examples and the code that is stored with a servable model are made from it. The folder of a file says what
its edit costs: what lies in NEUTRAL cannot change a result.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import grimp

from convoy import CODE
from convoy.checksums import sha256

# Packages and modules that decide whether, where and how fast work is done, or what people are told of it. What
# stages.train.speed chose for a training, and its count of FLOPs, stand in run.json and hold for that model.
NEUTRAL = (
    "convoy.dependencies", "convoy.doctor", "convoy.errors", "convoy.journal", "convoy.machine", "convoy.params",
    "convoy.repo", "convoy.schema", "convoy.secrets", "convoy.tracking", "stages.train.running", "stages.train.speed",
)  # fmt: skip
ARCHITECTURES = "stages.train.architectures"  # a training imports one of them
BY_NAME = "convoy.kinds"  # whose files are imported by a name of params.yaml: all of them, where one is


def stage(name: str, architecture: str | None = None) -> list[str]:
    """Returns the modules that can change what a stage writes: ``stages.train.train``, ``convoy.data.shards``, ...

    Args:
        name: of the stage.
        architecture: of the model, for train.
    """
    own = [one for one in _within(f"stages.{name}") if not _is_in(one, (ARCHITECTURES,))]
    return of([*own, *([f"{ARCHITECTURES}.{architecture}"] if architecture else [])])


def of(modules: Iterable[str], neutral: bool = False) -> list[str]:
    """Returns modules and all of this checkout that they import, directly or not, sorted.

    A package is one of them only with ``neutral``: its ``__init__.py`` says what lies in it.

    Args:
        modules: where to begin.
        neutral: with those that cannot change a result, as whoever runs the code needs.
    """
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in seen or not (neutral or not _is_in(module, NEUTRAL)):
            continue
        seen.add(module)
        waiting += _graph().find_modules_directly_imported_by(module)
        if module == f"{BY_NAME}.base":
            waiting += _within(BY_NAME)
    return sorted(module for module in seen if neutral or not (CODE / Path(*module.split("."))).is_dir())


def file(module: str) -> Path:
    """Returns the file of a module, relative to the checkout."""
    path = Path(*module.split("."))
    return path / "__init__.py" if (CODE / path).is_dir() else path.with_suffix(".py")


def checksums(modules: Iterable[str]) -> dict[str, str]:
    """Returns the files of modules, relative to the checkout -> SHA-256."""
    return {file(module).as_posix(): sha256(CODE / file(module)) for module in modules}


def _within(package: str) -> Iterator[str]:
    return (module for module in _graph().modules if _is_in(module, (package,)))


def _is_in(module: str, packages: Iterable[str]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in packages)


@cache
def _graph() -> grimp.ImportGraph:
    # Without a cache, which would lie in the folder that a stage happens to be started in: it takes 0.06 s.
    return grimp.build_graph("stages", "convoy", cache_dir=None, exclude_type_checking_imports=True)

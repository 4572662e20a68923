"""What the files of ``architectures/`` say of themselves, read without importing them, and so without Keras."""

import ast
from contextlib import suppress
from pathlib import Path
from typing import Any

from convoy.errors import ConfigurationError

ARCHITECTURES = Path(__file__).parent / "architectures"
# Arguments of ``build`` that are no sizes: they follow from the data or from the training.
FOLLOWS = ("input_shape", "classes", "heads", "words", "source_words", "target_words", "length")


def architectures() -> list[str]:
    """Returns the names of all architectures, sorted."""
    return sorted(path.stem for path in ARCHITECTURES.glob("[!_]*.py"))


def preset(architecture: object) -> dict[str, Any]:
    """Returns the keys of an entry that an architecture's file proposes; none where there is no such file."""
    return _constant(architecture, "PRESET", {}) if architecture in architectures() else {}


def kind(architecture: str) -> str:
    """Returns the kind of data that an architecture is for."""
    return _constant(architecture, "KIND", "images")


def check_sizes(where: str, architecture: str, sizes: dict[str, Any]) -> None:
    """Compares ``sizes`` with the signature of the architecture's ``build``.

    Raises:
        ConfigurationError: there is no such file, or ``build`` has no such argument.
    """
    names = architectures()
    if architecture not in names:
        raise ConfigurationError(f"{where}: unknown architecture {architecture!r}. Architectures: {', '.join(names)}.")
    file = ARCHITECTURES / f"{architecture}.py"
    try:
        build = _build(architecture)
    except SyntaxError as error:
        raise ConfigurationError(f"{where}: {file}, line {error.lineno}: {error.msg}") from error
    if build is None:
        raise ConfigurationError(f"{where}: {file} has no function build(input_shape, classes, ...).")
    allowed = _names(build)
    if unknown := sorted(set(sizes) - set(allowed)):
        raise ConfigurationError(
            f"{where}: {architecture} has no size {', '.join(unknown)}. Sizes: {', '.join(allowed)}."
        )


def default_sizes(architecture: str) -> dict[str, Any]:
    """Returns the defaults of the sizes of an architecture's ``build``.

    Those that have no default, or one that is computed, are left out.
    """
    build = _build(architecture)
    names, defaults = [argument.arg for argument in build.args.args], build.args.defaults
    found = {}
    for name, default in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        if name not in FOLLOWS:
            with suppress(ValueError):
                found[name] = ast.literal_eval(default)
    return found


def sizes(architecture: str) -> dict[str, Any]:
    """Returns the sizes of an architecture as properties of a JSON schema."""
    defaults = default_sizes(architecture)
    return {name: {"default": defaults[name]} if name in defaults else {} for name in _names(_build(architecture))}


def _names(build: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in build.args.args if argument.arg not in FOLLOWS]


def _build(architecture: str) -> ast.FunctionDef | None:
    functions = (node for node in _tree(architecture).body if isinstance(node, ast.FunctionDef))
    return next((node for node in functions if node.name == "build"), None)


def _tree(architecture: str) -> ast.Module:
    return ast.parse((ARCHITECTURES / f"{architecture}.py").read_text())


def _constant(architecture: str, name: str, default: Any) -> Any:
    """Returns the literal that an architecture's file gives to ``name``; it may not be Python, which others report."""
    try:
        body = _tree(architecture).body
    except SyntaxError:
        return default
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    return default

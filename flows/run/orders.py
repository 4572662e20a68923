"""What a coordinator sends to a worker of its cluster, and what comes back."""

from dataclasses import dataclass
from pathlib import Path

from convoy import CODE
from convoy.checksums import sha256
from convoy.errors import ConfigurationError
from convoy.repo import graph
from flows.run.runner import Outcome, StageRequest

STAGES, GPU, CPU = "convoy-stages", "GPU", "CPU"  # Dask's resources of a worker
POLL_SECONDS = 0.5  # between two looks whether a stage is still needed


@dataclass(frozen=True)
class Order:
    """Everything that a worker needs to update a stage.

    Attributes:
        request: the stage.
        inputs: names of the stages and .dvc files whose outputs it reads.
        settings: path -> text of params.yaml and of the .dvc files.
        entries: entries of dvc.lock for the stage and its inputs.
        code: path -> SHA-256, see ``checksum_code``.
        environment: variables of the stage.
        topic: Dask's topic for the worker's events.
    """

    request: StageRequest
    inputs: tuple[str, ...]
    settings: dict[str, str]
    entries: dict[str, dict]
    code: dict[str, str]
    environment: dict[str, str]
    topic: str


@dataclass(frozen=True)
class Delivery:
    """The outcome of an order, the stage's entry of dvc.lock, and the worker's lines of the journal."""

    outcome: Outcome
    entries: dict[str, dict]
    notes: list[dict]


def checksum_code() -> dict[str, str]:
    """Returns path -> SHA-256 of the code, of stages and flows, that has to be the same in all clones."""
    own = {str(path.relative_to(CODE)): path for path in (CODE / "flows").rglob("*.py")}
    return {name: sha256(path) for name, path in (own | {path: Path(path) for path in graph.code()}).items()}


def require_remote() -> None:
    """Raises ConfigurationError if this clone has no remote of DVC."""
    if graph.remote() is None:
        raise ConfigurationError(
            "a cluster needs a remote that all its clones reach, to carry the data. "
            "Add one with `dvc remote add --default NAME URL`."
        )

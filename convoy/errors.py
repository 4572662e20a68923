"""What can go wrong, and the exit status with which a stage says so."""


class StageError(Exception):
    """A failure that its message explains: what came in, where, and what is allowed; each argument is a line of it."""

    status = 1

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ConfigurationError(StageError):
    """params.yaml, dvc.yaml or the command line asks for something that does not exist."""

    status = 2


class InputRefusedError(StageError):
    """Raw data that cannot be used as it is."""

    status = 3


class IntegrityError(StageError):
    """A file is not what its checksum says it should be."""

    status = 4


class BusyError(StageError):
    """Another process is doing the same."""

    status = 5


class ServiceError(StageError):
    """An outside service or resource failed; running again goes on where it stopped."""

    status = 6


class DivergedError(StageError):
    """Training left the finite numbers."""

    status = 7

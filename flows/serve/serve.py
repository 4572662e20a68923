"""The champion behind HTTP, on loopback: ``convoy serve digits``."""

import tempfile
from contextlib import suppress

from convoy.errors import ConfigurationError, ServiceError
from convoy.tracking import registry
from flows import session
from stages.register.model import COLUMNS

FILES = ("image", "volume")  # columns of bytes


def serve(dataset: str, port: int) -> None:
    """Serves the champion of ``dataset`` by MLflow's own scoring server, until Ctrl-C.

    Args:
        dataset: whose champion.
        port: of loopback; POST /invocations, GET /ping.

    Raises:
        ConfigurationError: there is no champion, another tool made it, it was stored before models took raw examples,
            or another program listens on the port.
        IntegrityError: its stored files were changed, or are gone.
        ServiceError: the server ended by itself.
    """
    champion = registry.needed_champion(dataset)
    if "parity" not in champion.tags:
        raise ConfigurationError(
            f"version {champion.version} of {dataset} takes no raw examples: it was stored by an older convoy. "
            f"Register it again: dvc repro --force --single-item register@{dataset}"
        )
    session.check_free(port, f"convoy serve {dataset} --port ...")
    column = COLUMNS[champion.tags["kind"]]
    value = "$(base64 < FILE | tr -d '\\n')" if column in FILES else "A sentence."
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as elsewhere, registry.checked(champion) as model:
        print(f"version {champion.version} of {dataset} ({champion.tags['model']}); Ctrl-C ends it. To ask it:")
        print(
            f"""  printf '{{"dataframe_records": [{{"{column}": "%s"}}]}}' "{value}" |
    curl http://127.0.0.1:{port}/invocations -H 'Content-Type: application/json' -d @-""",
            flush=True,
        )
        place = ["--host", "127.0.0.1", "--port", str(port)]
        process = session.keep(
            ["mlflow", "models", "serve", "--env-manager", "local", "-m", str(model), *place],
            f"http://127.0.0.1:{port}/ping",
            cwd=elsewhere,  # not the checkout: the code that runs is the stored one
        )
        print("ready", flush=True)
        raise ServiceError(f"the server ended with status {process.wait()}.")

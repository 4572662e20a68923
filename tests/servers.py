"""Servers on loopback: of any requests, and as a team has them, PostgreSQL and an MLflow with login on it."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
from conftest import wait_for

from flows.session import free_port

DEBIAN = "/usr/lib/postgresql/*/bin"  # not on the path there
USER, PASSWORD = "convoy", "a long pass/word@home"


def program(name):
    """Returns where a program of PostgreSQL is; None: it is not installed."""
    return shutil.which(name) or next(map(str, sorted(Path("/").glob(f"{DEBIAN[1:]}/{name}"), reverse=True)), None)


@contextmanager
def answering(handler):
    """Runs an HTTP server of such requests in a thread; yields its port."""
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def postgresql():
    """Runs an empty PostgreSQL and yields its address."""
    import psycopg2  # only where there is a PostgreSQL to ask

    settings = {}
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # which root's own temporary folders would be closed to
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        known = {one.pw_name for one in pwd.getpwall()}
        settings = {"user": next(name for name in ("postgres", "nobody") if name in known)}
        shutil.chown(folder, settings["user"])
    initdb = [program("initdb"), "-D", folder / "data", "-U", USER, "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **settings)
    port = free_port()
    server = subprocess.Popen(
        [program("postgres"), "-D", folder / "data", "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"],
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **settings,
    )

    def there():
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user=USER, dbname="postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    try:
        wait_for(there, 120)
        yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


@contextmanager
def mlflow_with_login(database, folder):
    """Runs an MLflow server that keeps everything in ``database`` and ``folder``; yields the variables of its users."""
    port = free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///auth.db\nadmin_username = {USER}\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    place = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", *place, "--port", str(port)],
        cwd=folder,
        env=os.environ | {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "x"},
        stdout=(folder / "log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

    def there():
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        except httpx.TransportError:
            return False

    try:
        wait_for(there, 120)
        yield {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

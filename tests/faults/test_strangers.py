"""An address of MLflow where nobody answers, or somebody else does: a line, a status, and an end."""

import socket
import time
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import pytest
import servers

from convoy.errors import ConfigurationError, ServiceError
from convoy.tracking import outbox, store
from flows import cli
from flows.session import free_port

LOGIN = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Who are you?</body></html>"


def answer(status, content=b"", kind="text/html", **headers):
    """Returns a kind of server that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815

    return Handler


class Drips(BaseHTTPRequestHandler):
    """Sends a byte now and then, and never a whole line."""

    def do_GET(self):
        try:
            for _ in range(100):
                self.wfile.write(b"H")
                time.sleep(0.1)
        except OSError:
            pass

    do_POST = do_GET  # noqa: N815


class Babbles(BaseHTTPRequestHandler):
    """Speaks no HTTP."""

    def do_GET(self):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    do_POST = do_GET  # noqa: N815


SERVERS = {  # kind of answer -> how the server answers, the exit status, part of the line
    "a login page": (answer(200, LOGIN), ServiceError, "does not answer as MLflow does"),
    "nothing in JSON": (answer(200, b"{}", "application/json"), ServiceError, "does not answer as MLflow does"),
    "a list in JSON": (answer(200, b"[1]", "application/json"), ServiceError, "does not answer as MLflow does"),
    "other JSON": (answer(200, b'{"user": 1}', "application/json"), ServiceError, "does not answer as MLflow does"),
    "no content": (answer(200), ServiceError, "does not answer as MLflow does"),
    "401": (answer(401, b"who?"), ConfigurationError, "asks for a login (401). Set MLFLOW_TRACKING_USERNAME"),
    "401 in JSON": (answer(401, b'{"message": "who?"}', "application/json"), ConfigurationError, "asks for a login"),
    "403": (answer(403, LOGIN), ConfigurationError, "(403)"),
    "404": (answer(404, LOGIN), ServiceError, "does not answer as MLflow does (404)"),
    "500": (answer(500, b"oops"), ServiceError, "cannot be used now"),
    "502": (answer(502, LOGIN), ServiceError, "cannot be used now"),
    "a loop": (answer(302, Location="/again"), ServiceError, ""),
    "to a login page": (answer(302, Location="https://127.0.0.1:1/login"), ServiceError, ""),
    "drips": (Drips, ServiceError, "no whole answer within 3 s"),
    "babbles": (Babbles, ServiceError, "cannot be used now"),
}


@pytest.fixture(autouse=True)
def brief(workspace, monkeypatch):
    """Waits seconds where people would wait half a minute."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(store, "ANSWER_SECONDS", 3.0)
    monkeypatch.setattr(store, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(store, "_greeted", set())
    monkeypatch.setattr(store, "_named", set())


def use(monkeypatch, port):
    address = f"http://somebody:pass%20word@127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return address


def said(capsys):
    """Returns the line of the error; it and all others have no login."""
    lines = "".join(capsys.readouterr()).splitlines()
    for secret in ("pass%20word", "pass word", "somebody", "Traceback"):
        assert secret not in "\n".join(lines)
    [line] = [line for line in lines if line.startswith("error: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVERS)
def test_fault_45_whoever_answers_in_place_of_mlflow_is_named_in_a_line(kind, monkeypatch, capsys):
    handler, error, part = SERVERS[kind]
    with servers.answering(handler) as port:
        use(monkeypatch, port)
        began = time.monotonic()
        for command in (
            lambda: cli.main(["trace", "d@champion"]),
            lambda: cli.main(["predict", "d", "in.csv", "out.csv"]),
        ):
            assert command() == error.status
            line = said(capsys)
            assert f"http://***@127.0.0.1:{port}" in line
            assert part in line
        assert time.monotonic() - began < 30


@pytest.mark.parametrize("kind", sorted({*SERVERS} - {"drips"}))
def test_fault_45_a_server_that_becomes_another_in_between_ends_in_a_line_too(kind, monkeypatch, capsys):
    handler, error, _ = SERVERS[kind]
    with servers.answering(handler) as port:
        store._greeted.add(use(monkeypatch, port))  # it was MLflow a moment ago
        status = cli.main(["trace", "d@champion"])
        # What a server that knows nothing of d answers: it has no version of it.
        nothing = ("nothing in JSON", "other JSON", "no content")
        assert status == (ConfigurationError if kind in nothing else error).status
        said(capsys)


@pytest.mark.parametrize("kind", sorted({*SERVERS} - {"drips"}))
def test_fault_45_no_line_of_a_record_goes_to_whoever_answers_in_place_of_mlflow(kind, monkeypatch, capsys):
    monkeypatch.setattr(outbox, "Shipper", lambda number, name: SimpleNamespace(wait=lambda seconds: None))
    with outbox.run("0" * 32, "train@a", "d", {}, {}) as run:
        run.metrics({"loss": 1.0}, 1)
    with servers.answering(SERVERS[kind][0]) as port:
        address = use(monkeypatch, port)
        for greeted in (False, True):
            store._greeted.update({address} if greeted else ())
            assert cli.main(["ship"]) == SERVERS[kind][1].status
            assert "waits in" in said(capsys)
            assert outbox.path(run.id).exists()
            assert not outbox.path(run.id).with_suffix(".shipped").exists()  # none counts as uploaded


@pytest.mark.slow
def test_fault_45_a_server_that_takes_connections_and_never_answers_is_told_of_at_once(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        port = hanging.getsockname()[1]
        use(monkeypatch, port)
        began = time.monotonic()
        assert cli.main(["trace", "d@champion"]) == ServiceError.status
        assert 2 < time.monotonic() - began < 30  # a request alone may take 60
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == f"warning: http://***@127.0.0.1:{port} has not answered yet; waiting up to 3 s"
        assert "no whole answer within 3 s" in lines[1]


def test_fault_45_an_address_where_nobody_listens_is_named(monkeypatch, capsys):
    port = free_port()
    use(monkeypatch, port)
    assert cli.main(["trace", "d@champion"]) == ServiceError.status
    assert f"http://***@127.0.0.1:{port} cannot be used now" in said(capsys)

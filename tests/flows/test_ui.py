"""Both servers answer, are named, and end with the command."""

import os
import signal
import subprocess
import sys

import httpx
import psutil
import pytest
from conftest import ROOT

from flows.cli import main
from flows.session import free_port


@pytest.fixture
def start(workspace):
    env = {key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")}
    env |= {"PREFECT_HOME": str(workspace / "prefect"), "PYTHONPATH": str(ROOT)}
    env |= dict.fromkeys(("MLFLOW_HOST", "PREFECT_SERVER_API_HOST", "UVICORN_HOST"), "0.0.0.0")  # to no effect
    processes = []

    def start(*words):
        command = [sys.executable, "-m", "flows", "ui", *words]
        processes.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_fault_27_both_pages_answer_on_this_machine_alone_and_end_with_ctrl_c(start):
    ports = free_port(), free_port()
    process = start("--port", str(ports[0]), "--prefect-port", str(ports[1]))
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ctrl-C" in line:
            break
    assert f"MLflow:  http://127.0.0.1:{ports[0]}\n" in said
    assert f"Prefect: http://127.0.0.1:{ports[1]}\n" in said
    assert "MLflow" in httpx.get(f"http://127.0.0.1:{ports[0]}/").text
    assert "Prefect" in httpx.get(f"http://127.0.0.1:{ports[1]}/", follow_redirects=True).text
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4  # two guards, two servers
    for child in children:  # nobody beyond this machine gets in
        for connection in child.net_connections("inet"):
            assert connection.status != "LISTEN" or connection.laddr.ip == "127.0.0.1"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


@pytest.mark.parametrize("words", [["ui"], ["serve", "digits"]])
def test_fault_27_no_server_is_started_for_others(words, capsys):
    assert main([*words, "--host", "0.0.0.0"]) == 2
    assert "error: Unknown option: --host." in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(start):
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], stderr=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.TransportError:
                continue
        process = start("--port", str(port))
        assert f"another program listens on port {port}" in process.communicate(timeout=60)[0]
        assert process.returncode == 2
    finally:
        server.kill()
        server.wait()

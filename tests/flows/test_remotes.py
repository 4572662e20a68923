"""A second clone that has git and a remote only gets all data and models from there: a folder, SSH, S3."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import pytest
from conftest import ROOT
from moto.server import ThreadedMotoServer
from PIL import Image
from ruamel.yaml import YAML

PARAMS = {  # Registering is left out: it writes to the registry of its own clone, which no remote carries.
    "fetch": {},
    "ingest": {"bars": {"kind": "images", "size": [32, 32], "mode": "grey", "val": 0.2, "test": 0.2}},
    "augment": {"bars": {"copies": 1, "seed": 1, "shift": 1}},
    "train": {"bars": {"dataset": "bars", "architecture": "lenet5", "epochs": 1, "learning_rate": 1e-3}},
    "register": {},
}
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A clone of the checkout as it stands, with pictures that `dvc add` tracks and one model trained on them."""
    folder = tmp_path_factory.mktemp("trained") / "convoy"
    for file in run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (ROOT / file).is_file() and file != "dvc.lock":
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    YAML().dump(PARAMS, folder / "params.yaml")
    rng = np.random.default_rng(0)
    for number in range(60):
        picture = rng.integers(0, 60, (12, 12), np.uint8)
        picture[2 + number % 8] = 255
        path = folder / "data/raw/bars" / ("across", "down")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture if number % 2 else picture.T).save(path)
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "add", "-q", "data/raw/bars")
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "-A")
    run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "trained")
    return folder


@contextmanager
def folder_remote(base):
    yield {"url": base / "storage"}, cut_file(base / "storage")


@contextmanager
def ssh_remote(base):
    """An SSH server of the current user on a free port of this machine, with keys of its own."""
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin", "/sbin"]))
    if not sshd or not shutil.which("ssh-keygen"):
        pytest.skip("needs sshd and ssh-keygen (package openssh-server)")
    separation, made = Path("/run/sshd"), False  # where sshd of the super-user keeps its unprivileged half; empty
    if os.geteuid() == 0 and not separation.exists():
        try:
            separation.mkdir(mode=0o755)
            made = True
        except OSError as error:
            pytest.skip(f"sshd of the super-user needs {separation}, which cannot be made: {error}")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", base / key], check=True)
    port = free_port()
    (base / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {base}/host\nAuthorizedKeysFile {base}/user.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "Subsystem sftp internal-sftp\n"
    )
    log = (base / "sshd.log").open("w")
    server = subprocess.Popen([sshd, "-D", "-e", "-f", base / "sshd_config"], stdout=log, stderr=log)
    try:
        wait_for(port, server, base / "sshd.log")
        settings = {"url": f"ssh://127.0.0.1{base}/storage", "port": port, "user": getpass.getuser()}
        yield settings | {"keyfile": base / "user"}, cut_file(base / "storage")
    finally:
        server.terminate()
        server.wait()
        log.close()
        if made:
            separation.rmdir()


@contextmanager
def s3_remote(base):
    """An S3 server in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test")
        client.create_bucket(Bucket="convoy")

        def cut(name):
            body = client.get_object(Bucket="convoy", Key=f"data/{name}")["Body"].read()
            client.put_object(Bucket="convoy", Key=f"data/{name}", Body=body[:-1])

        yield {"url": "s3://convoy/data", "endpointurl": endpoint}, cut
    finally:
        server.stop()


def cut_file(folder):
    """Returns a function that takes the last byte of an object, which keeps its mode."""

    def cut(name):
        path = folder / name
        mode = path.stat().st_mode
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:-1])
        path.chmod(mode)

    return cut


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port, server, log):
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.skip(f"sshd does not listen after 10 s: {log.read_text()}")


def environment(home):
    """Our commands first on the path, credentials of the test, and nothing that points at another store."""
    hidden = {"MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "PYTHONPATH", "SSH_AUTH_SOCK"}
    env = {key: value for key, value in os.environ.items() if key not in hidden and not key.startswith("AWS_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    return env | KEYS | {"PATH": path, "HOME": str(home), "DVC_SITE_CACHE_DIR": str(home / "site")}


def attempt(folder, *words):
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=environment(folder.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def run(folder, *words):
    """Runs a command in a clone; returns its output."""
    done = attempt(folder, *words)
    assert done.returncode == 0, done.stdout
    return done.stdout


def clone(trained, folder):
    """What a colleague does: git clone, and the same settings of the remote."""
    run(trained, "git", "clone", "-q", trained, folder)
    shutil.copy(trained / ".dvc/config.local", folder / ".dvc/config.local")
    return folder


def configure(folder, settings):
    """As the README says it."""
    (folder / ".dvc/config.local").unlink(missing_ok=True)
    for option, value in settings.items():
        run(folder, "dvc", "remote", "modify", "--local", "storage", option, value)


def files(folder):
    """Returns all but what is of one machine."""
    found = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder): path.read_bytes() for path in found}


@pytest.mark.parametrize("kind", [folder_remote, ssh_remote, s3_remote])
def test_a_second_clone_lives_on_the_remote_alone_and_refuses_what_is_damaged_there(kind, trained, tmp_path):
    with kind(tmp_path) as (settings, cut):
        configure(trained, settings)
        run(trained, "dvc", "push")
        second = clone(trained, tmp_path / "second")
        run(second, "dvc", "pull")
        assert files(second / "data/train") == files(trained / "data/train")
        assert files(second / "data/raw") == files(trained / "data/raw")
        words = run(second, "dvc", "repro")
        assert "Running stage" not in words, words
        assert not (second / "data/journal.jsonl").exists()  # no stage ran
        run(second, sys.executable, "-m", "flows", "verify", "storage")

        lock = YAML(typ="safe").load(second / "dvc.lock")["stages"]["ingest@bars"]["outs"][0]["md5"]
        listing = json.loads((second / ".dvc/cache/files/md5" / lock[:2] / lock[2:]).read_text())
        bad = next(member["md5"] for member in listing if member["relpath"] == "train/image-00000.npy")
        cut(f"files/md5/{bad[:2]}/{bad[2:]}")
        third = clone(trained, tmp_path / "third")
        before = files(third / "data")
        done = attempt(third, sys.executable, "-m", "flows", "pull")
        assert done.returncode == 4, done.stdout
        assert f"{bad[:2]}/{bad[2:]} was altered" in done.stdout
        assert "data/ingest/bars/train/image-00000.npy" in done.stdout
        assert files(third / "data") == before
        run(trained, sys.executable, "-m", "flows", "push", "--repair")
        run(third, sys.executable, "-m", "flows", "pull")
        assert files(third / "data/ingest/bars") == files(trained / "data/ingest/bars")

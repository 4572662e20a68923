"""Fault 26: secrets are in nothing that convoy writes or says. Each that is planted here is looked for everywhere."""

import base64
import os
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import ROOT, bars
from ruamel.yaml import YAML
from servers import answering

from benchmarks import kills
from stages import masking, record
from stages.errors import ConfigurationError
from stages.fetch.addresses import File, check_files

NUMBERS = iter(range(1000))
PLANTED = []


def canary():
    """Returns a secret like no other text, and remembers it."""
    PLANTED.append(f"canary{next(NUMBERS):03d}x{os.urandom(6).hex()}")
    return PLANTED[-1]


def said_or_left(folder, said):
    """Returns where secrets are, in what was said and in all files of a checkout that the user did not write."""
    own = ("params.yaml", "settings.toml", "client.json", ".env", "tool.py", "key.pem", ".dvc/config")
    found = {secret: "what was said" for secret in PLANTED if secret in said}
    for file in folder.rglob("*"):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in own and not name.startswith(".git/"):
            content = file.read_bytes()
            found |= {secret: name for secret in PLANTED if secret.encode() in content}
    return found


@pytest.fixture
def server(tmp_path):
    """Serves the bars to who has the login and the signature; yields its port and what those are."""
    login, password, signature = canary(), canary(), canary()
    bars(tmp_path / "bars", 12)
    body = BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for file in sorted((tmp_path / "bars").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "bars"))

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = f"Basic {base64.b64encode(f'{login}:{password}'.encode()).decode()}"
            known = self.headers["Authorization"] == wanted and urlsplit(self.path).query == f"sig={signature}"
            self.send_response(200 if known else 403)
            self.end_headers()
            self.wfile.write(body.getvalue() if known else b"")

    with answering(Answer) as port:
        yield port, {"LOGIN": login, "PASSWORD": password, "SIGNED": signature}


def test_fault_26_of_thirty_secrets_none_is_found_after_the_whole_road(tmp_path, server):
    port, known = server
    address = f"http://${{LOGIN}}:${{PASSWORD}}@127.0.0.1:{port}/bars.zip?sig=${{SIGNED}}"
    clone = kills.prepare(
        tmp_path / "clone", "digits",
        fetch={"urls": [address]},
        ingest={"kind": "images", "size": [32, 32], "mode": "grey", "val": 0.3, "test": 0.3},
        augment={"copies": 1, "seed": 0},
        train={"dataset": "digits", "architecture": "lenet5", "epochs": 2, "learning_rate": 2e-3},
    )  # fmt: skip

    def changed(name, text):
        """Has git know a file, and then its other content, which the patch of a run shows."""
        (clone / name).write_text("")
        subprocess.run(["git", "add", "-f", name], cwd=clone, check=True)
        (clone / name).write_text(text)

    subprocess.run(
        ["git", "remote", "add", "origin", f"https://me:{canary()}@git.example/a.git"], cwd=clone, check=True
    )
    changed("settings.toml", f'api_key = "{canary()}"\nname = "seen"\n[db]\npassword = \'{canary()}\'\n')
    changed("client.json", f'{{"client_secret": "{canary()}", "auth_token":"{canary()}", "user": "seen"}}\n')
    changed(".env", f"GITLAB_TOKEN={canary()}\nexport DB_PASSWD={canary()}\nPLACE=seen\n")
    changed("tool.py", f'token = words[0]\nMIRROR = "https://me:{canary()}@files.example/a"\n')
    changed("key.pem", f"-----BEGIN RSA PRIVATE KEY-----\n{canary()}\n{canary()}\n-----END RSA PRIVATE KEY-----\n")
    with (clone / ".dvc/config").open("a") as file:
        file.write(f"['remote \"far\"']\n    url = ssh://me:{canary()}@far.example/data\n    password = {canary()}\n")
        file.write(f"['remote \"store\"']\n    url = s3://bucket/data\n    access_key_id = {canary()}\n")
        file.write(f"    secret_access_key = {canary()}\n    session_token = {canary()}\n")
    with (clone / "params.yaml").open("a") as file:
        file.write(f"# once from https://me:{canary()}@old.example/bars.zip, password: {canary()}\n")
    names = (
        "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
        "GITHUB_TOKEN", "HF_TOKEN", "PREFECT_API_KEY", "PGPASSWORD", "CLIENT_SECRET", "KAGGLE_KEY",
    )  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= known | {name: canary() for name in names}
    environment |= {"PIP_INDEX_URL": f"https://me:{canary()}@index.example/simple", "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    road = subprocess.run(
        kills.ROAD, cwd=clone, env=environment, shell=True, capture_output=True, text=True, check=False
    )
    said = road.stdout + road.stderr
    assert road.returncode == 0, said
    assert len(PLANTED) >= 30
    assert said_or_left(clone, said) == {}

    patches = list(clone.glob("mlartifacts/**/git.patch"))
    assert patches
    for patch in patches:
        lines = patch.read_text().splitlines()
        shown = ("+api_key = ***", '+name = "seen"', "+PLACE=seen", "+token = words[0]", "+    password = ***", "+***")
        assert set(shown) <= set(lines)
        assert '+MIRROR = "https://***@files.example/a"' in lines
    assert "${LOGIN}:${PASSWORD}@127.0.0.1" in (clone / "dvc.lock").read_text()


FAILS = """
import os, sys
from stages import __main__ as command
from stages.errors import ServiceError

def fails():
    raise {kind}(os.environ["SAID"])

command.check = fails
sys.excepthook = command.show_defect
sys.exit(command.main("check"))
"""


@pytest.mark.parametrize("kind", ["ServiceError", "ZeroDivisionError"])
def test_fault_26_an_error_says_none(workspace, kind):
    known, secret = canary(), canary()
    message = f"no answer: {known} https://me:{secret}@x.example/a Authorization: Bearer {secret} and secret={secret}"
    said = subprocess.run(
        [sys.executable, "-c", FAILS.format(kind=kind)], capture_output=True, text=True, check=False,
        env=os.environ | {"A_TOKEN": known, "SAID": message, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert f"{kind}: no answer: ***" in said.stderr or "error: no answer: ***" in said.stderr
    assert "https://***@x.example/a" in said.stderr
    assert said_or_left(workspace, said.stderr) == {}


def test_fault_26_parameters_that_are_secret_by_name_are_not_recorded(workspace):
    parameters = {"api_key": canary(), "sizes": {"auth_token": canary(), "width": 2}, "tokens": "words", "key": "a"}
    with record.run("0" * 32, "train@a", "d", parameters | {"from": f"https://me:{canary()}@x.example/a"}, {}) as run:
        run.facts({"place": f"s3://{canary()}:{canary()}@bucket/key", "secret": canary()})
        kept = record.path(run.id).read_text()
    assert said_or_left(workspace, kept) == {}
    assert '"sizes.width": 2, "tokens": "words", "key": "a", "from": "https://***@x.example/a"' in kept


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("https://me:{}@x.example/a", "a login"),
        ("https://{}@x.example/a", "a login"),
        ("ssh://me:{}@x.example/a", "a login"),
        ("https://x.example/a?b=1&access_token={}", "a secret by its name, access_token"),
        ("https://x.example/a?X-Amz-Signature={}", "a secret by its name, X-Amz-Signature"),
    ],
)
def test_fault_26_an_address_with_a_secret_which_dvc_lock_would_keep_is_refused(url, what):
    secret = canary()
    with pytest.raises(ConfigurationError) as caught:
        check_files("fetch.a", [File(url=url.format(secret))])
    assert f"it has {what}, which dvc.lock and git would keep. Write ${{NAME}} for it" in str(caught.value)
    assert secret not in str(caught.value)
    check_files("fetch.a", [File(url=url.format("${NAME}"))])


def test_a_file_is_not_called_like_a_variable():
    with pytest.raises(ConfigurationError, match=r"ends without a file name; give one: \{url: ..., name: ...\}"):
        check_files("fetch.a", [File(url="https://x.example/${NAME}")])
    check_files("fetch.a", [File(url="https://x.example/${NAME}", name="a.zip")])


@pytest.mark.parametrize("url", ["ssh://me@x.example/a", "https://x.example/a?id=7&key=8", "s3://bucket/token/a"])
def test_an_address_without_a_secret_is_not(url):
    check_files("fetch.a", [File(url=url)])


def test_fault_26_a_key_that_no_entry_has_is_refused_without_its_value(workspace):
    secret = canary()
    with (ROOT / "params.yaml").open() as file:
        params = YAML().load(file)
    params["train"]["lenet5"]["password"] = secret
    with Path("params.yaml").open("w") as file:
        YAML().dump(params, file)
    said = subprocess.run(
        [sys.executable, "-m", "stages", "check"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (said.returncode, secret in said.stderr) == (2, False)
    assert "password" in said.stderr


@pytest.mark.parametrize(
    "name",
    ["PGPASSWORD", "DB_PASSWD", "GITHUB_TOKEN", "KAGGLE_KEY", "AWS_ACCESS_KEY_ID", "CLIENT_SECRET", "SIG", "MYSQL_PWD"],
)
def test_fault_26_what_the_environment_holds_under_such_a_name_is_in_no_message(name, monkeypatch):
    monkeypatch.setenv(name, "canary")
    assert masking.redacted("no answer to canary", code=True) == "no answer to ***"


@pytest.mark.parametrize("name", ["PATH", "HOME", "TOKENIZERS_PARALLELISM", "SSH_AUTH_SOCK", "KEYS"])
def test_what_it_holds_under_others_stays(name, monkeypatch):
    monkeypatch.setenv(name, "canary")
    assert masking.redacted("no answer to canary") == "no answer to canary"


@pytest.mark.parametrize(
    ("text", "code", "shown"),
    [
        ("token = words[0]", True, "token = words[0]"),
        ("tokens: words\nkey: a\nmax_tokens=5", False, "tokens: words\nkey: a\nmax_tokens=5"),
        ("password: 'a b', user: c", False, "password: ***, user: c"),
        ('{"secret":"a","b":1}', False, '{"secret":***,"b":1}'),
        ("see https://example.org/a@b", False, "see https://example.org/a@b"),
        ("mail me@example.org", False, "mail me@example.org"),
    ],
)
def test_what_is_masked_and_what_is_not(text, code, shown):
    assert masking.redacted(text, code) == shown

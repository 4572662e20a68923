"""Fault 26: secrets are in nothing that convoy writes or says. Each that is planted here is looked for everywhere."""

import base64
import logging
import os
import signal
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import pytest
from conftest import ROOT, bars
from dvc_data.hashfile.hash_info import HashInfo
from ruamel.yaml import YAML
from servers import answering

from benchmarks import kills
from convoy import secrets
from convoy.errors import ConfigurationError
from convoy.machine import guard
from convoy.repo import objects
from convoy.tracking import outbox
from flows.session import free_port, keep
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
        if file.is_file() and not name.endswith(own) and ".git/" not in name:
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


@contextmanager
def module(*words, answers, settings):
    """Runs a module of Python as a server, and waits until it answers."""
    process = keep(words, answers, os.environ | settings)
    try:
        yield
    finally:
        guard.end(process)
        process.wait()


@contextmanager
def both_servers(folder, login, password):
    """Runs MLflow and Prefect, which asks for the login; yields the variables that lead there, with logins."""
    ports, place = (free_port(), free_port()), ["--host", "127.0.0.1", "--port"]
    mlflow = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    store = ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    address = f"http://{login}@127.0.0.1:{ports[1]}/api"
    prefect = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_API_AUTH_STRING": login, "PREFECT_API_URL": address}
    run = ["uvicorn", "--factory", "prefect.server.api.server:create_app", "--log-level", "error", "--lifespan", "on"]
    with (
        module("mlflow", "server", *store, *place, str(ports[0]), answers=f"http://127.0.0.1:{ports[0]}/health",
               settings=mlflow),
        module(*run, *place, str(ports[1]), answers=f"{address}/health", settings=prefect),
    ):  # fmt: skip
        yield {
            "MLFLOW_TRACKING_URI": f"http://me:{quote(password, safe='')}@127.0.0.1:{ports[0]}",
            "PREFECT_API_URL": address,
        }


def test_fault_41_logins_of_servers_are_printed_nowhere_and_stored_nowhere(tmp_path):
    password = f"{canary()}/p@ss: %"
    PLANTED.extend(quote(password, safe=safe) for safe in ("", "/"))
    bars(tmp_path / "bars", 12)
    clone = kills.prepare(
        tmp_path / "clone", "digits",
        fetch={"path": str(tmp_path / "bars")},
        ingest={"kind": "images", "size": [12, 12], "mode": "grey", "val": 0.3, "test": 0.3},
        augment={"copies": 1, "seed": 0},
        train={"dataset": "digits", "architecture": "plain_cnn", "sizes": {"width": 0.1}, "epochs": 1,
               "learning_rate": 1e-2},
    )  # fmt: skip
    with (clone / ".dvc/config").open("a") as file:
        file.write(f"['remote \"far\"']\n    url = http://me:{canary()}@127.0.0.1:{free_port()}/data\n")
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    environment |= {"DVC_NO_ANALYTICS": "1", "PREFECT_HOME": str(clone / "prefect"), "NO_PROXY": "127.0.0.1"}
    environment |= {"HTTP_PROXY": f"http://me:{canary()}@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    environment |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), "COLUMNS": "400"}
    said = {}

    def do(words, until="", status=0):
        """Runs a command to its end, or until it said something."""
        process = subprocess.Popen(
            [sys.executable, "-m", *words.split()], cwd=clone, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        lines = said.setdefault(words, [])
        for line in process.stdout:
            lines.append(line)
            if until and until in line:
                process.send_signal(signal.SIGINT)
        assert process.wait() == status or until, "".join(lines)

    (tmp_path / "server").mkdir()
    with both_servers(tmp_path / "server", f"admin:{canary()}", password) as addresses:
        environment |= addresses
        do("dvc repro")
        do("flows run")
        do("flows verify far", status=4)
        do("flows ui", until="Ctrl-C ends them")
        do("flows schedule", until="deployments/deployment")
    do("flows trace digits@1", status=6)  # nobody answers any more
    do("dvc repro -f -s evaluate@lenet5")
    do("flows show", status=6)
    found = {words: [line for line in lines if any(one in line for one in PLANTED)] for words, lines in said.items()}
    assert {words: lines for words, lines in found.items() if lines} == {}
    host = addresses["MLFLOW_TRACKING_URI"].rpartition("@")[2]
    assert f"MLflow:  http://{host}\n" in said["flows ui"]
    assert any(
        f"warning: http://***@{host} cannot be used now" in line for line in said["dvc repro -f -s evaluate@lenet5"]
    )
    assert said_or_left(tmp_path, "") == {}


def test_fault_41_what_a_library_logs_goes_without_logins_and_its_traceback_too(caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:canary7@h.example")
    try:
        raise OSError("API request to http://me:canary7@h.example/api failed")
    except OSError:
        logging.getLogger("mlflow").exception("%s of %s", "no answer", "http://me:canary7@h.example: canary7")
    assert "no answer of http://***@h.example: ***" in caplog.text
    assert "OSError: API request to http://***@h.example/api failed" in caplog.text
    assert "canary7" not in caplog.text


def test_fault_41_a_note_of_verify_names_a_remote_without_its_login():
    files = SimpleNamespace(unstrip_protocol=lambda path: path)
    odb = SimpleNamespace(fs=files, path="http://me:canary7@h.example/data", oid_to_path="{}".format)
    store = objects.Store("remote far", odb, None, 1)
    assert store.url == "http://***@h.example/data"
    odb.oid_to_path = "http://me:canary7@h.example/data/{}".format
    assert store.place(HashInfo("md5", "ab")) == "http://***@h.example/data/ab"


FAILS = """
import os, sys
from convoy import command
from flows import cli
from stages import check
from convoy.errors import ServiceError

def fails():
    raise {kind}(os.environ["SAID"])

check.check = fails
sys.excepthook = command.show_defect
sys.exit(cli.main(["check"]))
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
    with outbox.run("0" * 32, "train@a", "d", parameters | {"from": f"https://me:{canary()}@x.example/a"}, {}) as run:
        run.facts({"place": f"s3://{canary()}:{canary()}@bucket/key", "secret": canary()})
        kept = outbox.path(run.id).read_text()
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
        [sys.executable, "-m", "flows", "check"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (said.returncode, secret in said.stderr) == (2, False)
    assert "password" in said.stderr


SECRET = (  # names under which programs expect secrets; the first part is what their manuals say
    "PGPASSWORD", "DB_PASSWD", "MYSQL_PWD", "DB_PWD", "SSHPASS", "SMTP_PASS", "MLFLOW_TRACKING_PASSWORD", "PASSWORD",
    "PASSWD", "GITHUB_TOKEN", "HF_TOKEN", "MLFLOW_TRACKING_TOKEN", "AWS_SESSION_TOKEN", "KAGGLE_KEY", "PREFECT_API_KEY",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_FLASK_SERVER_SECRET_KEY", "CLIENT_SECRET", "SIG", "SIGNATURE",
    "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "AZURE_STORAGE_CONNECTION_STRING",
    "GDRIVE_CREDENTIALS_DATA", "CONVOY_WEBHOOK", "SLACK_WEBHOOK_URL",
)  # fmt: skip
NO_SECRET = (
    "PWD", "OLDPWD", "PATH", "HOME", "USER", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "SSH_AUTH_SOCK", "SSH_ASKPASS",
    "GIT_ASKPASS", "GPG_AGENT_INFO", "XDG_RUNTIME_DIR", "XDG_SESSION_ID", "PASS_MIN_DAYS", "SECRETARY", "COMPASS",
    "BYPASS", "KEYS", "KEYBOARD", "PGPASSFILE", "MLFLOW_TRACKING_AUTH",
)  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_fault_26_what_the_environment_holds_under_such_a_name_is_in_no_message(name, monkeypatch):
    monkeypatch.setenv(name, "canary7")
    assert secrets.redacted("no answer to canary7", code=True) == "no answer to ***"


@pytest.mark.parametrize("name", NO_SECRET)
def test_fault_47_what_it_holds_under_other_names_is_shown(name, monkeypatch):
    monkeypatch.setenv(name, "canary7")
    assert secrets.redacted("no answer to canary7") == "no answer to canary7"


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("pwd", True), ("PWD", True), ("db_pwd", True), ("password", True), ("api_key", True), ("hf_token", True),
        ("signature", True), ("sig", True), ("auth_string", True), ("connection_string", True), ("tokens", False),
        ("max_tokens", False), ("key", False), ("secretary", False), ("compass", False), ("bypass", False),
        ("width", False), ("passes", False), ("askpass", False), ("sigma", False),
    ],
)  # fmt: skip
def test_fault_47_keys_of_parameters_that_are_secret_and_that_are_not(name, secret):
    assert secrets.is_secret(name) is secret


def test_fault_47_a_message_keeps_the_path_of_the_checkout(workspace, monkeypatch):
    monkeypatch.setenv("PWD", str(workspace))
    text = f"error: {workspace}/params.yaml has no train: 'a'"
    assert secrets.redacted(text) == text
    patch = f"diff --git a/run.py b/run.py\n+ROOT = '{workspace}'\n"
    assert secrets.redacted_patch(patch) == patch


@pytest.mark.parametrize("value", ["{here}", "{here}/key.json", "{here}/not/there", "{parent}", "~", "{home}/.key"])
def test_fault_47_a_path_is_shown_whatever_the_variable_is_called(workspace, monkeypatch, value):
    (workspace / "not").mkdir()
    value = value.format(here=workspace, parent=workspace.parent, home=Path.home())
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", value)
    assert secrets.redacted(f"cannot read {value}: no such file") == f"cannot read {value}: no such file"


@pytest.mark.parametrize("value", ["/wJalrXUtnFEMI+K7MDENG", "/wJalr/XUtnFEMI+K7MDENG", "wJalr/XUtnFEMI"])
def test_fault_47_a_secret_that_looks_like_a_path_is_not(workspace, monkeypatch, value):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", value)
    assert secrets.redacted(f"refused {value}") == "refused ***"


@pytest.mark.parametrize(
    "value",
    ["password", "secret", "Secret", "default", "localhost", "postgres", "mlflow", "convoy", "username", "changeme",
     "digits-2", "checkout7", "somebody"],
)  # fmt: skip
def test_fault_47_a_common_word_is_shown(workspace, monkeypatch, value):
    (workspace / "data/raw/digits-2").mkdir(parents=True)
    (workspace / "checkout7").mkdir()
    monkeypatch.chdir(workspace / "checkout7")
    (workspace / "checkout7/data").symlink_to(workspace / "data")
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("DB_PASSWORD", value)
    assert secrets.redacted(f"data/{value} has one {value} too many") == f"data/{value} has one {value} too many"
    assert secrets.redacted(f"postgresql://me:{value}@db.example/a") == "postgresql://***@db.example/a"


@pytest.mark.parametrize(
    ("value", "text", "shown"),
    [
        ("hunter", "hunter, 'hunter' and huntersville", "***, '***' and huntersville"),
        ("123456", "123456 files, sha256 ab1234567", "*** files, sha256 ab1234567"),
        ("hunter2", "xhunter2x", "x***x"),
        ("a b/c@d", "a b/c@d, a%20b%2Fc%40d, a+b%2Fc%40d", "***, ***, ***"),
        ("a%20b%2fc", "a%20b%2fc and a b/c", "*** and ***"),
        ("canary7\n", "no answer to canary7.", "no answer to ***."),
        ("short", "short", "short"),
    ],
)
def test_fault_47_a_word_is_hidden_as_a_word_and_other_secrets_wherever_they_stand(monkeypatch, value, text, shown):
    monkeypatch.setenv("DB_PASSWORD", value)
    assert secrets.redacted(text) == shown


@pytest.mark.parametrize(
    ("name", "value", "text", "shown"),
    [
        ("MLFLOW_TRACKING_URI", "http://me:pass%2Fw%40rd@h.example", "401 for me:pass/w@rd", "401 for ***"),
        ("MLFLOW_TRACKING_URI", "http://me:pass%2Fw%40rd@h.example", "user me, pass%2Fw%40rd or pass/w@rd",
         "user me, *** or ***"),
        ("MLFLOW_TRACKING_URI", "http://token7@h.example", "401 for token7", "401 for ***"),
        ("PREFECT_API_URL", "https://ghp_1234567890abcdef:@h.example/api", "is ghp_1234567890abcdef", "is ***"),
        ("PREFECT_API_URL", "https://token7:x-oauth-basic@h.example/api", "is token7", "is ***"),
        ("DATABASE_URL", "postgresql://me:pa/s's@h.example/db", "at postgresql://me:pa/s's@h.example/db: pa/s's",
         "at postgresql://***@h.example/db: ***"),
        ("DATABASE_URL", "postgresql://h.example/db?user=me&password=canary7", "not canary7", "not ***"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=me;AccountKey=canary7==;A=b", "me, canary7==", "me, ***"),
        ("HTTP_PROXY", "http://me:canary7@proxy.example:3128", "407: canary7", "407: ***"),
        ("http_proxy", "me:canary7@proxy.example:3128", "407: canary7", "407: ***"),
        ("PREFECT_API_AUTH_STRING", "admin:canary7", "admin:canary7, canary7", "***, ***"),
        ("PIP_EXTRA_INDEX_URL", "https://a.example https://me:canary7@b.example/a", "canary7", "***"),
        ("ORIGIN", "git@git.example:convoy.git", "git of git@git.example", "git of git@git.example"),
    ],
)  # fmt: skip
def test_fault_41_the_login_of_an_address_in_the_environment_is_in_no_message(name, value, text, shown, monkeypatch):
    monkeypatch.setenv(name, value)
    assert secrets.redacted(text, code=True) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:canary7@h.example/a", "http://***@h.example/a"),
        ("http://canary7@h.example/a", "http://***@h.example/a"),
        ("http://me:p@ss:canary7@h.example:80/a?b=c", "http://***@h.example:80/a?***"),
        ("postgresql://me:pa/canary7@h.example/a", "postgresql://***@h.example/a"),
        ("http://h.example:443/a@b", "http://h.example:443/a@b"),
        ("http://h.example:443", "http://h.example:443"),
    ],
)
def test_fault_41_an_address_is_shown_without_its_login(url, shown):
    assert secrets.masked(url) == shown
    assert secrets.mask_in(f"no answer of {url}: refused", url) == f"no answer of {shown}: refused"
    assert secrets.redacted(f"no answer of {url.partition('?')[0]}") == f"no answer of {shown.partition('?')[0]}"


@pytest.mark.parametrize(
    ("text", "code", "shown"),
    [
        ("token = words[0]", True, "token = words[0]"),
        ("tokens: words\nkey: a\nmax_tokens=5", False, "tokens: words\nkey: a\nmax_tokens=5"),
        ("password: 'a b', user: c", False, "password: ***, user: c"),
        ('{"secret":"a","b":1}', False, '{"secret":***,"b":1}'),
        ("see https://example.org/a@b", False, "see https://example.org/a@b"),
        ("mail me@example.org", False, "mail me@example.org"),
        ('{"a":"http://h:80","b":"c@d"}', False, '{"a":"http://h:80","b":"c@d"}'),
    ],
)
def test_what_is_masked_and_what_is_not(text, code, shown):
    assert secrets.redacted(text, code) == shown


@pytest.mark.parametrize("secret", ["~x9f8secretQ", "/root/" + "k" * 300, "~" + "y" * 300, "/nowhere/at\x00all"])
def test_fault_47_no_value_keeps_a_message_from_being_masked(secret, monkeypatch):
    monkeypatch.setattr(os, "environ", {"DB_PASSWORD": secret})
    secrets._of_environment.cache_clear()
    assert secret not in secrets.redacted(f"failed with {secret} here")

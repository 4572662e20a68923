import hashlib
import json
import os
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from convoy.errors import ConfigurationError, InputRefusedError, IntegrityError, ServiceError
from convoy.machine import progress
from convoy.secrets import mask_in, masked
from stages.__main__ import main
from stages.fetch import stores, web
from stages.fetch.addresses import File, check_files
from stages.fetch.catalogue import entries
from stages.fetch.entry import Fetch
from stages.fetch.fetch import fetch
from stages.fetch.part import Part

MIB = 2**20
BODY = b"".join(
    hashlib.sha256(str(number).encode()).digest() for number in range(3 * MIB // 32)
)  # 3 MiB, no repetition
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()
SECRETS = ("hunter2", "s3cr3t-signature")


class Server(ThreadingHTTPServer):
    """Serves ``files`` (path -> bytes), each with the faults that ``faults`` names for it, and notes what is asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults = {"/body.bin": BODY}, {}
        self.asked = []  # (path, headers)
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # the client went away, as it should

    def ranges(self):
        return [headers.get("Range") for _, headers in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append((self.path, self.headers))
        fault = self.server.faults.get(path, {})
        self.close_connection = True
        if "to" in fault:
            self.send_response(302)
            self.send_header("Location", fault["to"])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = self.server.files.get(path)
        if body is None or "status" in fault:
            self.send_error(fault.get("status", 404))
            return
        etag, start = fault.get("etag", f'"{len(body)}"'), 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, etag)
        if asked and "ignore_range" not in fault and (same or "ignore_if_range" in fault):
            start = int(asked[1])
            self.send_response(206)
            shown = fault.get("start", start)
            self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if etag:
            self.send_header("ETag", etag)
        if "endless" not in fault and "drip" not in fault:
            self.send_header("Content-Length", str(fault.get("length", len(body) - start)))
        self.end_headers()
        if "endless" in fault:
            for _ in range(1000):  # as good as endless, but no danger to the disk
                self.wfile.write(bytes(65536))
        if "drip" in fault:
            while not self.server.over.wait(0.05):
                self.wfile.write(b"x")
        self.wfile.write(body[start : fault.get("cut", len(body))])
        if "stall" in fault:
            self.wfile.flush()
            self.server.over.wait(20)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def former(workspace):
    """data/raw/it with one file, which a failure has to leave as it is."""
    file = workspace / "data/raw/it/old.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"old")
    return file


def raw(workspace):
    """Everything under data/raw, by relative path."""
    root = workspace / "data/raw"
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


def assert_intact(workspace, kept=()):
    """Asserts that only the former data and the downloads ``kept`` exist."""
    files = raw(workspace)
    assert files.pop("it/old.bin").read_bytes() == b"old"
    partial = {name.removeprefix(".partial/it/downloads/") for name in files if not name.endswith((".json", "ignore"))}
    assert partial == set(kept)
    if not kept:
        assert files == {}


def test_a_download_is_in_place_with_its_list_of_checksums(server, workspace, former, capsys):
    fetch(
        "it", Fetch(urls=[File(url=f"{server.url}/body.bin", sha256=SHA256.upper(), md5=MD5, name="train/images.bin")])
    )
    files = raw(workspace)
    assert set(files) == {"it/SHA256SUMS", "it/train/images.bin"}
    assert files["it/train/images.bin"].read_bytes() == BODY
    assert files["it/SHA256SUMS"].read_text() == f"{SHA256}  train/images.bin\n"
    assert "1 files, 3.1 MB; 1 new, 1 taken away" in capsys.readouterr().out


def test_fault_35_a_cut_download_goes_on_where_it_was_cut(server, workspace, former):
    server.faults["/body.bin"] = {"cut": 2 * MIB}
    with pytest.raises(
        ServiceError, match=r"body\.bin: the connection was cut. [\d,]+ of 3,145,728 bytes are kept; run"
    ):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")]))
    assert_intact(workspace, ["body.bin.part"])
    kept = (workspace / "data/raw/.partial/it/downloads/body.bin.part").stat().st_size
    assert MIB <= kept <= 2 * MIB
    server.faults.clear()
    fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")]))
    assert server.ranges() == [None, f"bytes={kept}-"]
    assert server.asked[1][1]["If-Range"] == f'"{len(BODY)}"'
    assert (workspace / "data/raw/it/body.bin").read_bytes() == BODY
    assert not (workspace / "data/raw/.partial").exists()


@pytest.mark.parametrize(
    ("first", "second", "requests"),
    [
        ({}, {"ignore_range": True}, 2),
        ({"etag": '"old"'}, {}, 2),  # changed: If-Range makes it 200
        ({"etag": '"old"'}, {"ignore_if_range": True}, 3),  # changed, and a server that does not know If-Range
        ({}, {"start": 5}, 3),
        ({}, {"status": 416}, 3),
        ({"etag": ""}, {"etag": ""}, 2),  # nothing tells whether it changed
    ],
    ids=["no ranges", "changed", "changed, 206", "another range", "416", "no validator"],
)
def test_a_download_starts_over_where_the_rest_would_not_fit(server, workspace, first, second, requests):
    wrong = bytes(2 * MIB)
    server.files["/body.bin"], server.faults["/body.bin"] = wrong + BODY[len(wrong) :], first | {"cut": 2 * MIB}
    with pytest.raises(ServiceError, match="cut"):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")]))
    server.files["/body.bin"], server.faults["/body.bin"] = BODY, second
    if second.get("status"):
        once = Handler.send_error

        def send_error(handler, status):
            server.faults.clear()
            once(handler, status)

        handler = type("Handler", (Handler,), {"send_error": send_error})
        server.RequestHandlerClass = handler
    fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")]))
    assert (workspace / "data/raw/it/body.bin").read_bytes() == BODY
    assert len(server.asked) == requests


def test_without_a_validator_the_checksum_allows_to_go_on(server, workspace):
    server.faults["/body.bin"] = {"etag": "", "cut": 2 * MIB}
    with pytest.raises(ServiceError, match="cut"):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin", sha256=SHA256)]))
    server.faults["/body.bin"] = {"etag": ""}
    fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin", sha256=SHA256)]))
    assert server.ranges()[1].startswith("bytes=")
    assert (workspace / "data/raw/it/body.bin").read_bytes() == BODY


@pytest.mark.parametrize("checksum", [{"sha256": "0" * 64}, {"md5": "0" * 32}, {"sha256": SHA256, "md5": "1" * 32}])
def test_fault_35_a_wrong_checksum_is_an_integrity_failure_and_nothing_is_kept(server, workspace, former, checksum):
    with pytest.raises(IntegrityError, match=r"body\.bin: its (SHA-256|MD5) is \w+ and should be (0|1)+\. Nothing of"):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin", **checksum)]))
    assert_intact(workspace)


@pytest.mark.parametrize(
    ("fault", "limits", "error", "message"),
    [
        ({"endless": True}, {"max_bytes": 5 * MIB}, InputRefusedError, r"larger than max_bytes \(5\.2 MB\)"),
        ({}, {"max_bytes": MIB}, InputRefusedError, r"larger than max_bytes \(1\.0 MB\): 3\.1 MB or more"),
        ({"status": 404}, {}, ConfigurationError, "answers 404 Not Found. The address is wrong, or needs a login"),
        ({"status": 401}, {}, ConfigurationError, "answers 401"),
        ({"status": 500}, {}, ServiceError, "answers 500 Internal Server Error. Run again"),
        ({"status": 429}, {}, ServiceError, "answers 429"),
        ({"to": "file:///etc/hostname"}, {}, InputRefusedError, "redirected from http to file:///etc/hostname"),
        ({"to": "ftp://example.org/x"}, {}, InputRefusedError, "redirected from http to ftp"),
        ({"to": "http://169.254.169.254/latest"}, {}, InputRefusedError, "169.254.169.254, which is refused"),
        ({"to": "http://10.0.0.7/x"}, {}, InputRefusedError, "10.0.0.7, which is refused: it is no public address"),
        ({"to": "http://[::1]/x"}, {}, InputRefusedError, "redirected to ::1"),
        ({"to": "http://[::ffff:10.0.0.7]/x"}, {}, InputRefusedError, "no public address"),
        ({"to": "http://[64:ff9b::10.0.0.7]/x"}, {}, InputRefusedError, "no public address"),
        ({"to": "http://localhost/x"}, {}, InputRefusedError, r"redirected to localhost \("),
        ({"to": "http://2130706433/x"}, {}, ConfigurationError, "not a canonical IPv4 address"),
        ({"to": "/body.bin"}, {}, InputRefusedError, "more than 10 redirects"),
    ],
)
def test_fault_35_bad_answers_are_refused_and_nothing_is_kept(server, workspace, former, fault, limits, error, message):
    server.faults["/body.bin"] = fault
    with pytest.raises(error, match=message):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")], **limits))
    assert_intact(workspace)


@pytest.mark.parametrize("fault", [{"stall": True, "cut": 2 * MIB}, {"drip": True}], ids=["silence", "a drip"])
def test_a_server_that_stalls_is_given_up_and_what_came_is_kept(server, workspace, former, fault):
    server.faults["/body.bin"] = fault
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"no 1\.0 MB came within 0\.5 s \(timeout\)\. [\d,]+ .*bytes are kept"):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")], timeout=0.5))
    assert time.monotonic() - started < 3
    assert_intact(workspace, ["body.bin.part"])


def test_a_content_length_that_lies_is_a_cut_or_a_wrong_checksum(server, workspace, former):
    server.faults["/body.bin"] = {"length": len(BODY) + 1}
    with pytest.raises(ServiceError, match="cut"):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin", sha256=SHA256)]))
    server.faults["/body.bin"] = {"length": len(BODY) - 1, "ignore_range": True}
    with pytest.raises(IntegrityError, match="SHA-256"):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin", sha256=SHA256)]))
    assert_intact(workspace)


def test_a_server_that_is_gone_is_an_outside_failure(workspace, former):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    with pytest.raises(ServiceError, match="Cannot connect to host"):
        fetch("it", Fetch(urls=[File(url=address)]))
    assert_intact(workspace)


@pytest.fixture
def names(monkeypatch):
    """A resolver of our own: name -> addresses, one list per question, the last one for all further ones."""
    table, asked = {}, []

    async def lookup(host, port, family):
        asked.append(host)
        if host not in table:
            raise OSError(f"no such name: {host}")
        answer = table[host].pop(0) if len(table[host]) > 1 else table[host][0]
        entry = {"hostname": host, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [entry | {"host": address} for address in answer]

    monkeypatch.setattr(web, "lookup", lookup)
    return SimpleNamespace(table=table, asked=asked)


def test_a_redirect_stays_allowed_on_the_host_that_the_user_wrote(server, workspace, names):
    names.table["data.example"] = [["127.0.0.1"]]
    server.faults["/moved"] = {"to": "/body.bin?again"}
    fetch("it", Fetch(urls=[File(url=f"http://data.example:{server.server_port}/moved", sha256=SHA256, name="x")]))
    assert [path for path, _ in server.asked] == ["/moved", "/body.bin?again"]


@pytest.mark.parametrize("inside", [["10.0.0.7"], ["93.184.215.14", "127.0.0.1"], ["100.64.0.1"], ["224.0.0.1"]])
def test_fault_35_a_redirect_to_a_private_address_is_refused_before_any_connection(server, workspace, names, inside):
    names.table |= {"data.example": [["127.0.0.1"]], "inside.example": [inside]}
    server.faults["/body.bin"] = {"to": f"http://inside.example:{server.server_port}/body.bin"}
    with pytest.raises(InputRefusedError, match=r"redirected to inside\.example \([\d.]+\), which is refused"):
        fetch("it", Fetch(urls=[File(url=f"http://data.example:{server.server_port}/body.bin")]))
    assert len(server.asked) == 1


def test_a_name_is_resolved_once_so_that_it_cannot_become_another_machine(server, workspace, names):
    names.table["data.example"] = [["127.0.0.1"], ["10.0.0.7"]]
    server.faults["/moved"] = {"to": f"http://data.example:{server.server_port}/body.bin"}
    fetch("it", Fetch(urls=[File(url=f"http://data.example:{server.server_port}/moved", name="x")]))
    assert names.asked == ["data.example"]


def test_a_name_that_does_not_exist_is_an_outside_failure(workspace, names):
    with pytest.raises(ServiceError, match=r"Cannot connect to host gone\.example"):
        fetch("it", Fetch(urls=[File(url="http://gone.example/x")]))


def test_a_proxy_may_be_private_and_resolves_names_itself(server, workspace, names, monkeypatch):
    names.table["proxy.example"] = [["127.0.0.1"]]
    monkeypatch.setenv("http_proxy", f"http://proxy.example:{server.server_port}")
    server.files["http://far.example/body.bin"] = BODY
    fetch("it", Fetch(urls=[File(url="http://far.example/body.bin", sha256=SHA256)]))
    assert names.asked == ["proxy.example"]


def test_https_is_not_turned_into_http():
    class Session:
        async def get(self, address, **options):
            headers = {"Location": "http://data.example/x"}
            return SimpleNamespace(status=302, headers=headers, close=lambda: None)

    with pytest.raises(InputRefusedError, match="redirected from https to http://data.example/x"):
        web._follow(Session(), "https://data.example/x", {}).send(None)


def test_user_and_password_are_sent_and_neither_they_nor_a_signed_query_are_shown(
    server, workspace, former, capsys, monkeypatch
):
    address = f"http://${{LOGIN}}@127.0.0.1:{server.server_port}/body.bin?sig=${{SIGNATURE}}"
    with pytest.raises(ConfigurationError, match=r"/body.bin\?\*\*\*: \$\{LOGIN\} is not set in the environment"):
        fetch("it", Fetch(urls=[File(url=address)]))
    monkeypatch.setenv("LOGIN", "anna:hunter2")
    monkeypatch.setenv("SIGNATURE", "s3cr3t-signature")
    for fault, wrong in (
        ({"cut": 2 * MIB}, {}),
        ({"status": 500}, {}),
        ({"status": 403}, {}),
        ({}, {"sha256": "0" * 64}),
        ({"to": "ftp://anna:hunter2@x/?sig=s3cr3t-signature"}, {}),
        ({"to": "http://anna:hunter2@10.0.0.7/?sig=s3cr3t-signature"}, {}),
    ):
        server.faults["/body.bin"] = fault
        with pytest.raises((ConfigurationError, InputRefusedError, IntegrityError, ServiceError)) as caught:
            fetch("it", Fetch(urls=[File(url=address, **wrong)]))
        assert r"http://***@127.0.0.1" in str(caught.value)
        assert not any(secret in str(caught.value) for secret in SECRETS)
        assert caught.value.__cause__ is None
        left = b"".join(path.read_bytes() for path in raw(workspace).values())
        assert not any(secret.encode() in left for secret in SECRETS)
    assert {headers["Authorization"] for _, headers in server.asked} == {"Basic YW5uYTpodW50ZXIy"}
    server.faults.clear()
    fetch("it", Fetch(urls=[File(url=address)]))
    assert not any(secret in "".join(capsys.readouterr()) for secret in SECRETS)
    assert not any(secret in repr(File(url=address)) for secret in SECRETS)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://anna:hunter2@example.org/a?sig=s3cr3t-signature", "https://***@example.org/a?***"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("http://[::1", "***"),
    ],
)
def test_secrets_of_an_address_are_masked(url, shown):
    assert masked(url) == shown


def test_secrets_in_a_message_of_a_library_are_masked():
    url = "https://anna:hunter2@example.org/a?sig=s3cr3t-signature"
    message = "no https://anna:hunter2@example.org/a?sig=s3cr3t-signature: hunter2; moved to ssh://bob:pw@else.example/"
    assert mask_in(message, url) == "no https://***@example.org/a?***: ***; moved to ssh://***@else.example/"


def test_present_files_are_not_downloaded_again(server, workspace):
    server.files["/more.bin"] = b"more"
    urls = [File(url=f"{server.url}/body.bin", sha256=SHA256), File(url=f"{server.url}/more.bin")]
    server.faults["/more.bin"] = {"status": 503}
    with pytest.raises(ServiceError, match=r"more\.bin"):
        fetch("it", Fetch(urls=urls))
    server.faults.clear()
    fetch("it", Fetch(urls=urls))
    assert [path for path, _ in server.asked] == ["/body.bin", "/more.bin", "/more.bin"]
    before = (workspace / "data/raw/it/body.bin").stat()
    fetch(
        "it", Fetch(urls=urls)
    )  # body.bin has a checksum; without one, only the server knows whether more.bin is the same
    assert [path for path, _ in server.asked[3:]] == ["/more.bin"]
    after = (workspace / "data/raw/it/body.bin").stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_a_damaged_file_is_downloaded_again(server, workspace):
    urls = [File(url=f"{server.url}/body.bin", md5=MD5)]
    fetch("it", Fetch(urls=urls))
    (workspace / "data/raw/it/body.bin").write_bytes(b"damaged")
    fetch("it", Fetch(urls=urls))
    assert (workspace / "data/raw/it/body.bin").read_bytes() == BODY


def test_fault_10_lack_of_room_is_reported_before_anything_is_written(server, workspace, former, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ServiceError, match=r"needs 3\.1 MB in .*, which has 1\.0 kB left"):
        fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")]))
    assert_intact(workspace)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_fault_10_a_full_disk_is_an_outside_failure(workspace):
    part = Part(workspace / "x.part", "http://example.org/x", MIB, SimpleNamespace(advance=lambda count: None))
    part.path = Path("/dev/full")
    with pytest.raises(ServiceError, match="the disk is full after 0 bytes.*run again"):
        part.write(b"x")


def test_without_a_terminal_progress_is_plain_lines(server, workspace, capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0)
    fetch("it", Fetch(urls=[File(url=f"{server.url}/body.bin")]))
    assert re.search(r"(?m)^body\.bin: 3\.1 MB of 3\.1 MB, 0:00 left, [\d.]+ [kMG]B/s$", capsys.readouterr().out)


# Stores, through fsspec


def test_a_file_address_is_read_when_the_user_writes_it(workspace, former):
    (workspace / "a b%.bin").write_bytes(BODY)
    fetch("it", Fetch(urls=[File(url=f"file://{workspace}/a b%.bin", sha256=SHA256)]))
    assert (workspace / "data/raw/it/a b%.bin").read_bytes() == BODY


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("file://{}/gone.bin", ConfigurationError, "FileNotFoundError"),
        ("file://{}/data", ConfigurationError, "is a directory, not a file"),
        ("file://{}/pipe", ConfigurationError, "is a other, not a file"),
        ("file://{}/large.bin", InputRefusedError, "larger than max_bytes"),
    ],
)
def test_a_store_refuses_what_is_no_file(workspace, former, url, error, message):
    os.mkfifo(workspace / "pipe")
    (workspace / "large.bin").write_bytes(BODY)
    with pytest.raises(error, match=message):
        fetch("it", Fetch(urls=[File(url=url.format(workspace), name="x")], max_bytes=MIB))
    assert_intact(workspace)


def test_a_store_that_does_not_answer_is_given_up(workspace, former, monkeypatch):
    monkeypatch.setattr(stores.fsspec.core, "url_to_fs", lambda *arguments, **options: time.sleep(3))
    with pytest.raises(ServiceError, match=r"no answer within 0\.2 s \(timeout\)"):
        fetch("it", Fetch(urls=[File(url="s3://bucket/x")], timeout=0.2))
    assert_intact(workspace)


def cut_after(monkeypatch, size):
    """Lets ``Part.write`` fail once ``size`` bytes are there."""
    write = Part.write

    def cut(part, data):
        if part.size >= size:
            raise ServiceError("cut")
        write(part, data)

    monkeypatch.setattr(Part, "write", cut)
    monkeypatch.setattr(stores, "PIECE", MIB)


def test_a_store_goes_on_where_it_was_cut_unless_the_file_changed(workspace, former, monkeypatch):
    source = workspace / "source.bin"
    source.write_bytes(BODY)
    urls = [File(url=f"file://{source}")]
    with monkeypatch.context() as patch:
        cut_after(patch, 2 * MIB)
        with pytest.raises(ServiceError, match="cut"):
            fetch("it", Fetch(urls=urls))
    part = workspace / "data/raw/.partial/it/downloads/source.bin.part"
    assert part.stat().st_size == 2 * MIB
    with part.open("r+b") as file:
        file.write(b"mark")  # shows afterwards that this part was used
    with monkeypatch.context() as patch:
        cut_after(patch, 3 * MIB)
        fetch("it", Fetch(urls=urls))
    assert (workspace / "data/raw/it/source.bin").read_bytes() == b"mark" + BODY[4:]
    with monkeypatch.context() as patch:
        cut_after(patch, 2 * MIB)
        with pytest.raises(ServiceError, match="cut"):
            fetch("it", Fetch(urls=urls))
    source.write_bytes(BODY[::-1])
    fetch("it", Fetch(urls=urls))
    assert (workspace / "data/raw/it/source.bin").read_bytes() == BODY[::-1]


@pytest.fixture
def s3(monkeypatch):
    """A client of an S3 server of our own, with the bucket "data"."""
    pytest.importorskip("flask_cors", reason="moto's server parts are not installed")
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for key, value in {
        "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    yield client
    client.close()
    server.stop()


@pytest.mark.slow
def test_an_object_of_s3_is_downloaded_and_goes_on_after_a_cut(s3, workspace, former, monkeypatch):
    s3.put_object(Bucket="data", Key="images/train.bin", Body=BODY)
    urls = [File(url="s3://data/images/train.bin", sha256=SHA256)]
    with monkeypatch.context() as patch:
        cut_after(patch, 2 * MIB)
        with pytest.raises(ServiceError, match="cut"):
            fetch("it", Fetch(urls=urls))
    assert_intact(workspace, ["train.bin.part"])
    with monkeypatch.context() as patch:
        cut_after(patch, 3 * MIB)
        begin = Part.begin
        starts = []
        patch.setattr(
            Part, "begin", lambda part, *words, **keys: (begin(part, *words, **keys), starts.append(part.size))
        )
        fetch("it", Fetch(urls=urls))
    assert starts == [2 * MIB]
    assert (workspace / "data/raw/it/train.bin").read_bytes() == BODY
    with pytest.raises(ConfigurationError, match="s3://data/gone: FileNotFoundError"):
        fetch("it", Fetch(urls=[File(url="s3://data/gone")]))


def test_a_file_comes_over_ssh_from_a_host_that_is_known(workspace, former, monkeypatch):
    import asyncio

    import asyncssh

    (workspace / "far.bin").write_bytes(BODY)
    home = workspace / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(home / ".ssh/id_ed25519"))
    (workspace / "authorized").write_bytes(key.export_public_key())
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen():
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(workspace / "authorized"),
            sftp_factory=True,
        )

    async def close(acceptor):
        acceptor.close()
        await acceptor.wait_closed()

    acceptor = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
    try:
        port = acceptor.get_port()
        urls = [File(url=f"ssh://anna@127.0.0.1:{port}{workspace}/far.bin", sha256=SHA256)]
        with pytest.raises(ServiceError, match=r"ssh://\*\*\*@127\.0\.0\.1.*Host key is not trusted"):
            fetch("it", Fetch(urls=urls))
        assert_intact(workspace)
        known = f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}"
        (home / ".ssh/known_hosts").write_text(known)
        fetch("it", Fetch(urls=urls))
        assert (workspace / "data/raw/it/far.bin").read_bytes() == BODY
    finally:
        asyncio.run_coroutine_threadsafe(close(acceptor), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# Addresses in params.yaml


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "urls is empty"),
        (["data/x.csv"], r"urls\[0\] has no scheme \(http, https, s3, .*local file or folder is given as `path`"),
        (["ftp://example.org/x"], r"urls\[0\], ftp://example.org/x: unknown scheme. Schemes: http, https"),
        (["simplecache::s3://bucket/x"], "no scheme"),
        (["http://[::1/x"], "is no address"),
        (["https:///x"], "no host"),
        (["file://data/x"], "three slashes"),
        (["https://example.org/"], "ends without a file name; give one"),
        (["https://example.org/%2e%2e"], "not a plain relative path"),
        ([{"url": "https://example.org/x", "name": "../x"}], "not a plain relative path"),
        ([{"url": "https://example.org/x", "name": "/etc/x"}], "not a plain relative path"),
        ([{"url": "https://example.org/x", "name": "a//b"}], "not a plain relative path"),
        (["https://example.org/SHA256SUMS"], "SHA256SUMS cannot be the name of a data file"),
        (["https://example.org/.gitignore"], "cannot be the name"),
        (["https://example.org/a/x", "https://example.org/b/X"], r"urls\[1\] and urls\[0\] are both written to X"),
        (["https://example.org/x", {"url": "https://example.org/y", "name": "x/y"}], "are both written"),
    ],
)
def test_an_address_that_cannot_be_fetched_is_refused_before_any_work(urls, message):
    with pytest.raises(ConfigurationError, match=message):
        Fetch(urls=urls).check_source("params.yaml, fetch.it", "it")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("urls: [{url: 'https://a.example/x', sha: abc}]", r"unknown key 'urls\.0\.sha'"),
        ("urls: [{url: 'https://a.example/x', sha256: abc}]", r"urls\.0\.sha256 = 'abc'"),
        ("urls: [{sha256: " + "0" * 64 + "}]", r"the key 'urls\.0\.url' is missing"),
        ("urls: https://anna:hunter2@a.example/x", r"urls\[0\], https://\*\*\*@a\.example/x: it has a login"),
        ("urls: https://a.example/?b=hunter2", r"urls\[0\], https://a\.example/\?\*\*\* ends without a file name"),
        ("path: https://anna:hunter2@a.example/x", r"give https://\*\*\*@a\.example/x as `urls`"),
        ("{catalogue: mnist, max_bytes: 0}", "max_bytes = 0"),
        ("{catalogue: mnist, timeout: 0}", "timeout = 0"),
        ("{catalogue: minst}", "'minst' is not in the catalogue. It has: mnist, fashion_mnist"),
        ("{catalogue: mnist, sample: digits}", "give one of .* got sample and catalogue"),
    ],
)
def test_wrong_entry_of_params_yaml_is_reported_without_secrets(workspace, capsys, entry, message):
    entry = entry if entry.startswith("{") else f"{{{entry}}}"
    sections = "".join(f"{stage}: {{}}\n" for stage in ("ingest", "augment", "train", "register"))
    Path("params.yaml").write_text(f"fetch:\n  it: {entry}\n{sections}")
    assert main("fetch", "it") == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "hunter2" not in said


def test_an_entry_of_params_yaml_is_fetched(workspace, server):
    sections = "".join(f"{stage}: {{}}\n" for stage in ("ingest", "augment", "train", "register"))
    entry = f"{{urls: ['{server.url}/body.bin'], max_bytes: 50 GB, timeout: 5}}"
    Path("params.yaml").write_text(f"fetch:\n  it: {entry}\n{sections}")
    assert main("fetch", "it") == 0
    assert json.loads(Path("data/journal.jsonl").read_text())["status"] == 0
    assert (workspace / "data/raw/it/body.bin").read_bytes() == BODY


# The catalogue


def test_the_catalogue_has_the_data_sets_that_were_asked_for():
    assert {
        "mnist", "fashion_mnist", "cifar10", "rt_polarity", "trec", "ag_news", "imdb", "multi30k", "tatoeba",
        "organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d",
    } == set(entries())  # fmt: skip


@pytest.mark.parametrize("name", entries())
def test_an_entry_of_the_catalogue_can_be_fetched_safely(name):
    entry = entries()[name]
    check_files(name, entry.files)
    assert all(file.url.startswith("https://") for file in entry.files)
    if name != "tatoeba":  # which grows
        assert all(file.sha256 or file.md5 for file in entry.files)


FOLDERS = {
    "mnist": "mnist",
    "fashion_mnist": "fashion-mnist",
    "rt_polarity": "rt-polarity",
    "trec": "trec",
    "multi30k": "multi30k-en-de",
    "adrenalmnist3d": "adrenalmnist3d",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_published_files_have_the_checksums_of_the_catalogue(name, datasets, server, workspace, monkeypatch):
    folder = datasets / FOLDERS[name]
    server.files = {f"/{path.name}": path.read_bytes() for path in folder.iterdir()}
    entry = entries()[name]
    here = [file.model_copy(update={"url": f"{server.url}/{file.target}"}) for file in entry.files]
    monkeypatch.setattr("stages.fetch.fetch.entries", lambda: {name: entry.model_copy(update={"files": here})})
    fetch(name, Fetch(catalogue=name))
    listed = (workspace / "data/raw" / name / "SHA256SUMS").read_text().splitlines()
    published = dict(reversed(line.split("  ")) for line in (datasets / "SHA256SUMS").read_text().splitlines())
    assert listed == sorted(
        (f"{published[f'{folder.name}/{file.target}']}  {file.target}" for file in here), key=lambda line: line[66:]
    )


def test_the_stage_starts_without_what_it_may_not_need():
    import subprocess
    import sys

    code = "import sys, stages.fetch.fetch; print([m for m in %r if m in sys.modules])"
    heavy = ["tensorflow", "keras", "mlflow", "dvc", "fsspec", "aiohttp", "sklearn", "pandas"]
    done = subprocess.run([sys.executable, "-c", code % heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

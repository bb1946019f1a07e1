"""Datasets that are somewhere else, from real servers on this machine: what arrives, and what is refused before it is asked."""

import contextlib
import datetime as dt
import hashlib
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from finetune_api.reasons import Reason
from finetune_trainer.config import SourceSettings
from finetune_trainer.dataset import Examples, read_examples
from finetune_trainer.errors import TrainingError
from finetune_trainer.sources import fetch, web
from finetune_trainer.sources.addresses import host_header, is_public
from finetune_trainer.sources.s3 import s3_request
from lab.fixtures.training_runs import a_training_config
from lab.kubernetes.binaries import binary_path

ROWS = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'


class Server:
    """An HTTP(S) server whose answers a test chooses by path."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urllib.parse.urlsplit(self.path).path
                server.requests.append((path, {key.lower(): value for key, value in self.headers.items()}))
                server.answers.get(path, status(404))(self)

            do_HEAD = do_GET  # noqa: N815 - the standard library's name

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.url = f"{'https' if certificate else 'http'}://localhost:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def content(body: bytes, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(key.replace("_", "-"), value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    return answer


def status(code: int, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for key, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(key, value)
        handler.end_headers()

    return answer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("openssl is missing, which makes the server's certificate")
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", f"{path}.crt"]
    subprocess.run([*command, *names], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
def server(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    running = Server(certificate)
    yield running
    running.close()


@pytest.fixture
def plain_server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


LOCAL = SourceSettings(allow_private=True)


def read(uri: str, settings: SourceSettings = LOCAL) -> Examples:
    config = a_training_config(Path("/m"), Path("/out"), dataset={"path": uri, "source": uri})
    return read_examples(config, settings)


def refused(uri: str, settings: SourceSettings = LOCAL) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        read(uri, settings)
    return caught.value


# --- https://


def test_rows_come_over_https_and_nothing_stays_behind(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server.answers["/data/rows.jsonl"] = content(ROWS)
    found = read(f"{server.url}/data/rows.jsonl")
    assert [example.prompt for example in found.training] == ["a", "c"]
    assert found.digest.startswith("sha256:")
    assert list(tmp_path.iterdir()) == []


def test_compressed_files_are_known_by_the_urls_end(server: Server) -> None:
    import gzip

    server.answers["/rows.csv.gz"] = content(gzip.compress(b"prompt,completion\na,b\n"), Content_Encoding="identity")
    assert len(read(f"{server.url}/rows.csv.gz").training) == 1
    assert web.file_name("https://host/a/train%2Ecsv.gz") == "rows.csv.gz"
    assert web.file_name("https://host/..%2F..%2Fetc%2Fpasswd") == "rows.jsonl"


def test_the_token_goes_to_the_host_that_was_named_and_to_no_other(server: Server, certificate: Path) -> None:
    other = Server(certificate)
    other.answers["/rows.jsonl"] = content(ROWS)
    server.answers["/start.jsonl"] = status(302, Location="/near.jsonl")
    server.answers["/near.jsonl"] = status(307, Location=f"{other.url}/rows.jsonl")
    read(f"{server.url}/start.jsonl", SourceSettings(allow_private=True, token="hunter2"))
    other.close()
    assert [headers.get("authorization") for _, headers in server.requests] == ["Bearer hunter2"] * 2
    assert [headers.get("authorization") for _, headers in other.requests] == [None]


@pytest.mark.parametrize(
    ("code", "expected", "retryable"),
    [
        (404, "cannot be downloaded (HTTP 404)", False),
        (401, "is refused (HTTP 401); check dataset.secretRef", False),
        (403, "is refused (HTTP 403)", False),
        (429, "cannot be downloaded (HTTP 429)", True),
        (503, "cannot be downloaded (HTTP 503)", True),
    ],
)
def test_a_status_becomes_a_reason(server: Server, code: int, expected: str, retryable: bool) -> None:
    server.answers["/rows.jsonl"] = status(code)
    error = refused(f"{server.url}/rows.jsonl")
    assert (error.reason, error.retryable) == (Reason.DATASET_NOT_FOUND, retryable)
    assert expected in error.message


def test_a_server_that_is_not_there_is_worth_another_attempt(server: Server) -> None:
    server.close()
    error = refused(f"{server.url}/rows.jsonl")
    assert (error.reason, error.retryable) == (Reason.DATASET_NOT_FOUND, True)
    assert "cannot be downloaded" in error.message


def test_a_certificate_of_nobody_is_not_accepted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert "certificate verify failed" in refused(f"{server.url}/rows.jsonl").message
    assert server.requests == []


def test_a_file_that_says_it_is_too_large_is_not_fetched(server: Server) -> None:
    server.answers["/rows.jsonl"] = content(ROWS, **{"Content-Length": str(5 << 30)})
    assert "has more than 4096 MiB of rows" in refused(f"{server.url}/rows.jsonl").message


def test_a_file_that_does_not_end_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_DATASET_BYTES", 1 << 20)

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with pytest.raises(OSError):
            while True:
                handler.wfile.write(ROWS * 1000)

    server.answers["/rows.jsonl"] = endless
    assert refused(f"{server.url}/rows.jsonl").reason is Reason.DATASET_INVALID


def test_a_download_takes_bounded_time(server: Server) -> None:
    stop = threading.Event()

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.05):
            try:
                handler.wfile.write(ROWS)
            except OSError:
                return

    server.answers["/rows.jsonl"] = slow
    started = time.monotonic()
    error = refused(f"{server.url}/rows.jsonl", SourceSettings(allow_private=True, timeout=0.3))
    stop.set()
    assert time.monotonic() - started < 5
    assert error.retryable
    assert "takes longer than 0 seconds to download" in error.message


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n", b"X: y\r\n"),
    ],
    ids=["headers", "continue", "trailers"],
)
def test_whatever_drips_in_is_within_the_bounded_time(tmp_path: Path, start: bytes, drop: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(start)
            while not stop.wait(0.02):
                connection.sendall(drop)

    threading.Thread(target=drip, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/rows.jsonl"
    started = time.monotonic()
    with listener, pytest.raises(TrainingError, match="takes longer than 0 seconds") as caught:
        web.download(url, {}, tmp_path, SourceSettings(allow_private=True, timeout=0.3), name="dataset")
    stop.set()
    assert caught.value.retryable
    assert time.monotonic() - started < 5


def test_a_connection_that_is_cut_without_goodbye_is_no_end_of_a_file(server: Server) -> None:
    def without_length(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(ROWS[:35])

    server.answers["/rows.jsonl"] = without_length
    error = refused(f"{server.url}/rows.jsonl")
    assert (error.reason, error.retryable) == (Reason.DATASET_NOT_FOUND, True)


# --- Secrets stay secret


def test_the_line_break_at_the_end_of_a_secret_is_not_part_of_it(server: Server) -> None:
    server.answers["/rows.jsonl"] = content(ROWS)
    read(f"{server.url}/rows.jsonl", SourceSettings(allow_private=True, token="hunter2\n"))
    assert server.requests[0][1]["authorization"] == "Bearer hunter2"
    settings = SourceSettings(token=" \n", aws_access_key_id="me\r\n", aws_session_token=" session\n", aws_region="\n")
    assert (settings.token, settings.aws_access_key_id, settings.aws_region) == (None, "me", "us-east-1")
    assert settings.aws_session_token == SecretStr("session")


@pytest.mark.parametrize("secret", ["hun\nter2", "hun\u2013ter2", "hun\x00ter2"])
def test_a_secret_that_no_header_can_carry_is_refused_and_not_shown(
    secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\0" not in secret:
        monkeypatch.setenv("AWS_SESSION_TOKEN", secret)
        with pytest.raises(TrainingError, match="AWS_SESSION_TOKEN contains characters other than printable ASCII"):
            SourceSettings()
        monkeypatch.delenv("AWS_SESSION_TOKEN")
    with pytest.raises(TrainingError) as caught:
        SourceSettings(token=secret)
    assert caught.value.reason is Reason.SPEC_INVALID
    assert "hun" not in caught.value.message


def test_what_python_says_of_a_header_is_not_repeated(server: Server, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        web.download(f"{server.url}/a.jsonl", {"Authorization": "Bearer hunter2\n"}, tmp_path, LOCAL, name="dataset")
    assert "hunter2" not in caught.value.message
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("location", ["https://[::1/x?sig=hunter2", "https://h:1:2/x?sig=hunter2"])
def test_a_redirect_to_no_url_is_not_repeated(server: Server, location: str) -> None:
    server.answers["/rows.jsonl"] = status(302, Location=location)
    assert "hunter2" not in refused(f"{server.url}/rows.jsonl").message


def test_a_redirect_may_hold_blanks_and_other_letters(server: Server) -> None:
    server.answers["/rows.jsonl"] = status(302, Location="/my r\u00fcws.jsonl?a=b%20c")
    server.answers["/my%20r%FCws.jsonl"] = content(ROWS)
    assert len(read(f"{server.url}/rows.jsonl").training) == 2


def test_a_redirect_to_nowhere_says_so(server: Server) -> None:
    server.answers["/rows.jsonl"] = server.answers["/bucket/rows.jsonl"] = status(301)
    assert refused(f"{server.url}/rows.jsonl").message.endswith("redirects without saying where (HTTP 301)")
    store = SourceSettings(allow_private=True, aws_endpoint_url=server.url)
    assert "(HTTP 301); check AWS_REGION" in refused("s3://bucket/rows.jsonl", store).message


def test_a_torn_download_is_no_dataset(server: Server) -> None:
    def torn(handler: http.server.BaseHTTPRequestHandler) -> None:
        content(ROWS[:40], **{"Content-Length": str(len(ROWS))})(handler)
        handler.close_connection = True

    server.answers["/rows.jsonl"] = torn
    error = refused(f"{server.url}/rows.jsonl")
    assert (error.reason, error.retryable) == (Reason.DATASET_NOT_FOUND, True)


# --- Where the trainer may not be sent

PUBLIC_ONLY = SourceSettings(allow_private=False)

FORBIDDEN = [
    "127.0.0.1",
    "127.8.8.8",
    "localhost",
    "0.0.0.0",  # noqa: S104
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "169.254.169.254",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[fe80::1]",
    "[fd00::1]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:7f00:1::]",
    "[::7f00:1]",
    "[::ffff:0:7f00:1]",
    "[fec0::1]",
    "[3fff::1]",
    "192.0.0.192",
]


@pytest.mark.parametrize("host", FORBIDDEN)
def test_an_address_that_is_not_public_is_never_connected_to(host: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"is not public|is not known") as caught:
        fetch(f"https://{host}/rows.jsonl", tmp_path, PUBLIC_ONLY, name="dataset")
    assert caught.value.reason in (Reason.SPEC_INVALID, Reason.DATASET_NOT_FOUND)


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(text: str) -> None:
    assert is_public(text)


def test_a_redirect_is_checked_like_the_first_address(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host is made public by name; what it leads to is not."""
    answers = {"localhost": True}
    real = web.resolve

    def resolve(host: str, port: int, *, allow_private: bool, name: str) -> str:
        return real(host, port, allow_private=allow_private or answers.get(host, False), name=name)

    monkeypatch.setattr(web, "resolve", resolve)
    for location, expected in [
        ("https://169.254.169.254/latest/meta-data", "169.254.169.254, which is not public"),
        ("http://localhost/rows.jsonl", "leads to http://localhost; expected https://"),
        ("file:///etc/passwd", "expected https://"),
        ("https://host:99999/", "expected https://"),
    ]:
        server.answers["/rows.jsonl"] = status(302, Location=location)
        error = refused(f"{server.url}/rows.jsonl", PUBLIC_ONLY)
        assert error.reason is Reason.SPEC_INVALID
        assert expected in error.message
    server.answers["/rows.jsonl"] = status(302, Location="/rows.jsonl")
    assert "redirects more than 5 times" in refused(f"{server.url}/rows.jsonl", PUBLIC_ONLY).message


def test_a_path_is_a_path(tmp_path: Path) -> None:
    assert fetch(str(tmp_path / "rows.jsonl"), tmp_path, PUBLIC_ONLY, name="dataset") == [tmp_path / "rows.jsonl"]


# --- s3://


def test_the_signature_is_that_of_amazons_own_example() -> None:
    """The GET of the S3 API reference, with its published key; only the query and the range are left out."""
    settings = SourceSettings(
        aws_access_key_id="AKIAIOSFODNN7EXAMPLE",
        aws_secret_access_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        aws_endpoint_url="https://examplebucket.s3.amazonaws.com",
    )
    now = dt.datetime(2013, 5, 24, tzinfo=dt.UTC)
    url, headers = s3_request("s3://test.txt", settings, now)
    assert url == "https://examplebucket.s3.amazonaws.com/test.txt"
    assert headers["x-amz-date"] == "20130524T000000Z"
    assert "Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request" in headers["Authorization"]
    assert "SignedHeaders=host;x-amz-content-sha256;x-amz-date" in headers["Authorization"]


@pytest.mark.parametrize("endpoint", ["https://localhost", "https://LocalHost:443/", "https://me@LOCALHOST"])
def test_the_host_that_is_signed_is_the_host_that_is_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    connect, port = socket.create_connection, int(server.url.rpartition(":")[2])
    monkeypatch.setattr(socket, "create_connection", lambda address, **more: connect((address[0], port), **more))
    server.answers["/bucket/rows.jsonl"] = content(ROWS)
    settings = {"allow_private": True, "aws_access_key_id": "me", "aws_secret_access_key": "a-secret"}
    read("s3://bucket/rows.jsonl", SourceSettings(**settings, aws_endpoint_url=endpoint))
    sent = server.requests[0][1]
    assert sent["host"] == "localhost"
    now = dt.datetime.strptime(sent["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
    plainest = SourceSettings(**settings, aws_endpoint_url="https://localhost")
    assert sent["authorization"] == s3_request("s3://bucket/rows.jsonl", plainest, now)[1]["Authorization"]


def test_the_host_header_has_the_port_unless_it_is_the_standard_one(server: Server) -> None:
    server.answers["/rows.jsonl"] = content(ROWS)
    read(server.url.replace("localhost", "LocalHost") + "/rows.jsonl")
    assert server.requests[0][1]["host"] == server.url.removeprefix("https://")
    for url, expected in [
        ("https://Host:443/", "host"),
        ("http://host:443/", "host:443"),
        ("https://[::1]:9/", "[::1]:9"),
        ("http://u:p@host:80", "host"),
    ]:
        assert host_header(urllib.parse.urlsplit(url)) == expected


def test_an_endpoint_that_is_no_url_is_refused_and_not_shown() -> None:
    error = refused("s3://bucket/rows.jsonl", SourceSettings(aws_endpoint_url="https://me:hunter2@[::1"))
    assert (error.reason, "hunter2" in error.message) == (Reason.SPEC_INVALID, False)


def test_without_a_key_the_request_is_anonymous() -> None:
    url, headers = s3_request("s3://public-rows/a b.jsonl", SourceSettings(aws_region="eu-west-1"))
    assert url == "https://s3.eu-west-1.amazonaws.com/public-rows/a%20b.jsonl"
    assert headers == {}


@pytest.fixture
def object_store(tmp_path: Path) -> Iterator[SourceSettings]:
    """A real S3-compatible server with one bucket, `rows`."""
    program = binary_path("versitygw")
    if not program.exists():
        pytest.skip(f"{program} is not there: run `make test-programs`")
    (tmp_path / "store" / "rows" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "rows" / "deep" / "train_+1.jsonl").write_bytes(ROWS)
    log = tmp_path / "store.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        str(program),
        "--access",
        "me",
        "--secret",
        "a-secret",
        "--port",
        address,
        "posix",
        str(tmp_path / "store"),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait_for(address, log)
        yield SourceSettings(
            allow_private=True,
            aws_endpoint_url=f"http://{address}",
            aws_access_key_id="me",
            aws_secret_access_key="a-secret",
        )
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(address: str, log: Path) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        threading.Event().wait(0.05)
    pytest.fail(f"the object store did not start: {log.read_text()[-500:]}")


def test_a_real_object_store_accepts_the_signature(object_store: SourceSettings) -> None:
    assert len(read("s3://rows/deep/train_+1.jsonl", object_store).training) == 2
    assert "cannot be downloaded (HTTP 404)" in refused("s3://rows/deep/none.jsonl", object_store).message
    wrong = object_store.model_copy(update={"aws_secret_access_key": SecretStr("another")})
    assert "is refused (HTTP 403)" in refused("s3://rows/deep/train_+1.jsonl", wrong).message


# --- hf://


@pytest.fixture
def hub(plain_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """As much of a hub as a data set needs: its description and its files."""
    sha = "0123456789abcdef0123456789abcdef01234567"
    files = {"README.md": b"# rows", "data/train-00001.jsonl": ROWS[35:], "data/train-00000.jsonl": ROWS[:35]}
    files["data/test.jsonl"] = ROWS
    description = {
        "id": "org/rows",
        "sha": sha,
        "siblings": [{"rfilename": name, "size": len(body)} for name, body in files.items()],
    }
    for revision in ("", "/revision/v2"):
        plain_server.answers[f"/api/datasets/org/rows{revision}"] = content(json.dumps(description).encode())
    for name, body in files.items():
        plain_server.answers[f"/datasets/org/rows/resolve/{sha}/{name}"] = content(
            body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', **{"X-Repo-Commit": sha}
        )
    monkeypatch.setenv("HF_ENDPOINT", plain_server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    return plain_server


@pytest.mark.parametrize("uri", ["hf://org/rows", "hf://org/rows@v2"])
def test_the_training_split_of_a_hub_repository_is_read_in_the_order_of_its_files(hub: Server, uri: str) -> None:
    found = read(uri, SourceSettings(token="hunter2"))
    assert [example.prompt for example in found.training] == ["a", "c"]
    asked = [(path, headers.get("authorization")) for path, headers in hub.requests if "org/rows" in path]
    assert {token for _, token in asked} == {"Bearer hunter2"}
    assert not any(path.endswith("test.jsonl") for path, _ in hub.requests)


def test_a_repository_that_is_not_there_is_named(hub: Server) -> None:
    hub.answers["/api/datasets/org/none"] = status(401, **{"X-Error-Code": "RepoNotFound"})
    error = refused("hf://org/none")
    assert (error.reason, error.retryable) == (Reason.DATASET_NOT_FOUND, False)
    assert "hf://org/none does not exist, or this token may not see it" in error.message
    hub.answers["/api/datasets/org/gated"] = status(403, **{"X-Error-Code": "GatedRepo"})
    assert "is gated; accept its terms" in refused("hf://org/gated").message


@pytest.mark.parametrize("answer", ["nobody", "garbage", "a web page"])
def test_a_hub_that_cannot_be_reached_is_worth_another_attempt(
    hub: Server, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    def garbage(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"garbage\r\n\r\n")
        handler.close_connection = True

    if answer == "nobody":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    hub.answers["/api/datasets/org/rows"] = garbage if answer == "garbage" else content(b"<html>")
    error = refused("hf://org/rows", SourceSettings(token="hunter2"))
    assert (error.reason, error.retryable) == (Reason.DATASET_NOT_FOUND, True)
    assert "the hub cannot be reached: " in error.message
    assert "hunter2" not in error.message

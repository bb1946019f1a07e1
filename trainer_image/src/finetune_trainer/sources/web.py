"""Download of one file over HTTP: from a checked address, bounded in size and time, with redirects."""

import contextlib
import http.client
import socket
import ssl
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Final, Self

from finetune_api.reasons import Reason
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.files import COMPRESSIONS, MAX_DATASET_BYTES, MIB, SUFFIXES, too_large
from finetune_trainer.errors import TrainingError, is_storage_full, one_line
from finetune_trainer.sources.addresses import host_header, resolve

MAX_REDIRECTS: Final = 5
SILENCE_SECONDS: Final = 30.0
"""Seconds that the server may stay silent."""
CHUNK_BYTES: Final = MIB
REDIRECTS: Final = (301, 302, 303, 307, 308)
URL_CHARACTERS: Final = "%/:=&?~#+!$,;'@()*[]"
"""Characters that stay unescaped in a URL, besides letters, digits and `_.-`."""


def download(url: str, headers: dict[str, str], folder: Path, settings: SourceSettings, *, name: str) -> Path:
    """Download `url` into `folder` and return the file, named by the last part of the URL's path.

    `headers` go to the first host only. Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid).
    """
    target = folder / file_name(url)
    try:
        with _Deadline(settings.timeout) as deadline:
            _download(url, headers, target, settings, deadline, name)
    except (ValueError, OSError, http.client.HTTPException) as error:
        if is_storage_full(error):
            raise
        if not deadline.expired:
            raise _failed(error, name) from None
    # A closed connection may look like the end of a file.
    if deadline.expired:
        raise TrainingError(
            Reason.DATASET_NOT_FOUND,
            f"{name} takes longer than {settings.timeout:.0f} seconds to download",
            retryable=True,
        )
    return target


def _failed(error: Exception, name: str) -> TrainingError:
    """Return the error of a failed download."""
    # Python quotes a refused header or URL, and with it the token or the signature.
    if isinstance(error, http.client.InvalidURL) or not isinstance(error, OSError | http.client.HTTPException):
        return _malformed(name)
    return TrainingError(Reason.DATASET_NOT_FOUND, f"{name} cannot be downloaded: {one_line(error)}", retryable=True)


def _malformed(name: str) -> TrainingError:
    return TrainingError(Reason.DATASET_NOT_FOUND, f"{name}: its address, or one that it redirects to, is not a URL")


def file_name(url: str) -> str:
    """Return a file name from the URL's path, whose suffix selects the parser; .jsonl without a suffix."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    suffixes = Path(last).suffixes[-2:]
    known = [suffix for suffix in suffixes if suffix.lower() in (*SUFFIXES, *COMPRESSIONS)]
    return "rows" + ("".join(known) or ".jsonl")


class _Deadline:
    """Timer that closes a connection when its time is over, whatever the connection does.

    A socket timeout is not enough, because it restarts with every byte.
    """

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._watched: socket.socket | None = None
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._timer.cancel()

    def silence(self) -> float:
        """Return the seconds that the server may stay silent from now on."""
        return max(0.001, min(SILENCE_SECONDS, self._end - time.monotonic()))

    def watch(self, connection: socket.socket) -> None:
        """Watch a connection; it is closed at once if its time is already over."""
        with self._lock:
            self._watched = connection
            if self.expired:
                self._cut_off()

    def _expire(self) -> None:
        with self._lock:
            self.expired = True
            self._cut_off()

    def _cut_off(self) -> None:
        if self._watched:
            with contextlib.suppress(OSError):  # not connected any more
                # Not SSLSocket.shutdown, which would continue in plain text.
                socket.socket.shutdown(self._watched, socket.SHUT_RDWR)


def _download(
    url: str, headers: dict[str, str], target: Path, settings: SourceSettings, deadline: _Deadline, name: str
) -> None:
    first = urllib.parse.urlsplit(url)
    for _ in range(MAX_REDIRECTS + 1):
        parts = urllib.parse.urlsplit(url)
        connection = _connect(parts, settings, deadline, name)
        same_host = (parts.scheme, host_header(parts)) == (first.scheme, host_header(first))
        try:
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            sent = {"Host": host_header(parts), "Accept-Encoding": "identity", **(headers if same_host else {})}
            connection.request("GET", path, headers=sent)
            response = connection.getresponse()
            if response.status not in REDIRECTS:
                _check_status(response, name)
                _save(response, target, name)
                return
            url = _location(response, url, name)
        finally:
            connection.close()
    raise TrainingError(Reason.DATASET_NOT_FOUND, f"{name} redirects more than {MAX_REDIRECTS} times")


def _location(response: http.client.HTTPResponse, url: str, name: str) -> str:
    """Return the target of a redirect. Raises TrainingError (DatasetNotFound) without one, ValueError for an invalid URL."""
    location = response.getheader("Location")
    if not location:
        remedy = "; check AWS_REGION" if " s3://" in name else ""
        raise TrainingError(
            Reason.DATASET_NOT_FOUND, f"{name} redirects without saying where (HTTP {response.status}){remedy}"
        )
    # http.client decodes headers as Latin-1, whatever they are.
    return urllib.parse.urljoin(url, urllib.parse.quote(location.encode("latin-1"), safe=URL_CHARACTERS))


def _connect(
    parts: urllib.parse.SplitResult, settings: SourceSettings, deadline: _Deadline, name: str
) -> http.client.HTTPConnection:
    """Connect to the checked address of the URL's host, so that a changed DNS answer has no effect."""
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    secure = parts.scheme == "https"
    # Plain HTTP only where private addresses are allowed, too: to a store inside the cluster.
    if not host or not (secure or (parts.scheme == "http" and settings.allow_private)):
        raise TrainingError(Reason.SPEC_INVALID, f"{name} leads to {parts.scheme or 'no'}://{host}; expected https://")
    port = port or (443 if secure else 80)
    address = resolve(host, port, allow_private=settings.allow_private, name=name)
    connection = http.client.HTTPConnection(host, port)
    stream = socket.create_connection((address, port), timeout=deadline.silence())
    connection.sock = _secured(stream, host, deadline) if secure else stream
    deadline.watch(connection.sock)
    return connection


def _secured(stream: socket.socket, host: str, deadline: _Deadline) -> ssl.SSLSocket:
    """Wrap the connection in TLS; the certificate is checked against the host's name, whatever the address."""
    secured = ssl.create_default_context().wrap_socket(
        stream,
        server_hostname=host,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=False,  # whoever cuts a connection could else make half a file look whole
    )
    try:
        deadline.watch(secured)
        secured.do_handshake()
    except BaseException:
        secured.close()
        raise
    return secured


def _check_status(response: http.client.HTTPResponse, name: str) -> None:
    status = response.status
    if status == 200:
        return
    if status in (401, 403):
        raise TrainingError(
            Reason.DATASET_NOT_FOUND, f"{name} is refused (HTTP {status}); check dataset.secretRef and its rights"
        )
    retryable = status >= 500 or status in (408, 429)
    raise TrainingError(Reason.DATASET_NOT_FOUND, f"{name} cannot be downloaded (HTTP {status})", retryable=retryable)


def _save(response: http.client.HTTPResponse, target: Path, name: str) -> None:
    if response.length is not None and response.length > MAX_DATASET_BYTES:
        raise too_large(name)
    expected, received = response.length, 0
    with target.open("wb") as file:
        while chunk := response.read1(CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_DATASET_BYTES:
                raise too_large(name)
            file.write(chunk)
    if expected is not None and received < expected:
        raise http.client.IncompleteRead(b"", expected - received)

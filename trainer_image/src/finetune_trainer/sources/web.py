"""One file over HTTP: from a checked address, within limits of size and time, redirects included."""

import http.client
import socket
import ssl
import time
import urllib.parse
from pathlib import Path
from typing import Final

from finetune_api.reasons import Reason
from finetune_trainer.config import SourceSettings
from finetune_trainer.data.files import COMPRESSIONS, MAX_DATASET_BYTES, MIB, SUFFIXES, too_large
from finetune_trainer.errors import TrainingError, is_storage_full, one_line
from finetune_trainer.sources.addresses import resolve

MAX_REDIRECTS: Final = 5
SILENCE_SECONDS: Final = 30.0
"""Time that the other end may say nothing."""
CHUNK_BYTES: Final = MIB
REDIRECTS: Final = (301, 302, 303, 307, 308)


def download(url: str, headers: dict[str, str], folder: Path, settings: SourceSettings, *, name: str) -> Path:
    """Write what is at `url` into `folder` and return the file, named as the URL's path ends.

    `headers` go to the first host only. Raises TrainingError (DatasetNotFound, DatasetInvalid, SpecInvalid).
    """
    target = folder / file_name(url)
    deadline = time.monotonic() + settings.timeout
    try:
        _download(url, headers, target, settings, deadline, name)
    except (OSError, http.client.HTTPException) as error:
        if is_storage_full(error):
            raise
        raise TrainingError(
            Reason.DATASET_NOT_FOUND, f"{name} cannot be downloaded: {one_line(error)}", retryable=True
        ) from None
    return target


def file_name(url: str) -> str:
    """Last part of the URL's path, which says by its suffix what the file is; .jsonl if it says nothing."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    suffixes = Path(last).suffixes[-2:]
    known = [suffix for suffix in suffixes if suffix.lower() in (*SUFFIXES, *COMPRESSIONS)]
    return "rows" + ("".join(known) or ".jsonl")


def _download(
    url: str, headers: dict[str, str], target: Path, settings: SourceSettings, deadline: float, name: str
) -> None:
    first = urllib.parse.urlsplit(url)
    for _ in range(MAX_REDIRECTS + 1):
        parts = urllib.parse.urlsplit(url)
        same_host = (parts.scheme, parts.netloc) == (first.scheme, first.netloc)
        connection = _connect(parts, settings, name)
        try:
            path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            connection.request("GET", path, headers={"Accept-Encoding": "identity", **(headers if same_host else {})})
            response = connection.getresponse()
            if response.status not in REDIRECTS:
                _check_status(response, name)
                _save(response, target, deadline, settings.timeout, name)
                return
            url = urllib.parse.urljoin(url, response.getheader("Location") or "")
        finally:
            connection.close()
    raise TrainingError(Reason.DATASET_NOT_FOUND, f"{name} redirects more than {MAX_REDIRECTS} times")


def _connect(parts: urllib.parse.SplitResult, settings: SourceSettings, name: str) -> http.client.HTTPConnection:
    """A connection to an address of the URL's host that was checked, not to what the name might mean a moment later."""
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
    connection = http.client.HTTPConnection(host, port, timeout=SILENCE_SECONDS)
    stream = socket.create_connection((address, port), timeout=SILENCE_SECONDS)
    # The certificate is checked against the host's name, whatever address was chosen.
    connection.sock = ssl.create_default_context().wrap_socket(stream, server_hostname=host) if secure else stream
    return connection


def _check_status(response: http.client.HTTPResponse, name: str) -> None:
    status = response.status
    if status == 200:
        return
    if status in (401, 403):
        raise TrainingError(
            Reason.DATASET_NOT_FOUND, f"{name} is refused (HTTP {status}); check dataset.secretRef and its rights"
        )
    retryable = status >= 500 or status in (408, 429)
    raise TrainingError(Reason.DATASET_NOT_FOUND, f"{name} is not there (HTTP {status})", retryable=retryable)


def _save(response: http.client.HTTPResponse, target: Path, deadline: float, timeout: float, name: str) -> None:
    if response.length is not None and response.length > MAX_DATASET_BYTES:
        raise too_large(name)
    expected, received = response.length, 0
    with target.open("wb") as file:
        while chunk := response.read1(CHUNK_BYTES):
            received += len(chunk)
            if received > MAX_DATASET_BYTES:
                raise too_large(name)
            if time.monotonic() > deadline:
                raise TrainingError(
                    Reason.DATASET_NOT_FOUND,
                    f"{name} takes longer than {timeout:.0f} seconds to download ({received} bytes so far)",
                    retryable=True,
                )
            file.write(chunk)
    if expected is not None and received < expected:
        raise http.client.IncompleteRead(b"", expected - received)

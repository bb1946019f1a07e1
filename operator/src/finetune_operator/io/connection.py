"""Connection to the API server: address and credentials from disk, one HTTP session, replies as bytes.

The only module that knows the Kubernetes client, which it uses for kubeconfigs, service accounts and their tokens. Requests go
through a session of its own: the client's would follow a proxy's redirect to a login page, and a watch needs single lines.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import load_incluster_config, load_kube_config

from finetune_operator.errors import ClusterError
from finetune_operator.io.replies import Request
from finetune_operator.kubernetes_types import Raw

USER_AGENT: Final = "finetune-operator"
REQUEST_SECONDS: Final = 20.0
"""Timeout of one request in seconds. An API server that needs longer is overloaded, and waiting would stall the worker."""
CONNECT_SECONDS: Final = 5.0
"""Timeout in seconds for a connection of a watch."""
SILENCE_SECONDS: Final = 70.0
"""Longest silence of a watch in seconds: the API server sends a bookmark every minute, so a silent stream is dead."""
MAX_LINE_BYTES: Final = 1 << 24
"""Longest line of a watch; an object in etcd has at most 1.5 MiB."""
MAX_SHOWN_BYTES: Final = 1024


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    content_type: str = "application/json"
    body: Raw | None = None


class Connection:
    """Connection to one API server. Use it as an async context manager."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._client: ApiClient | None = None
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Read the credentials and prepare the session. Nothing is sent yet."""
        self._client = ApiClient(await load_configuration(self._kubeconfig))
        # No limit: workers bound the requests, and each watch keeps a connection.
        connector = aiohttp.TCPConnector(limit=0, ssl=self._client.rest_client.ssl_context)
        self._session = aiohttp.ClientSession(connector=connector, trust_env=True, auto_decompress=True)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
        if self._client is not None:
            await self._client.close()

    async def send(self, request: Request, call: Call) -> tuple[int, bytes]:
        """Return status and body of the reply. Raises ClusterError with status 0 if there is none."""
        limits = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with self._reply(request, call, limits) as response:
            return response.status, await response.read()

    @contextlib.asynccontextmanager
    async def stream(self, request: Request, path: str) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        """Open a watch: status of the reply, and its lines as they come. A stream that falls silent ends with an error."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        async with self._reply(request, Call("GET", path), limits) as response:
            if response.status == 200 and response.content_type != "application/json":
                raise request.refuse("the watch is no stream of JSON", await response.content.read(MAX_SHOWN_BYTES))
            yield response.status, _lines(request, response)

    @contextlib.asynccontextmanager
    async def _reply(
        self, request: Request, call: Call, limits: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._client is None or self._session is None:
            raise RuntimeError("use Cluster as a context manager")
        configuration = self._client.configuration
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                started = await self._session.request(
                    call.method,
                    configuration.host + call.path,
                    headers=await self._headers(call),
                    data=None if call.body is None else json.dumps(call.body).encode(),
                    proxy=configuration.proxy,
                    proxy_headers=configuration.proxy_headers,
                    server_hostname=configuration.tls_server_name,
                    timeout=limits,
                    allow_redirects=False,
                )
            async with started as response:
                if response.status == 401:
                    # The token may have been replaced on disk: the next request uses the new one.
                    configuration.api_key = (await load_configuration(self._kubeconfig)).api_key
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError, ApiException) as error:
            raise ClusterError(request.verb, request.what, 0, f"{type(error).__name__}: {error}") from error

    async def _headers(self, call: Call) -> dict[str, str]:
        # Uncompressed: within a cluster, compressing costs both sides more than it saves.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        if self._client is not None:
            await self._client.update_params_for_auth(headers, [], ["BearerToken"], call.path, call.method, call.body)
        return headers


async def _lines(request: Request, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Split a stream into lines. What follows the last line break was cut off, and is dropped."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
        if len(rest) > MAX_LINE_BYTES:
            raise request.refuse("a line of the watch does not end", rest)


async def load_configuration(kubeconfig: str | None) -> Configuration:
    """Read server address and credentials from disk, where tokens are replaced while the operator runs."""
    configuration = Configuration()
    if kubeconfig is not None:
        await asyncio.to_thread(_load_kubeconfig, kubeconfig, configuration)
    else:
        load_incluster_config(client_configuration=configuration)
    return configuration


_KUBECONFIG_LOCK: Final = threading.Lock()


def _load_kubeconfig(path: str, configuration: Configuration) -> None:
    """Load a kubeconfig, one thread at a time.

    The client unpacks certificates into files that it shares between calls, and names them before they are written. Another
    thread would read half-written ones.
    """
    with _KUBECONFIG_LOCK:
        asyncio.run(load_kube_config(config_file=path, client_configuration=configuration))

"""Client of the API server, and the only module that talks to it, always with the caller's token.

There are no credentials, no kubeconfig and no cached objects here: the API server authenticates, authorizes and audits
every request as the person who made it, and objects that they may not read never enter this process.
"""

import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from finetune_api.contract import FINETUNE_JOB_PLURAL, GROUP, VERSION
from finetune_gateway.errors import UnavailableError, error_from_api_server
from finetune_gateway.settings import Settings

if TYPE_CHECKING:
    import httpx

Raw = dict[str, Any]

FIELD_MANAGER: Final = "finetune-gateway"
"""Field manager of objects created through the gateway."""
MERGE_PATCH: Final = {"Content-Type": "application/merge-patch+json"}


class Cluster:
    """Client of the API server for many callers."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the certificate authority; raises OSError if the file is missing. Connects on first use."""
        # Not imported at the top: where rich and pygments are installed, httpx also imports its command line, which takes longer
        # than the rest of this package.
        import httpx

        context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
        self._client = httpx.AsyncClient(
            base_url=settings.api_url,
            verify=context,
            timeout=settings.request_seconds,
            # Proxies and .netrc of the environment must not receive a caller's token.
            trust_env=False,
            headers={"User-Agent": FIELD_MANAGER, "Accept": "application/json"},
        )
        self._clock = clock
        self._ready_seconds = settings.ready_cache_seconds
        self._ready_until = float("-inf")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def create(self, token: str, manifest: Raw) -> Raw:
        """Create a FinetuneJob; one request. Raises GatewayError."""
        metadata = manifest["metadata"]
        return await self._call("POST", "create", token, metadata["namespace"], metadata["name"], body=manifest)

    async def read(self, token: str, namespace: str, name: str) -> Raw:
        """Read a FinetuneJob. Raises GatewayError."""
        return await self._call("GET", "get", token, namespace, name)

    async def list_page(self, token: str, namespace: str, limit: int, cursor: str | None) -> Raw:
        """List one page of FinetuneJobs. Raises GatewayError."""
        parameters = {"limit": str(limit)} | ({"continue": cursor} if cursor else {})
        return await self._call("GET", "list", token, namespace, None, parameters=parameters)

    async def cancel(self, token: str, namespace: str, name: str) -> Raw:
        """Set spec.cancel and return the changed object. Raises GatewayError."""
        return await self._call("PATCH", "patch", token, namespace, name, body={"spec": {"cancel": True}})

    async def is_ready(self) -> bool:
        """Return whether the API server answers. The request is anonymous; a positive answer is reused for some seconds."""
        if self._clock() < self._ready_until:
            return True
        try:
            response = await self._send("GET", "/readyz")
        except UnavailableError:
            return False
        # 401 and 403 mean that anonymous requests are disabled: the API server answers, which is enough.
        if ready := response.status_code < 500:
            self._ready_until = self._clock() + self._ready_seconds
        return ready

    async def _call(
        self,
        method: str,
        verb: str,
        token: str,
        namespace: str,
        name: str | None,
        *,
        parameters: Mapping[str, str] | None = None,
        body: Raw | None = None,
    ) -> Raw:
        path = _path(namespace, None if method == "POST" else name)
        query = dict(parameters or {}) | ({"fieldManager": FIELD_MANAGER} if body is not None else {})
        headers = {"Authorization": f"Bearer {token}"} | (MERGE_PATCH if method == "PATCH" else {})
        response = await self._send(method, path, params=query, headers=headers, json=body)
        if not response.is_success:
            raise error_from_api_server(response.status_code, response.content, verb, namespace, name)
        try:
            answer: Raw = response.json()
        except ValueError:
            # For example a proxy's login page.
            raise UnavailableError(
                "The API server's address answers with something that is not JSON; is there a proxy in between?"
            ) from None
        return answer

    async def _send(self, method: str, path: str, **options: Any) -> "httpx.Response":
        """Send one request. It is never retried, because only the caller knows whether that is safe. Raises UnavailableError."""
        import httpx

        try:
            return await self._client.request(method, path, **options)
        except httpx.TimeoutException:
            raise UnavailableError(
                "The API server did not answer in time. Whether the request took effect is unknown."
            ) from None
        except httpx.HTTPError as error:
            raise UnavailableError(f"The API server cannot be reached ({type(error).__name__}).") from None


def _path(namespace: str, name: str | None) -> str:
    """Return the path of the collection, or of one object. Names are already validated; quoting is a second safeguard."""
    collection = f"/apis/{GROUP}/{VERSION}/namespaces/{quote(namespace, safe='')}/{FINETUNE_JOB_PLURAL}"
    return collection if name is None else f"{collection}/{quote(name, safe='')}"

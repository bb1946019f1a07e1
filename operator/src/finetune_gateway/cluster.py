"""The only module that talks to the API server, always with the caller's token.

There is no credential here, no kubeconfig and no cache of objects: the API server authenticates, authorizes and audits
every request as the person who made it, and what they may not see never enters this process.
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
"""Shows in managedFields which door an object came through."""
MERGE_PATCH: Final = {"Content-Type": "application/merge-patch+json"}


class Cluster:
    """The API server, seen by many callers."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the certificate authority; raises OSError if the file is missing. Connects on first use."""
        # Not at the top: where rich and pygments are installed, httpx loads its command line with them, which takes longer
        # than everything else of this package.
        import httpx

        context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
        self._client = httpx.AsyncClient(
            base_url=settings.api_url,
            verify=context,
            timeout=settings.request_seconds,
            # Proxies and .netrc of the environment must not decide where a caller's token goes.
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
        """One page of FinetuneJobs. Raises GatewayError."""
        parameters = {"limit": str(limit)} | ({"continue": cursor} if cursor else {})
        return await self._call("GET", "list", token, namespace, None, parameters=parameters)

    async def cancel(self, token: str, namespace: str, name: str) -> Raw:
        """Set spec.cancel; answers with the object as it is then. Raises GatewayError."""
        return await self._call("PATCH", "patch", token, namespace, name, body={"spec": {"cancel": True}})

    async def is_ready(self) -> bool:
        """Whether the API server answers. Anonymous; a good answer is reused for some seconds."""
        if self._clock() < self._ready_until:
            return True
        try:
            response = await self._send("GET", "/readyz")
        except UnavailableError:
            return False
        # 401 and 403 mean that anonymous requests are switched off: it answers, and that is the question.
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
            # A proxy's log-in page, for example.
            raise UnavailableError("What answers at the API server's address is not an API server.") from None
        return answer

    async def _send(self, method: str, path: str, **options: Any) -> "httpx.Response":
        """One request, never repeated: only the caller knows whether that would be safe. Raises UnavailableError."""
        import httpx

        try:
            return await self._client.request(method, path, **options)
        except httpx.TimeoutException:
            raise UnavailableError(
                "The API server did not answer in time; what became of the request is unknown."
            ) from None
        except httpx.HTTPError as error:
            raise UnavailableError(f"The API server cannot be reached ({type(error).__name__}).") from None


def _path(namespace: str, name: str | None) -> str:
    """Path of the collection, or of one object. Both names were validated; quoting is the second lock on the same door."""
    collection = f"/apis/{GROUP}/{VERSION}/namespaces/{quote(namespace, safe='')}/{FINETUNE_JOB_PLURAL}"
    return collection if name is None else f"{collection}/{quote(name, safe='')}"

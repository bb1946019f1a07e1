"""A small asyncio client of the API server for the bench's own processes: the loader, the played kubelet and the bare peer."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

Raw = dict[str, Any]
ROOTS = {"finetunejobs": "/apis/finetune.dev/v1alpha1", "jobs": "/apis/batch/v1"}
"""API roots by plural; everything else is in the core group."""
MANAGED = "app.kubernetes.io/managed-by=finetune-operator"
JOB_NAME = "finetune.dev/job-name"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


def path(plural: str, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
    parts = [ROOTS.get(plural, "/api/v1")]
    if namespace is not None:
        parts += ["namespaces", namespace]
    return "/".join([*parts, plural, *filter(None, (name, subresource))])


class Api:
    """Use it as an async context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self.url = config["clusters"][0]["cluster"]["server"]
        self._user, self._cluster = config["users"][0]["user"], config["clusters"][0]["cluster"]
        self._directory = kubeconfig.parent

    async def __aenter__(self) -> Self:
        import base64
        import tempfile

        context = ssl.create_default_context(
            cadata=base64.b64decode(self._cluster["certificate-authority-data"]).decode()
        )
        with tempfile.NamedTemporaryFile("wb", suffix=".pem") as pair:
            pair.write(base64.b64decode(self._user["client-certificate-data"]))
            pair.write(base64.b64decode(self._user["client-key-data"]))
            pair.flush()
            context.load_cert_chain(pair.name)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=context), timeout=aiohttp.ClientTimeout(total=None)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def call(self, method: str, url: str, body: Raw | None = None, kind: str = "application/json") -> Raw:
        data = None if body is None else json.dumps(body)
        async with self.session.request(method, self.url + url, data=data, headers={"Content-Type": kind}) as response:
            answer: Raw = json.loads(await response.read())
            if response.status >= 300:
                raise RuntimeError(f"{method} {url}: {response.status}: {answer.get('message')}")
            return answer

    async def list(self, plural: str, namespace: str | None = None, selector: str = "") -> Raw:
        """The whole list in pages of 500, with the version it is of."""
        items: list[Raw] = []
        following, version = "", ""
        while True:
            page = await self.call(
                "GET", f"{path(plural, namespace)}?limit=500&labelSelector={selector}&continue={following}"
            )
            items += page["items"]
            version = version or page["metadata"]["resourceVersion"]
            following = page["metadata"].get("continue", "")
            if not following:
                return {"items": items, "version": version}

    async def watch(
        self, plural: str, version: str, selector: str = "", namespace: str | None = None
    ) -> AsyncIterator[Raw]:
        url = f"{self.url}{path(plural, namespace)}?watch=1&resourceVersion={version}&labelSelector={selector}"
        async with self.session.get(url) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)


async def in_flight(coroutines: Iterable[Any], limit: int = 16) -> None:
    """Run them all, so many at a time."""
    gate = asyncio.Semaphore(limit)

    async def one(coroutine: Any) -> None:
        async with gate:
            await coroutine

    await asyncio.gather(*(one(coroutine) for coroutine in coroutines))

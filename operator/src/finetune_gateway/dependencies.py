"""Dependencies of the routes: cluster, settings, caller's token, namespace, body."""

import re
from typing import Annotated, Final

from fastapi import Depends, Query, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from finetune_gateway.cluster import Cluster
from finetune_gateway.errors import GatewayError, UnauthenticatedError
from finetune_gateway.schemas import Namespace
from finetune_gateway.settings import Settings

_BEARER: Final = HTTPBearer(
    auto_error=False,
    scheme_name="KubernetesToken",
    description="A Kubernetes bearer token, for example from `kubectl create token NAME`. It is forwarded to the API server.",
)
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""Bearer token of RFC 6750; anything else is refused here."""


def settings_of(request: Request) -> Settings:
    """Return the settings of the application."""
    settings: Settings = request.app.state.settings
    return settings


def cluster_of(request: Request) -> Cluster:
    """Return the application's client of the API server."""
    cluster: Cluster = request.app.state.cluster
    return cluster


def caller_token(credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]) -> str:
    """Return the caller's token; raises UnauthenticatedError without one. The API server checks whether it is valid."""
    if credentials is None:
        raise UnauthenticatedError("There is no token. Send your Kubernetes token as `Authorization: Bearer TOKEN`.")
    if not _TOKEN.fullmatch(credentials.credentials):
        raise UnauthenticatedError("The Authorization header has no well-formed bearer token.", error="invalid_request")
    return credentials.credentials


async def limited_body(request: Request) -> bytes:
    """Read the body; raises 413 as soon as it is known to be too large."""
    limit = settings_of(request).max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> GatewayError:
    message = (
        f"The body has more than {limit} bytes. Put the rows into a ConfigMap or on a claim, and set dataset.source."
    )
    # The rest of the body is not read, so the connection cannot be reused.
    return GatewayError(413, "TooLarge", message, headers={"Connection": "close"})


TheCluster = Annotated[Cluster, Depends(cluster_of)]
TheSettings = Annotated[Settings, Depends(settings_of)]
CallerToken = Annotated[str, Depends(caller_token)]
NamespaceQuery = Annotated[
    Namespace | None, Query(description="namespace of the job. Default: the gateway's default namespace.")
]

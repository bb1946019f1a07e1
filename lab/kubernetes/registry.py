"""Questions to the local image registry, over its HTTP API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from lab.kubernetes.errors import ClusterError
from lab.kubernetes.layout import REGISTRY, REGISTRY_ADDRESS

_MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class PushedImage:
    """An image as the registry holds it."""

    name: str
    digest: str
    layers: tuple[tuple[str, int], ...]
    """Digest and compressed bytes of each layer, the base's first."""

    @property
    def reference(self) -> str:
        """The name that pods should use: it never changes its meaning."""
        return f"{REGISTRY}/{self.name}@{self.digest}"

    @property
    def compressed_bytes(self) -> int:
        return sum(size for _, size in self.layers)


def find_image(name: str, tag: str) -> PushedImage | None:
    """Return the image of this name and tag, or None if it was never pushed."""
    url = f"http://{REGISTRY_ADDRESS}/v2/{name}/manifests/{tag}"
    request = urllib.request.Request(url, headers={"Accept": _MANIFEST_TYPES})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            digest = response.headers["Docker-Content-Digest"]
            manifest: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    except OSError as error:
        raise ClusterError(f"the image registry at {REGISTRY_ADDRESS} does not answer ({error}); run `up`") from None
    return PushedImage(name, digest, tuple((layer["digest"], layer["size"]) for layer in manifest["layers"]))


def require_image(name: str, tag: str) -> PushedImage:
    image = find_image(name, tag)
    if image is None:
        raise ClusterError(f"the registry has no image {name}:{tag}")
    return image

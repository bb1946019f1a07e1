"""What the administrator decides about the gateway. Read once at start from FINETUNE_GATEWAY_* variables."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def in_cluster_url() -> str:
    """Address of the API server as every pod is told it."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class Settings(BaseSettings):
    """All settings of the gateway. There is no credential among them: each request brings its caller's."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_GATEWAY_", frozen=True, extra="ignore")

    api_url: str = Field(default_factory=in_cluster_url)
    """Address of the API server."""
    ca_file: Path | None = None
    """Certificate authority of the API server; unset means the system's."""
    default_namespace: str = "default"
    """Namespace of requests that name none."""

    host: str = "0.0.0.0"  # noqa: S104 - requests come from outside the pod
    """Address to listen on."""
    port: int = 8080
    """Port to listen on."""
    log_level: str = "INFO"
    """Lowest level that is logged."""

    request_seconds: float = 10.0
    """Longest time for one request to the API server; then the caller is told to come back."""
    max_body_bytes: int = 262_144
    """Largest request body. Two inline datasets of the API's own limit (128 KiB each) do not both fit into a pod's
    configuration either."""
    ready_cache_seconds: float = 5.0
    """How long an answer of /readyz is reused, so that probes of many replicas cost the API server nothing."""

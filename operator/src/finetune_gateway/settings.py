"""Settings of the gateway. Read once at start from FINETUNE_GATEWAY_* variables."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def in_cluster_url() -> str:
    """Return the address of the API server from a pod's environment."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class Settings(BaseSettings):
    """Settings of the gateway. None is a credential, because each request brings its caller's token."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_GATEWAY_", frozen=True, extra="ignore")

    api_url: str = Field(default_factory=in_cluster_url)
    """Address of the API server."""
    ca_file: Path | None = None
    """Certificate authority of the API server; unset means the system's."""
    default_namespace: str = "default"
    """Namespace for requests that name none."""

    host: str = "0.0.0.0"  # noqa: S104 - requests come from outside the pod
    """Address to listen on."""
    port: int = 8080
    """Port to listen on."""
    log_level: str = "INFO"
    """Minimum level that is logged."""

    request_seconds: float = 10.0
    """Timeout in seconds of one request to the API server; after it the caller gets a 503."""
    max_body_bytes: int = 262_144
    """Largest request body in bytes. Two inline datasets of the largest size (128 KiB each) would not fit into a pod's
    configuration either."""
    ready_cache_seconds: float = 5.0
    """Seconds for which an answer of /readyz is reused, to spare the API server the probes of many replicas."""
